#!/usr/bin/env bash
# systemd.sh STORE UNITS TMPFILES PLAN PROGRAMS: tests the host module's units with a real systemd. A container of this
# system (systemd-nspawn with its own init, network and devices, which leaves nothing behind) starts a machine on each
# available hypervisor, checks the confinement of the processes, and stops them. tests/nix/run.sh runs this script as
# root.
#   STORE      the directory to use as the container's /nix/store
#   UNITS      the units of tests/nix/systemd.nix; TMPFILES is its rules for systemd-tmpfiles
#   PLAN       the plan of a store disk
#   PROGRAMS   a directory with bin/microvm-image, static
#   MICROVM_TEST_{CLOUD_HYPERVISOR,FIRECRACKER,CROSVM,KVMTOOL,VIRTIOFSD,PASST}: the paths of these programs, if they are available
set -euo pipefail

die() { printf 'error: %s\n' "$1" >&2; exit 1; }
say() { printf 'nix: %s\n' "$*" >&2; }

# Returns the program that a machine needs.
program_of() { # MACHINE
  case $1 in
  qemu | made-on-host | live) echo qemu-system-x86_64 ;;
  kvmtool) echo lkvm ;;
  *) echo "$1" ;;
  esac
}
machines=(qemu made-on-host live cloud-hypervisor firecracker crosvm kvmtool)

# shellcheck source=tests/nix/user-unit.sh
. "$(dirname "$(realpath "$0")")/user-unit.sh"

# The functions that run in the container.

wait_for() { # MACHINE TEXT: waits for the text in the machine's journal, for at most 40 s
  local _ invocation
  # Only the messages of this start, not of an earlier one.
  invocation=$(systemctl show --property InvocationID --value "microvm@$1")
  for _ in {1..80}; do
    ! journalctl --quiet "_SYSTEMD_INVOCATION_ID=$invocation" | grep --quiet "$2" || return 0
    sleep 0.5
  done
  journalctl --quiet --no-pager --unit "*microvm*$1*" | tail -n 60 >&2
  systemctl status --no-pager "microvm@$1" >&2 || true
  die "microvm@$1 did not say \`$2\` within 40 s; its journal is above"
}

check_running() { # MACHINE
  local process processes status exposure user
  wait_for "$1" 'devices reported'
  wait_for "$1" waiting
  user=$(stat -c %g "/var/lib/microvms/$1")
  [ "$user" -ge 1879048192 ] || die "$1 has no user of its own: $(stat -c '%U:%G %a' "/var/lib/microvms/$1")"
  [ "$(stat -c '%u:%a' "/var/lib/microvms/$1")" = 0:1770 ] || die "the state directory of $1 is not root's: $(stat -c '%u:%a' "/var/lib/microvms/$1")"
  processes=$(cat "/sys/fs/cgroup$(systemctl show --property ControlGroup --value "microvm@$1")/cgroup.procs")
  [ "$(wc -w <<<"$processes")" -ge 2 ] || die "microvm@$1 has no process beside its supervisor"
  for process in $processes; do
    status=$(cat "/proc/$process/status")
    grep -q '^Seccomp:.*2' <<<"$status" || die "a process of microvm@$1 has no system call filter"
    grep -q '^NoNewPrivs:.*1' <<<"$status" || die "a process of microvm@$1 can get new privileges"
    grep -q '^CapEff:.*0000000000000000' <<<"$status" || die "microvm@$1 has capabilities: $(grep Cap <<<"$status")"
    grep -qP "^Uid:(\\t$user){4}" <<<"$status" || die "a process of microvm@$1 is $(grep Uid <<<"$status"), not $user"
    grep -qP "^Gid:(\\t$user){4}" <<<"$status" || die "a process of microvm@$1 has $(grep Gid <<<"$status"), not $user"
  done
  ip link show "vm-${1:0:11}" >/dev/null || die "microvm@$1 has no tap"
  [ "$(readlink "/var/lib/microvms/$1/booted")" = "$(readlink "/var/lib/microvms/$1/current")" ] || die "nothing tells what microvm@$1 was started with"
  for root in "$1:current" "booted-$1:booted"; do
    [ "$(readlink -f "/nix/var/nix/gcroots/microvm/${root%:*}")" = "$(readlink -f "/var/lib/microvms/$1/${root#*:}")" ] ||
      die "$1 has no root ${root%:*} of the garbage collection"
  done
  ! find "/var/lib/microvms/$1" "/run/microvm/$1" ! -type l ! -uid 0 -perm /007 | grep . || die "others can use these files of $1"
  exposure=$(systemd-analyze security --no-pager "microvm@$1" | tail -n 1)
  awk -v exposure="$(grep -o '[0-9]\+\.[0-9]'  <<<"$exposure")" 'BEGIN { exit !(exposure > 0 && exposure <= 2.5) }' || die "microvm@$1 is not hardened: $exposure"
  printf '%s: runs;%s\n' "$1" "${exposure#*→}"
}

# Root uses what a machine has recorded as the machine's user.
check_requests() { # MACHINE
  local microvm client printed size=8
  [ "$1" != kvmtool ] || size=+8 # it supports only changes
  microvm=$(systemctl cat "microvm@$1" | grep -o '/nix/store/[^ ]*/bin/microvm' | head -n 1)
  # What an earlier client printed would end the wait before this one is executed, and `kill` would run this script's trap.
  rm -f /run/console
  "$microvm" console "$1" </dev/null >/run/console 2>&1 &
  client=$!
  wait_until grep -qs waiting /run/console
  kill "$client"
  printed=$("$microvm" balloon "$1" "$size" 2>&1) || die "root cannot change the balloon of $1: $printed"
}

# systemd does not run ExecStop while a guest boots. The guest is asked all the same.
check_stop_while_booting() { # MACHINE
  local dropin=/run/systemd/system/microvm@$1.service.d
  mkdir "$dropin"
  printf '[Service]\nType=notify\nNotifyAccess=none\n' >"$dropin/boots.conf"
  systemctl daemon-reload
  systemctl start --no-block "microvm@$1"
  timeout 60 bash -c 'until [ "$(systemctl is-active "microvm@$1")" = activating ]; do sleep 0.1; done' bash "$1" || die "microvm@$1 does not start"
  wait_for "$1" waiting
  check_stopped "$1"
  rm -r "$dropin"
  systemctl daemon-reload
}

check_stopped() { # MACHINE
  local show invocation
  # Only the messages of this start: an earlier one was asked too.
  invocation=$(systemctl show --property InvocationID --value "microvm@$1")
  systemctl stop "microvm@$1"
  show=$(systemctl show --property ActiveState,Result,ExecMainStatus "microvm@$1" | sort | tr '\n' ' ')
  [ "$show" = 'ActiveState=inactive ExecMainStatus=0 Result=success ' ] ||
    { journalctl --no-pager --unit "microvm@$1" | tail -n 30 >&2; die "microvm@$1 did not stop well: $show"; }
  journalctl --sync
  journalctl --quiet "_SYSTEMD_INVOCATION_ID=$invocation" | grep 'request ' >/dev/null || { journalctl --no-pager --unit "microvm@$1" | tail -n 30 >&2; die "microvm@$1 was not asked to stop"; }
  # It stops with the machine, but stopping the machine does not wait for it.
  timeout 60 bash -c 'while ip link show "$1"; do sleep 0.1; done' bash "vm-${1:0:11}" >/dev/null 2>&1 || die "the tap of microvm@$1 is still there"
  timeout 60 bash -c 'while [ -L "$1" ]; do sleep 0.1; done' bash "/var/lib/microvms/$1/booted" || die "the link to what microvm@$1 was started with is still there"
}

# The server of a disk without an image runs in the machine's unit. check_running has checked its user and its confinement.
check_live() {
  local server
  journalctl --quiet --unit microvm@live --output cat | grep -q 'name=blk .*serial=\[nix-store' || die "the guest of live has no store disk"
  [ -z "$(find /var/lib/microvms/live -name '*.squashfs' -o -name '*.erofs')" ] || die "an image was built for live"
  server=$(pgrep -f 'microvm-image serve --plan') || die "no server of the store disk of live"
  grep -q /microvm@live.service "/proc/$server/cgroup" || die "the server runs outside of the unit: $(cat "/proc/$server/cgroup")"
}

# attacks.txt lists everything that a hypervisor under an attacker's control can do.
check_isolation() {
  local process device state=/var/lib/microvms
  for name in victim attacker; do systemctl start "install-microvm-$name"; done
  ip link add br-test type bridge
  systemctl start microvm@victim || { journalctl --quiet --no-pager --unit '*microvm*victim*' | tail -n 60 >&2; die "microvm@victim does not start"; }
  wait_for victim waiting
  ip --oneline link show master br-test | grep -q ': vm' || die "the victim is not in its bridge: $(ip link)"
  process=$(systemctl show --property MainPID --value microvm@victim)
  # Targets of an attacker that every user of this host can read or connect to.
  device=$(awk 'NR > 2 { print $1 ":" $2; exit }' /proc/partitions)
  printf '%s\n' "$process" "$device" >"$state/attacker/victim"
  mknod -m 0666 /dev/block-of-host b "${device%:*}" "${device#*:}"
  local file
  for file in /srv/secret /tmp/of-host /var/tmp/of-host /dev/shm/of-host; do echo secret >"$file"; done
  mkdir -p /nix/var/nix/daemon-socket
  systemd-socket-activate --listen /nix/var/nix/daemon-socket/socket --inetd cat &
  wait_until test -S /nix/var/nix/daemon-socket/socket
  chmod 0666 /nix/var/nix/daemon-socket/socket
  ipcmk --shmem 64 --mode 0666 >/dev/null
  # Paths at which root wrote through links in an earlier release.
  plant_links "$state/attacker"
  systemctl start microvm@attacker || { journalctl --no-pager --unit '*microvm*attacker*' | tail -n 40 >&2; die "microvm@attacker does not start"; }
  wait_until test -e "$state/attacker/attacks"
  diff -u /root/attacks.txt "$state/attacker/attacks" || die "a hypervisor that was taken over can do something else than expected"
  systemctl is-active --quiet microvm@victim || die "microvm@victim has ended"
  [ "$(readlink "$state/attacker/current")" = "$(readlink "$state/attacker/booted")" ] || die "the attacker's links were changed"
  systemctl restart microvm@attacker || die "a machine that was taken over cannot be restarted"
  systemctl stop microvm@attacker microvm@victim
  # It was killed, because it does not handle requests to shut down.
  systemctl reset-failed microvm@attacker
  [ -z "$(ip --oneline link show master br-test)" ] || die "the victim's tap is still in the bridge"
  grep -qx untouched /root/precious || die "root wrote through a link of a machine's user"
  printf 'attacker: %s of %s attempts are refused\n' "$(grep -c ': no' /root/attacks.txt)" "$(wc -l </root/attacks.txt)"
}

# A macvtap, a block device and a 9p share. Nothing creates the nodes of devices in this container, as udev does on a host.
check_devices() {
  local index loop printed
  truncate -s 5M /srv/disk
  mkfs.ext4 -q /srv/disk
  [ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237
  index=$(losetup --find)
  index=${index#/dev/loop}
  [ -e "/dev/loop$index" ] || mknod "/dev/loop$index" b 7 "$index"
  loop=/dev/loop$index
  losetup "$loop" /srv/disk || { echo "skipped: block volumes; no loop devices here"; return; }
  # shellcheck disable=SC2064 # this device
  trap "systemctl stop microvm@devices; losetup --detach '$loop'; systemctl --no-block poweroff" EXIT
  mknod /dev/block-of-machine b 7 "$index"
  ip link add br-macvtap type bridge
  ip link set br-macvtap up
  until [ -e /sys/class/net/mv-devices/ifindex ]; do sleep 0.1; done && make_macvtap_node mv-devices &
  systemctl start install-microvm-devices
  systemctl start microvm@devices || { journalctl --quiet --no-pager --unit '*microvm*devices*' | tail -n 60 >&2; die "microvm@devices does not start"; }
  wait_for devices waiting
  printed=$(journalctl --quiet --unit microvm@devices --output cat)
  for device in 'name=blk sectors=10240 access=rw' 'name=net mac=02:00:00:00:02:01' 'name=9p tag=\[nine\]'; do
    grep -q "$device" <<<"$printed" || { echo "$printed" >&2; die "the guest of devices has no $device"; }
  done
  [ "$(systemctl show --property DeviceAllow --value microvm@devices | tr ' ' '\n' | grep -c -e '^/dev/block-of-machine$' -e '^/dev/tap')" = 2 ] ||
    die "microvm@devices may open $(systemctl show --property DeviceAllow microvm@devices)"
  systemctl stop microvm@devices
  [ ! -e /sys/class/net/mv-devices ] || timeout 60 bash -c 'while [ -e /sys/class/net/mv-devices ]; do sleep 0.1; done' || die "the macvtap of devices is still there"
  losetup --detach "$loop"
  trap 'systemctl --no-block poweroff' EXIT
  echo "devices: a macvtap, a block volume and a 9p share reach the guest"
}

# Suspending a machine that runs as a service, and resuming it.
check_suspending() {
  local microvm state=/var/lib/microvms/suspended saved user printed
  saved=$state/suspended.suspended/complete
  microvm=$(systemctl cat microvm@suspended | grep -o '/nix/store/[^ ]*/bin/microvm' | head -n 1)
  systemctl start install-microvm-suspended
  systemctl start microvm@suspended || { journalctl --quiet --no-pager --unit '*microvm*suspended*' | tail -n 60 >&2; die "microvm@suspended does not start"; }
  wait_for suspended waiting
  printed=$("$microvm" suspend suspended 2>&1) || { journalctl --quiet --no-pager --unit '*microvm*suspended*' | tail -n 60 >&2; die "the machine cannot be suspended: $printed"; }
  user=$(stat -c %g "$state")
  [ "$(stat -c '%u:%g:%a' "$saved")" = "$user:$user:700" ] || die "what was saved is not only the machine's: $(stat -c '%u:%g:%a' "$saved")"
  [ "$(systemctl show --property ActiveState,Result microvm@suspended | sort | tr '\n' ' ')" = 'ActiveState=inactive Result=success ' ] ||
    die "microvm@suspended did not end well: $(systemctl status --no-pager microvm@suspended)"
  check_clone "$microvm"
  "$microvm" resume suspended
  wait_for suspended 'suspended was resumed'
  ! journalctl --quiet "_SYSTEMD_INVOCATION_ID=$(systemctl show --property InvocationID --value microvm@suspended)" | grep 'devices reported' ||
    die "the machine booted instead of going on"
  [ ! -e "$saved" ] || die "what was saved is still there"
  check_stopped suspended
  [ ! -e "$saved" ] || die "a machine was suspended although the host did not shut down"
  check_clone_of_deleted_machine "$microvm"
  echo "suspended: $printed"
}

# A clone of the suspended machine, whose store disk this host has built. It has a unit, a user and a tap of its own.
check_clone() { # MICROVM
  local printed user state=/var/lib/microvms/worker
  printed=$("$1" clone suspended worker 2>&1) || die "the machine cannot be cloned: $printed"
  # From now on, because the original may be updated or deleted before the clone is started.
  [ "$(readlink /var/cache/microvm-store-disks/worker.link)" = "$(readlink /var/cache/microvm-store-disks/suspended.link)" ] ||
    die "the clone does not use the store disk of its original: $(ls -l /var/cache/microvm-store-disks)"
  printed=$("$1" resume worker 2>&1) || { journalctl --quiet --no-pager --unit '*microvm*worker*' | tail -n 60 >&2; die "the clone does not start: $printed"; }
  wait_for worker 'worker was resumed'
  require_goes_on worker
  ip link show vm-worker >/dev/null || die "the clone has no tap of its own: $(ip link)"
  user=$(stat -c %g "$state")
  [ "$user" != "$(stat -c %g /var/lib/microvms/suspended)" ] || die "the clone has the user of its original"
  [ "$(ps -o uid= -p "$(systemctl show --property MainPID --value microvm@worker)" | tr -d ' ')" = "$user" ] || die "the clone does not run as its user"
  [ "$(stat -c %u:%g "$state/var.img")" = "$user:$user" ] || die "the volume of the clone belongs to $(stat -c %u:%g "$state/var.img")"
  ! printed=$("$1" start suspended 2>&1) || die "the original was started beside its clone, which has its MAC address"
  journalctl --quiet --unit '*microvm*suspended*' --output cat | grep -q 'suspended: the guest of worker has the same MAC address' ||
    die "nothing says why the original was not started beside its clone: $printed"
  systemctl stop microvm@suspended
  systemctl reset-failed 'microvm*suspended*' 2>/dev/null || true
  check_stopped worker
  # Now it boots, with its own identity.
  "$1" start worker || { journalctl --quiet --no-pager --unit '*microvm*worker*' | tail -n 60 >&2; die "the clone does not boot"; }
  wait_for worker 'devices reported'
  check_stopped worker
  "$1" delete --yes worker >/dev/null 2>&1 || die "the clone cannot be deleted"
  [ ! -e "$state" ] || die "the clone is still there"
  echo "worker: a clone runs in a unit of its own, as its own user"
}

# The original is removed from the host's configuration and deleted before the clone is started for the first time.
check_clone_of_deleted_machine() { # MICROVM
  local printed unit=/etc/systemd/system/install-microvm-suspended.service disks=/var/cache/microvm-store-disks
  systemctl start microvm@suspended || { journalctl --quiet --no-pager --unit '*microvm*suspended*' | tail -n 60 >&2; die "microvm@suspended does not start"; }
  wait_for suspended waiting
  printed=$("$1" suspend suspended 2>&1) || die "the machine cannot be suspended again: $printed"
  printed=$("$1" clone suspended heir 2>&1) || die "the machine cannot be cloned again: $printed"
  ! printed=$("$1" delete --yes suspended 2>&1) || die "a machine of the host's configuration was deleted"
  systemctl stop install-microvm-suspended
  mv "$unit" /root/
  systemctl daemon-reload
  printed=$("$1" delete --yes suspended 2>&1) || die "the original cannot be deleted: $printed"
  [ ! -e /var/lib/microvms/suspended ] || die "the original is still there"
  printed=$("$1" resume heir 2>&1) || { journalctl --quiet --no-pager --unit '*microvm*heir*' | tail -n 60 >&2; die "the clone of a deleted machine does not start: $printed"; }
  wait_for heir 'heir was resumed'
  require_goes_on heir
  [ ! -L $disks/suspended.link ] || die "the deleted machine still has a store disk: $(ls -l $disks)"
  check_stopped heir
  # It also boots from the disk of its original.
  "$1" start heir || { journalctl --quiet --no-pager --unit '*microvm*heir*' | tail -n 60 >&2; die "the clone of a deleted machine does not boot"; }
  wait_for heir 'devices reported'
  check_stopped heir
  "$1" delete --yes heir >/dev/null 2>&1 || die "the clone of a deleted machine cannot be deleted"
  mv "/root/${unit##*/}" "$unit"
  systemctl daemon-reload
  systemctl start install-microvm-suspended
  echo "heir: a clone starts after its original was deleted"
}

# Pacemaker's resource agent, without Pacemaker.
agent() { # MACHINE ACTION [NAME=VALUE...]
  local machine=$1 action=$2
  shift 2
  env "OCF_RESKEY_name=$machine" "OCF_RESKEY_runner=$(readlink -f "/var/lib/microvms/$machine/current")" \
    OCF_RESKEY_CRM_meta_timeout=180000 OCF_RESKEY_CRM_meta_migrate_target=other "$@" timeout 120 /run/cluster/MicroVM "$action"
}
expect_agent() { # CODE MACHINE ACTION [NAME=VALUE...]
  local code=0 expected=$1
  shift
  agent "$@" 2>/run/cluster/printed || code=$?
  [ "$code" = "$expected" ] || { journalctl --quiet --no-pager --unit "*microvm*$1*" | tail -n 30 >&2; die "the resource agent ended $2 of $1 with $code: $(cat /run/cluster/printed)"; }
}
require_goes_on() { # MACHINE
  ! journalctl --quiet "_SYSTEMD_INVOCATION_ID=$(systemctl show --property InvocationID --value "microvm@$1")" | grep 'devices reported' ||
    die "$1 booted instead of going on"
}

# The agent drives the machine's unit. The other host of a live migration is a file from which the machine comes back.
check_cluster_agent() {
  local name=suspended dropin=/run/systemd/system/microvm@suspended.service.d
  command -v cibadmin >/dev/null || { echo "skipped: the resource agent needs cibadmin, package pacemaker-cli-utils"; return; }
  mkdir -m 0700 /run/cluster /run/cluster/shared
  ln -s "$(systemctl cat microvm@suspended | grep -o '/nix/store/[^ ]*/bin/microvm' | head -n 1)" /run/cluster/MicroVM
  expect_agent 7 $name monitor
  expect_agent 0 $name start
  wait_for $name waiting
  [ "$(systemctl is-active microvm@$name)" = active ] || die "the resource agent does not use the unit: $(systemctl status microvm@$name)"
  expect_agent 0 $name monitor
  expect_agent 0 $name monitor OCF_CHECK_LEVEL=10

  printf '#!/bin/sh\nread -r offer\necho "$offer" >/run/cluster/offer\necho ready\nexec cat >/run/cluster/stream\n' >/run/cluster/receive
  chmod +x /run/cluster/receive
  expect_agent 0 $name migrate_to OCF_RESKEY_migrate=live OCF_RESKEY_migrate_command='/run/cluster/receive NODE'
  [ "$(systemctl is-active microvm@$name)" = inactive ] || die "the unit of a machine that has left is $(systemctl is-active microvm@$name)"
  expect_agent 7 $name monitor
  cat >/run/cluster/cib.xml <<CIB
<cib validate-with="pacemaker-3.0" admin_epoch="0" epoch="1" num_updates="0"><configuration><crm_config/><nodes/><resources>
<primitive id="$name" class="ocf" provider="microvm" type="MicroVM"><instance_attributes id="parameters"><nvpair id="n" name="name" value="$name"/>
<nvpair id="r" name="runner" value="$(readlink -f /var/lib/microvms/$name/current)"/><nvpair id="m" name="migrate" value="live"/></instance_attributes>
</primitive></resources><constraints/></configuration><status/></cib>
CIB
  cat /run/cluster/offer /run/cluster/stream | CIB_file=/run/cluster/cib.xml timeout 120 /run/cluster/MicroVM receive >/run/cluster/printed 2>&1 ||
    { journalctl --quiet --no-pager --unit "*microvm*$name*" | tail -n 30 >&2; die "the machine is not received: $(cat /run/cluster/printed)"; }
  expect_agent 0 $name migrate_from OCF_RESKEY_migrate=live
  expect_agent 0 $name monitor
  require_goes_on $name

  expect_agent 0 $name migrate_to OCF_RESKEY_migrate=suspend OCF_RESKEY_migrate_dir=/run/cluster/shared
  expect_agent 7 $name monitor
  expect_agent 0 $name migrate_from OCF_RESKEY_migrate=suspend OCF_RESKEY_migrate_dir=/run/cluster/shared
  wait_for $name "$name was resumed"
  expect_agent 0 $name monitor
  require_goes_on $name
  expect_agent 0 $name stop
  [ "$(systemctl is-active microvm@$name)" = inactive ] || die "the resource agent has not stopped the unit"
  expect_agent 7 $name monitor

  # A start that is dead at once is reported before its timeout.
  mkdir "$dropin"
  printf '[Service]\nRestart=no\nExecStartPre=/bin/false\n' >"$dropin/dead.conf"
  systemctl daemon-reload
  expect_agent 1 $name start
  grep -q "$name has not started: " /run/cluster/printed || die "the resource agent says of a dead start: $(cat /run/cluster/printed)"
  rm -r "$dropin"
  systemctl daemon-reload
  systemctl reset-failed microvm@$name
  echo "the resource agent starts, moves and stops a unit: $(stat -c %s /run/cluster/stream) bytes moved"
}

# What stands for Pacemaker: when it is stopped or the host shuts down, it stops the machine before systemd does.
start_cluster() {
  local unit
  [ -e /run/cluster/MicroVM ] || return 0
  mkdir /run/systemd/system/microvm@qemu.service.d
  printf '[Unit]\nBefore=pacemaker.service\n' >/run/systemd/system/microvm@qemu.service.d/cluster.conf
  cat >/run/systemd/system/pacemaker.service <<'UNIT'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/bash /root/systemd.sh --stop-cluster
TimeoutStopSec=60
UNIT
  systemctl daemon-reload
  systemctl start pacemaker
  expect_agent 0 qemu start
  wait_for qemu waiting

  # Pacemaker is stopped while the host stays up. Then the units around the machine stop too, so its next start makes
  # its root directory again.
  timeout 50 systemctl stop pacemaker || die "Pacemaker does not stop while the host stays up"
  [ "$(cat /out/cluster)" = stopped ] || die "Pacemaker could not stop a machine when it was stopped"
  rm /out/cluster
  for unit in "" -root -set-booted; do
    [ "$(systemctl is-active "microvm$unit@qemu")" = inactive ] || die "microvm$unit@qemu is $(systemctl is-active "microvm$unit@qemu") after Pacemaker has stopped"
  done
  systemctl start pacemaker
  expect_agent 0 qemu start
  wait_for qemu waiting
}
if [ "${1:-}" = --stop-cluster ]; then
  systemctl is-active --quiet microvm@qemu && expect_agent 0 qemu stop && echo stopped >/out/cluster
  exit
fi

# The host shuts down while the machine runs, and starts again.
check_shutdown() {
  start_cluster
  systemctl start microvm@suspended || { journalctl --quiet --no-pager --unit '*microvm*suspended*' | tail -n 60 >&2; die "microvm@suspended does not start again"; }
  wait_for suspended waiting
}
start_after_reboot() {
  systemctl start microvm@suspended || { journalctl --quiet --no-pager --unit '*microvm*suspended*' | tail -n 60 >&2; die "microvm@suspended does not start after a reboot"; }
}
after_reboot() {
  local state=/var/lib/microvms/suspended saved user
  ! command -v cibadmin >/dev/null || [ "$(cat /out/cluster)" = stopped ] || die "Pacemaker could not stop a machine when the host shut down"
  saved=$state/suspended.suspended/complete
  make_devices
  [ -e "$saved/stamp.json" ] || die "the machine was not suspended when the host shut down: $(ls "$state")"
  cp -a "$saved" /root/saved
  start_after_reboot
  wait_for suspended 'suspended was resumed'
  ! journalctl --quiet "_SYSTEMD_INVOCATION_ID=$(systemctl show --property InvocationID --value microvm@suspended)" | grep 'devices reported' ||
    die "the machine booted instead of going on after a reboot"
  check_stopped suspended
  # The same again, but the volume has changed.
  user=$(stat -c %g "$state")
  install -d -m 0700 -o "$user" -g "$user" "$(dirname "$saved")"
  cp -a /root/saved "$saved"
  touch "$state/var.img"
  start_after_reboot
  wait_for suspended 'suspended has changed since it was suspended: volumes: '
  wait_for suspended "suspended boots instead; what was saved is kept in $(dirname "$saved")/refused"
  wait_for suspended 'devices reported'
  [ -e "$(dirname "$saved")/refused/stamp.json" ] || die "what was saved of a changed machine is lost"
  check_stopped suspended
  echo "a machine that was suspended when the host shut down goes on, and boots if it has changed"
  echo passed
}

make_macvtap_node() { # INTERFACE
  local number
  number=$(cat "/sys/class/net/$1/macvtap/tap$(cat "/sys/class/net/$1/ifindex")/dev")
  mknod "/dev/tap$(cat "/sys/class/net/$1/ifindex")" c "${number%:*}" "${number#*:}"
}

# passt isolates itself in namespaces, and cloud-hypervisor confines itself with Landlock.
check_user_network() {
  local printed
  if [ ! -e /dev/kvm ] || ! command -v cloud-hypervisor >/dev/null || ! passt --help 2>&1 | grep -q vhost-user; then
    echo "skipped: user networking needs KVM, cloud-hypervisor and a passt with --vhost-user"
    return
  fi
  systemctl start install-microvm-user-network
  systemctl start microvm@user-network || { journalctl --quiet --no-pager --unit '*microvm*user*' | tail -n 60 >&2; die "microvm@user-network does not start"; }
  wait_for user-network waiting
  printed=$(journalctl --quiet --unit microvm@user-network --output cat)
  grep -q 'name=net mac=02:00:00:00:02:02' <<<"$printed" || { echo "$printed" >&2; die "the guest of user-network has no interface"; }
  # shellcheck disable=SC2009 # the arguments
  ps -o args= -C cloud-hypervisor | grep -q -e --landlock || die "cloud-hypervisor has no Landlock rules: $(ps -o args= -C cloud-hypervisor)"
  systemctl stop microvm@user-network
  ! pgrep -x passt >/dev/null || die "passt has outlived its machine"
  echo "user-network: passt serves cloud-hypervisor, which Landlock confines"
}

plant_links() { # DIRECTORY: creates links to a file that root owns, as a machine's user could
  local name user
  user=$(stat -c %g "$1")
  echo untouched >/root/precious
  for name in flake.new current.new booted.new toplevel.new .building var.img.creating; do
    ln -sfn /root/precious "$1/$name"
    chown -h "$user:$user" "$1/$name"
  done
}

# A machine of an earlier release, in which everything belongs to the common user of all machines.
check_migration() {
  local state=/var/lib/microvms/qemu printed
  chown -hR microvm:kvm "$state"
  chmod 0755 "$state"
  ln "$state/var.img" /var/lib/microvms/second-name
  systemctl restart install-microvm-qemu
  printed=$(journalctl --quiet --unit install-microvm-qemu --output cat)
  grep -q 'var.img has 2 hard links' <<<"$printed" || die "a volume with two names was given away: $printed"
  rm /var/lib/microvms/second-name
  chown microvm:kvm "$state" "$state/var.img"
  chmod 0755 "$state"
  systemctl start microvm@qemu || { journalctl --quiet --no-pager --unit "*microvm*qemu*" | tail -n 60 >&2; die "a machine of an earlier release does not start"; }
  check_running qemu
  check_stopped qemu
  [ "$(stat -c %u:%g "$state/var.img")" = "$(stat -c %g:%g "$state")" ] || die "the volume of an earlier release was not given to the machine"
  for link in current toplevel; do
    [ "$(stat -c %u "$state/$link")" = 0 ] || die "$link of an earlier release is not root's"
  done
  echo "qemu: starts with the files of an earlier release"
}

wait_until() { # COMMAND...: waits until it succeeds, for at most 40 s
  local _
  for _ in {1..400}; do
    ! "$@" || return 0
    sleep 0.1
  done
  die "within 40 s this did not come true: $*"
}

make_devices() { # creates the devices that machines need, as udev does on a host
  local name mode group number
  while read -r name mode group; do
    number=/sys/class/misc/${name##*/}/dev
    [ -e "$number" ] || continue
    mkdir -p "$(dirname "/dev/$name")"
    # systemd-nspawn has created some, which root owns.
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

build_as() { # USER OUTPUT: builds the store disk of a plan and prints the report
  setpriv --reuid="$1" --regid=nogroup --clear-groups env HOME=/nonexistent MICROVM_IMAGE_CACHE=/nonexistent \
    microvm-image build --plan /etc/plan.json --no-cache --cache-socket /run/microvm-image/cache.sock --output "$2" --json --quiet
}

check_cache_service() {
  local process first second exposure unit=microvm-image-cache
  # Start Nix's daemon, as on a host.
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
  # Another user gets the packs made for the first one, and the same disk.
  second=$(build_as daemon /tmp/images/second) || die "no store disk for another user: $second"
  jq -e '.cache.hitPaths == .paths' <<<"$second" >/dev/null || { journalctl --no-pager --unit "$unit" >&2; die "not all came from the service: $second"; }
  cmp /tmp/images/first /tmp/images/second || die "the service gave another user another disk"
  # The next build starts a killed service again.
  systemctl kill --signal=SIGKILL "$unit"
  second=$(build_as daemon /tmp/images/third) || die "no store disk after the service was killed: $second"
  jq -e '.cache.hitPaths == .paths' <<<"$second" >/dev/null || { journalctl --no-pager --unit "$unit" >&2; die "the service was not started again: $second"; }
  systemctl stop "$unit.socket" "$unit"
  systemctl reset-failed "$unit" 2>/dev/null || true
  microvm-image build --plan /etc/plan.json --no-cache --output /tmp/images/without --quiet >/dev/null
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
    check_requests "$name"
    # Its disk was made from the service's packs, and the user's cache has none.
    [ "$name" != made-on-host ] || [ -z "$(find /var/cache/microvm-image -path '*/packs/*' -type f)" ] ||
      die "the host's store disk was not made of the cache service's packs: $(journalctl --quiet --no-pager --unit "*microvm*" | grep -i cache)"
    [ "$name" != live ] || check_live
    check_stopped "$name"
  done
  check_stop_while_booting qemu
  check_isolation
  check_devices
  check_user_network
  check_user_service
  check_migration
  check_suspending
  check_cluster_agent
  systemctl start microvm-image-cache-gc
  ! journalctl --quiet --unit microvm-image-cache | grep -i 'error\|panic' || die "the cache service had trouble, see above"
  [ -z "$(systemctl list-units --failed --quiet --plain --no-legend '*microvm*')" ] || die "units failed: $(systemctl list-units --failed --plain)"
  check_shutdown
  echo rebooting
}
if [ "${1:-}" = --inside ]; then
  trap 'systemctl --no-block poweroff' EXIT
  if [ -e /out/printed.first ]; then after_reboot; else inside; fi
  exit
fi

# The functions outside of the container.

[ $# -eq 5 ] || { printf 'error: usage: %s STORE UNITS TMPFILES PLAN PROGRAMS\n' "$0" >&2; exit 2; }
if [ -z "${MICROVM_TEST_IN_NAMESPACE:-}" ]; then
  MICROVM_TEST_IN_NAMESPACE=1 exec unshare --mount --cgroup --propagation private "$(realpath "$0")" "$@"
fi
store=$1 units=$2 tmpfiles=$3 plan=$4 programs=$5

# The container writes to memory, over a read-only view of this system, so nothing remains of it.
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
  # Without systemd on this machine, nothing can create a scope for the container.
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
cp "$(dirname "$(realpath "$0")")"/{user-unit.sh,attacks.txt} "$root/root/"
for program in CLOUD_HYPERVISOR:cloud-hypervisor FIRECRACKER:firecracker CROSVM:crosvm KVMTOOL:lkvm VIRTIOFSD:virtiofsd PASST:passt; do
  variable=MICROVM_TEST_${program%%:*}
  [ -z "${!variable:-}" ] || cp "${!variable}" "$root/usr/bin/${program#*:}"
done
# Nix's database of the store, which the service queries.
mkdir -p "$root/nix/var/nix"
cp -r "$(dirname "$store")/var/nix/db" "$root/nix/var/nix/"
cp "$programs/bin/microvm-image" "$root/usr/bin/"
cp "$plan" "$root/etc/plan.json"
cp -r "$units/." "$root/etc/systemd/system/"
cp "$tmpfiles" "$root/etc/tmpfiles.d/microvm.conf"
# The tests' programs are static, so they cannot load other name services.
printf 'passwd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
echo 00000000000000000000000000000001 >"$root/etc/machine-id"
# The users, groups and device rules that NixOS would create.
cat >"$root/etc/sysusers.d/microvm.conf" <<'SYSUSERS'
g kvm -
u microvm - "microVMs" /var/empty
m microvm kvm
u microvm-image-cache - "cache service of store disks" /var/empty
SYSUSERS
cat >"$root/etc/systemd/system/microvm-test.service" <<'UNIT'
[Unit]
Requires=basic.target
After=basic.target systemd-journald.service
[Service]
Type=oneshot
ExecStart=/bin/bash /root/systemd.sh --inside
StandardOutput=file:/out/printed
StandardError=file:/out/printed
UNIT

# cloud-hypervisor restricts itself with Landlock, whose system calls a container may not make by default.
landlock='landlock_create_ruleset landlock_add_rule landlock_restrict_self'
boot() { # LINE: boots the container, which must end with this line
  SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout 600 systemd-nspawn --quiet "${container[@]}" --directory "$root" --private-network \
    --system-call-filter="$landlock" --capability=all --bind-ro="$store:/nix/store" --bind="$scratch/out:/out" --kill-signal=SIGRTMIN+3 --console=read-only \
    --boot systemd.show_status=error systemd.unit=microvm-test.service </dev/null >"$scratch/console" 2>&1 || true
  if ! grep -qx "$1" "$scratch/out/printed" 2>/dev/null; then
    cat "$scratch/console" "$scratch/out/printed" >&2 || true
    die "the host's units do not work under systemd; what the container said is above"
  fi
  grep -vx "$1" "$scratch/out/printed" | while read -r line; do say "under systemd: $line"; done
}
boot rebooting
mv "$scratch/out/printed" "$scratch/out/printed.first"
boot passed
