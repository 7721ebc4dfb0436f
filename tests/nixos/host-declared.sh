# shellcheck shell=bash disable=SC2154
# Declared machines: autostart, a switch to a changed configuration and one to the same, a garbage collection, a rollback.
# checks.sh and host-checks.sh come before it.

first=$(readlink -f /run/current-system)
second=$(sed -n 2p /out/systems)
third=$(sed -n 3p /out/systems)
for machine in web steady; do
  check "$machine starts with the host" wait_for runs "$machine"
  same "$machine has the runner that it was started with" "$(runner_of $machine booted)" "$(runner_of $machine current)"
  check "$machine has its tap interface" ip link show "vm-$machine"
  same "$machine does not run as root" "$(ps -o uid= -p "$(pid_of $machine)" | grep -cw 0)" 0
done
check 'each has a user of its own' test "$(user_of web)" != "$(user_of steady)"
check 'a machine without autostart is installed' test -x "$machines/asleep/current/bin/microvm-run"
same 'and does not run' "$(systemctl is-active microvm@asleep.service)" inactive
same 'every machine is listed' "$(microvm list 2>/dev/null | grep -cE '^(asleep|steady|web)\b')" 3
check 'the image cache is collected' systemctl start microvm-image-cache-gc.service

web=$(pid_of web) steady=$(pid_of steady) booted=$(runner_of steady booted)
switch_to 'a switch' "$second"
check 'a changed machine runs' wait_for runs web
check 'a changed machine is restarted' test "$(pid_of web)" != "$web"
same 'with its new runner' "$(runner_of web booted)" "$(runner_of web current)"
same 'with restartIfChanged = false it is not' "$(pid_of steady)" "$steady"
check 'but has its new runner' test "$(runner_of steady current)" != "$booted"
check 'which the switch says' grep -q 'microVM steady keeps running an older system' <<<"$printed"

web=$(pid_of web)
switch_to 'a second switch to the same system' "$second"
same 'and restarts nothing' "$(pid_of web) $(pid_of steady)" "$web $steady"

# The runner that steady has booted is of a system that is neither the host's booted one nor its current one.
systemctl restart microvm@steady.service
check 'a machine is restarted by hand' wait_for runs steady
booted=$(runner_of steady booted)
nix-env --profile /nix/var/nix/profiles/system --set "$third"
switch_to 'a switch to a third system' "$third"
check 'the machine still runs with the second' test "$(runner_of steady current)" != "$(runner_of steady booted)"
nix-store --query --requisites "$booted" >/tmp/needed
check 'garbage is collected' nix-collect-garbage -d
check 'what no machine needs goes' test ! -e "$(cat /out/garbage)"
same 'nothing that a running machine needs goes' "$(while read -r path; do [ -e "$path" ] || echo "$path"; done </tmp/needed)" ''
same 'nor anything that its next start needs' "$(missing_of "$(runner_of steady current)" "$(runner_of web current)" "$(runner_of asleep current)")" ''

switch_to 'a rollback' "$first"
check 'after a rollback the machine runs' wait_for runs web
same 'no machine failed so far' "$(failures)" ''

web=$(pid_of web)
systemctl kill --signal KILL --kill-whom all microvm@web.service
once_more() { [ "$(pid_of web)" != "$web" ] && runs web; }
check 'a machine that dies is started again' wait_for once_more
# Before its systemd runs a guest cannot hear that it should stop.
systemctl stop --no-block microvm@steady.service
systemctl kill --signal KILL --kill-whom all microvm@steady.service
stopped() { [ "$(systemctl is-active microvm@steady.service)" != deactivating ] && ! runs steady; }
check 'a machine stops' wait_for stopped
no_booted() { [ ! -e "$machines/steady/booted" ]; }
no_link() { ! ip link show vm-steady 2>/dev/null >/dev/null; }
check 'its tap interface goes' wait_for no_link
check 'and what tells the runner that was booted' wait_for no_booted
