# shellcheck shell=bash disable=SC2154
# Two machines on one bridge, whose own checks are in the journal of their units.
# checks.sh and host-checks.sh come before it.

said_in() { journalctl --no-pager --output cat --unit "microvm@$1.service" | tr -d '\r' | sed -n 's/^.*RIG: //p'; } # MACHINE
has_ended() { said_in "$1" | grep -qx end; }
wait_for_end() { # MACHINE: until its checks are done
  local waited
  for ((waited = 0; waited < 4800; waited++)); do
    if has_ended "$1"; then return 0; fi
    sleep 1
  done
  return 1
}

for machine in left right; do check "$machine starts with the host" wait_for runs "$machine"; done
same 'virtiofsd runs beside the one that has a share' "$(systemctl is-active microvm-virtiofsd@left.service microvm-virtiofsd@right.service | xargs)" 'active inactive'
same 'the device of the macvtap is the user'\''s' "$(stat -c %u "/dev/tap$(cat /sys/class/net/vm-right/ifindex)")" "$(user_of right)"
for machine in left right; do
  check "$machine comes to the end of its checks" wait_for_end "$machine"
  same "$machine has no failed check" "$(said_in "$machine" | grep '^FAILED')" ''
  said_in "$machine" | grep -E '^ok|^value: seconds' | sed "s/^ok:/ok: $machine:/"
done
same 'the share has what the machine wrote' "$(cat "$machines/left/data/from-left")" from-left
for machine in left right; do
  check "$machine is stopped" systemctl stop "microvm@$machine.service"
  check "and $machine has shut down" sh -c "journalctl --no-pager --output cat --unit microvm@$machine.service | grep -q '$machine has shut down'"
done
no_links() { ! ip -br link | grep -q '^vm-'; }
check 'the interfaces go' wait_for no_links
same 'virtiofsd ends with its machine' "$(systemctl is-active microvm-virtiofsd@left.service)" inactive
same 'no machine failed' "$(failures)" ''
