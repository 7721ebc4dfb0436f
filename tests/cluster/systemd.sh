#!/usr/bin/env bash
# systemd.sh [SCENARIO...]: the cluster of run.sh, but its nodes are containers with systemd: Debian's services run Corosync
# and Pacemaker, and the units of the NixOS module run the machine and apply the configuration. It needs root,
# systemd-nspawn, the packages of scripts/setup.sh and the fixture `small`. CI does not run it.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=scenario.sh
source "$(dirname "$(realpath "$0")")/scenario.sh"
top=$(realpath "$here/../..")
require corosync pacemakerd crm_mon crm_resource cibadmin stonith_admin qemu-system-x86_64 ip nsenter cpio curl jq nix-build ping ssh ssh-keygen \
  /usr/sbin/sshd systemd-nspawn

fixtures=$(realpath "${MICROVM_FIXTURES:-$top/target/fixtures}")
[ -e "$fixtures/small/vmlinux" ] || "$top/fixtures/closure/build.sh" small >/dev/null
store=$fixtures/store/nix/store
programs=${MICROVM_TEST_PROGRAMS:-$RIG/programs}
if [ -z "${MICROVM_TEST_PROGRAMS:-}" ]; then
  # The containers have the libraries of this system, so the programs need not be static.
  mkdir -p "$programs/bin"
  cargo build --quiet --locked --manifest-path "$top/Cargo.toml" -p launcher -p imagebuilder
  cp "${CARGO_TARGET_DIR:-$top/target}/debug/"{microvm,microvm-image} "$programs/bin/"
fi

build_host() { # prints the path of systemd.nix's output
  make_initrd "$fixtures/small/initrd" "$RIG/initrd.small"
  NIX_REMOTE='' NIX_CONF_DIR=/var/empty NIX_USER_CONF_FILES=/dev/null NIX_CONFIG='substituters =
build-users-group =
builders =
sandbox-paths = /usr /lib /lib64
fsync-metadata = false' nix-build --quiet --no-out-link --store "$fixtures/store" --arg work "$fixtures/work/small" \
    --arg kernel "$fixtures/work/kernel" --arg programs "$programs" --arg initrd "$RIG/initrd.small" "$here/systemd.nix"
}

cgroups=()
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
  [ ! -e "$hierarchy/cgroup.procs" ] || cgroups+=("$hierarchy")
done

# A container gets the cgroup that systemd-nspawn is in.
start_node() { # NUMBER
  local hierarchy
  for hierarchy in "${cgroups[@]}"; do
    mkdir -p "$hierarchy/rig-$$-n$1"
    echo "$BASHPID" >"$hierarchy/rig-$$-n$1/cgroup.procs"
  done
  RIG=$RIG exec setsid unshare --mount --propagation private "$here/systemd-node.sh" "$1" "rig-$$-n$1" "$store" "$host"
}
after_rig() {
  local hierarchy
  for hierarchy in "${cgroups[@]}"; do
    find "$hierarchy" -depth -type d -path "*/rig-$$-n*" -exec rmdir {} +
  done
}
show_machine() { on "$1" journalctl --quiet --no-pager --lines 30 --output short-precise --unit '*microvm*' --unit corosync --unit pacemaker; } # NUMBER

is_formed_by_units() { is_formed && via crm_resource --resource web --locate >/dev/null 2>&1; }

unit_state() { on "$1" systemctl show --property ActiveState --value microvm@web; } # NUMBER

# The machine runs in its unit, and nowhere else.
require_unit() { # WHAT
  local number
  for number in 1 2 3; do
    is_up "$number" || continue
    if is_in "$number"; then
      [ "$(unit_state "$number")" = active ] || die "$1: the unit on n$number is $(unit_state "$number")"
    else
      [ "$(unit_state "$number")" = inactive ] || die "$1: the unit on n$number, which does not run the machine, is $(unit_state "$number")"
      [ ! -e "/proc/$(cat "$RIG/power/n$number.pid")/root/run/microvm-roots/web/nix" ] || die "$1: n$number still has the root directory of the machine"
    fi
  done
}

live_migration() {
  settle
  left=$(place)
  moved "live migration" is_elsewhere via microvm cluster move web "n$((left % 3 + 1))"
  require_unit "live migration"
}

power_cut() {
  fail_over "power cut" node_cut
  require_unit "power cut"
  settle
  require_unit "the return of the node after a power cut"
}

# Pacemaker alone is stopped, as for a new version of it, and started again.
stopped_pacemaker() {
  settle
  left=$(place)
  without=$left
  moved "stopped Pacemaker" is_elsewhere on "$left" systemctl stop pacemaker
  require_unit "stopped Pacemaker"
  on "$left" systemctl start pacemaker
  without=
  settle
}

# The node asks the others to take its machine before it ends, so it is not fenced.
leaves() { # WHAT VERB: the node that runs the machine ends by itself
  local began
  settle
  began=$(now)
  left=$(place)
  without=$left
  moved "$1" is_elsewhere on "$left" systemctl "$2"
  wait_for 180 "the end of n$left" is_off "$left"
  without=
  require_unit "$1"
  [ -z "$(cut_since "$began" "n$left")" ] || die "$1: n$left was fenced"
  settle
  require_unit "the return after: $1"
}
is_off() { ! is_up "$1"; } # NUMBER
shutdown_of_host() { leaves "shutdown of the host" poweroff; }
reboot_of_host() { leaves "reboot of the host" reboot; }

killed_unit() {
  local boot number began
  settle
  read -r boot number < <(state)
  began=$(now)
  hypervisors | xargs kill -KILL
  wait_for 300 "the restart of the machine whose hypervisor was killed" has_rebooted "$boot"
  require_synced "$boot" "$number"
  require_unit "killed hypervisor"
  say "killed hypervisor: answering again after $(subtract "$(now)" "$began") s"
}

# The connection breaks while the memory of the machine goes through it.
broken_migration() {
  local boot number began moving target
  settle
  left=$(place)
  target=$((left % 3 + 1))
  read -r boot number < <(state)
  touch "$RIG/power/migrates"
  began=$(now)
  via microvm cluster move web "n$target" >/dev/null 2>&1 &
  moving=$!
  wait_for 120 "the start of the receiver" is_received_on "$target"
  pgrep -f "ssh -i /root/.ssh/migration .* root@n$target" | xargs kill -KILL
  wait "$moving" || true
  wait_for 300 "the answer after a broken migration" answers
  wait_for 120 "the end of the other hypervisor" has_one_hypervisor
  rm "$RIG/power/migrates"
  settle
  require_unit "broken migration"
  require_synced "$boot" "$number"
  say "broken migration: answering again after $(subtract "$(now)" "$began") s"
}
is_received_on() { [ "$(unit_state "$1")" != inactive ]; } # NUMBER

# The cluster stops the machine as soon as it has begun to start it.
stopped_start() {
  local number
  settle
  via crm_resource --resource web --meta --set-parameter target-role --parameter-value Stopped >/dev/null
  wait_for 120 "the stop" runs_nowhere
  via crm_resource --resource web --meta --set-parameter target-role --parameter-value Started >/dev/null
  wait_for 120 "the start of the unit" starts_somewhere
  via crm_resource --resource web --meta --set-parameter target-role --parameter-value Stopped >/dev/null
  via crm_resource --wait --timeout=180s
  runs_nowhere || die "stopped start: the machine still runs"
  for number in 1 2 3; do
    [ "$(unit_state "$number")" != active ] || die "stopped start: the unit on n$number is active"
  done
  via crm_resource --resource web --meta --delete-parameter target-role >/dev/null
  settle
  require_unit "stopped start"
  say "stopped start: the machine stopped, and started again"
}
starts_somewhere() {
  local number
  for number in 1 2 3; do [ "$(on "$number" systemctl show --property ActiveState --value microvm-set-booted@web)" = inactive ] || return 0; done
  return 1
}

# The machine cannot use its volume. The cluster says why, and the journal what helps.
foreign_volume() {
  local owner
  settle
  owner=$(stat --format %u:%g "$RIG/shared/var.img")
  via crm_resource --resource web --meta --set-parameter target-role --parameter-value Stopped >/dev/null
  wait_for 120 "the stop" runs_nowhere
  via crm_resource --wait --timeout=180s
  chown root:root "$RIG"/shared/var.img{,.lock}
  via crm_resource --resource web --meta --delete-parameter target-role >/dev/null
  # Pacemaker keeps only the beginning of a reason.
  wait_for 180 "the refused start" is_refused "web has not started: volume /shared/var.img cannot be locked: /shared/var.img.lock: Permission denied"
  wait_for 60 "the remedy in a journal" is_in_journal "the machine runs as user ${owner%:*}, so run as root: chown $owner /shared/var.img /shared/var.img.lock"
  # As docs/cluster.md says.
  via microvm cluster unmanage web
  chown "$owner" "$RIG"/shared/var.img{,.lock}
  via microvm cluster manage web
  settle
  say "foreign volume: the start was refused with the reason"
}
is_refused() { via microvm cluster status --json | jq --exit-status --arg reason "$1" 'any(.failures[]; .reason | test($reason))' >/dev/null; } # REASON
is_in_journal() { # TEXT
  local number
  for number in 1 2 3; do ! on "$number" journalctl --quiet --no-pager --unit microvm@web | grep -qF "$1" || return 0; done
  return 1
}

scenarios=(live_migration broken_migration stopped_start foreign_volume killed_unit stopped_pacemaker shutdown_of_host reboot_of_host power_cut)
[ $# = 0 ] || scenarios=("$@")

host=$(build_host)
host=$fixtures/store$host
initrd=$(cat "$host/initrd")
rig_up "$programs/bin/microvm"
truncate -s 64M "$RIG/shared/var.img"
mkfs.ext4 -q -F "$RIG/shared/var.img"
began=$(now)
for number in 1 2 3; do node_up "$number"; done
# As docs/cluster.md says: the first start makes the machine its owner.
wait_for 60 "the user microvm" on 1 chown microvm:kvm /shared/var.img 2>/dev/null
wait_for 300 "the formation of the cluster" is_formed_by_units
via crm_attribute --name dc-deadtime --update 2s
watch
settle
require_unit formation
say "formation: the machine answers after $(subtract "$(now)" "$began") s"
for scenario in "${scenarios[@]}"; do "$scenario"; done
require_no_twins
say "all scenarios passed in $SECONDS s"
