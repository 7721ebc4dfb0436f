# The functions that flakes and hosts can use without a configuration.
{ lib }:
let
  capabilities = import ./capabilities.nix { inherit lib; };
in
rec {
  hypervisors = import ./hypervisors.nix;

  # All five support tap interfaces.
  hypervisorsWithNetwork = builtins.filter (
    hypervisor: capabilities.can hypervisor "InterfaceTap"
  ) hypervisors;

  defaultFsType = import ./default-fs-type.nix;

  inherit (import ./drive-letters.nix { inherit lib; }) driveLetters withDriveLetters;

  inherit (import ./arguments.nix { inherit lib; }) extractOptValues extractParamValue;

  inherit (import ./macvtap.nix { inherit lib; }) makeMacvtap;

  # The MAC address and tap interface of a machine in a network of the host, and its vsock address.
  inherit (import ./derived.nix) macAddress tapName vsockCid;

  inherit capabilities;

  # Makes the runner of a NixOS configuration with the hypervisor and launcher from other packages than the guest's.
  buildRunner =
    {
      # a NixOS configuration with the module `microvm`
      configuration,
      # the host's packages
      pkgs ? configuration.pkgs,
      hypervisor ? configuration.config.microvm.hypervisor,
    }:
    let
      adapted = configuration.extendModules {
        modules = [ { microvm.vmHostPackages = lib.mkVMOverride pkgs; } ];
      };
    in
    adapted.config.microvm.runner.${hypervisor};
}
