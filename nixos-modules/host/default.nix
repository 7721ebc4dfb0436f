# The NixOS module of a host: microVMs as systemd services.
{ config, lib, ... }:
let
  isMachineName = import ../../lib/is-machine-name.nix;
in
{
  imports = [
    ./image-cache.nix
    ./install.nix
    ./network
    ./options.nix
    ./services.nix
    ./system.nix
  ];

  config.assertions = lib.mkIf config.microvm.host.enable (
    lib.concatLists (
      lib.mapAttrsToList (name: vm: [
        {
          assertion =
            builtins.length (
              builtins.filter (source: source != null) [
                vm.flake
                vm.config
                vm.evaluatedConfig
              ]
            ) == 1;
          message = "microvm.vms.${name}: set exactly one of `flake`, `config` and `evaluatedConfig`";
        }
        {
          assertion = vm.updateFlake == null || vm.flake != null;
          message = "microvm.vms.${name}.updateFlake: has an effect only with `flake`";
        }
        {
          assertion = isMachineName name;
          message = "microvm.vms.${name}: use 1 to 64 letters, digits, `.`, `_` and `-`, starting with a letter, a digit or `_`";
        }
        {
          assertion = !(config.microvm.vms ? "booted-${name}");
          message = "microvm.vms.booted-${name}: would have the same garbage collection root as `${name}`; rename one of them";
        }
      ]) config.microvm.vms
    )
  );
}
