# Replaces `nixpkgs.lib.nixosSystem` with the module system of the tests' evaluator and its few NixOS options.
{
  modules,
  system ? null,
  specialArgs ? { },
  prefix ? [ ],
}:
let
  lib = import ../../lib.nix;
  evaluated = lib.evalModules {
    inherit prefix;
    specialArgs = {
      utils = import ../../../evaluator/utils.nix { inherit lib; };
    }
    // specialArgs;
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
