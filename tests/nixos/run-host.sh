#!/usr/bin/env bash
# run-host.sh SCENARIO ARGUMENT...: builds the systems of a scenario of hosts.nix and boots the first as a container
# (systemd-nspawn) with its own store and Nix database. The ARGUMENTs are passed to nix-build. run.sh runs this script.
set -euo pipefail
scenario=$1
shift
rig=${NIXOS_RIG:?}
state=$rig/states/$scenario
seconds=${MICROVM_NIXOS_HOST_SECONDS:-7200}
say() { printf 'nixos: %s: %s\n' "$scenario" "$*" >&2; }

chattr -i "$state/root/var/empty" 2>/dev/null || true
rm -rf "$state"
mkdir -p "$state/out"
count=$(jq --arg scenario "$scenario" '.[$scenario].systems' "$rig/plan.json")
started=$SECONDS
attributes=()
for ((number = 0; number < count; number++)); do attributes+=(-A "hosts.$scenario.$number.config.system.build.toplevel"); done
./in-store.sh nix-build --no-out-link "$@" "${attributes[@]}" default.nix >"$state/out/systems" 2>"$state/build.log" || { tail -n 20 "$state/build.log" >&2; exit 1; }
say "built in $((SECONDS - started)) s"
mapfile -t systems <"$state/out/systems"
# shellcheck disable=SC2016 # $1 is the inner shell's
./in-store.sh bash -euc 'nix-store --query --requisites "$@" | tee "$0/paths" | xargs nix-store --dump-db >"$0/registration"' "$state" "${systems[@]}"

# Hard links, so that a garbage collection in the container does not affect the rig's store.
root=$state/root
mkdir -p "$root"/{etc,nix/store,nix/var/nix/profiles,host/usr,host/lib64,usr,sbin,bin,tmp,var,run,proc,sys,dev,out,root}
sed "s,^,$rig," "$state/paths" | xargs cp -al -t "$root/nix/store"
chmod 1775 "$root/nix/store"
chown 0:30000 "$root/nix/store"
# A store path that nothing needs.
garbage=/nix/store/00000000000000000000000000000000-garbage
touch "$root$garbage"
echo "$garbage" >"$state/out/garbage"
NIX_REMOTE='' NIX_CONF_DIR=/var/empty nix-store --store "local?root=$root" --load-db <"$state/registration" 2>/dev/null
ln -s "${systems[0]}" "$root/nix/var/nix/profiles/system-1-link"
ln -s system-1-link "$root/nix/var/nix/profiles/system"
# This computer's qemu and its libraries.
ln -s ../usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$root/host/lib64/"
touch "$root/etc/os-release"
# Created as NixOS's udev would, because a container has no udev.
mknod -m 0666 "$state/tun" c 10 200

started=$SECONDS
process=
trap '[ -z "$process" ] || kill -KILL -- "-$process" 2>/dev/null || true' EXIT
printed=$state/out/printed
boot() { # CONSOLE: the system that is the profile's
  local system
  system=$(readlink "$root/nix/var/nix/profiles/$(readlink "$root/nix/var/nix/profiles/system")")
  # shellcheck disable=SC2016
  setsid unshare --mount --cgroup --pid --fork --kill-child --mount-proc --propagation private bash -euc '
    for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
      [ -e "$hierarchy/cgroup.procs" ] || continue
      mkdir -p "$hierarchy/nixos-rig-$5"
      echo $$ >"$hierarchy/nixos-rig-$5/cgroup.procs"
    done
    mount --bind "$1" "$1"
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --register=no --keep-unit --directory "$1" \
      --private-network --capability=all --bind-ro=/usr:/host/usr --bind="$2:/out" --kill-signal=SIGRTMIN+3 --console=read-only \
      --bind="$4:/dev/net/tun" --property=DeviceAllow="char-* rwm" --setenv=container_uuid=00000000000000000000000000000001 \
      "$3/init" systemd.show_status=error' bash "$root" "$state/out" "$system" "$state/tun" "$BASHPID" </dev/null >"$1" 2>&1 &
  process=$!
}
ended() { # as the host, or by the power cut that it asks for, or after too long
  local code=0
  while kill -0 "$process" 2>/dev/null; do
    if grep -qx cut "$printed" 2>/dev/null && [ ! -e "$state/was-cut" ]; then
      touch "$state/was-cut"
      kill -KILL -- "-$process"
      wait "$process" 2>/dev/null || true
      return 1
    fi
    [ $((SECONDS - started)) -lt "$seconds" ] || { say "not done within $seconds s"; kill -KILL -- "-$process"; }
    sleep 1
  done
  wait "$process" || code=$?
  [ "$code" = 0 ] || say "systemd-nspawn ended with $code"
}
boot "$state/console"
if ! ended; then
  say "the power was cut after $((SECONDS - started)) s"
  boot "$state/console-after-cut"
  ended
fi
process=
cp -r "$root"/var/log/journal/*/ "$state/journal" 2>/dev/null || true
chattr -i "$root/var/empty" 2>/dev/null || true
rm -rf "$root"

touch "$printed"
while read -r line; do say "$line"; done < <(grep '^FAILED\|^printed: ' "$printed")
say "$(grep -c '^ok' "$printed" || true) checks passed in $((SECONDS - started)) s"
grep -qx end "$printed" || { say "the host did not come to its end: $(tail -n 3 "$state/console")"; exit 1; }
! grep -q '^FAILED' "$printed"
