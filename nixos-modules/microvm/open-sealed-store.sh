# shellcheck shell=sh disable=SC2154
# Runs in stage 1 of a guest. Opens the store disk $disk with dm-verity as /dev/mapper/nix-store, by $veritysetup, systemd's
# program. The launcher passes what is needed as microvm.store_verity=ROOT_HASH:HASH_OFFSET_BYTES. CMDLINE is for tests.
seal=
# shellcheck disable=SC2013 # words are wanted
for parameter in $(cat "${CMDLINE:-/proc/cmdline}"); do
  case $parameter in microvm.store_verity=*) seal=${parameter#*=} ;; esac
done
case $seal in
*:*) "$veritysetup" attach nix-store "$disk" "$disk" "${seal%%:*}" "hash-offset=${seal#*:}" ;;
*)
  echo "microvm.store_verity=ROOT_HASH:HASH_OFFSET_BYTES is missing on the kernel command line" >&2
  exit 1
  ;;
esac
