# A minimal module evaluator: the part of Nixpkgs' `lib` that this project's modules use, written from its documented
# behaviour, so that they can be evaluated and built where no Nixpkgs is at hand. It is no substitute for NixOS: where
# that is at hand, tests/nix/run.sh uses it too (environment variable NIXPKGS).
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
