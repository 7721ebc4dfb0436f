# A minimal module evaluator: the part of Nixpkgs' `lib` that this project's modules use, written from its documented
# behaviour, so that they can be evaluated and built without Nixpkgs. It does not replace tests with NixOS:
# tests/nix/run.sh also uses Nixpkgs if it is available (environment variable NIXPKGS).
let
  lib =
    builtins
    // import ./properties.nix lib
    // import ./modules.nix lib
    // import ./functions.nix lib
    // {
      types = import ./types.nix lib;
    };
in
lib
