# shellcheck shell=bash
# Run as root in a guest or host as soon as it is up; the scenario's checks follow.
set +e

check() { # WHAT COMMAND...
  local what=$1 printed
  shift
  if printed=$("$@" 2>&1); then echo "ok: $what"; else echo "FAILED: $what: $* printed: ${printed//$'\n'/ | }"; fi
}
same() { # WHAT FOUND EXPECTED
  if [ "$2" = "$3" ]; then echo "ok: $1"; else echo "FAILED: $1: found ${2//$'\n'/ | }, expected ${3//$'\n'/ | }"; fi
}
value() { echo "value: $*"; } # NAME TEXT...: for comparison outside
failed_units() { systemctl list-units --failed --plain --no-legend --no-pager | awk '{print $1}'; }
journal_errors() {
  local errors
  # Those of stage 1 too.
  errors=$(journalctl --quiet --boot --priority err --output short-monotonic --no-hostname --no-pager | sed 's/^[^]]*\] [^:]*: //' | grep -vxEf <(grep -v '^#\|^$' "$ARTEFACTS") | sort -u)
  same 'no unexpected error in the journal' "$errors" ''
}

state=$(timeout 3600 systemctl is-system-running --wait)
same 'the system is running' "$state" running
failed=$(failed_units)
same 'no failed unit' "$failed" ''
for unit in $failed; do journalctl --no-pager --output cat --unit "$unit" | tail -n 8 | sed "s/^/$unit: /"; done
