# shellcheck shell=bash
# Functions that break a cluster with the machine `web` and check what happens. They make the directory $RIG, which is
# removed at the end. $initrd must become the path of the initrd in the arguments of the machine's hypervisor.

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
initrd=
left=    # the node that the machine leaves
without= # a node that is up, but has left the cluster

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

require() { # PROGRAM...: fails if this host cannot have a rig
  local program
  [ "$(id -u)" = 0 ] || die "the rig of the cluster needs root: it creates namespaces" "run it as root"
  [ -c /dev/net/tun ] || die "/dev/net/tun is missing: the machine's network interface needs it" "load the kernel module tun"
  for program in "$@"; do
    command -v "$program" >/dev/null || die "$program is missing" "run scripts/setup.sh"
  done
  ip netns add "rig-$$-probe" 2>/dev/null || die "this host permits no network namespaces" "run it outside of a container, or in a privileged one"
  ip netns del "rig-$$-probe"
}

RIG=$(mktemp -d /var/tmp/microvm-rig.XXXXXX)
# shellcheck source-path=SCRIPTDIR source=rig.sh
source "$here/rig.sh"

address=10.77.0.50
pings=$RIG/pings
background=()

finish() {
  local code=$?
  trap - EXIT
  [ "$code" = 0 ] || show_logs
  kill "${background[@]}" 2>/dev/null || true
  rig_down 2>/dev/null || true
  after_rig 2>/dev/null || true
  exit "$code"
}
after_rig() { :; }
trap finish EXIT
trap 'exit 130' INT TERM

show_logs() {
  local number
  say "the power switch:"
  cat "$rig_log" 2>/dev/null || true
  cat "$RIG/power/receive.log" 2>/dev/null || true
  for number in 1 2 3; do
    is_up "$number" || continue
    say "n$number:"
    on "$number" timeout 10 crm_mon -1 --show-detail 2>&1 | sed 's/^/  /' || true
    on "$number" tail -n 25 /var/log/pacemaker/pacemaker.log 2>/dev/null | cut -c 1-220 | sed 's/^/  /' || true
    show_machine "$number" 2>/dev/null | sed 's/^/  /' || true
  done
}
show_machine() { on "$1" tail -n 5 /var/lib/microvms/web/microvm.log; } # NUMBER

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

first_up() { # prints the first node that is up
  local number
  for number in 1 2 3; do
    if [ "$number" != "$without" ] && is_up "$number"; then echo "$number" && return; fi
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
# The pattern begins with the hypervisor's process name, because a pgrep also finds every other pgrep with a pattern that
# matches itself. In the rig with systemd, a script executes qemu by its path.
find_hypervisors() { pgrep "$@" -f -- "^(microvm@web|[^ ]*/qemu-system-x86_64) .*-initrd $initrd"; } # OPTION...
hypervisors() { # prints the processes, without those that qemu forks to run its bridge helper
  local all
  all=$(find_hypervisors -d ,) || return 0
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
      find_hypervisors | xargs --no-run-if-empty ps -o pid,ppid,stat,lstart,comm -p
    } >>"$RIG/power/twins"
  done
}

watch() { # pings the machine and watches for twins until the end
  from_client ping -n -D -i 0.05 "$address" >"$pings" 2>/dev/null &
  background+=($!)
  watch_for_twins &
  background+=($!)
}
require_no_twins() { [ ! -e "$RIG/power/twins" ] || die "the machine ran twice: $(head -n 20 "$RIG/power/twins")"; }

longest_gap() { # SINCE: prints the longest time without an answer to a ping, in seconds
  sed -n 's/^\[\([0-9.]*\)\] 64 bytes.*/\1/p' "$pings" |
    awk -v since="$1" '$1 >= since - 1 { if (last && $1 - last > gap) gap = $1 - last; last = $1 } END { printf "%.2f", gap }'
}

is_pinged_since() { # TIME
  sed -n 's/^\[\([0-9.]*\)\] 64 bytes.*/\1/p' "$pings" | tail -n 1 | awk -v since="$1" '{ answered = $1 > since } END { exit !answered }'
}

is_formed() { via cibadmin --query >/dev/null 2>&1 && via crm_mon -1 --output-as=xml 2>/dev/null | grep -q 'with_quorum="true"'; }

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

cut_since() { # TIME NODE: prints when the power switch has cut the node's power
  awk -v node="$2" -v since="$1" '$1 > since && $2 == "off" && $3 == node { print $1; exit }' "$rig_log"
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
  fenced=$(cut_since "$began" "n$old")
  [ -n "$fenced" ] || die "$what: n$old was not fenced"
  # The launcher records the launch right before the hypervisor starts.
  started=$(on "$new" stat --format %.Y /run/microvm/web/launch.json)
  not_after "$fenced" "$started" || die "$what: started at $started, before n$old was fenced at $fenced"
  ! is_up "$old" || die "$what: n$old was fenced and still runs"
  require_synced "$boot" "$number"
  say "$what: fenced after $(subtract "$fenced" "$began") s, started after $(subtract "$started" "$began") s, silent for $(longest_gap "$began") s"
}

# The guest goes on: the same boot, and a number that has grown.
require_same_guest() { # WHAT BOOT NUMBER
  local boot number
  read -r boot number < <(state)
  [ "$boot" = "$2" ] || die "$1: the guest has booted again"
  [ "$number" -ge "$3" ] || die "$1: the guest was at $3 and is at $number"
}

moved() { # WHAT TARGET COMMAND...: runs a command that moves the machine without a pause
  local what=$1 target=$2 boot number began
  shift 2
  read -r boot number < <(state)
  touch "$RIG/power/migrates"
  began=$(now)
  "$@" >/dev/null
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


make_initrd() { # FIXTURE OUTPUT: adds the rig's first program to an initrd
  mkdir -p "$RIG/initrd"
  install -m 755 "$here/guest-init.sh" "$RIG/initrd/init"
  # A later archive replaces files of an earlier one: Documentation/driver-api/early-userspace/buffer-format.rst.
  {
    cat "$1"
    (cd "$RIG/initrd" && touch --date=@1 init && echo init | cpio --quiet --create --format=newc --reproducible)
  } >"$2"
}
