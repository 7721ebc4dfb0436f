# `nixpkgs.lib.nixosSystem`: the module system of the tests' evaluator with its few NixOS options.
{
  modules,
  system ? null,
  specialArgs ? { },
  prefix ? [ ],
}:
let
  lib = import ../../lib.nix;
  evaluated = lib.evalModules {
    inherit specialArgs prefix;
    modules = [
      ../../../evaluator/nixos.nix
      (
        { config, ... }:
        {
          options.nixpkgs.pkgs = lib.mkOption {
            type = lib.types.raw;
            default = import ../.. { inherit system; };
          };
          config._module.args = { inherit (config.nixpkgs) pkgs; };
        }
      )
    ]
    ++ modules;
  };
in
evaluated // { inherit (evaluated.config.nixpkgs) pkgs; }
