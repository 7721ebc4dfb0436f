# shellcheck shell=bash
# Run in a guest as soon as it is up, as root; rig.checks of the scenario follow, then `finish`.
exec 3<>/dev/ttyS0
exec > >(sed -u 's/^/RIG: /' >&3) 2>&1
set +e

check() { # WHAT COMMAND...
  local what=$1 said
  shift
  if said=$("$@" 2>&1); then echo "ok: $what"; else echo "FAILED: $what: $* said: ${said//$'\n'/ | }"; fi
}
same() { # WHAT FOUND EXPECTED
  if [ "$2" = "$3" ]; then echo "ok: $1"; else echo "FAILED: $1: found ${2//$'\n'/ | }, expected ${3//$'\n'/ | }"; fi
}
value() { echo "value: $*"; } # NAME TEXT...: for comparison outside
# The rig's last word; the first is the machine's, and says what becomes of it.
finish() {
  local end
  journal_errors
  echo end
  read -r end <&3
  case $end in
  poweroff | reboot) systemctl "$end" ;;
  crash) echo c >/proc/sysrq-trigger ;;
  esac
}
journal_errors() {
  local errors
  # Stage 1 and the checks themselves are in it.
  errors=$(journalctl --boot --priority err --output short-monotonic --no-hostname --no-pager | sed 's/^[^]]*\] [^:]*: //' | grep -vxEf <(grep -v '^#\|^$' "$ARTEFACTS") | sort -u)
  same 'no unexpected error in the journal' "$errors" ''
}

state=$(timeout 400 systemctl is-system-running --wait)
same 'the system is running' "$state" running
failed=$(systemctl list-units --failed --plain --no-legend --no-pager | awk '{print $1}')
same 'no failed unit' "$failed" ''
for unit in $failed; do journalctl --no-pager --output cat --unit "$unit" | tail -n 8 | sed "s/^/$unit: /"; done
findmnt --raw --noheadings --output TARGET,SOURCE,FSTYPE,OPTIONS | sed 's/^/mount: /'
for disk in /sys/block/vd*; do echo "disk: ${disk##*/} $(cat "$disk/ro") $(cat "$disk/serial")"; done
same 'every path of the system is registered, and nothing else' "$(nix path-info --all --offline | grep -vc -- -closure-info)" "$(nix-store --query --requisites /run/current-system | wc -l)"
value seconds "$(systemd-analyze time | head -n 1)"
