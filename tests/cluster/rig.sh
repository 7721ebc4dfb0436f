# shellcheck shell=bash
# Functions of the rig: three nodes, their switch and their power switch, in namespaces of this host. Source it with $RIG
# set to an empty directory. Everything is removed by rig_down.
#
# A node is a set of namespaces with an overlay of this host's root directory. A power cut is SIGKILL to its process 1:
# the kernel then kills all its processes. The shared storage is a directory that is mounted in all nodes.

rig_here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
rig_log=$RIG/power/log

now() { date +%s.%3N; }

rig_up() { # PROGRAM: creates the switch, the client and the power switch
  mkdir -p "$RIG"/{bin,shared,power,nodes,ssh}
  mount -t tmpfs -o size=1g,mode=755 rig "$RIG/nodes"
  : >"$rig_log"
  install -m 755 "$1" "$RIG/bin/microvm"
  install -m 755 "$rig_here/fence_rig.sh" "$RIG/bin/fence_rig"
  write_ssh_configuration
  head -c 128 /dev/urandom >"$RIG/authkey"
  write_corosync_configuration >"$RIG/corosync.conf"
  ip netns add "$switch"
  ip -n "$switch" link add br0 type bridge stp_state 0 forward_delay 0
  ip -n "$switch" link set br0 up
  ip netns add "$client"
  ip link add to-client netns "$switch" type veth peer name eth0 netns "$client"
  ip -n "$switch" link set to-client master br0 up
  ip -n "$client" addr add 10.77.0.100/24 dev eth0
  ip -n "$client" link set eth0 up
  mkfifo "$RIG/power/requests"
  power_switch &
  power_process=$!
}

rig_down() {
  local number
  [ -z "${power_process:-}" ] || kill "$power_process" 2>/dev/null
  for number in 1 2 3; do
    node_cut "$number"
    ip netns del "rig-$$-n$number" 2>/dev/null
  done
  ip netns del "$client" 2>/dev/null
  ip netns del "$switch" 2>/dev/null
  umount "$RIG/nodes" 2>/dev/null
  rm -rf "$RIG"
}

# Names that no other rig of this host has.
switch=rig-$$-switch
client=rig-$$-client

write_corosync_configuration() {
  local number
  printf 'totem {\n version: 2\n secauth: on\n cluster_name: rig\n transport: knet\n token: 1000\n}\nnodelist {\n'
  for number in 1 2 3; do
    printf ' node {\n  nodeid: %s\n  name: n%s\n  ring0_addr: 10.77.0.1%s\n }\n' "$number" "$number" "$number"
  done
  printf '}\nquorum {\n provider: corosync_votequorum\n}\n'
  printf 'logging {\n to_syslog: no\n to_stderr: no\n to_logfile: yes\n logfile: /var/log/corosync/corosync.log\n timestamp: hires\n}\n'
}

# All nodes have the same keys: `id_ed25519` for every command of root, and `migration` only for receiving a machine.
write_ssh_configuration() {
  local ssh=$RIG/ssh name
  for name in host_key id_ed25519 migration; do ssh-keygen -q -t ed25519 -N '' -C "$name" -f "$ssh/$name"; done
  {
    cat "$ssh/id_ed25519.pub"
    printf 'restrict,command="/rig/microvm ocf receive" %s\n' "$(cat "$ssh/migration.pub")"
  } >"$ssh/authorized_keys"
  printf 'n1,n2,n3 %s\n' "$(cat "$ssh/host_key.pub")" >"$ssh/known_hosts"
  printf '%s\n' 'HostKey /root/.ssh/host_key' 'AuthorizedKeysFile /root/.ssh/authorized_keys' 'PermitRootLogin prohibit-password' \
    'PasswordAuthentication no' 'UsePAM no' 'PidFile none' 'SetEnv PATH=/rig:/usr/sbin:/usr/bin:/sbin:/bin' >"$ssh/sshd_config"
}

is_up() { # NUMBER
  [ -s "$RIG/power/n$1.pid" ] && [ -d "/proc/$(cat "$RIG/power/n$1.pid")" ]
}

start_node() { # NUMBER: becomes the program whose child is process 1 of the node
  RIG=$RIG exec setsid ip netns exec "rig-$$-n$1" unshare --mount --uts --ipc --pid --fork --kill-child --propagation private \
    "$rig_here/node-init.sh" "$1"
}

first_process_of() { # PROCESS: prints its child that is process 1 of another namespace
  local child
  for child in $(pgrep -P "$1"); do
    ! grep -q $'^NSpid:.*\t1$' "/proc/$child/status" 2>/dev/null || { echo "$child"; return; }
  done
  return 1
}

node_up() { # NUMBER: powers a node on
  local number=$1 outer child
  ! is_up "$number" || return 0
  ip netns del "rig-$$-n$number" 2>/dev/null || true
  # The kernel removes the interfaces of a namespace some time after the namespace.
  ip -n "$switch" link del "to-n$number" 2>/dev/null || true
  ip netns add "rig-$$-n$number"
  ip link add "to-n$number" netns "$switch" type veth peer name eth0 netns "rig-$$-n$number"
  ip -n "$switch" link set "to-n$number" master br0 up
  mkdir -p "$RIG/nodes/$number"/{upper,work,root}
  # What systemd does at each boot.
  rm -rf "$RIG/nodes/$number/upper/run" "$RIG/nodes/$number/upper/var/run"
  start_node "$number" </dev/null >"$RIG/power/n$number.console" 2>&1 &
  outer=$!
  until child=$(first_process_of "$outer"); do
    [ -d "/proc/$outer" ] || { cat "$RIG/power/n$number.console" >&2; return 1; }
    sleep 0.05
  done
  echo "$child" >"$RIG/power/n$number.pid"
}

node_cut() { # NUMBER: cuts a node's power
  local process
  process=$(cat "$RIG/power/n$1.pid" 2>/dev/null) || return 0
  kill -KILL "$process" 2>/dev/null || true
  while [ -d "/proc/$process" ]; do sleep 0.01; done
  ip -n "$switch" link del "to-n$1" 2>/dev/null || true
  rm -f "$RIG/power/n$1.pid"
}

processes_of() { # NUMBER: prints the processes of a node
  local namespace
  namespace=$(readlink "/proc/$(cat "$RIG/power/n$1.pid")/ns/pid") || return 0
  find /proc -maxdepth 1 -name '[0-9]*' -printf '%f\n' 2>/dev/null | while read -r process; do
    [ "$(readlink "/proc/$process/ns/pid" 2>/dev/null)" != "$namespace" ] || echo "$process"
  done
}

on() { # NUMBER COMMAND...: runs a command on a node
  local process
  process=$(cat "$RIG/power/n$1.pid") || return 1
  shift
  nsenter --target "$process" --mount --uts --ipc --net --pid --root --wd \
    env "PATH=/rig:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/root "$@"
}

from_client() { ip netns exec "$client" "$@"; }

# Outside all nodes, like the switched socket strip of a rack. It serves one request after another: `ID off|on|status NODE`.
# While the file `dead` exists, it answers nothing.
power_switch() {
  local id verb node number state
  set +e
  exec 3<>"$RIG/power/requests"
  while read -r id verb node <&3; do
    [ ! -e "$RIG/power/dead" ] || continue
    number=${node#n}
    case $verb in
    off) node_cut "$number" ;;
    on) node_up "$number" ;;
    esac
    if is_up "$number"; then state=on; else state=off; fi
    [ "$verb" = status ] || echo "$(now) $verb $node $state" >>"$rig_log"
    echo "$state" >"$RIG/power/answer.$id.new"
    mv "$RIG/power/answer.$id.new" "$RIG/power/answer.$id"
  done
}
