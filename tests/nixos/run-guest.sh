#!/usr/bin/env bash
# run-guest.sh SCENARIO ARGUMENT...: builds the machines of a scenario of guests.nix and boots one after the other in
# one state directory. The ARGUMENTs are passed to nix-build. run.sh runs this script.
set -euo pipefail
scenario=$1
shift
rig=${NIXOS_RIG:?}
state=$rig/states/$scenario
boot_seconds=${MICROVM_NIXOS_BOOT_SECONDS:-5400}
say() { printf 'nixos: %s: %s\n' "$scenario" "$*" >&2; }
problem() { say "$@"; problems=$((problems + 1)); }
problems=0
process=
daemon=

clean_up() {
  if [ -n "$daemon" ]; then kill -KILL -- "-$daemon" 2>/dev/null || true; fi
  if [ -n "$process" ]; then kill -KILL -- "-$process" 2>/dev/null || true; fi
}
trap clean_up EXIT

# Prints a machine's lines for the rig, without the terminal's colours and carriage returns.
printed() { tr -d '\r' <"$1" | sed 's/\x1b\[[0-9;?]*[a-zA-Z]//g' | sed -n 's/^.*RIG: //p'; } # CONSOLE

# Prints the seconds of processor time that the machine and the programs beside it have used.
processor_seconds() { ps --no-headers --format times --sid "$process${daemon:+,$daemon}" | awk '{ sum += $1 } END { print sum }'; }

wait_for_end() { # CONSOLE: waits until the checks are done or the machine has ended; up=SECONDS when the first one has run
  local waited
  up=
  for ((waited = 0; waited < boot_seconds; waited++)); do
    if [ -z "$up" ] && grep -q 'RIG: ' "$1"; then up=$(processor_seconds); fi
    if printed "$1" | grep -qx end; then return 0; fi
    kill -0 "$process" 2>/dev/null || return 1
    sleep 1
  done
  return 1
}

finish() { # END RUNNER: ends the machine and waits for its end
  local waited
  case $1 in
  poweroff | reboot | crash) printf '%s\n' "$1" >&5 ;;
  stop) ./in-store.sh env --chdir="$state" "$2/bin/microvm-shutdown" --timeout 1200 >"$state/shutdown.log" 2>&1 || problem "microvm-shutdown failed: $(cat "$state/shutdown.log")" ;;
  cut) kill -KILL -- "-$process" ;;
  esac
  for ((waited = 0; waited < 1200; waited++)); do kill -0 "$process" 2>/dev/null || break; sleep 1; done
  if kill -0 "$process" 2>/dev/null; then
    problem "did not end within 1200 s of \`$1\`"
    kill -KILL -- "-$process" || true
  fi
  local code=0
  wait "$process" || code=$?
  process=
  [ "$code" = 0 ] || [ "$1" = cut ] || problem "its runner ended with code $code after \`$1\`"
}

boot() { # NUMBER RUNNER END OUTSIDE
  local console=$state/console-$1 waited
  export MICROVM_RUNTIME_DIR=$state/run MICROVM_IMAGE_CACHE=$rig/image-cache
  : >"$console"
  rm -f "$state/input"
  mkfifo "$state/input"
  exec 5<>"$state/input"
  # As the host module's units do.
  if [ -x "$rig$2/bin/virtiofsd-run" ]; then
    (cd "$state" && sed '/^\//d' "$rig$2"/share/microvm/virtiofs/*/source | xargs -r mkdir -p)
    setsid ./in-store.sh env --chdir="$state" "$2/bin/virtiofsd-run" >"$state/virtiofsd-$1" 2>&1 &
    daemon=$!
    for ((waited = 0; waited < 600; waited++)); do
      # A boot before this one may have left sockets.
      if grep -q ' served$' "$state/virtiofsd-$1"; then break; fi
      sleep 1
    done
  fi
  setsid ./in-store.sh env --chdir="$state" "$2/bin/microvm-run" <"$state/input" >"$console" 2>&1 &
  process=$!
  if wait_for_end "$console"; then
    [ -z "$4" ] || (cd "$state" && STATE=$state RUNNER=$2 SHARED=$rig/shared bash -euc "$4") >"$state/outside-$1.log" 2>&1 || problem "what was done from outside failed: $(tail -n 3 "$state/outside-$1.log")"
    finish "$3" "$2"
  else
    problem "boot $1 did not come to its end: $(tr -d '\r' <"$console" | tail -n 3)"
    clean_up
    process=
  fi
  exec 5>&-
  [ -z "$daemon" ] || kill -TERM -- "-$daemon" 2>/dev/null || true
  daemon=
  printed "$console" >"$state/printed-$1"
  # Failures at shutdown are only on the console.
  while read -r line; do problem "boot $1: at shutdown: $line"; done < <(tr -d '\r' <"$console" | sed 's/\x1b\[[0-9;?]*[a-zA-Z]//g' | sed '1,/RIG: end/d' | grep -E 'FAILED|Failed|timed out|SIGKILL' | grep -vxEf <(grep -v '^#\|^$' artefacts.txt))
  while read -r line; do problem "boot $1: $line"; done < <(grep '^FAILED' "$state/printed-$1")
  ./in-store.sh ./compare-with-explanation.sh "$2" "$state/printed-$1" || problem "boot $1: the machine is not what microvm explain says"
  say "boot $1 ($3): $(grep -c '^ok' "$state/printed-$1") checks passed; ${up:-?} s of processor time until it was up; $(sed -n 's/^value: seconds //p' "$state/printed-$1")"
}

of_boot() { jq -r --arg scenario "$scenario" --argjson number "$1" --arg key "$2" '.[$scenario].boots[$number][$key]' "$rig/plan.json"; } # NUMBER KEY

rm -rf "$state"
mkdir -p "$state"
count=$(jq --arg scenario "$scenario" '.[$scenario].boots | length' "$rig/plan.json")
for ((number = 0; number < count; number++)); do
  started=$SECONDS
  runner=$(./in-store.sh nix-build --no-out-link "$@" -A "guests.$scenario.$number.config.microvm.declaredRunner" default.nix 2>"$state/build-$number.log") ||
    { tail -n 20 "$state/build-$number.log" >&2; exit 1; }
  say "built in $((SECONDS - started)) s"
  boot "$number" "$runner" "$(of_boot "$number" end)" "$(of_boot "$number" outside)"
done
[ "$problems" = 0 ]
