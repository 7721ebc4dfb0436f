# For use without flakes: `import ./. { inherit pkgs; }`.
{
  pkgs ? import <nixpkgs> { },
}:
{
  lib = import ./lib { inherit (pkgs) lib; };
  nixosModules = {
    microvm = ./nixos-modules/microvm;
    microvm-options = ./nixos-modules/microvm/options;
    host = ./nixos-modules/host;
  };
  microvm = pkgs.callPackage ./package.nix { crate = "launcher"; };
  microvm-image = pkgs.callPackage ./package.nix { crate = "imagebuilder"; };
}
