# shellcheck shell=bash
# Prepares the guest's Nix database at boot. A unit runs it, and tests/nix/register-closure.sh with other directories:
#   PERSISTENT_STATE   directory for Nix's state beside a persistent writable layer; empty if the layer is lost at reboot
#   NIX_STATE          directory in which Nix expects its state
#   STORE_IS_WRITABLE  1 if garbage can be collected
# regInfo=FILE on the kernel command line names the registration of the system closure.
set -euo pipefail

read -ra parameters <"${CMDLINE:-/proc/cmdline}"
registration=
for parameter in "${parameters[@]}"; do
  case $parameter in regInfo=*) registration=${parameter#regInfo=} ;; esac
done

if [ -n "$PERSISTENT_STATE" ]; then
  # Only parts of the state: the daemon's socket and the roots of the running system may already exist. auto has the roots of
  # results of builds.
  for part in db profiles gcroots/auto gcroots/per-user; do
    mkdir -p "$PERSISTENT_STATE/$part" "$NIX_STATE/$part"
    mountpoint --quiet "$NIX_STATE/$part" || mount --bind "$PERSISTENT_STATE/$part" "$NIX_STATE/$part"
  done
fi

[ -z "$registration" ] || nix-store --load-db <"$registration"
if [ -n "$registration" ] && [ "$STORE_IS_WRITABLE" = 1 ]; then
  # The registration cannot list itself. Without this, a garbage collection would delete it, and the next boot would not
  # find it.
  path=${registration%/registration}
  printf '%s\n\n0\n' "$path" | nix-store --register-validity
  mkdir -p "$NIX_STATE/gcroots"
  ln -sfn "$path" "$NIX_STATE/gcroots/microvm-registration"
fi
[ -n "$PERSISTENT_STATE" ] || exit 0

# The lower layer no longer contains the paths of an earlier system. What the guest built from them does not work any
# more either, but Nix would consider it valid for ever, with everything that it refers to. So it is removed too.
vanished=()
while read -r path; do
  [ -e "$path" ] || [ -L "$path" ] || vanished+=("$path")
done < <(nix --extra-experimental-features nix-command path-info --all)
[ ${#vanished[@]} -gt 0 ] || exit 0
echo "dropping ${#vanished[@]} paths that are no longer in the store"

broken=()
while read -r path; do
  if [ -e "$path" ] || [ -L "$path" ]; then broken+=("$path"); fi
done < <(printf '%s\n' "${vanished[@]}" | xargs -d '\n' nix-store --query --referrers-closure | sort -u)
if [ ${#broken[@]} -gt 0 ]; then
  echo "deleting what was built from them: ${broken[*]}"
  printf '%s\n' "${broken[@]}" | xargs -d '\n' nix-store --delete --ignore-liveness
fi
nix-store --verify
