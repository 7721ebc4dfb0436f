# A configuration of the guest module. It has what `nixpkgs.lib.nixosSystem` gives: `config`, `options`, `extendModules`.
{
  # of the fixture closure
  work ? null,
  kernel ? null,
  programs ? null,
  # or Nixpkgs' packages, and with them its module system
  packages ? null,
  module ? { },
}:
let
  lib = if packages == null then import ./. else packages.lib;
  pkgs =
    if packages != null then packages else import ./packages.nix { inherit work kernel programs; };
in
lib.evalModules {
  specialArgs = {
    inherit pkgs;
    utils = import ./utils.nix { inherit lib; };
  };
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
