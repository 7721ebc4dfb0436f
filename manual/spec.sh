#!/usr/bin/env bash
# spec.sh FILE.nix: prints the machine spec of a module of the manual as JSON, or its failed assertions as NixOS prints
# them.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
made=$(nix-instantiate --eval --strict --json "$here/spec.nix" --arg module "$(realpath "$1")" \
  --argstr fixtures "$(realpath "$MICROVM_FIXTURES")" 2> >(grep -v build-users-group >&2))
jq -r '.warnings[] | "warning: " + .' <<<"$made" >&2
if jq -e '.refused != []' <<<"$made" >/dev/null; then
  { echo 'error: Failed assertions:'; jq -r '.refused[] | "- " + .' <<<"$made"; } >&2
  exit 1
fi
jq .spec <<<"$made"
