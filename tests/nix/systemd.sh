#!/usr/bin/env bash
# systemd.sh STORE UNITS TMPFILES PLAN PROGRAMS: the host module's units under a real systemd. A container of this system (systemd-nspawn,
# its own init, network and devices, nothing left behind) starts a machine on each hypervisor that is there, looks at the
# confinement of the processes, and stops them. Run as root by tests/nix/run.sh.
#   STORE      the directory that is the container's /nix/store
#   UNITS      the units of tests/nix/systemd.nix, TMPFILES its rules for systemd-tmpfiles
#   PLAN       the plan of a store disk of it
#   PROGRAMS   a directory with bin/microvm-image, static
#   MICROVM_TEST_{CLOUD_HYPERVISOR,FIRECRACKER,CROSVM,KVMTOOL,VIRTIOFSD}: programs, where they are
set -euo pipefail

die() { printf 'error: %s\n' "$1" >&2; exit 1; }
say() { printf 'nix: %s\n' "$*" >&2; }

# Names of machines, with the program that each needs.
program_of() { # MACHINE
  case $1 in
  qemu | made-on-host) echo qemu-system-x86_64 ;;
  kvmtool) echo lkvm ;;
  *) echo "$1" ;;
  esac
}
machines=(qemu made-on-host cloud-hypervisor firecracker crosvm kvmtool)

# In the container.

wait_for() { # MACHINE TEXT: in the machine's journal, for at most 40 s
  local _
  for _ in {1..80}; do
    ! journalctl --quiet --unit "microvm@$1" | grep --quiet "$2" || return 0
    sleep 0.5
  done
  journalctl --quiet --no-pager --unit "*microvm*$1*" | tail -n 60 >&2
  systemctl status --no-pager "microvm@$1" >&2 || true
  die "microvm@$1 did not say \`$2\` within 40 s; its journal is above"
}

check_running() { # MACHINE
  local process processes status exposure
  wait_for "$1" 'devices reported'
  wait_for "$1" waiting
  processes=$(cat "/sys/fs/cgroup$(systemctl show --property ControlGroup --value "microvm@$1")/cgroup.procs")
  [ "$(wc -w <<<"$processes")" -ge 2 ] || die "microvm@$1 has no process beside its supervisor"
  for process in $processes; do
    status=$(cat "/proc/$process/status")
    grep -q '^Seccomp:.*2' <<<"$status" || die "a process of microvm@$1 has no system call filter"
  done
  process=$(systemctl show --property MainPID --value "microvm@$1")
  [ "$(ps -o user= -p "$process")" = microvm ] || die "microvm@$1 runs as $(ps -o user= -p "$process")"
  # The right that the bridge helper needs is in the bounding set, but not the process's.
  grep -q '^CapEff:.*0000000000000000' "/proc/$process/status" || die "microvm@$1 has capabilities: $(grep Cap "/proc/$process/status")"
  ip link show "vm-${1:0:11}" >/dev/null || die "microvm@$1 has no tap"
  [ "$(readlink "/var/lib/microvms/$1/booted")" = "$(readlink "/var/lib/microvms/$1/current")" ] || die "nothing tells what microvm@$1 was started with"
  exposure=$(systemd-analyze security --no-pager "microvm@$1" | tail -n 1)
  grep -q 'OK\|SAFE' <<<"$exposure" || die "microvm@$1 is not hardened: $exposure"
  printf '%s: runs;%s\n' "$1" "${exposure#*→}"
}

check_stopped() { # MACHINE
  local show
  systemctl stop "microvm@$1"
  show=$(systemctl show --property ActiveState,Result,ExecMainStatus "microvm@$1" | sort | tr '\n' ' ')
  [ "$show" = 'ActiveState=inactive ExecMainStatus=0 Result=success ' ] ||
    { journalctl --no-pager --unit "microvm@$1" | tail -n 30 >&2; die "microvm@$1 did not stop well: $show"; }
  journalctl --quiet --unit "microvm@$1" | grep -q 'request ' || { journalctl --no-pager --unit "microvm@$1" | tail -n 30 >&2; die "microvm@$1 was not asked to stop"; }
  # It stops with the machine, but nobody waits for it.
  timeout 10 bash -c 'while ip link show "$1"; do sleep 0.1; done' bash "vm-${1:0:11}" >/dev/null 2>&1 || die "the tap of microvm@$1 is still there"
  timeout 10 bash -c 'while [ -L "$1" ]; do sleep 0.1; done' bash "/var/lib/microvms/$1/booted" || die "the link to what microvm@$1 was started with is still there"
}

make_devices() { # those of this system that machines need, as udev makes them on a host
  local name mode group number
  while read -r name mode group; do
    number=/sys/class/misc/${name##*/}/dev
    [ -e "$number" ] || continue
    mkdir -p "$(dirname "/dev/$name")"
    # systemd-nspawn has made some, which are root's.
    [ -e "/dev/$name" ] || mknod "/dev/$name" c "$(cut -d : -f 1 "$number")" "$(cut -d : -f 2 "$number")"
    chmod "$mode" "/dev/$name"
    chgrp "$group" "/dev/$name"
  done <<'DEVICES'
kvm 0660 kvm
net/tun 0666 root
vhost-net 0660 kvm
vhost-vsock 0660 kvm
DEVICES
}

build_as() { # USER OUTPUT: the store disk of a plan, with the report
  setpriv --reuid="$1" --regid=nogroup --clear-groups env HOME=/nonexistent MICROVM_IMAGE_CACHE=/nonexistent \
    microvm-image build --plan /root/plan.json --no-cache --cache-socket /run/microvm-image/cache.sock --output "$2" --json
}

check_cache_service() {
  local process first second exposure unit=microvm-image-cache
  # Nix's daemon, as on a host.
  nix-daemon >/out/nix-daemon.log 2>&1 &
  timeout 60 bash -c 'until [ -S /nix/var/nix/daemon-socket/socket ]; do sleep 0.1; done' || die "Nix's daemon did not start: $(cat /out/nix-daemon.log)"
  systemctl start "$unit.socket"
  mkdir -m 1777 /tmp/images
  first=$(build_as nobody /tmp/images/first) || die "no store disk with the service: $first"
  process=$(systemctl show --property MainPID --value "$unit")
  [ "$process" != 0 ] || die "the socket did not start the cache service"
  [ "$(ps -o user:32= -p "$process")" = microvm-image-cache ] || die "the cache service runs as $(ps -o user:32= -p "$process")"
  [ "$(grep -c '^Cap\(Eff\|Prm\|Bnd\|Amb\|Inh\):.*0000000000000000' "/proc/$process/status")" = 5 ] || die "the cache service has capabilities: $(grep Cap "/proc/$process/status")"
  grep -q '^Seccomp:.*2' "/proc/$process/status" || die "the cache service has no system call filter"
  exposure=$(systemd-analyze security --no-pager "$unit" | tail -n 1)
  awk -F ': ' '{ exit !($NF + 0 <= 2.0) }' <<<"$exposure" || die "the cache service is not hardened: $exposure"
  # Another user gets what the first one had made, and the same disk.
  second=$(build_as daemon /tmp/images/second) || die "no store disk for another user: $second"
  jq -e '.cache.hitPaths == .paths' <<<"$second" >/dev/null || { journalctl --no-pager --unit "$unit" >&2; die "not all came from the service: $second"; }
  cmp /tmp/images/first /tmp/images/second || die "the service gave another user another disk"
  # One that is killed is started again by the next build.
  systemctl kill --signal=SIGKILL "$unit"
  second=$(build_as daemon /tmp/images/third) || die "no store disk after the service was killed: $second"
  jq -e '.cache.hitPaths == .paths' <<<"$second" >/dev/null || { journalctl --no-pager --unit "$unit" >&2; die "the service was not started again: $second"; }
  systemctl stop "$unit.socket" "$unit"
  systemctl reset-failed "$unit"
  microvm-image build --plan /root/plan.json --no-cache --output /tmp/images/without --quiet
  cmp /tmp/images/first /tmp/images/without || die "the disk is another one without the service"
  systemctl start "$unit.socket"
  printf 'cache service: every user gets the same packs;%s\n' "${exposure#*→}"
}

inside() {
  local there=() name
  make_devices
  check_cache_service
  for name in "${machines[@]}"; do
    if ! command -v "$(program_of "$name")" >/dev/null; then
      echo "skipped: $name is not there"
    elif [ "$(program_of "$name")" != qemu-system-x86_64 ] && [ ! -e /dev/kvm ]; then
      echo "skipped: $name needs KVM"
    else
      there+=("$name")
    fi
  done
  for name in "${there[@]}"; do
    systemctl start "install-microvm-$name"
    systemctl start "microvm@$name" || { journalctl --quiet --no-pager --unit "*microvm*$name*" | tail -n 60 >&2; die "microvm@$name does not start; the journal is above"; }
    check_running "$name"
    # Its disk was made of the service's packs, and of none of its own.
    [ "$name" != made-on-host ] || [ -z "$(find /var/cache/microvm-image -path '*/packs/*' -type f)" ] ||
      die "the host's store disk was not made of the cache service's packs: $(journalctl --quiet --no-pager --unit "*microvm*" | grep -i cache)"
    check_stopped "$name"
  done
  systemctl start microvm-image-cache-gc
  ! journalctl --quiet --unit microvm-image-cache | grep -i 'error\|panic' || die "the cache service had trouble, see above"
  [ -z "$(systemctl list-units --failed --quiet --plain --no-legend '*microvm*')" ] || die "units failed: $(systemctl list-units --failed --plain)"
  echo passed
}
if [ "${1:-}" = --inside ]; then
  trap 'systemctl --no-block poweroff' EXIT
  inside
  exit
fi

# Around it.

[ $# -eq 5 ] || { printf 'error: usage: %s STORE UNITS TMPFILES PLAN PROGRAMS\n' "$0" >&2; exit 2; }
if [ -z "${MICROVM_TEST_IN_NAMESPACE:-}" ]; then
  MICROVM_TEST_IN_NAMESPACE=1 exec unshare --mount --cgroup --propagation private "$(realpath "$0")" "$@"
fi
store=$1 units=$2 tmpfiles=$3 plan=$4 programs=$5

# Everything in memory over a read-only view of this system: what the container writes is gone with it.
scratch=$(mktemp -d)
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch"/{upper,work,root,out}
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
root=$scratch/root

container=()
cgroups=()
leave_cgroups() {
  local cgroup
  for cgroup in "${cgroups[@]}"; do
    echo $$ >"${cgroup%/*}/cgroup.procs"
    find "$cgroup" -depth -type d -exec rmdir {} +
  done
}
trap leave_cgroups EXIT
if [ ! -d /run/systemd/system ]; then
  # There is no systemd that could make a scope for it.
  container+=(--register=no --keep-unit)
  for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    [ -e "$hierarchy/cgroup.procs" ] || continue
    cgroups+=("$hierarchy/microvm-test-$$")
    mkdir "$hierarchy/microvm-test-$$"
    echo $$ >"$hierarchy/microvm-test-$$/cgroup.procs"
  done
fi

mkdir -p "$root/etc/"{sysusers.d,tmpfiles.d,systemd/system} "$root/srv/shared" "$root/nix/store" "$root/var/empty"
cp "$(realpath "$0")" "$root/root/systemd.sh"
for program in CLOUD_HYPERVISOR:cloud-hypervisor FIRECRACKER:firecracker CROSVM:crosvm KVMTOOL:lkvm VIRTIOFSD:virtiofsd; do
  variable=MICROVM_TEST_${program%%:*}
  [ -z "${!variable:-}" ] || cp "${!variable}" "$root/usr/bin/${program#*:}"
done
# What Nix knows of the store: the service asks for it.
mkdir -p "$root/nix/var/nix"
cp -r "$(dirname "$store")/var/nix/db" "$root/nix/var/nix/"
cp "$programs/bin/microvm-image" "$root/usr/bin/"
cp "$plan" "$root/root/plan.json"
cp -r "$units/." "$root/etc/systemd/system/"
cp "$tmpfiles" "$root/etc/tmpfiles.d/microvm.conf"
# The tests' programs are static: they cannot load the other services of names.
printf 'passwd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
echo 00000000000000000000000000000001 >"$root/etc/machine-id"
# What NixOS makes of users.* and of the kernel modules' rules for their devices.
cat >"$root/etc/sysusers.d/microvm.conf" <<'SYSUSERS'
g kvm -
u microvm - "microVMs" /var/empty
m microvm kvm
m microvm disk
u microvm-image-cache - "cache service of store disks" /var/empty
SYSUSERS
cat >"$root/etc/systemd/system/microvm-test.service" <<'UNIT'
[Unit]
Requires=basic.target
After=basic.target systemd-journald.service
[Service]
Type=oneshot
ExecStart=/bin/bash /root/systemd.sh --inside
StandardOutput=file:/out/said
StandardError=file:/out/said
UNIT

SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout 300 systemd-nspawn --quiet "${container[@]}" --directory "$root" --private-network \
  --capability=all --bind-ro="$store:/nix/store" --bind="$scratch/out:/out" --kill-signal=SIGRTMIN+3 --console=read-only \
  --boot systemd.show_status=error systemd.unit=microvm-test.service </dev/null >"$scratch/console" 2>&1 || true
if ! grep -qx passed "$scratch/out/said" 2>/dev/null; then
  cat "$scratch/console" "$scratch/out/said" >&2 || true
  die "the host's units do not work under systemd; what the container said is above"
fi
grep -vx passed "$scratch/out/said" | while read -r line; do say "under systemd: $line"; done
