#!/usr/bin/env bash
# host.sh FILE.nix: evaluates a module of the manual as the configuration of a host, with `nixosModules.host`. Prints the
# machines with a fixed address, or the failed assertions as NixOS prints them.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
made=$(nix-instantiate --eval --strict --json "$here/host.nix" --arg module "$(realpath "$1")" \
  --argstr fixtures "$(realpath "$MICROVM_FIXTURES")" 2> >(grep -v build-users-group >&2))
if jq -e '.refused != []' <<<"$made" >/dev/null; then
  { echo 'error: Failed assertions:'; jq -r '.refused[] | "- " + .' <<<"$made"; } >&2
  exit 1
fi
jq -r '.machines[]' <<<"$made"
