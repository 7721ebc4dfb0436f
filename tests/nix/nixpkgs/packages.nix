# The packages of the tests' evaluator, and those that only the flake and the examples use. Crates are not compiled:
# their packages contain the programs that run.sh built. Environment variables have the paths of the programs and of the
# fixture closure.
{ lib, system }:
let
  directory =
    variable:
    let
      path = builtins.getEnv variable;
    in
    if path == "" then
      throw "${variable} is not set, or Nix was not called with --impure"
    else
      /. + path;
  fixtures = directory "MICROVM_TEST_FIXTURES";
  base = import ../evaluator/packages.nix {
    inherit lib system;
    programs = directory "MICROVM_TEST_PROGRAMS";
    work = fixtures + "/work/small";
    kernel = fixtures + "/work/kernel";
  };

  named = name: pkgs.runCommand name { meta.mainProgram = name; } ''mkdir "$out"'';

  pkgs =
    base
    // {
      path = ./.;
      callPackage =
        file: overrides:
        let
          function = import file;
        in
        function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // overrides);
      rustPlatform.buildRustPackage =
        {
          pname,
          src,
          cargoLock,
          meta,
          ...
        }:
        pkgs.runCommand pname
          {
            inherit src meta;
            inherit (cargoLock) lockFile;
          }
          ''
            [ -e "$src/Cargo.toml" ] && [ -e "$src/launcher/src/main.rs" ] && [ ! -e "$src/flake.nix" ]
            grep -q '^version' "$lockFile"
            mkdir -p "$out/bin"
            cp ${base.microvm}/bin/${pname} "$out/bin/"
          '';
      mkShell =
        attributes: pkgs.runCommand "shell" { nativeBuildInputs = attributes.packages; } ''mkdir "$out"'';
      emptyDirectory = pkgs.runCommand "empty-directory" { } ''mkdir "$out"'';
    }
    // lib.genAttrs [
      "clippy"
      "deadnix"
      "erofs-utils"
      "installShellFiles"
      "mdbook"
      "nixfmt"
      "openssh"
      "rustfmt"
      "shellcheck"
      "squashfsTools"
    ] named;
in
pkgs
