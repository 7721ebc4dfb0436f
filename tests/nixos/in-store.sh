#!/usr/bin/env bash
# in-store.sh COMMAND...: runs a command with the rig's $NIXOS_RIG/nix as /nix, and with a Nix that does not use the
# network.
set -euo pipefail
rig=${NIXOS_RIG:?the directory for packages, the store and states, which run.sh sets}
mkdir -p "$rig/nix/store" /nix
# As on a NixOS host. Otherwise a guest with this store as a share tries to change it.
chmod 1775 "$rig/nix/store"
chown 0:30000 "$rig/nix/store"
# The host's configuration is not used. Without fsync-metadata thousands of derivations are written in seconds.
export NIX_REMOTE='' NIX_CONF_DIR=/var/empty NIX_USER_CONF_FILES=/dev/null NIX_CONFIG='substituters =
build-users-group =
builders =
experimental-features = nix-command flakes
sandbox = true
sandbox-paths =
fsync-metadata = false
max-jobs = 2'
# shellcheck disable=SC2016 # $1 is the inner shell's
exec unshare --mount --propagation private bash -euc 'mount --bind "$1" /nix; shift; exec "$@"' bash "$rig/nix" "$@"
