# What only one hypervisor understands.
{ config, lib, ... }:
let
  inherit (lib) literalExpression mkOption types;
  cfg = config.microvm;

  extraArgs = mkOption {
    type = types.listOf types.str;
    default = [ ];
    description = "Further arguments of the hypervisor.";
  };
  package =
    name:
    mkOption {
      type = types.package;
      default = cfg.vmHostPackages.${name};
      defaultText = literalExpression "config.microvm.vmHostPackages.${name}";
      description = "The hypervisor's package.";
    };

  pcieRootPort = {
    options =
      let
        property =
          type: description:
          mkOption {
            type = types.nullOr type;
            default = null;
            inherit description;
          };
      in
      {
        id = mkOption {
          type = types.str;
          description = "Its identifier, which a device names as its bus.";
        };
        bus = property types.str "The bus it sits on.";
        chassis = property types.ints.unsigned "Its chassis number.";
        slot = property types.str "Its slot number.";
        addr = property types.str "Its address on the parent bus.";
      };
  };
in
{
  options.microvm = {
    qemu = {
      inherit extraArgs;
      package = mkOption {
        type = types.package;
        default = if cfg.cpu == null then cfg.vmHostPackages.qemu_kvm else cfg.vmHostPackages.qemu;
        defaultText = literalExpression "if config.microvm.cpu == null then pkgs.qemu_kvm else pkgs.qemu";
        description = "The hypervisor's package.";
      };
      machine = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "q35";
        description = "The machine model; null leaves the choice to the launcher.";
      };
      machineOpts = mkOption {
        type = types.nullOr (types.attrsOf types.str);
        default = null;
        description = "Options of the machine model, instead of the chosen ones.";
      };
      accelerator = mkOption {
        type = types.enum [
          "auto"
          "kvm"
          "tcg"
        ];
        default = "auto";
        description = "Who runs the guest's instructions; `auto` is KVM where it is usable, else emulation with a warning.";
      };
      serialConsole = mkOption {
        type = types.bool;
        default = true;
        description = "Whether the guest has a serial console on the terminal.";
      };
      pcieRootPorts = mkOption {
        type = types.listOf (types.submodule pcieRootPort);
        default = [ ];
        description = "PCI Express root ports.";
      };
      bridgeHelper = mkOption {
        type = types.nullOr types.str;
        default = "/run/wrappers/bin/qemu-bridge-helper";
        description = "The program that puts the tap of an interface of type `bridge` into its bridge. The default is what the host module makes; null is qemu's own, which must be allowed to by somebody else.";
      };
    };

    cloud-hypervisor = {
      inherit extraArgs;
      package = package "cloud-hypervisor";
      platformOEMStrings = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "SMBIOS strings of type 11. Every user of the host can read them in the process list.";
      };
    };

    firecracker = {
      inherit extraArgs;
      package = package "firecracker";
      cpu = mkOption {
        type = types.nullOr (types.attrsOf types.anything);
        default = null;
        description = "A CPU template: firecracker's `cpu-config` object.";
      };
      driveIoEngine = mkOption {
        type = types.enum [
          "Async"
          "Sync"
        ];
        default = "Async";
        description = "How disks are read and written: with io_uring, or with ordinary system calls.";
      };
      extraConfig = mkOption {
        type = types.attrsOf types.anything;
        default = { };
        description = "Further configuration, merged into firecracker's document.";
      };
    };

    crosvm = {
      inherit extraArgs;
      package = package "crosvm";
      pivotRoot = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The empty directory in which the devices are jailed; null is crosvm's `/var/empty`.";
      };
    };

    kvmtool = {
      inherit extraArgs;
      package = package "kvmtool";
    };
  };
}
