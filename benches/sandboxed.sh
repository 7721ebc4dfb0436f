#!/usr/bin/env bash
# sandboxed.sh [ROUNDS [LIST]]: measures a sandboxed `nix-build` of a store disk after one store path changed, with and
# without the cache service. Runs as root. Prints a table of seconds, its medians, and their ratio.
#   ROUNDS  number of rounds, by default 5; an additional first round is discarded. The candidates take turns in going first.
#   LIST    a list in fixtures/closure/packages, by default `server`
# Candidates: `service` has the packs of the closure before the change; `without` has no service; `nothing` is the same
# derivation, but only writes a plan, to measure Nix alone. Every build is a separate derivation, and all images of a
# round are compared.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

rounds=${1:-5} list=${2:-server}
[ "$(id -u)" = 0 ] || { echo 'error: only root can run sandboxed builds without a daemon' >&2; exit 2; }
say() { printf 'sandboxed: %s\n' "$*" >&2; }

scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/sandboxed.XXXXXX")
processes=()
clean() {
  [ ${#processes[@]} = 0 ] || kill "${processes[@]}" 2>/dev/null || true
  chmod -R u+w "$scratch"
  rm -rf "$scratch"
}
trap clean EXIT

export NIX_CONF_DIR=/var/empty NIX_USER_CONF_FILES=/dev/null NIX_REMOTE='' NIX_CONFIG='substituters =
build-users-group =
builders =
sandbox = true
sandbox-paths =
fsync-metadata = false'

target=x86_64-unknown-linux-gnu
RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --quiet --locked --target "$target" --package imagebuilder --bins
mkdir "$scratch/program"
cp "${CARGO_TARGET_DIR:-target}/$target/release/microvm-image" "$scratch/program/"

tree=$(realpath -m "${MICROVM_FIXTURES:-target/fixtures}/$list")
fixtures/closure/debian-tree.sh "fixtures/closure/packages/$list.list" "$tree"
say "copying $list into a Nix store"
root=$scratch/root
mkdir -p "$root/nix/store"
cp -a --reflink=auto "$tree/store/." "$tree/changed/." "$root/nix/store/"
# Some packages set the setgid bit of directories, which does not occur in a Nix store.
find "$root/nix/store" -type d -perm /7000 -exec chmod u-s,g-s,-t {} +
for info in closure-info closure-info-changed; do nix-store --store "$root" --load-db <"$tree/$info/registration"; done
cp "$tree/closure-info/store-paths" "$scratch/before"
cp "$tree/closure-info-changed/store-paths" "$scratch/after"

NIX_REMOTE=$root NIX_DAEMON_SOCKET_PATH=$scratch/nix-daemon.sock nix-daemon &>"$scratch/nix-daemon.log" &
processes+=($!)

start_service() { # CACHE
  mkdir -p "$scratch/run"
  "$scratch/program/microvm-image" cache serve --cache "$1" --socket "$scratch/run/cache.sock" --store-dir "$root/nix/store" \
    --nix-daemon "$scratch/nix-daemon.sock" &
  service=$!
  processes+=("$service")
  until [ -S "$scratch/run/cache.sock" ]; do sleep 0.1; done
}
stop_service() {
  kill "$service"
  wait "$service" || true
}

build() { # PATHS WHAT NAME [OPTION...]: prints the output
  nix-build --store "$root" --no-out-link --quiet --arg paths "$scratch/$1" --arg program "$scratch/program" --argstr what "$2" \
    --argstr round "$3" "${@:4}" benches/sandboxed.nix 2>"$scratch/log" || { tail -n 20 "$scratch/log" >&2; return 1; }
}
with_service=(--option sandbox-paths "/run/microvm-image=$scratch/run")

say "filling the service's cache"
start_service "$scratch/cache"
build before disk fill "${with_service[@]}" >/dev/null
stop_service

measure() { # CANDIDATE ROUND: sets `seconds`; keeps the output in $scratch/CANDIDATE
  local began ended
  if [ "$1" = service ]; then
    # Each round starts with the packs from before the change.
    rm -rf "$scratch/cache-round"
    cp -a "$scratch/cache" "$scratch/cache-round"
    start_service "$scratch/cache-round"
  fi
  began=$(date +%s%N)
  case $1 in
  service) build after disk "service-$2" "${with_service[@]}" ;;
  without) build after disk "without-$2" ;;
  nothing) build after nothing "nothing-$2" ;;
  esac >"$scratch/$1"
  ended=$(date +%s%N)
  [ "$1" != service ] || stop_service
  seconds=$(((ended - began) / 1000000))
  printf -v seconds '%d.%03d' $((seconds / 1000)) $((seconds % 1000))
}

candidates=(service without nothing)
for ((round = 0; round <= rounds; round++)); do
  for turn in 0 1 2; do
    candidate=${candidates[(round + turn) % 3]}
    measure "$candidate" "$round"
    [ "$round" = 0 ] || echo "$seconds" >>"$scratch/$candidate.seconds"
    printf 'round %s: %-8s %s s%s\n' "$round" "$candidate" "$seconds" "$([ "$round" != 0 ] || echo ' (dropped)')"
  done
  cmp "$root$(cat "$scratch/service")" "$root$(cat "$scratch/without")"
done
median() { sort -n "$scratch/$1.seconds" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
awk -v service="$(median service)" -v without="$(median without)" -v nothing="$(median nothing)" 'BEGIN {
  printf "median: %.3f s with the service, %.3f s without: %.3fx; Nix itself %.3f s of both\n", service, without, service / without, nothing
}'
