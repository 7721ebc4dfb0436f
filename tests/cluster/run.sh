#!/usr/bin/env bash
# run.sh [SCENARIO...]: runs a machine in a real cluster of three nodes, with Corosync, Pacemaker and fencing, and breaks
# it. It asserts what happens and in which order, and prints how long that took. It needs root, qemu, the packages of
# scripts/setup.sh and the fixture `small`. Without arguments, it runs all scenarios, in less than three minutes on an idle
# host; an argument such as power_cut can be repeated.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
top=$(realpath "$here/../..")
say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "the rig of the cluster needs root: it creates namespaces" "run it as root"
[ -c /dev/net/tun ] || die "/dev/net/tun is missing: the machine's network interface needs it" "load the kernel module tun"
for program in corosync pacemakerd crm_mon crm_resource cibadmin stonith_admin qemu-system-x86_64 ip nsenter cpio curl jq nix ping ssh ssh-keygen; do
  command -v "$program" >/dev/null || die "$program is missing" "run scripts/setup.sh"
done
[ -x /usr/sbin/sshd ] || die "sshd is missing" "run scripts/setup.sh"
ip netns add "rig-$$-probe" 2>/dev/null || die "this host permits no network namespaces" "run it outside of a container, or in a privileged one"
ip netns del "rig-$$-probe"

fixtures=${MICROVM_FIXTURES:-$top/target/fixtures}/small
[ -e "$fixtures/vmlinux" ] || "$top/fixtures/closure/build.sh" small >/dev/null
microvm=${MICROVM_PROGRAM:-${CARGO_TARGET_DIR:-$top/target}/debug/microvm}
[ -n "${MICROVM_PROGRAM:-}" ] || cargo build --quiet --locked --manifest-path "$top/Cargo.toml" -p launcher

RIG=$(mktemp -d /var/tmp/microvm-rig.XXXXXX)
# shellcheck source-path=SCRIPTDIR source=rig.sh
source "$here/rig.sh"

address=10.77.0.50
# No other rig of this host has this path in its hypervisors' arguments.
guest=/shared/guest-$$
pings=$RIG/pings
background=()

finish() {
  local code=$?
  trap - EXIT
  [ "$code" = 0 ] || show_logs
  kill "${background[@]}" 2>/dev/null || true
  rig_down 2>/dev/null || true
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

show_logs() {
  local number
  say "the power switch:"
  cat "$rig_log"
  cat "$RIG/power/receive.log" 2>/dev/null || true
  for number in 1 2 3; do
    is_up "$number" || continue
    say "n$number:"
    on "$number" timeout 10 crm_mon -1 --show-detail 2>&1 | sed 's/^/  /' || true
    on "$number" tail -n 25 /var/log/pacemaker/pacemaker.log 2>/dev/null | cut -c 1-220 | sed 's/^/  /' || true
    on "$number" cat /var/lib/microvms/web/microvm.log 2>/dev/null | tail -n 5 | sed 's/^/  /' || true
  done
}

# A busy host is slow: the limits are generous, and nothing depends on them.
wait_for() { # SECONDS WHAT COMMAND...: polls until the command succeeds
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $end ] || die "$what has not happened in time"
    sleep 0.1
  done
}

subtract() { awk -v from="$2" -v to="$1" 'BEGIN { printf "%.2f", to - from }'; }
not_after() { awk -v first="$1" -v second="$2" 'BEGIN { exit !(first <= second) }'; }

# Builds a runner in the store of a node and prints its store path. Other stores accept such a path only with a signature, or
# from root.
build_runner() { # NUMBER MEMORY
  local tree=$RIG/shared/runner-$2
  mkdir -p "$tree/bin" "$tree/share/microvm"
  cat >"$tree/bin/microvm-run" <<'RUN'
#!/bin/sh
exec /rig/microvm run "$(realpath "$0" | xargs dirname)/../share/microvm/machine.json" "$@"
RUN
  chmod +x "$tree/bin/microvm-run"
  jq --null-input --arg guest "$guest" --argjson mem "$2" '{
    version: 1, name: "web", hypervisor: "qemu", mem: $mem, balloon: false,
    kernel: ($guest + "/vmlinux"), initrd: ($guest + "/initrd"), kernelParams: ["quiet", "rig"],
    volumes: [{image: "/shared/var.img", autoCreate: false}],
    interfaces: [{type: "bridge", id: "vm-web", mac: "02:00:00:00:00:50", bridge: "br0"}],
    qemu: {accelerator: "tcg"}
  }' >"$tree/share/microvm/machine.json"
  on "$1" nix-build --quiet --no-out-link --expr "derivation {
    name = \"web-$2\"; system = builtins.currentSystem;
    builder = \"/bin/sh\"; args = [ \"-c\" \"/bin/cp -r /shared/runner-$2 \$out\" ];
  }"
}

make_guest() {
  mkdir -p "$RIG/shared/${guest##*/}" "$RIG/initrd"
  cp --reflink=auto "$fixtures/vmlinux" "$RIG/shared/${guest##*/}/vmlinux"
  install -m 755 "$here/guest-init.sh" "$RIG/initrd/init"
  # A later archive replaces files of an earlier one: Documentation/driver-api/early-userspace/buffer-format.rst.
  {
    cat "$fixtures/initrd"
    (cd "$RIG/initrd" && echo init | cpio --quiet --create --format=newc)
  } >"$RIG/shared/${guest##*/}/initrd"
  truncate -s 64M "$RIG/shared/var.img"
  mkfs.ext4 -q -F "$RIG/shared/var.img"
  nix --extra-experimental-features nix-command key generate-secret --key-name rig-1 >"$RIG/shared/cache.key"
  {
    printf 'build-users-group =\nsandbox = false\nsubstituters =\ntrusted-public-keys = '
    nix --extra-experimental-features nix-command key convert-secret-to-public <"$RIG/shared/cache.key"
  } >"$RIG/nix.conf"
}

# The cluster, from which `microvm cluster` generates the configuration.
cluster() { # RUNNER
  jq --null-input --arg runner "$1" '{
    version: 1, name: "rig",
    nodes: ([1, 2, 3] | map({key: "n\(.)", value: {id: ., addresses: ["10.77.0.1\(.)"], memory: 1024}}) | from_entries),
    fencing: {action: "off", devices: {power: {agent: "fence_rig", targets: ["n1", "n2", "n3"], timeout: 20}}},
    sharedPaths: ["/shared"], bridges: ["br0"], cache: "file:///shared/cache",
    migration: {command: "ssh -i /root/.ssh/migration -o IdentitiesOnly=yes -o BatchMode=yes root@NODE anything"},
    machines: {web: {runner: $runner, migrate: "live", timeouts: {monitor: 30, migrate: 300}}}
  }'
}

first_up() { # prints the first node that is up
  local number
  for number in 1 2 3; do
    if is_up "$number"; then echo "$number" && return; fi
  done
}
via() { on "$(first_up)" "$@"; } # COMMAND...: on any node that is up

are_online() { # COUNT
  local online
  online=$(via crm_mon -1 --output-as=xml 2>/dev/null | grep -c '<node name=.* online="true" .*unclean="false"') || true
  [ "$online" = "$1" ]
}
place() { via crm_resource --resource web --locate 2>/dev/null | sed -n 's/.*running on: n\([123]\).*/\1/p' | head -n 1; }
is_in() { [ "$(place)" = "$1" ]; } # NUMBER
state() { from_client curl --silent --fail --max-time 2 "http://$address/state"; }
answers() { state | grep -q ' '; }
has_rebooted() { local boot rest; read -r boot rest < <(state) && [ "$boot" -gt "$1" ]; } # BOOT
has_failed_fencing() { # NODE
  via microvm cluster status --json | jq --exit-status --arg node "$1" 'any(.fencing[]; .node == $node and .status == "failed")' >/dev/null
}
hypervisors() { # prints the processes, without those that qemu forks to run its bridge helper
  local all
  all=$(pgrep -d , -f -- "-initrd $guest/initrd") || return 0
  ps -o pid=,ppid= -p "$all" | awk '{ parent[$1] = $2 } END { for (process in parent) if (!(parent[process] in parent)) print process }'
}
runs_nowhere() { [ -z "$(hypervisors)" ]; }

# Prints each hypervisor that could write to the volume now: it has locked the byte that stands for this permission, in
# qemu's block/file-posix.c. One that waits for a guest, or has sent it, has not.
writers() {
  awk -v inode="$(stat --format %i "$RIG/shared/var.img")" '$2 == "OFDLCK" && $6 ~ ":" inode "$" && $7 <= 101 && $8 >= 101' /proc/locks
}
has_one_writer() { [ "$(writers | wc -l)" = 1 ]; }

# Notes each moment at which two hypervisors could run the guest. During a live migration there are two, of which one waits
# for the guest or has sent it; only one has opened the volume for writing then.
watch_for_twins() {
  local count
  while sleep 0.2; do
    count=$(hypervisors | wc -l)
    [ "$count" -lt 2 ] || { [ -e "$RIG/power/migrates" ] && [ "$(writers | wc -l)" -lt 2 ]; } || {
      echo "$(now) $count hypervisors run; those that can write:"
      writers
      pgrep -f -- "-initrd $guest/initrd" | xargs --no-run-if-empty ps -o pid,ppid,stat,lstart,comm -p
    } >>"$RIG/power/twins"
  done
}

longest_gap() { # SINCE: prints the longest time without an answer to a ping, in seconds
  sed -n 's/^\[\([0-9.]*\)\] 64 bytes.*/\1/p' "$pings" |
    awk -v since="$1" '$1 >= since - 1 { if (last && $1 - last > gap) gap = $1 - last; last = $1 } END { printf "%.2f", gap }'
}

is_pinged_since() { # TIME
  sed -n 's/^\[\([0-9.]*\)\] 64 bytes.*/\1/p' "$pings" | tail -n 1 | awk -v since="$1" '{ answered = $1 > since } END { exit !answered }'
}

settle() { # makes all nodes and the machine run
  local number
  for number in 1 2 3; do node_up "$number"; done
  wait_for 300 "the cluster of three nodes" are_online 3
  wait_for 300 "the start of the machine" answers
  wait_for 60 "the answer to a ping" is_pinged_since "$(now)"
  has_one_writer || die "not one hypervisor has locked the volume: $(writers)"
}

require_synced() { # BOOT NUMBER: all lines that the guest reported as synced are in its log
  from_client curl --silent --max-time 20 "http://$address/log" >"$RIG/log"
  awk -v boot="$1" -v last="$2" '$1 == boot && $2 == next_number + 0 { next_number++ } END { exit next_number <= last }' "$RIG/log" ||
    die "the guest had synced line $2 of boot $1, and lost it"
}

# A node fails; the machine must start on another one, after the node was fenced.
fail_over() { # WHAT COMMAND...: the command, which gets the node's number, breaks it
  local what=$1 old boot number began fenced started new
  shift
  settle
  old=$(place)
  read -r boot number < <(state)
  began=$(now)
  "$@" "$old"
  wait_for 300 "the start on another node after: $what" has_rebooted "$boot"
  new=$(place)
  [ "$new" != "$old" ] || die "$what: the machine is still on n$old"
  fenced=$(awk -v node="n$old" -v began="$began" '$1 > began && $2 == "off" && $3 == node { print $1; exit }' "$rig_log")
  [ -n "$fenced" ] || die "$what: n$old was not fenced"
  # The launcher records the launch right before the hypervisor starts.
  started=$(on "$new" stat --format %.Y /run/microvm/web/launch.json)
  not_after "$fenced" "$started" || die "$what: started at $started, before n$old was fenced at $fenced"
  ! is_up "$old" || die "$what: n$old was fenced and still runs"
  require_synced "$boot" "$number"
  say "$what: fenced after $(subtract "$fenced" "$began") s, started after $(subtract "$started" "$began") s, silent for $(longest_gap "$began") s"
}

cut_network() { ip -n "$switch" link set "to-n$1" down; }
freeze() { processes_of "$1" | xargs kill -STOP 2>/dev/null || true; }

power_cut() { fail_over "power cut" node_cut; }
network_cut() { fail_over "network cut" cut_network; }
frozen_node() { fail_over "frozen node" freeze; } # fencing has killed all its processes, so there is nothing left to thaw

dead_fence_device() {
  local old boot number began
  settle
  old=$(place)
  read -r boot number < <(state)
  touch "$RIG/power/dead"
  node_cut "$old"
  wait_for 300 "the failure of fencing" has_failed_fencing "n$old"
  for _ in {1..10}; do
    runs_nowhere || die "dead fence device: the machine was started although n$old was not fenced"
    sleep 1
  done
  [ -z "$(place)" ] || is_in "$old" || die "dead fence device: the machine runs on n$(place)"
  began=$(now)
  via microvm cluster status | grep -q "^  n$old  offline, waiting to be fenced$" || die "dead fence device: the status is another one"
  via microvm cluster ack-fence "n$old" --is-off
  wait_for 300 "the start after the acknowledgement" has_rebooted "$boot"
  rm "$RIG/power/dead"
  require_synced "$boot" "$number"
  say "dead fence device: not started until acknowledged, then answering after $(subtract "$(now)" "$began") s"
}

lost_majority() {
  local survivor number began
  settle
  survivor=$(place)
  began=$(now)
  for number in 1 2 3; do [ "$number" = "$survivor" ] || node_cut "$number"; done
  wait_for 300 "the stop on the node without a majority" runs_nowhere
  is_up "$survivor" || die "lost majority: the node without a majority has ended"
  say "lost majority: n$survivor has stopped the machine after $(subtract "$(now)" "$began") s"
  settle
}

# The guest goes on: the same boot, and a number that has grown.
require_same_guest() { # WHAT BOOT NUMBER
  local boot number
  read -r boot number < <(state)
  [ "$boot" = "$2" ] || die "$1: the guest has booted again"
  [ "$number" -ge "$3" ] || die "$1: the guest was at $3 and is at $number"
}

moved() { # WHAT TARGET COMMAND...: runs a command on a node that moves the machine without a pause
  local what=$1 target=$2 boot number began
  shift 2
  read -r boot number < <(state)
  touch "$RIG/power/migrates"
  began=$(now)
  via "$@" >/dev/null
  wait_for 300 "$what" "$target"
  wait_for 60 "the answer after: $what" is_pinged_since "$(now)"
  wait_for 120 "the end of the other hypervisor" has_one_hypervisor
  rm "$RIG/power/migrates"
  require_same_guest "$what" "$boot" "$number"
  require_synced "$boot" "$number"
  say "$what: complete after $(subtract "$(now)" "$began") s, silent for $(longest_gap "$began") s"
}
has_one_hypervisor() { [ "$(hypervisors | wc -l)" = 1 ]; }
is_elsewhere() { local now_in; now_in=$(place) && [ -n "$now_in" ] && [ "$now_in" != "$left" ]; }

live_migration() {
  local banned
  settle
  left=$(place)
  banned=$(((left + 1) % 3 + 1))
  via crm_resource --ban --resource web --node "n$banned" >/dev/null 2>&1
  ! via microvm cluster move web "n$banned" 2>"$RIG/printed" || die "live migration: moved against a constraint of the user"
  grep -q "the constraint cli-ban-web-on-n$banned keeps web away" "$RIG/printed" || die "live migration: $(cat "$RIG/printed")"
  moved "live migration" is_elsewhere microvm cluster move web "n$((left % 3 + 1))"
  # Nothing holds the machine there but its stickiness, and what somebody has set with other tools is kept.
  via cibadmin --query --scope constraints >"$RIG/constraints"
  ! grep -q microvm__move "$RIG/constraints" || die "live migration: a constraint is left"
  grep -q "cli-ban-web-on-n$banned" "$RIG/constraints" || die "live migration: a constraint of the user was removed"
  via crm_resource --clear --resource web
}

drain() {
  settle
  left=$(place)
  moved "drain" is_elsewhere microvm cluster drain "n$left"
  via microvm cluster undrain "n$left"
}

rolling_update() {
  local boot number began runner from printed
  settle
  from=$(first_up)
  runner=$(build_runner "$from" 136)
  read -r boot number < <(state)
  # The other nodes do not have the runner, so nothing changes.
  ! printed=$(on "$from" microvm cluster update web "$runner" 2>&1) || die "rolling update: a runner was accepted that nodes do not have"
  grep -q "copy it to all hosts: microvm cluster push web $runner" <<<"$printed" || die "rolling update: $printed"
  on "$from" microvm cluster push web "$runner"
  has_rebooted "$boot" && die "rolling update: the machine was restarted before the update"
  began=$(now)
  on "$from" microvm cluster update web "$runner"
  wait_for 300 "the restart with the new runner" has_rebooted "$boot"
  [ "$(on "$(place)" readlink /var/lib/microvms/web/current)" = "$runner" ] || die "the update has not changed the runner"
  require_synced "$boot" "$number"
  say "rolling update: answering with the new runner after $(subtract "$(now)" "$began") s, silent for $(longest_gap "$began") s"
}

# Pacemaker does not notice that a machine ends while it is not managed.
unmanaged() {
  local boot number began
  settle
  read -r boot number < <(state)
  via microvm cluster unmanage web
  hypervisors | xargs kill -KILL
  wait_for 60 "the end of the machine" runs_nowhere
  began=$(now)
  via microvm cluster manage web
  wait_for 300 "the start of the machine that ended unmanaged" has_rebooted "$boot"
  require_synced "$boot" "$number"
  say "unmanaged: answering again after $(subtract "$(now)" "$began") s"
}

scenarios=(live_migration drain unmanaged rolling_update power_cut network_cut frozen_node dead_fence_device lost_majority)
[ $# = 0 ] || scenarios=("$@")

rig_up "$microvm"
make_guest
began=$(now)
for number in 1 2 3; do node_up "$number"; done
is_formed() { via cibadmin --query >/dev/null 2>&1 && via crm_mon -1 --output-as=xml 2>/dev/null | grep -q 'with_quorum="true"'; }
wait_for 300 "the formation of the cluster" is_formed
via crm_attribute --name dc-deadtime --update 2s
# The first runner reaches the other nodes through the signed cache, when the machine starts on them.
runner=$(build_runner 1 128)
on 1 nix --extra-experimental-features nix-command copy --to "file:///shared/cache?secret-key=/shared/cache.key" "$runner"
cluster "$runner" >"$RIG/shared/cluster.json"
on 1 microvm cluster apply /shared/cluster.json
from_client ping -n -D -i 0.05 "$address" >"$pings" 2>/dev/null &
background+=($!)
watch_for_twins &
background+=($!)
settle
say "formation: the machine answers after $(subtract "$(now)" "$began") s"
for scenario in "${scenarios[@]}"; do "$scenario"; done
[ ! -e "$RIG/power/twins" ] || die "the machine ran twice: $(head -n 20 "$RIG/power/twins")"
say "all scenarios passed in $SECONDS s"
