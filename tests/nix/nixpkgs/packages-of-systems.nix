# The package sets by system. Nix evaluates this file only once, even if several files import it.
let
  lib = import ./lib.nix;
in
lib.genAttrs [
  "x86_64-linux"
  "aarch64-linux"
] (system: import ./packages.nix { inherit lib system; })
