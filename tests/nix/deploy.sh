#!/usr/bin/env bash
# deploy.sh MICROVM: deploys machines over SSH, with a real server, to a host that has a Nix store of its own and no
# flake. tests/nix/run.sh runs this script as root. Only systemctl and sudo are replaced, by programs that record their
# arguments.
#   MICROVM    the static program microvm
set -euo pipefail

die() { printf 'error: %s\n' "$1" >&2; exit 1; }
[ $# -eq 1 ] || { printf 'error: usage: %s MICROVM\n' "$0" >&2; exit 2; }
if [ -z "${MICROVM_TEST_IN_NAMESPACE:-}" ]; then
  MICROVM_TEST_IN_NAMESPACE=1 exec unshare --net --mount --propagation private "$(realpath "$0")" "$@"
fi
ip link set lo up
deploy=$(dirname "$(realpath "$0")")/../../nixos-modules/microvm/deploy.sh
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$scratch"' EXIT
host=$scratch/host
mkdir -p "$scratch"/{flake,bin} "$host"/{nix,bin,state,etc}

settings='substituters =
build-users-group =
builders =
experimental-features = nix-command flakes
sandbox = true
sandbox-paths = /bin/sh=/usr/bin/busybox /bin/mkdir=/usr/bin/busybox /bin/chmod=/usr/bin/busybox
flake-registry =
fsync-metadata = false'

# The computer from which the machines are deployed.
export NIX_REMOTE='' NIX_CONF_DIR=/var/empty NIX_USER_CONF_FILES=/dev/null NIX_CONFIG="store = $scratch/ci
$settings"

# The host sees its own store as /nix.
nix-store --generate-binary-cache-key ci "$scratch/secret-key" "$scratch/public-key"
printf '%s\ntrusted-public-keys = %s\n' "$settings" "$(cat "$scratch/public-key")" >"$host/etc/nix.conf"
cp "$1" "$host/bin/microvm"
# shellcheck disable=SC2016 # the programs' own variables
for program in systemctl sudo; do
  printf '#!/bin/sh\necho %s "$@" >>%s/calls\n[ %s = systemctl ] || exec "$@"\n' "$program" "$host" "$program" >"$host/bin/$program"
done
chmod +x "$host/bin"/*
ssh-keygen -q -t ed25519 -N '' -f "$scratch/host-key"
ssh-keygen -q -t ed25519 -N '' -f "$scratch/key"
cat >"$scratch/sshd.conf" <<SERVER
ListenAddress 127.0.0.1:22
HostKey $scratch/host-key
AuthorizedKeysFile $scratch/key.pub
PidFile none
StrictModes no
UsePAM no
SetEnv PATH=$host/bin:/usr/sbin:/usr/bin:/sbin:/bin NIX_REMOTE= NIX_CONF_DIR=$host/etc NIX_USER_CONF_FILES=/dev/null MICROVM_STATE_DIR=$host/state MICROVM_RUNTIME_DIR=$host/run
SERVER
mkdir -p /run/sshd /nix
# shellcheck disable=SC2016 # $1 is the inner shell's
unshare --mount --uts --propagation private bash -euc 'hostname host; mount --bind "$1/nix" /nix; exec /usr/sbin/sshd -D -e -f "$2"' bash "$host" "$scratch/sshd.conf" 2>"$scratch/sshd.log" &
server=$!
cat >"$scratch/ssh.conf" <<CLIENT
Host host.example
  HostName 127.0.0.1
  IdentityFile $scratch/key
  UserKnownHostsFile $scratch/known
  BatchMode yes
CLIENT
printf '127.0.0.1 %s\n' "$(cat "$scratch/host-key.pub")" >"$scratch/known"
printf '#!/bin/sh\nexec /usr/bin/ssh -F %s "$@"\n' "$scratch/ssh.conf" >"$scratch/bin/ssh"
chmod +x "$scratch/bin/ssh"
export PATH=$scratch/bin:$PATH
for _ in {1..200}; do ! ssh root@host.example true 2>/dev/null || break; sleep 0.1; done
# shellcheck disable=SC2029 # the arguments are words without special characters
on_host() { ssh root@host.example "$@"; }
on_host true || { cat "$scratch/sshd.log" >&2; die "the SSH server does not answer"; }

flake() { # CONTENT: writes a flake with two machines, whose runners also contain what switches to their systems
  local name machines='' script
  for name in web db; do
    script="mkdir -p \$out/bin; echo $1 >\$out/content; echo '#!/bin/sh' >\$out/bin/switch-to-configuration; echo 'echo $name \$1 >>$host/switched' >>\$out/bin/switch-to-configuration; chmod +x \$out/bin/switch-to-configuration"
    machines+="$name.config.microvm.declaredRunner = derivation { name = \"microvm-$name\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" \"${script//\$1/\\\$1}\" ]; PATH = \"/bin\"; }; "
  done
  printf '{ outputs = _: { nixosConfigurations = { %s}; }; }\n' "$machines" >"$scratch/flake/flake.nix"
}
runner() { nix eval --raw "path:$scratch/flake#nixosConfigurations.$1.config.microvm.declaredRunner.$2"; } # NAME drvPath|outPath
# The commands as nixos-modules/microvm/deploy.nix composes them, for a machine that is restarted, or that can be switched
# to $system.
run() { # COMMAND NAME ARGUMENT...
  local derivation
  derivation=$(runner "$2" drvPath)
  # shellcheck disable=SC2016 # $1 is the inner shell's
  bash -c 'set -euo pipefail; name=$1 runner=$2 system=${SYSTEM:-} registration=${REGISTRATION:-} closureOnly=""; . "$3"; "${@:4}"' \
    "microvm-$1-$2" "$2" "$derivation" "$deploy" "$1" "${@:3}" 2>&1
}
expect() { # NAME LINK CONTENT: what the link of a machine on the host leads to
  local content
  content=$(on_host "cat $host/state/$1/$2/content") || die "$1 has no runner as $2: $printed"
  [ "$content" = "$3" ] || die "$1 has $content instead of $3 as $2: $printed"
}

flake 1
for name in web db; do printed=$(run install_on_host "$name" root@host.example) || die "$name was not installed: $printed"; done
grep -q '^building ' <<<"$printed" || die "the host did not build the machine: $printed"
expect web current 1
on_host nix-store --gc >/dev/null 2>&1
expect web current 1
printed=$(run install_on_host web root@host.example) || die "nothing was to be done: $printed"
grep -qx 'web is up to date' <<<"$printed" || die "nothing was to be done: $printed"

# An update that CI builds and copies: the host builds nothing. The old runner stays until the machine is restarted.
flake 2
nix build --out-link "$scratch/result" "path:$scratch/flake#nixosConfigurations.web.config.microvm.declaredRunner" 2>/dev/null
! printed=$(nix copy --to ssh-ng://root@host.example "$(runner web outPath)" 2>&1) || die "the host took a path without a signature: $printed"
grep -q 'lacks a valid signature' <<<"$printed" || die "the path was refused for another reason: $printed"
nix copy --no-check-sigs --to ssh-ng://root@host.example "$(runner web outPath)" 2>/dev/null
printed=$(run install_on_host web root@host.example) || die "web was not updated: $printed"
! grep -q '^building ' <<<"$printed" || die "the host built what had been copied: $printed"
expect web current 2
expect web old 1
# Signed by CI, it is accepted from every user.
nix build --no-link "path:$scratch/flake#nixosConfigurations.db.config.microvm.declaredRunner" 2>/dev/null
nix store sign --key-file "$scratch/secret-key" "$(runner db outPath)" 2>/dev/null
nix copy --to ssh-ng://root@host.example "$(runner db outPath)" 2>/dev/null || die "the host refused a signed path"

# On the host there is no flake to update from, but everything else works.
[ "$(on_host microvm list --offline --json | jq -r 'map(.name) | sort | join(" ")')" = 'db web' ] || die "the host does not know its machines: $(on_host microvm list --offline --json)"
! printed=$(on_host microvm update web 2>&1) || die "a machine without a flake was updated"
grep -q '^error: web has no flake on this host.*microvm.deploy.installOnHost$' <<<"$printed" || die "the error does not say how to update a machine without a flake: $printed"

printed=$(run rebuild web root@host.example root@web.example --use-remote-sudo) || die "web was not rebuilt: $printed"
grep -qx 'systemctl restart microvm@web.service' "$host/calls" && grep -q '^sudo bash' "$host/calls" || die "web was not restarted with sudo: $(cat "$host/calls")"

# A running machine is switched over SSH. It is the same server, under the machine's name.
flake 3
system=$(runner web outPath)
export SYSTEM=$system
! printed=$(run ssh_switch web root@host.example) || die "another machine was switched: $printed"
grep -qx 'error: this is host, not web' <<<"$printed" || die "another machine was not switched for another reason: $printed"
on_host hostname web
! printed=$(run ssh_switch web root@host.example) || die "a machine was switched to a system that it does not have: $printed"
grep -qx "error: $system is not in the machine's store; install it on the host first" <<<"$printed" || die "the error does not say what is missing: $printed"
printed=$(run rebuild web root@host.example root@host.example) || die "web was not rebuilt and switched: $printed"
expect web current 3
[ "$(on_host readlink -f /nix/var/nix/profiles/system)" = "$system" ] || die "the system of the machine is $(on_host readlink -f /nix/var/nix/profiles/system)"
on_host nix-store --dump-db "$system" >"$host/registration"
REGISTRATION=$host/registration run ssh_switch web root@host.example --use-remote-sudo boot >/dev/null || die "web was not switched with sudo"
[ "$(cat "$host/switched")" = $'web switch\nweb boot' ] || die "web was switched to: $(cat "$host/switched")"
! printed=$(run ssh_switch web root@host.example reboot) || die "an unknown action was accepted"
grep -q '^error: usage: .*\[switch|boot|test|dry-activate\]$' <<<"$printed" || die "the error does not list the actions: $printed"
unset SYSTEM

# The host builds for the other computer, which builds nothing itself.
printed=$(nix build --no-link --max-jobs 0 --builders 'ssh://root@host.example x86_64-linux' \
  "path:$scratch/flake#nixosConfigurations.db.config.microvm.declaredRunner" 2>&1) || die "the remote builder built nothing: $printed"
grep -q "on 'ssh://root@host.example'" <<<"$printed" || die "the remote builder was not used: $printed"
[ "$(cat "$scratch/ci$(runner db outPath)/content")" = 3 ] || die "what the remote builder built was not copied back"

ln -s /nix/store "$host/state/db/toplevel"
! printed=$(run install_on_host db root@host.example) || die "a machine of the host's configuration was replaced: $printed"
grep -qx "error: db is part of the host's configuration, which updates it" <<<"$printed" || die "a machine of the host's configuration was replaced: $printed"
echo "machines are deployed and updated over SSH"
