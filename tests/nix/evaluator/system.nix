# A configuration of the guest module. It has what `nixpkgs.lib.nixosSystem` gives: `config`, `options`, `extendModules`.
{
  work,
  kernel,
  programs,
  module ? { },
}:
let
  lib = import ./.;
  pkgs = import ./packages.nix {
    inherit
      lib
      work
      kernel
      programs
      ;
  };
in
lib.evalModules {
  specialArgs = { inherit pkgs; };
  modules = [
    ./nixos.nix
    ../../../nixos-modules/microvm
    {
      networking.hostName = lib.mkDefault "guest";
      microvm.launcher.package = pkgs.microvm;
      microvm.imageBuilder.package = pkgs.microvm-image;
    }
    module
  ];
}
// {
  inherit pkgs;
}
