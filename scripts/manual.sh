#!/usr/bin/env bash
# manual.sh [--write]: checks the manual, docs/, and builds the book in target/manual (or $CARGO_TARGET_DIR/manual).
#
#   1  the targets of all links and all named files exist
#   2  the generated parts (commands, features of hypervisors) are current
#   3  the examples print what the pages show; they need the fixture closure `small`
#   4  the messages that pages quote occur in the sources
#   5  mdBook builds the book without warnings
# With --write, steps 2 and 3 update the pages; review the difference before you commit it.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }
write=()
case ${1:-} in
'') ;;
--write) write=(--write) ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export MICROVM_FIXTURES=${MICROVM_FIXTURES:-$PWD/target/fixtures}
[ -f "$MICROVM_FIXTURES/small/toplevel" ] || fixtures/closure/build.sh small

# Installed once, in about a minute of processor time. Without features it is only the renderer.
version=0.5.4
mdbook=$target/manual-tools/bin/mdbook
if ! "$mdbook" --version 2>/dev/null | grep -qF "v$version"; then
  echo "manual: installing mdBook $version with cargo, once" >&2
  env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_STRIP=true \
    cargo install --quiet --locked --debug --no-default-features --root "$target/manual-tools" "mdbook@$version"
fi

cargo build --locked --quiet -p imagebuilder -p launcher -p manual
manual=$target/debug/manual
# Not below the work tree, because Nix would treat a flake there as a part of it.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$manual" links
"$manual" parts "${write[@]}"
"$manual" examples "${write[@]}" --scratch "$scratch/examples"
"$manual" messages

book=$target/manual
log=$scratch/log
"$mdbook" build --dest-dir "$book" docs >"$log" 2>&1 || { cat "$log" >&2; die "mdBook cannot make the book"; }
! grep -E 'WARN|ERROR' "$log" >&2 || die "mdBook warns, see above"
[ -f "$book/index.html" ] || die "mdBook made no $book/index.html"
echo "manual: $book/index.html" >&2
