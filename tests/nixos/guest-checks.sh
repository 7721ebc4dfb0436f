# shellcheck shell=bash disable=SC2154
# After checks.sh in a guest; rig.checks of the scenario follow, then `finish`.

# The rig's last word; the first is the machine's, and says how it ends.
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

findmnt --raw --noheadings --output TARGET,SOURCE,FSTYPE,OPTIONS | sed 's/^/mount: /'
# Persistent memory has no serial number.
for disk in /sys/block/{vd,pmem}*; do [ ! -e "$disk" ] || echo "disk: ${disk##*/} $(cat "$disk/ro") $(cat "$disk/serial" 2>/dev/null)"; done
same 'every path of the system is registered' "$(comm -23 <(nix-store --query --requisites /run/current-system | sort) <(nix path-info --all --offline | sort))" ''
value seconds "$(systemd-analyze time | head -n 1)"
