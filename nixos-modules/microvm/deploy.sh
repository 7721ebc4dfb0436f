# shellcheck shell=bash disable=SC2154
# The commands of deploy.nix, which sets:
#   name, runner               the machine and its runner's derivation
#   system, registration       its system and the registration for Nix's database; empty if it must be restarted
#   closureOnly                not empty if the machine sees only the store paths that its host shows it
die() { printf 'error: %s\n' "$1" >&2; exit "${2:-1}"; }

on_host() {
  set -eu
  name=$1 derivation=$2
  state=${MICROVM_STATE_DIR:-/var/lib/microvms}/$name
  roots=${MICROVM_GCROOTS_DIR:-/nix/var/nix/gcroots/microvm}
  [ ! -e "$state/toplevel" ] || { echo "error: $name is part of the host's configuration, which updates it" >&2; exit 2; }
  # Both would have the garbage collection root booted-NAME.
  for other in "booted-$name" "${name#booted-}"; do
    if [ ! -e "$state" ] && [ "$other" != "$name" ] && [ -e "${state%/*}/$other" ]; then
      echo "error: $name and $other would share a garbage collection root; choose another name" >&2
      exit 2
    fi
  done
  mkdir -p "$roots"
  # The build creates the root, so that a garbage collection cannot delete the result in between. No machine has a name
  # that begins with a dot.
  new=$(nix-store --realise "$derivation" --add-root "$roots/.$name.deploying")
  new=$(readlink -f "$new")
  # The machine gets its user when it starts.
  [ -d "$state" ] || { mkdir -p "${state%/*}"; mkdir -m 0700 "$state"; }
  # Created in a directory that only root can write to, and then renamed over the old link: the machine's user can
  # create links in its own directory.
  point() { ln -sfnT "$1" "${state%/*}/.$name.$2"; mv -T "${state%/*}/.$name.$2" "$state/$2"; }
  old=$(readlink "$state/current" || true)
  if [ "$old" = "$new" ]; then
    echo "$name is up to date" >&2
  else
    if [ -n "$old" ]; then
      point "$old" old
      nix --extra-experimental-features nix-command store diff-closures "$old" "$new" >&2 || true
    fi
    point "$new" current
  fi
  ln -sfnT "$state/current" "$roots/$name"
  ln -sfnT "$state/booted" "$roots/booted-$name"
  ln -sfnT "$state/old" "$roots/.$name.old"
  # The root of an earlier release.
  [ "$(readlink "$roots/old-$name" || true)" != "$state/old" ] || rm "$roots/old-$name"
  rm "$roots/.$name.deploying"
  echo "$new"
}

in_machine() {
  set -eu
  name=$1 system=$2 registration=$3 action=$4
  [ "$(hostname)" = "$name" ] || { echo "error: this is $(hostname), not $name" >&2; exit 2; }
  [ -e "$system" ] || { echo "error: $system is not in the machine's store; install it on the host first" >&2; exit 1; }
  [ -z "$registration" ] || nix-store --load-db <"$registration"
  nix-env --profile /nix/var/nix/profiles/system --set "$system"
  exec "$system/bin/switch-to-configuration" "$action"
}

show_closure() { # the machine's user cannot do this
  set -eu
  name=$1 system=$2 registration=$3
  nix-store --query --requisites "$system" ${registration:+"${registration%/*}"} | xargs microvm share-path "$name"
}

restart() {
  systemctl restart "microvm@$1.service"
}

remotely() { # TARGET SUDO FUNCTION ARGUMENT...: runs the function there
  local target=$1 sudo=$2 function=$3 words
  shift 3
  # SSH passes a single line to the shell on the other side.
  printf -v words '%q ' "$function" "$@"
  # shellcheck disable=SC2029 # the words are quoted on this side
  ssh "$target" "${sudo:+sudo }bash -euc $(printf %q "$(declare -f "$function"); $words")"
}

install_on_host() { # USER@HOST [--use-remote-sudo]
  local sudo=
  case $#,${2:-} in
  1,) ;;
  2,--use-remote-sudo) sudo=sudo ;;
  *) die "usage: ${0##*/} USER@HOST [--use-remote-sudo]" 2 ;;
  esac
  nix --extra-experimental-features nix-command copy --derivation --no-check-sigs --to "ssh-ng://$1" "$runner"
  remotely "$1" "$sudo" on_host "$name" "$runner"
}

ssh_switch() { # USER@MACHINE [--use-remote-sudo] [ACTION]
  local target=${1:-} sudo=
  shift || true
  if [ "${1:-}" = --use-remote-sudo ]; then sudo=sudo; shift; fi
  case $target,$#,${1:-switch} in
  ?*,[01],switch | ?*,1,boot | ?*,1,test | ?*,1,dry-activate) ;;
  *) die "usage: ${0##*/} USER@MACHINE [--use-remote-sudo] [switch|boot|test|dry-activate]" 2 ;;
  esac
  remotely "$target" "$sudo" in_machine "$name" "$system" "$registration" "${1:-switch}"
}

rebuild() { # USER@HOST USER@MACHINE [--use-remote-sudo]
  [ $# -ge 2 ] || die "usage: ${0##*/} USER@HOST USER@MACHINE [--use-remote-sudo]" 2
  install_on_host "$1" "${@:3}"
  if [ -n "$system" ]; then
    [ -z "$closureOnly" ] || remotely "$1" "${3:+sudo}" show_closure "$name" "$system" "$registration"
    ssh_switch "$2" "${@:3}"
  else
    remotely "$1" "${3:+sudo}" restart "$name"
  fi
}
