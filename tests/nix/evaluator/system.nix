# Evaluates a configuration of the guest module. Like `nixpkgs.lib.nixosSystem`, it returns `config`, `options` and
# `extendModules`.
{
  # the fixture closure
  work ? null,
  kernel ? null,
  programs ? null,
  # or Nixpkgs' packages, to use its module system too
  packages ? null,
  module ? { },
  # the options of NixOS
  nixos ? ./nixos.nix,
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
    nixos
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
