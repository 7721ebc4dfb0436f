#!/usr/bin/env bash
# run.sh [SCENARIO...]: runs a machine in a real cluster of three nodes, with Corosync, Pacemaker and fencing, and breaks
# it. It asserts what happens and in which order, and prints how long that took. It needs root, qemu, the packages of
# scripts/setup.sh and the fixture `small`. Without arguments, it runs all scenarios, in less than three minutes on an idle
# host; an argument such as power_cut can be repeated.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=scenario.sh
source "$(dirname "$(realpath "$0")")/scenario.sh"
top=$(realpath "$here/../..")
require corosync pacemakerd crm_mon crm_resource cibadmin stonith_admin qemu-system-x86_64 ip nsenter cpio curl jq nix ping ssh ssh-keygen /usr/sbin/sshd

fixtures=${MICROVM_FIXTURES:-$top/target/fixtures}/small
[ -e "$fixtures/vmlinux" ] || "$top/fixtures/closure/build.sh" small >/dev/null
microvm=${MICROVM_PROGRAM:-${CARGO_TARGET_DIR:-$top/target}/debug/microvm}
[ -n "${MICROVM_PROGRAM:-}" ] || cargo build --quiet --locked --manifest-path "$top/Cargo.toml" -p launcher

# No other rig of this host has this path in its hypervisors' arguments.
guest=/shared/guest-$$
initrd=$guest/initrd

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
  mkdir -p "$RIG/shared/${guest##*/}"
  cp --reflink=auto "$fixtures/vmlinux" "$RIG/shared/${guest##*/}/vmlinux"
  make_initrd "$fixtures/initrd" "$RIG/shared/${initrd#/shared/}"
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

cut_network() { ip -n "$switch" link set "to-n$1" down; }
freeze() { processes_of "$1" | xargs kill -STOP 2>/dev/null || true; }

power_cut() { fail_over "power cut" node_cut; }
network_cut() { fail_over "network cut" cut_network; }
frozen_node() { fail_over "frozen node" freeze; } # fencing has killed all its processes, so there is nothing left to thaw

# On busy hosts, Pacemaker carries out one action at a time. A device that it kept restarting left no time for other
# actions.
dead_fence_device() {
  local old boot number began
  settle
  via crm_attribute --name load-threshold --update 1%
  old=$(place)
  read -r boot number < <(state)
  touch "$RIG/power/dead"
  node_cut "$old"
  wait_for 300 "the failure of fencing" has_failed_fencing "n$old"
  for _ in {1..10}; do
    runs_nowhere || die "dead fence device: the machine was started although n$old was not fenced: $(find_hypervisors -a)"
    sleep 1
  done
  [ -z "$(place)" ] || is_in "$old" || die "dead fence device: the machine runs on n$(place)"
  began=$(now)
  via microvm cluster status | grep -q "^  n$old  offline, waiting to be fenced$" || die "dead fence device: the status is another one"
  via microvm cluster ack-fence "n$old" --is-off
  wait_for 300 "the start after the acknowledgement" has_rebooted "$boot"
  rm "$RIG/power/dead"
  require_synced "$boot" "$number"
  via crm_attribute --name load-threshold --delete --quiet >/dev/null
  say "dead fence device: not started until acknowledged, then answering after $(subtract "$(now)" "$began") s"
}

refuses_changes() { # NUMBER: a node without a majority changes nothing and says why
  local before command words printed
  before=$(on "$1" cibadmin --query --local --scope configuration)
  for command in "apply /shared/cluster.json" "update web $runner" "move web n1" "drain n1" "undrain n1" "unmanage web" "manage web"; do
    read -ra words <<<"$command"
    ! printed=$(on "$1" microvm cluster "${words[@]}" 2>&1) || die "lost majority: a node without a majority accepts: $command"
    grep -q '^error: this part of the cluster has no quorum, so nothing can be changed$' <<<"$printed" || die "lost majority: $command: $printed"
  done
  [ "$(on "$1" cibadmin --query --local --scope configuration)" = "$before" ] || die "lost majority: a refused command changed the configuration"
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
  refuses_changes "$survivor"
  settle
}

live_migration() {
  local banned
  settle
  left=$(place)
  banned=$(((left + 1) % 3 + 1))
  via crm_resource --ban --resource web --node "n$banned" >/dev/null 2>&1
  ! via microvm cluster move web "n$banned" 2>"$RIG/printed" || die "live migration: moved against a constraint of the user"
  grep -q "the constraint cli-ban-web-on-n$banned keeps web away" "$RIG/printed" || die "live migration: $(cat "$RIG/printed")"
  moved "live migration" is_elsewhere via microvm cluster move web "n$((left % 3 + 1))"
  # Nothing holds the machine there but its stickiness, and what somebody has set with other tools is kept.
  via cibadmin --query --scope constraints >"$RIG/constraints"
  ! grep -q microvm__move "$RIG/constraints" || die "live migration: a constraint is left"
  grep -q "cli-ban-web-on-n$banned" "$RIG/constraints" || die "live migration: a constraint of the user was removed"
  via crm_resource --clear --resource web
}

drain() {
  settle
  left=$(place)
  moved "drain" is_elsewhere via microvm cluster drain "n$left"
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
wait_for 300 "the formation of the cluster" is_formed
via crm_attribute --name dc-deadtime --update 2s
# The first runner reaches the other nodes through the signed cache, when the machine starts on them.
runner=$(build_runner 1 128)
on 1 nix --extra-experimental-features nix-command copy --to "file:///shared/cache?secret-key=/shared/cache.key" "$runner"
cluster "$runner" >"$RIG/shared/cluster.json"
on 1 microvm cluster apply /shared/cluster.json
watch
settle
say "formation: the machine answers after $(subtract "$(now)" "$began") s"
for scenario in "${scenarios[@]}"; do "$scenario"; done
require_no_twins
say "all scenarios passed in $SECONDS s"
