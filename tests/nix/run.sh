#!/usr/bin/env bash
# run.sh: runs the tests of the Nix code, as root. They need neither Nixpkgs nor network; about 3 minutes, with NIXPKGS
# 6.
#   1  every .nix file parses, is formatted and has no dead code
#   2  the modules evaluate with a minimal module evaluator: evaluation.nix
#   3  the boot script of the guest's Nix database works on real databases: register-closure.sh
#   4  a credential reaches a guest through the launcher's initrd: credentials.sh
#   5  Nix builds runners of the fixture closure, with `microvm-image build` in its sandbox, and qemu boots them
#   6  `nix flake` works on the real flake.nix with a substitute for Nixpkgs, and `nix run` boots a machine: nixpkgs/
#   7  builds in the sandbox get unchanged content from the cache service, over its socket
#   8  systemd as a container's init runs machines with the host module's units: systemd.sh
#   9  the networks of a host are as expected, and a real networkd runs them: network.sh
#  10  machines are deployed over SSH to a host without a flake: deploy.sh
#  11  with NIXPKGS=DIR: the modules evaluate in a real NixOS: with-nixpkgs.nix
# MICROVM_FIXTURES is the directory in which fixtures/closure/build.sh made the closure `small`. MICROVM_TEST_PROGRAMS
# is a directory with static bin/microvm and bin/microvm-image; without it, they are built.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."

die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }
say() { printf 'nix: %s\n' "$*" >&2; }
missing() { # PROGRAM HINT: prints that a program is missing; fails if all tools are required
  [ "${MICROVM_TEST_REQUIRE_TOOLS:-}" != 1 ] || die "$1 is missing" "$2"
  say "skipped: $1 is missing; $2"
}

fixtures=$(realpath "${MICROVM_FIXTURES:-target/fixtures}")
[ -f "$fixtures/small/toplevel" ] || die "there is no fixture closure in $fixtures" "run fixtures/closure/build.sh small"
[ "$(id -u)" = 0 ] || die "only root can run Nix's sandboxed builds without a daemon" "run as root"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

export MICROVM_IMAGE_CACHE=$scratch/cache MICROVM_RUNTIME_DIR=$scratch/run

# The host's Nix configuration is ignored.
export NIX_REMOTE='' NIX_CONF_DIR=/var/empty NIX_USER_CONF_FILES=/dev/null NIX_CONFIG='substituters =
build-users-group =
builders =
experimental-features = nix-command flakes
sandbox = true
sandbox-paths =
fsync-metadata = false'

check_sources() {
  local files
  mapfile -t files < <(git ls-files '*.nix' 2>/dev/null || find . -name '*.nix' -not -path './target/*')
  local file
  for file in "${files[@]}"; do nix-instantiate --parse "$file" >/dev/null || die "$file does not parse"; done
  # The crates of RFC 166's formatter and of deadnix, built once, outside of the project's workspace.
  local tools=${CARGO_TARGET_DIR:-target}/nix-tools
  if [ ! -x "$tools/bin/nixfmt" ] || [ ! -x "$tools/bin/deadnix" ]; then
    cargo install --quiet --locked --debug --root "$tools" nixfmt_rs@0.5.3 deadnix@1.3.1 || true
  fi
  if [ -x "$tools/bin/nixfmt" ] && [ -x "$tools/bin/deadnix" ]; then
    for file in "${files[@]}"; do
      "$tools/bin/nixfmt" --check "$file" || die "$file is not formatted" "run $tools/bin/nixfmt $file"
    done
    "$tools/bin/deadnix" --fail "${files[@]}"
  else
    missing "nixfmt or deadnix" "cargo install nixfmt_rs deadnix"
  fi
  say "${#files[@]} files parse and are formatted"
}

programs=${MICROVM_TEST_PROGRAMS:-}
build_programs() { # into $programs
  local target=x86_64-unknown-linux-gnu directory=${CARGO_TARGET_DIR:-target}
  RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked --target "$target" --package imagebuilder --package launcher --bins
  programs=$scratch/programs
  mkdir -p "$programs/bin"
  cp "$directory/$target/debug/"{microvm,microvm-image} "$programs/bin/"
}

arguments=()
evaluate() {
  local failed
  failed=$(nix-instantiate --eval --strict --json "${arguments[@]}" tests/nix/evaluation.nix)
  [ "$failed" = '{}' ] || { jq . <<<"$failed" >&2; die "what the modules make is not what was expected, see above"; }
  say "the modules make what is expected of them"
  nix-instantiate --eval --strict --json "${arguments[@]}" docs/options.nix | jq -r . >"$scratch/options.md"
  diff -u docs/options.md "$scratch/options.md" >&2 || die "docs/options.md is not what the modules say" "make it again as docs/options.nix explains"
}

build() { # ATTRIBUTE [FILE [ARGUMENT...]]: prints the logical path
  local attribute=$1 file=${2:-tests/nix/runner.nix}
  nix-build --quiet --no-out-link "${arguments[@]}" "${@:3}" -A "$attribute" "$file" 2>"$scratch/log" && return
  tail -n 40 "$scratch/log" >&2
  die "nix-build of $attribute failed" "the last lines of its log are above"
}

on_store_paths() { # COMMAND...: runs it where /nix/store is that of the chroot store
  # shellcheck disable=SC2016 # $1 is the inner shell's
  unshare --mount --propagation private bash -euc '
    mkdir -p /nix/store
    mount --bind "$1/nix/store" /nix/store
    shift
    exec "$@"' bash "$fixtures/store" "$@"
}
run() { timeout 120 bash -c "$(declare -f on_store_paths); fixtures=\$1; on_store_paths \"\$2/bin/microvm-run\"" bash "$fixtures" "$1" </dev/null; } # RUNNER

expect() { # FILE LINE...
  local file=$1 line
  shift
  for line in "$@"; do
    grep -q "$line" "$file" || { tail -n 40 "$file" >&2; die "the guest did not say \`$line\`" "its last words are above"; }
  done
}

boot() { # ATTRIBUTE LINE...: boots it twice, in its own state directory
  local attribute=$1 runner state=$scratch/state-$1
  shift
  runner=$(build "$attribute")
  mkdir "$state"
  (cd "$state" && run "$runner") >"$scratch/$attribute-1.log" 2>&1 || { tail -n 40 "$scratch/$attribute-1.log" >&2; die "the runner $attribute failed"; }
  (cd "$state" && run "$runner") >"$scratch/$attribute-2.log" 2>&1 || { tail -n 40 "$scratch/$attribute-2.log" >&2; die "the runner $attribute failed at the second boot"; }
  expect "$scratch/$attribute-1.log" 'guest: end=poweroff' "$@"
  say "$attribute boots"
}

check_layout() {
  local runner
  runner=$fixtures/store$(build everything)
  (cd "$runner" && find bin share -not -type d -printf '%M %p\n' | LC_ALL=C sort -k 2) >"$scratch/layout"
  diff -u tests/nix/runner-layout.txt "$scratch/layout" || die "the runner's layout is not what hosts expect"
  local name
  for name in tap-interfaces tap-flags macvtap-interfaces pci-devices vsock-cid hypervisor virtiofs/home/source virtiofs/home/socket; do
    printf '%s: %s\n' "$name" "$(cat "$runner/share/microvm/$name")"
  done >"$scratch/facts"
  diff -u tests/nix/runner-facts.txt "$scratch/facts" || die "what the runner tells hosts is not what they expect"
  say "the runner has the layout that hosts expect"
}

check_refusal() {
  ! nix-build --quiet --no-out-link "${arguments[@]}" -A refused tests/nix/runner.nix 2>"$scratch/refused" ||
    die "a runner was built of a machine that microvm check refuses"
  grep -q 'kernelParams' "$scratch/refused" || { cat "$scratch/refused" >&2; die "the failed build does not name the option"; }
  say "a refused machine has no runner, and the build says why"
}

check_units() {
  command -v systemd-analyze >/dev/null || { missing systemd-analyze "apt-get install systemd"; return; }
  local state=$scratch/microvms units=$scratch/units built runner printed exposure
  local host=(tests/nix/host.nix --argstr stateDir "$state")
  built=$(build units "${host[@]}")
  cp -r "$fixtures/store$built" "$units"
  runner=$(build everything)
  mkdir -p "$state/web"
  ln -s "$runner" "$state/web/current"
  ln -s "$runner" "$state/web/booted"
  # systemd names instances by links in the directory of a target that wants them.
  mkdir "$units/microvms.target.wants"
  ln -s ../microvm@.service "$units/microvms.target.wants/microvm@web.service"
  printed=$(SYSTEMD_UNIT_PATH=$units: on_store_paths systemd-analyze verify --man=no --generators=no \
    microvms.target microvm@web.service microvm-{tap-interfaces,macvtap-interfaces,pci-devices,virtiofsd,set-booted,root}@web.service \
    install-microvm-{declared,imperative}.service microvm-image-cache-gc.{service,timer} microvm-image-cache.{service,socket} 2>&1) ||
    die "systemd does not accept the units: $printed"
  [ -z "$printed" ] || die "systemd warns of the units: $printed"
  exposure=$(systemd-analyze security --offline=true --no-pager "$units/microvm@.service" | tail -n 1)
  awk -v exposure="$(grep -o '[0-9]\+\.[0-9]' <<<"$exposure")" 'BEGIN { exit !(exposure > 0 && exposure <= 2.5) }' || die "microvm@.service is not hardened: $exposure"
  say "systemd accepts the host's units;${exposure#*→}"
  exposure=$(systemd-analyze security --offline=true --no-pager "$units/microvm-image-cache.service" | tail -n 1)
  awk -F ': ' '{ exit !($NF + 0 <= 2.0) }' <<<"$exposure" || die "microvm-image-cache.service is not hardened: $exposure"
  say "the cache service is confined;${exposure#*→}"
  ! nix-build --quiet --no-out-link "${arguments[@]}" --argstr stateDir "$state" -A clash tests/nix/host.nix 2>"$scratch/clash" ||
    die "a host was built with two machines that want the same tap"
  grep -q 'vm-same.*is used by' "$scratch/clash" || { cat "$scratch/clash" >&2; die "the failed build does not name the tap"; }
  build checked "${host[@]}" >/dev/null
  build command "${host[@]}" >/dev/null
  say "a host whose machines get into each other's way is not built"
  local refusals
  refusals=$(nix-instantiate --eval --strict --json "${arguments[@]}" --argstr stateDir "$state" -A refusals tests/nix/host.nix | jq -r '.[]' | sort)
  diff -u tests/nix/host-refusals.txt - <<<"$refusals" || die "the host refuses something else than expected"
  nix-instantiate --eval --strict --json "${arguments[@]}" --argstr stateDir "$state" -A facts tests/nix/host.nix |
    jq --sort-keys '.autostart |= sort' | diff -u tests/nix/host-facts.json - || die "the host makes something else of its machines than expected"
}

check_cluster() { # the tools of Pacemaker and their libraries are those of this machine
  command -v crm_simulate >/dev/null || { missing crm_simulate "apt-get install pacemaker-cli-utils"; return; }
  local host=(tests/nix/cluster.nix --option sandbox-paths '/usr /lib /lib64') made
  made=$fixtures/store$(build configuration "${host[@]}")
  grep -q '^web: starts on host[123], moves cold$' "$made/placement" || { cat "$made/placement" >&2; die "the machines of a cluster have no host"; }
  grep -q 'ring0_addr: 10.0.0.3' "$made/corosync.conf" || die "the hosts are not in corosync.conf"
  grep -q 'stonith-enabled" value="true"' "$made/cib.xml" || die "the configuration of Pacemaker has no fencing"
  ! nix-build --quiet --no-out-link "${arguments[@]}" -A clash "${host[@]}" 2>"$scratch/clash" || die "a cluster was built with two machines of one MAC address"
  grep -q 'the MAC address `02:00:00:00:00:01` is used by' "$scratch/clash" || { cat "$scratch/clash" >&2; die "the failed build does not name the MAC address"; }
  say "the configuration of a cluster is checked when a host is built"
}

check_outdated() { # what a switch says about machines, on NixOS 24.05 and on newer releases
  local state=$scratch/switched runner form text printed
  nix-instantiate --eval --strict --json "${arguments[@]}" --argstr stateDir "$state" -A outdated tests/nix/host.nix >"$scratch/outdated.json"
  runner=$(jq -r .runner "$scratch/outdated.json")
  mkdir -p "$state"/{restarted,kept,own,by-hand,current,stopped}
  for name in restarted kept own by-hand; do ln -s /nix/store/old-runner "$state/$name/booted"; done
  ln -s "$runner" "$state/current/booted"
  for name in restarted kept current stopped; do ln -s /nix/store/old-runner "$state/$name/current"; done
  for name in own by-hand; do ln -s "$runner" "$state/$name/current"; done
  ln -sfn "$runner" "$state/current/current"
  for form in older newer; do
    # The chroot store is not at /nix.
    text=$(jq -r ".$form | gsub(\"/nix/store/[^ ]*/bin/readlink\"; \"readlink\")" "$scratch/outdated.json")
    # Newer releases check the text of all checks with ShellCheck when the host is built.
    ! command -v shellcheck >/dev/null || printf '#!/bin/bash\nset -euo pipefail\n%s\n' "$text" | shellcheck - >&2 || die "ShellCheck refuses what a switch runs"
    say_what() { NIXOS_ACTION=$1 bash -euo pipefail -c "$text" check /run/current-system "$1" 2>&1 | sed -n 's/^warning: microVM \([^ ]*\) .*/\1/p' | xargs; }
    printed=$(say_what switch)
    [ "$printed" = 'by-hand kept own' ] || die "on a NixOS that is $form, a switch names as outdated: $printed"
    printed=$(say_what boot)
    [ -z "$printed" ] || die "on a NixOS that is $form, nixos-rebuild boot names as outdated: $printed"
  done
  say "a switch names the machines that keep an older system"
}

check_networks() {
  local part
  in_network() { nix-instantiate --eval --strict --json "${arguments[@]}" -A "$1" tests/nix/network.nix; }
  for part in facts refusals units resolved specs; do in_network "$part" >"$scratch/network-$part.json"; done
  jq --sort-keys . "$scratch/network-facts.json" | diff -u tests/nix/network-facts.json - || die "the host makes something else of its networks than expected"
  jq -r '.[]' "$scratch/network-refusals.json" | diff -u tests/nix/network-refusals.txt - || die "the host refuses other networks than expected"
  jq -r 'to_entries[] | "== " + .key + "\n" + .value' "$scratch/network-units.json" | diff -u tests/nix/network-units.txt - || die "networkd gets other units than expected"
  say "the networks of a host are as expected"
  [ -x /usr/lib/systemd/systemd-networkd ] || { missing systemd-networkd "apt-get install systemd"; return; }
  command -v nft >/dev/null || { missing nft "apt-get install nftables"; return; }
  mkdir "$scratch/network"
  for part in facts units resolved specs; do mv "$scratch/network-$part.json" "$scratch/network/$part.json"; done
  tests/nix/network.sh "$scratch/network" "$programs/bin/microvm"
}

check_deploy() { # with a fake ssh that runs its command locally; nix and the machine's programs record their arguments
  local rebuild bin=$scratch/deploy/bin state=$scratch/deploy/state program printed
  rebuild=$(build rebuild)
  mkdir -p "$bin" "$state"
  # shellcheck disable=SC2016 # the programs' own variables
  {
    printf '#!/bin/bash\nshift; exec bash -c "$*"\n' >"$bin/ssh"
    printf '#!/bin/bash\necho nix "$@" >>"$DEPLOY/calls"\n' >"$bin/nix"
    printf '#!/bin/bash\necho nix-store "$@" >>"$DEPLOY/calls"; case $1 in --realise) ln -s "$DEPLOY/runner" "$4"; echo "$4" ;; *) wc -l ;; esac\n' >"$bin/nix-store"
    printf '#!/bin/bash\necho nix-env "$@" >>"$DEPLOY/calls"\n' >"$bin/nix-env"
    printf '#!/bin/bash\necho "$DEPLOY_HOST_NAME"\n' >"$bin/hostname"
    printf '#!/bin/bash\n' >"$bin/chown"
  }
  chmod +x "$bin"/*
  touch "$scratch/deploy/runner"
  deploy() { # HOST_NAME ARGUMENT...
    DEPLOY=$scratch/deploy DEPLOY_HOST_NAME=$1 MICROVM_STATE_DIR=$state MICROVM_GCROOTS_DIR=$scratch/deploy/roots PATH=$bin:$PATH \
      on_store_paths "$rebuild/bin/microvm-rebuild-guest" "${@:2}" 2>&1
  }
  ! printed=$(deploy other root@host root@guest) || die "a new system went into another machine"
  grep -q '^error: this is other, not guest' <<<"$printed" || die "a new system went into another machine: $printed"
  [ "$(readlink "$state/guest/current")" = "$scratch/deploy/runner" ] || die "the machine was not installed: $printed"
  ! printed=$(deploy guest root@host) || die "rebuild does without a machine"
  printed=$(deploy guest root@host root@guest) || true
  # The fixture's system cannot switch, so the last step fails because of a missing program.
  grep -q 'nixos-system-.*/bin/switch-to-configuration' <<<"$printed" || die "the system was not switched to: $printed"
  for program in 'nix .*copy --derivation .*--to ssh-ng://root@host /nix/store/.*.drv' 'nix-store --realise /nix/store/.*.drv' 'nix-store --load-db' 'nix-env --profile .*--set /nix/store/'; do
    grep -q "^$program" "$scratch/deploy/calls" || { cat "$scratch/deploy/calls" >&2; die "deploying did not call $program"; }
  done
  # A machine with a store disk cannot be switched.
  rebuild=$(build rebuildWithDisk)
  printf '#!/bin/bash\necho systemctl "$@" >>"$DEPLOY/calls"\n' >"$bin/systemctl"
  chmod +x "$bin/systemctl"
  printed=$(deploy guest root@host root@guest) || die "a machine with a store disk is not deployed: $printed"
  grep -qx 'systemctl restart microvm@guest.service' "$scratch/deploy/calls" || die "a machine with a store disk is not restarted: $printed"
  say "new systems are installed in the right machine"
  [ -x /usr/sbin/sshd ] || { missing sshd "apt-get install openssh-server"; return; }
  printed=$(tests/nix/deploy.sh "$programs/bin/microvm" 2>"$scratch/log") || { cat "$scratch/log" >&2; die "a machine is not deployed over SSH"; }
  say "$printed"
}

check_erofs() {
  local disk
  check_erofs_disk erofsStoreDisk
  # mkfs.erofs and its libraries are those of this machine.
  local host=(--option sandbox-paths '/usr /lib /lib64')
  # An existing disk may be from another version of mkfs.erofs, which is not an input of the derivation.
  disk=$(build compressedErofsStoreDisk tests/nix/runner.nix "${host[@]}")
  nix-store --store "$fixtures/store" --delete "$disk" >/dev/null 2>"$scratch/log" ||
    { tail -n 5 "$scratch/log" >&2; die "the erofs store disk of an earlier run cannot be deleted"; }
  check_erofs_disk compressedErofsStoreDisk "${host[@]}"
}

check_erofs_disk() { # ATTRIBUTE OPTION...: the disk has the paths of the closure, and is the same when built again
  local disk mounted=$scratch/$1 path name=$1
  shift
  disk=$fixtures/store$(build "$name" tests/nix/runner.nix "$@")
  nix-build --quiet --no-out-link --check "${arguments[@]}" "$@" -A "$name" tests/nix/runner.nix >/dev/null 2>"$scratch/log" ||
    { tail -n 5 "$scratch/log" >&2; die "the disk $name is different when built again"; }
  mkdir "$mounted"
  mount -t erofs -o loop,ro "$disk" "$mounted" || die "the disk $name cannot be mounted"
  local paths=("$mounted"/*)
  for path in "${paths[@]}"; do
    diff -r --no-dereference "$fixtures/store/nix/store/${path##*/}" "$path" || { umount "$mounted"; die "${path##*/} differs in the disk $name"; }
  done
  path=$(stat -c '%a %u:%g' "$mounted" "$mounted/.links" | tr '\n' ' ')
  [ "$path" = '1775 0:30000 755 0:0 ' ] || { umount "$mounted"; die "the root directory of the disk $name is not as Nix expects a store: $path"; }
  umount "$mounted"
  [ ${#paths[@]} -ge 20 ] || die "the disk $name has only ${#paths[@]} paths"
  say "the disk $name has the ${#paths[@]} paths of the closure, and is the same when built again"
}

check_flake() { # nixpkgs/ only replaces Nixpkgs, so this tests flake.nix with Nix, but not with NixOS
  local copy=$scratch/flake name runner
  mkdir "$copy"
  # Nix copies the whole directory, which must not contain the build directory.
  { git ls-files -z 2>/dev/null || find . -type f -not -path './target/*' -not -path './.git/*' -print0; } | xargs -0 cp --parents -t "$copy"
  # A separate tree, so that the lock file is not part of what it locks.
  local nixpkgs=path:$scratch/stand-in
  cp -r "$copy" "$scratch/stand-in"
  cp tests/nix/nixpkgs/flake.nix "$scratch/stand-in/"
  export MICROVM_TEST_FIXTURES=$fixtures MICROVM_TEST_PROGRAMS
  MICROVM_TEST_PROGRAMS=$(realpath "$programs")
  flake() { # ARGUMENT...: runs nix with the chroot store as /nix, because templates must be there; its output goes to $scratch/log
    # shellcheck disable=SC2016 # $1 is the inner shell's
    unshare --mount --propagation private bash -euc 'mkdir -p /nix; mount --bind "$1/nix" /nix; shift; exec timeout 120 nix "$@"' \
      bash "$fixtures/store" "$@" </dev/null 2>"$scratch/log" || { tail -n 40 "$scratch/log" >&2; die "nix $* failed"; }
  }

  flake flake lock --impure "path:$copy" --override-input nixpkgs "$nixpkgs"
  flake flake show --impure "path:$copy" >"$scratch/outputs"
  for name in apps build-microvm checks crosvm-example-with-tap devShells doc formatter graphics kvmtool-example lib \
    microvm-options nixosConfigurations no-flake overlays qemu-vnc templates x86_64-linux-crosvm-example; do
    grep -qF "$name" "$scratch/outputs" || { cat "$scratch/outputs" >&2; die "nix flake show has no $name"; }
  done
  flake flake check --impure --no-build "path:$copy"
  # Nix 2.8 prints the first warning for every `lib`. `overlay` exists for older flakes.
  ! grep -i warning "$scratch/log" | grep -v -e "unknown flake output 'lib'" -e "'overlay' is deprecated" >&2 || die "nix flake check warns of the flake"

  mkdir "$scratch/new" "$scratch/nix-run"
  (cd "$scratch/new" && flake flake init --impure --template "path:$copy")
  flake build --impure --no-link --no-write-lock-file "path:$scratch/new" --override-input nixpkgs "$nixpkgs" --override-input microvm "path:$copy"
  runner=$(flake eval --impure --raw --no-write-lock-file "path:$scratch/new#default" --override-input nixpkgs "$nixpkgs" --override-input microvm "path:$copy")
  [ -x "$fixtures/store$runner/bin/microvm-run" ] || die "the template makes no runner"

  (cd "$scratch/nix-run" && flake run --impure "path:$copy#qemu-example" -- --accel tcg >"$scratch/nix-run.log")
  expect "$scratch/nix-run.log" 'serial=nix-store' 'guest: store_writable=no' 'guest: end=poweroff'
  say "nix flake show, check and init work on flake.nix over a stand-in for Nixpkgs; nix run boots its qemu-example"
}

check_services() {
  command -v systemd-nspawn >/dev/null || { missing systemd-nspawn "apt-get install systemd-container"; return; }
  local host=(tests/nix/systemd.nix --arg probe "$scratch/probe" --arg hasVirtiofsd "$([ -n "${MICROVM_TEST_VIRTIOFSD:-}" ] && echo true || echo false)")
  fixtures/probe-guest/build.sh "$scratch/probe-guest"
  mkdir "$scratch/probe"
  cp "$scratch/probe-guest/probe.bzImage" "$scratch/probe/bzImage"
  cp "$scratch/probe-guest/probe.elf" "$scratch/probe/vmlinux"
  local units tmpfiles plan
  units=$(build units "${host[@]}")
  tmpfiles=$(build tmpfiles "${host[@]}")
  plan=$(build plainStorePlan)
  tests/nix/systemd.sh "$fixtures/store/nix/store" "$fixtures/store$units" "$fixtures/store$tmpfiles" "$fixtures/store$plan" "$programs"
}

check_store_disk() {
  local disk
  disk=$(build plainStoreDisk)
  "$programs/bin/microvm-image" verify "$fixtures/store$disk" >/dev/null 2>"$scratch/log" || { cat "$scratch/log" >&2; die "the store disk is unsound"; }
  nix-build --quiet --no-out-link --check "${arguments[@]}" -A plainStoreDisk tests/nix/runner.nix >/dev/null 2>"$scratch/log" ||
    { tail -n 5 "$scratch/log" >&2; die "the store disk is another one when made again"; }
  say "the store disk is verified, and the same when made again"
}

start_cache_service() { # for the chroot store, with a daemon of Nix for that store
  service=$scratch/service
  mkdir "$service"
  NIX_REMOTE=$fixtures/store NIX_DAEMON_SOCKET_PATH=$service/nix-daemon.sock nix-daemon >"$service/nix-daemon.log" 2>&1 &
  service_processes=($!)
  # kill fails if they have ended, and the exit code of the trap would become that of the script.
  trap 'kill "${service_processes[@]}" 2>/dev/null || true; rm -rf "$scratch"' EXIT
  "$programs/bin/microvm-image" cache serve --cache "$service/cache" --socket "$service/cache.sock" \
    --store-dir "$fixtures/store/nix/store" --nix-daemon "$service/nix-daemon.sock" 2>"$service/log" &
  service_processes+=($!)
  # Otherwise the shell reports when one is killed.
  disown "${service_processes[@]}"
  timeout 60 bash -c 'until [ -S "$1/cache.sock" ] && [ -S "$1/nix-daemon.sock" ]; do sleep 0.1; done' bash "$service" ||
    { cat "$service"/*log >&2; die "the cache service did not start"; }
}

again() { # ATTRIBUTE [DIRECTORY]: builds it again in Nix's sandbox, which sees DIRECTORY as /run/microvm-image; log in again.log
  local sandbox=()
  [ $# -lt 2 ] || sandbox=(--option sandbox-paths "/run/microvm-image=$2")
  nix-build --no-out-link --check "${arguments[@]}" "${sandbox[@]}" -A "$1" tests/nix/runner.nix >/dev/null 2>"$scratch/again.log" ||
    { tail -n 20 "$scratch/again.log" >&2; die "$1 is another disk when made again"; }
}
expect_all_known() { # fails unless the last disk was made only from the service's packs
  grep -q '^ *cache .*(100 %) reused$' "$scratch/again.log" || { cat "$scratch/again.log" "$service/log" >&2; die "a sandboxed build did not take everything from the cache service"; }
}
packs() { find "$service/cache" -path '*/packs/*' -type f | wc -l; }

check_cache_service() {
  local made
  start_cache_service
  build plainStoreDisk >/dev/null
  build changedStoreDisk >/dev/null
  again plainStoreDisk
  grep -q 'warning: no cache service at /run/microvm-image/cache.sock' "$scratch/again.log" || { cat "$scratch/again.log" >&2; die "a build without the service does not say so"; }
  # The service first makes everything, then has everything, then makes what changed.
  again plainStoreDisk "$service"
  made=$(packs)
  again plainStoreDisk "$service"
  expect_all_known
  ! grep warning "$scratch/again.log" >&2 || die "a sandboxed build warns of the cache service"
  [ "$(packs)" = "$made" ] || die "the cache service made packs that it had: $made, then $(packs)"
  again changedStoreDisk "$service"
  expect_all_known
  [ "$(packs)" -gt "$made" ] && [ "$(packs)" -le $((made + 5)) ] || die "after one change the cache service made $(($(packs) - made)) packs"
  kill -9 "${service_processes[1]}"
  again plainStoreDisk "$service"
  grep -q 'warning: cannot reach the cache service' "$scratch/again.log" || { cat "$scratch/again.log" >&2; die "a build beside a service that was killed does not say so"; }
  kill "${service_processes[0]}"
  service_processes=()
  say "a sandboxed build takes what did not change from the cache service, and makes the same disk without it"
}

check_sources
tests/nix/register-closure.sh
[ -n "$programs" ] || build_programs
arguments=(--store "$fixtures/store" --arg work "$fixtures/work/small" --arg kernel "$fixtures/work/kernel" --arg programs "$(realpath "$programs")")
evaluate
tests/nix/credentials.sh "$fixtures/small" "$programs"
check_refusal
check_layout
check_store_disk
check_cache_service
check_erofs
check_deploy
check_units
check_cluster
check_outdated
check_networks
check_flake
check_services
for hypervisor in qemu cloud-hypervisor firecracker crosvm kvmtool; do build "five.$hypervisor" >/dev/null; done
say "the runners of all five hypervisors build"
boot plain 'serial=nix-store' 'guest: store_writable=no'
boot erofs 'serial=nix-store' 'guest: store_writable=no'
boot writable 'serial=nix-store' 'serial=rw-store' 'guest: store_writable=yes' 'guest: persisted=new'
expect "$scratch/writable-2.log" 'guest: persisted=found'
boot onHost 'guest: store_writable=yes' 'guest: persisted=new'
expect "$scratch/onHost-2.log" 'guest: persisted=found'

in_nixos() { # ATTRIBUTE
  nix-instantiate --eval --strict --json --arg nixpkgs "$(realpath "$NIXPKGS")" -A "$1" tests/nix/with-nixpkgs.nix 2>"$scratch/log" ||
    { tail -n 20 "$scratch/log" >&2; die "$1 does not evaluate in NixOS"; }
}

check_in_nixos() {
  local part unit derivations=0
  # One evaluation for each, because an evaluator keeps everything in memory.
  for part in packages.{x86_64,aarch64}-linux otherOutputs template toplevel anyConfiguration deploy credentials runners host hostOfOthers networked clustered clusterTest withOtherPackages withoutFlakes; do
    in_nixos "derivations.$part" >"$scratch/derivations.json"
    derivations=$((derivations + $(jq '[.. | strings] | length' "$scratch/derivations.json")))
  done
  for part in fileSystems network units wrongRefusals; do in_nixos "$part" >"$scratch/$part.json"; done
  jq -e '. == []' "$scratch/wrongRefusals.json" >/dev/null || die "NixOS refuses otherwise: $(cat "$scratch/wrongRefusals.json")"
  jq -e '.["/nix/store"].fsType == "overlay" and .["/nix/.ro-store"].device == "/dev/disk/by-id/virtio-nix-store"' "$scratch/fileSystems.json" >/dev/null ||
    die "the file systems in NixOS are others: $(cat "$scratch/fileSystems.json")"
  for unit in install-microvm-web microvm@ microvm-tap-interfaces@ microvm-virtiofsd@ microvm-set-booted@ microvm-image-cache-gc microvm-image-cache; do
    jq -e --arg unit "$unit.service" '.[$unit] | length > 0' "$scratch/units.json" >/dev/null || die "NixOS has no unit $unit"
  done
  jq -r '.units | to_entries[] | "== " + .key + "\n" + .value' "$scratch/network.json" | grep . | sort | diff <(grep . tests/nix/network-units.txt | sort) - ||
    die "networkd gets other units from NixOS"
  jq -e '.failed == [] and .networkd and .resolvedEnabled and .sysctl and (.waitOnline | not)
    and (.firewall | test("iifname lan udp dport [{] 53, 67 [}] accept") and test("iifname \"lan\" accept"))' "$scratch/network.json" >/dev/null ||
    die "the networks of a host are others in NixOS: $(cat "$scratch/network.json")"
  # network.sh loads this ruleset. Other releases write other ones.
  [ "$(cat "$NIXPKGS/lib/.version")" != 24.05 ] || jq -r .firewall "$scratch/network.json" | sed 's/[[:space:]]*$//' | grep . |
    diff <(sed 1d tests/nix/network-firewall.nft) - || die "NixOS makes another firewall of the networks of a host"
  [ $derivations -ge 60 ] || die "only $derivations derivations were evaluated"
  say "evaluates in NixOS $(cat "$NIXPKGS/lib/.version"): $derivations derivations, five runners of one configuration, every refusal"
}

if [ -n "${NIXPKGS:-}" ]; then check_in_nixos; else say "not evaluated in a real NixOS: NIXPKGS is not set"; fi
