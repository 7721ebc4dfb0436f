# shellcheck shell=bash
# After checks.sh in a host; the scenario's checks follow.
machines=/var/lib/microvms
pid_of() { systemctl show --property MainPID --value "microvm@$1.service"; }
runs() { systemctl is-active --quiet "microvm@$1.service" && [ "$(pid_of "$1")" != 0 ] && pgrep --full "guest=$1\b" >/dev/null; }
failures() { journalctl --no-pager --output cat --unit 'microvm@*' --grep 'Failed with result' 2>/dev/null | grep -v '^-- '; }
user_of() { ps -o uid= -p "$(pid_of "$1")"; }
runner_of() { readlink -f "$machines/$1/$2"; } # MACHINE current|booted
wait_for() { # COMMAND...: for a condition that others bring about
  local waited
  for ((waited = 0; waited < 1200; waited++)); do
    if "$@"; then return 0; fi
    sleep 1
  done
  return 1
}
# `test` leaves the boot loader alone, of which a container has none. What it said is in $printed.
switch_to() { # WHAT SYSTEM
  local code
  printed=$("$2/bin/switch-to-configuration" test 2>&1)
  code=$?
  same "$1 ends well" "$code" 0
  [ "$code" = 0 ] || tail -n 6 <<<"$printed" | sed 's/^/printed: /'
}
missing_of() { # PATH...: of their closures
  nix-store --query --requisites "$@" 2>&1 | while read -r path; do [ -e "$path" ] || echo "$path"; done
}

