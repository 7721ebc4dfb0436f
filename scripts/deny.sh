#!/usr/bin/env bash
# deny.sh: cargo deny over all dependencies. Advisories come from a database on the network: without it they are left out,
# which is said; licences, bans and sources are always checked.
set -euo pipefail
version=0.20.2

cd "$(dirname "$(realpath "$0")")/.."
tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
if ! cargo deny --version >/dev/null 2>&1 && ! [ -x "$tools/bin/cargo-deny" ]; then
  echo "deny: building cargo-deny $version, once" >&2
  cargo install --quiet --locked --debug --root "$tools" --target-dir "$tools/build" --version "$version" cargo-deny
  rm -rf "$tools/build"
fi
export PATH=$PATH:$tools/bin
cargo deny --workspace --locked check --hide-inclusion-graph bans licenses sources
if cargo deny --workspace --locked check --hide-inclusion-graph advisories 2>"$tools.advisories"; then
  echo "deny: no advisories" >&2
elif grep -q 'failed to fetch advisory database' "$tools.advisories"; then
  echo "deny: NOT CHECKED: advisories, their database is out of reach" >&2
else
  cat "$tools.advisories" >&2
  exit 1
fi
