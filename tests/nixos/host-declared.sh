# shellcheck shell=bash
# Declared machines: autostart, a switch to a changed configuration, one to the same, a garbage collection, a rollback.
# checks.sh comes before it; $state and the like are the rig's.
machines=/var/lib/microvms
is_active() { systemctl is-active --quiet "microvm@$1.service"; }
pid_of() { systemctl show --property MainPID --value "microvm@$1.service"; }
runner_of() { readlink -f "$machines/$1/$2"; } # MACHINE current|booted
wait_for() { # COMMAND...: for a condition that others bring about
  local waited
  for ((waited = 0; waited < 300; waited++)); do
    if "$@"; then return 0; fi
    sleep 1
  done
  return 1
}
# `test` leaves the boot loader alone, of which a container has none.
switch_to() { "$1/bin/switch-to-configuration" test 2>&1; }

first=$(readlink -f /run/current-system)
second=$(sed -n 2p /out/systems)
for machine in web steady; do
  check "$machine starts with the host" wait_for is_active "$machine"
  check "$machine has the runner that it was started with" test "$(runner_of $machine booted)" = "$(runner_of $machine current)"
  check "$machine has its tap interface" ip link show "vm-$machine"
  same "$machine does not run as root" "$(ps -o uid= -p "$(pid_of $machine)" | tr -d ' ' | grep -cx 0)" 0
done
check 'a machine without autostart is installed' test -x "$machines/asleep/current/bin/microvm-run"
same 'and does not run' "$(systemctl is-active microvm@asleep.service)" inactive
same 'every machine is listed' "$(microvm list 2>/dev/null | grep -cE '^(asleep|steady|web)\b')" 3
check 'the image cache is collected' systemctl start microvm-image-cache-gc.service

web=$(pid_of web) steady=$(pid_of steady) booted=$(runner_of steady booted)
said=$(switch_to "$second")
same 'a switch ends well' "$?" 0
check 'a changed machine runs' wait_for is_active web
check 'a changed machine is restarted' test "$(pid_of web)" != "$web"
check 'with its new runner' test "$(runner_of web booted)" = "$(runner_of web current)"
same 'with restartIfChanged = false it is not' "$(pid_of steady)" "$steady"
check 'but has its new runner' test "$(runner_of steady current)" != "$booted"
check 'which the switch says' grep -q 'steady runs an older system' <<<"$said"

# The first system is no longer needed by anything but the machine that still runs it.
nix-store --query --requisites "$booted" >/tmp/needed
check 'garbage is collected' nix-collect-garbage -d
check 'what no machine needs goes' test ! -e "$(cat /out/garbage)"
same 'nothing that a running machine needs goes' "$(while read -r path; do [ -e "$path" ] || echo "$path"; done </tmp/needed)" ''
same 'nor anything that its next start needs' "$(nix-store --query --requisites "$(runner_of steady current)" "$(runner_of web current)" 2>&1 | while read -r path; do [ -e "$path" ] || echo "$path"; done)" ''

web=$(pid_of web)
said=$(switch_to "$second")
same 'a second switch to the same system ends well' "$?" 0
same 'and restarts nothing' "$(pid_of web) $(pid_of steady)" "$web $steady"

if [ -e "$first/bin/switch-to-configuration" ]; then
  said=$(switch_to "$first")
  same 'a rollback ends well' "$?" 0
  check 'after a rollback the machine runs' wait_for is_active web
  check 'with its old runner' test "$(pid_of web)" != "$web"
  check 'the machine that never changed has its runner again' test "$(runner_of steady current)" = "$booted"
else
  echo 'FAILED: the first system is gone, so there is nothing to roll back to'
fi

# Before its systemd runs a guest cannot hear that it should stop: then it is killed when the time is up.
systemctl kill --signal KILL --kill-whom all microvm@web.service
check 'a machine that dies is started again' wait_for is_active web
systemctl stop --no-block microvm@steady.service
systemctl kill --signal KILL --kill-whom all microvm@steady.service
stopped() { [ "$(systemctl is-active microvm@steady.service)" != deactivating ] && ! is_active steady; }
check 'a machine stops' wait_for stopped
no_link() { ! ip link show vm-steady 2>/dev/null >/dev/null; }
check 'its tap interface goes' wait_for no_link
check 'and what tells the runner that was booted' test ! -e "$machines/steady/booted"
