# The package sets by system; this file's value is made once, however many import it.
let
  lib = import ./lib.nix;
in
lib.genAttrs [
  "x86_64-linux"
  "aarch64-linux"
] (system: import ./packages.nix { inherit lib system; })
