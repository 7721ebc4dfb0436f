# Checks of the flake besides its packages: the sources, the modules and the options' documentation, with the user's
# Nixpkgs.
{
  # with microvm and microvm-image
  pkgs,
}:
let
  inherit (pkgs) lib;
  tools = import ./source-tools.nix { inherit pkgs; };

  sources = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.fileFilter (file: lib.hasSuffix ".nix" file.name) ../..;
  };
  # The commands that check all Nix files of the project.
  commands = {
    nixfmt = "find . -name '*.nix' -exec nixfmt --check {} +";
    deadnix = "deadnix --fail .";
  };
  sourceChecks = lib.mapAttrs' (
    name: command:
    lib.nameValuePair "sources-${name}" (
      pkgs.runCommand "sources-${name}" { nativeBuildInputs = [ tools.${name} ]; } ''
        cd ${sources}
        ${command}
        touch "$out"
      ''
    )
  ) commands;

  # Evaluates the modules with Nixpkgs' module system. The options of NixOS are replaced by those of the tests.
  evaluatorArguments.packages = pkgs // {
    fixture = {
      toplevel = pkgs.emptyDirectory;
      initialRamdisk = pkgs.emptyDirectory;
    };
  };
  failed = import ./evaluation.nix evaluatorArguments;
in
sourceChecks
// {
  modules =
    if failed == { } then
      pkgs.runCommand "modules" { } ''touch "$out"''
    else
      throw "what the modules make is not what was expected: ${builtins.toJSON failed}";

  options-documentation =
    pkgs.runCommand "options-documentation"
      {
        made = import ../../docs/options.nix evaluatorArguments;
        passAsFile = [ "made" ];
      }
      ''
        diff -u ${../../docs/options.md} "$madePath"
        touch "$out"
      '';
}
