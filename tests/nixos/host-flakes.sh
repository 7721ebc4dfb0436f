# shellcheck shell=bash disable=SC2154
# Machines of flakes, updated by the host or by the command; one by hand; a machine that leaves; the image cache; a power cut.
# checks.sh and host-checks.sh come before it. Boots twice.
said_by() { # COMMAND...: the command's words are in $printed
  printed=$("$@" 2>&1)
}
state_of() { microvm list --offline --json 2>/dev/null | jq -r --arg name "$1" '.[] | select(.name == $name) | .activity'; }
root_of() { readlink -f "/nix/var/nix/gcroots/microvm/$1"; }
write_flake() { # VERSION: machines of ready-made runners, which need no nixpkgs
  mkdir -p /srv/machines
  cat >/srv/machines/flake.nix <<FLAKE
{
  outputs = _:
    let
      valid = path: builtins.appendContext path { \${path}.path = true; };
      machine = name: runner: {
        config.microvm.declaredRunner = derivation {
          name = "microvm-qemu-\${name}";
          system = "x86_64-linux";
          builder = "\${valid "$(readlink -f "$(type -P bash)" | cut -d/ -f1-4)"}/bin/bash";
          PATH = "\${valid "$(readlink -f "$(type -P cp)" | cut -d/ -f1-4)"}/bin";
          args = [ "-c" "cp -r \${valid runner} \$out && chmod u+w \$out/share/microvm && echo $1 >\$out/share/microvm/rig-version" ];
        };
      };
    in
    {
      nixosConfigurations.by-hand = machine "by-hand" "$(readlink -f /etc/rig/by-hand)";
      nixosConfigurations.own-flake = machine "own-flake" "$(readlink -f /etc/rig/own-flake)";
    };
}
FLAKE
}
version_of() { cat "$machines/$1/$2/share/microvm/rig-version"; } # MACHINE current|booted

second=$(sed -n 2p /out/systems)
ln -sfn "$second" /nix/var/nix/gcroots/rig-second
if [ ! -e /var/lib/rig-cut ]; then
  for machine in from-flake leaving; do check "$machine starts with the host" wait_for runs "$machine"; done
  same 'the state directory is the machine'\''s, and its link is root'\''s' "$(stat -c %a "$machines/from-flake") $(stat -c %U "$machines/from-flake/current")" '1770 root'
  check 'a machine with updateFlake is installed' test -x "$machines/own-flake/current/bin/microvm-run"
  same 'with the flake to update it from' "$(cat "$machines/own-flake/flake")" path:/srv/machines

  write_flake 1
  check 'a machine is created from a local flake, as microvm.nix did' microvm -f path:/srv/machines -c by-hand
  same 'it is installed' "$(version_of by-hand current)" 1
  same 'and kept' "$(root_of by-hand)" "$(runner_of by-hand current)"
  check 'it is started by the command' microvm start by-hand
  check 'and runs' wait_for runs by-hand
  same 'it is listed as running' "$(state_of by-hand)" running
  logged() { microvm logs by-hand --no-pager | grep -q 'microvm@by-hand'; }
  check 'its journal is shown' wait_for logged
  console() { timeout 20 microvm console by-hand </dev/null >/tmp/console 2>&1; [ -s /tmp/console ]; }
  check 'its console is shown' wait_for console
  said_by microvm ssh by-hand
  check 'ssh says what it needs' grep -q vsock <<<"$printed"

  write_flake 2
  check 'the list shows that a flake changed' sh -c 'microvm list 2>/dev/null | grep -q "by-hand.*outdated"'
  by_hand=$(pid_of by-hand) booted=$(runner_of by-hand booted)
  check 'it is updated' microvm update by-hand
  same 'with the new runner' "$(version_of by-hand current)" 2
  same 'while the first one runs' "$(pid_of by-hand) $(version_of by-hand booted)" "$by_hand 1"
  same 'both are kept' "$(root_of by-hand) $(root_of booted-by-hand)" "$(runner_of by-hand current) $booted"
  check 'garbage is collected' nix-collect-garbage -d
  check 'what no machine needs goes' test ! -e "$(cat /out/garbage)"
  same 'both runners stay' "$(missing_of "$booted" "$(runner_of by-hand current)")" ''
  check 'it is restarted' microvm restart by-hand
  again() { runs by-hand && [ "$(pid_of by-hand)" != "$by_hand" ]; }
  check 'and runs again' wait_for again
  same 'with the second runner' "$(version_of by-hand booted)" 2
  check 'garbage is collected once more' nix-collect-garbage
  check 'the first runner goes' test ! -e "$booted"
  check 'a declared machine is updated from its own flake' microvm update own-flake
  same 'it has that runner' "$(version_of own-flake current)" 2

  from_flake=$(pid_of from-flake) by_hand=$(pid_of by-hand) before=$(runner_of from-flake current)
  nix-env --profile /nix/var/nix/profiles/system --set "$second"
  switch_to 'a switch to changed flakes' "$second"
  same 'restarts no machine of a flake' "$(pid_of from-flake)" "$from_flake"
  check 'which has its new runner' test "$(runner_of from-flake current)" != "$before"
  same 'nor what the host does not know' "$(pid_of by-hand)" "$by_hand"
  same 'nor touches what has a flake of its own' "$(version_of own-flake current)" 2
  said_by microvm prune
  check 'a machine that left is named' grep -q leaving <<<"$printed"
  gone() { ! runs leaving; }
  check 'and stopped' wait_for gone
  check 'its state stays' test -d "$machines/leaving"
  check 'until it is deleted' microvm delete --yes leaving
  check 'with its roots' test ! -e /nix/var/nix/gcroots/microvm/leaving

  same 'the timer of the image cache is there' "$(systemctl is-active microvm-image-cache-gc.timer)" active
  same 'the socket of the cache service too' "$(systemctl is-active microvm-image-cache.socket)" active
  mkdir /tmp/closure
  nix-store --query --requisites "$(readlink -f "$(type -P bash)" | cut -d/ -f1-4)" >/tmp/closure/store-paths
  xargs nix-store --dump-db </tmp/closure/store-paths >/tmp/closure/registration
  build() { setpriv --reuid 65534 --clear-groups microvm-image build --no-cache "$@" --closure-info /tmp/closure; }
  mkdir -m 1777 /tmp/images
  check 'anybody builds with the service' build --cache-socket /run/microvm-image/cache.sock --output /tmp/images/with
  same 'which answers' "$(systemctl is-active microvm-image-cache.service)" active
  check 'and has packs' sh -c 'find /var/cache/microvm-image-service -type f -size +4k | grep -q .'
  check 'and without it' build --output /tmp/images/without
  check 'the same image' cmp /tmp/images/with /tmp/images/without

  same 'no machine failed so far' "$(failures)" ''
  journal_errors
  mkdir -p /var/lib && touch /var/lib/rig-cut && sync
  echo cut
  sleep infinity
fi

check 'after a power cut the system has what was switched to' test "$(readlink -f /run/current-system)" = "$second"
check 'a declared machine starts' wait_for runs from-flake
same 'with its new runner' "$(runner_of from-flake booted)" "$(runner_of from-flake current)"
check 'so does what the host starts of those made by hand' wait_for runs by-hand
same 'with its runner' "$(version_of by-hand booted)" 2
same 'a machine that is not started is not running' "$(state_of own-flake)" not-booted
check 'garbage is collected after the cut' nix-collect-garbage -d
same 'nothing that a machine needs goes' "$(missing_of "$(runner_of from-flake current)" "$(runner_of by-hand current)" "$(runner_of own-flake current)")" ''
check 'the machine by hand is updated' sh -c "sed -i 's/echo 2/echo 3/' /srv/machines/flake.nix && microvm update -R by-hand"
third_runs() { runs by-hand && [ "$(version_of by-hand booted)" = 3 ]; }
check 'and restarted' wait_for third_runs
same 'no machine failed after the cut' "$(failures)" ''
