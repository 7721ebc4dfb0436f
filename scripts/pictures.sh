#!/usr/bin/env bash
# pictures.sh: renders the pictures of terminals in docs/pictures from real runs, with tmux. Look at them before you
# commit them. Needs the fixture closure `small` and, for a build that is slow enough to show progress,
# MICROVM_PICTURES_CLOSURE: a directory with closure-info (default: that of `small`). MICROVM_PICTURES_PROGRAMS: a directory
# with release builds of `microvm`, `microvm-image` and `manual` (default: the script builds them).
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

die() { printf 'error: %s\n' "$1" >&2; exit 1; }
command -v tmux >/dev/null || die "tmux is missing"
programs=${MICROVM_PICTURES_PROGRAMS:-}
if [ -z "$programs" ]; then
  cargo build --locked --quiet --release -p imagebuilder -p launcher -p manual
  programs=${CARGO_TARGET_DIR:-target}/release
fi
programs=$(realpath "$programs")
for program in microvm microvm-image manual; do
  [ -x "$programs/$program" ] || die "$programs/$program is missing"
done
fixtures=$(realpath "${MICROVM_FIXTURES:-target/fixtures}")
closure=$(realpath "${MICROVM_PICTURES_CLOSURE:-$fixtures/small}")
pictures=$PWD/docs/pictures

scratch=$(mktemp -d)
socket=$scratch/tmux
trap 'tmux -S "$socket" kill-server 2>/dev/null || true; rm -rf "$scratch"' EXIT
mkdir "$scratch/home"
ln -s "$closure/closure-info" "$scratch/home/closure-info"
ln -s "$fixtures/store/nix/store" "$scratch/home/store"
# The examples of docs/host.md create two machines in this directory.
"$programs/manual" examples --scratch "$scratch/examples" docs/host.md
hosts=$scratch/examples/host/pictured

screen() { tmux -S "$socket" -f /dev/null "$@"; }
start() { # COLUMNS ROWS [HOME]: a shell
  local home=${3:-$scratch/home}
  screen new-session -d -s picture -x "$1" -y "$2" \
    "cd '$scratch/home' && env -i HOME='$home' TERM=xterm-256color LC_ALL=C.UTF-8 PATH='$programs:$hosts/bin:$PATH' \
      MICROVM_STATE_DIR='$hosts/machines' MICROVM_GCROOTS_DIR='$hosts/gcroots' PS1='\[\e[1;32m\]\$\[\e[0m\] ' bash --norc --noprofile" \; \
    set-option -s exit-empty off # otherwise the server ends with its session, while the next one is created
  # Wait for the shell's prompt.
  until screen capture-pane -p -t picture | grep -q '^\$'; do sleep 0.1; done
}
type_in() { screen send-keys -t picture -l "$1"; screen send-keys -t picture Enter; }
until_prompt() { # COUNT: that many prompts are on the screen, the last of them empty
  until [ "$(screen capture-pane -p -t picture | grep -c '^\$')" -ge "$1" ] &&
    screen capture-pane -p -t picture | grep -v '^$' | tail -n 1 | grep -qx '\$ *'; do sleep 0.1; done
}
take() { # NAME [running]: without the last prompt, where nothing is typed
  screen capture-pane -e -p -t picture | sed -e 's/[[:space:]]*$//' >"$scratch/lines"
  # Remove the empty end of the screen and the waiting prompt.
  sed -i -e :end -e '/^\n*$/{$d;N;bend' -e '}' "$scratch/lines"
  [ "${2:-}" = running ] || sed -i '$d' "$scratch/lines"
  "$programs/manual" picture <"$scratch/lines" >"$pictures/$1.svg"
  echo "pictures: $pictures/$1.svg" >&2
}
stop() { screen kill-session -t picture; }

cat >"$scratch/home/machine.json" <<'SPEC'
{
  "version": 1,
  "name": "web",
  "kernel": "/srv/web/vmlinux",
  "initrd": "/srv/web/initrd",
  "storeDisk": { "image": "system.squashfs", "serial": "nix-store" },
  "volumes": [{ "image": "var.img", "size": 256, "mountPoint": "/var" }],
  "interfaces": [{ "type": "user", "id": "net0", "mac": "02:00:00:00:00:01" }]
}
SPEC

start 100 24
type_in 'microvm-image build --closure-info closure-info --store-dir store -o system.squashfs'
until screen capture-pane -p -t picture | grep -qE '█{25}|#{25}'; do sleep 0.05; done
take progress running
until_prompt 2
type_in 'microvm-image build --closure-info closure-info --store-dir store -o again.squashfs'
until_prompt 3
take build
stop

start 120 36
type_in 'microvm explain machine.json --state-dir /var/lib/microvms/web | head -n 25'
until_prompt 2
take explain
stop

start 120 16
type_in 'microvm check machine.json'
until_prompt 2
type_in 'microvm check machine.json --hypervisor firecracker'
until_prompt 3
take check
stop

start 80 10 "$hosts"
type_in 'microvm list --offline'
until_prompt 2
take list
stop
