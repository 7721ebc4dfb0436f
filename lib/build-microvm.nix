# The command `build-microvm FLAKE#NAME`, which uses any-configuration.nix.
{ pkgs, source }:
pkgs.writeShellScriptBin "build-microvm" ''
  set -euo pipefail
  case $#:''${1:-} in
  0: | *:-h | *:--help)
    echo "usage: ''${0##*/} FLAKE#NAME [OPTION OF nix build...]: a qemu runner of any nixosConfigurations.NAME" >&2
    exit 2
    ;;
  *:?*"#"?*) ;;
  *)
    echo "error: \`$1\` names no configuration; write FLAKE#NAME" >&2
    exit 2
    ;;
  esac
  flake=''${1%#*} name=''${1##*#}
  shift
  # Paths have the same meaning as on the command line of nix.
  [ ! -d "$flake" ] || flake=$(realpath "$flake")
  FLAKE=$flake NAME=$name exec nix --extra-experimental-features 'nix-command flakes' build --impure "$@" --expr '
    let
      configuration = (builtins.getFlake (builtins.getEnv "FLAKE")).nixosConfigurations.''${builtins.getEnv "NAME"};
    in
    import ${source}/lib/any-configuration.nix { inherit (configuration.pkgs) lib; } configuration'
''
