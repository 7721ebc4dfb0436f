# Options for single hypervisors.
{ config, lib, ... }:
let
  inherit (lib) literalExpression mkOption types;
  cfg = config.microvm;

  extraArgs = mkOption {
    type = types.listOf types.str;
    default = [ ];
    description = "Additional arguments for the hypervisor.";
  };
  package =
    name:
    mkOption {
      type = types.package;
      default = cfg.vmHostPackages.${name};
      defaultText = literalExpression "config.microvm.vmHostPackages.${name}";
      description = "The package of the hypervisor.";
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
          description = "The identifier, which devices use as their bus.";
        };
        bus = property types.str "The parent bus.";
        chassis = property types.ints.unsigned "The chassis number.";
        slot = property types.str "The slot number.";
        addr = property types.str "The address on the parent bus.";
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
        description = "The package of the hypervisor.";
      };
      machine = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "q35";
        description = "The machine model; with null the launcher chooses it.";
      };
      machineOpts = mkOption {
        type = types.nullOr (types.attrsOf types.str);
        default = null;
        description = "Options of the machine model, instead of the launcher's choice.";
      };
      accelerator = mkOption {
        type = types.enum [
          "auto"
          "kvm"
          "tcg"
        ];
        default = "auto";
        description = "How the guest's instructions run; `auto` uses KVM if it is available, otherwise emulation, with a warning.";
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
        description = "The program that adds the tap of an interface of type `bridge` to its bridge. The default is the program installed by the host module. With null, qemu uses its own program, which needs the permission to do so.";
      };
    };

    cloud-hypervisor = {
      inherit extraArgs;
      package = package "cloud-hypervisor";
      platformOEMStrings = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "SMBIOS strings of type 11. All users of the host can read them in the process list.";
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
        description = "How disks are read and written: with io_uring, or with synchronous system calls.";
      };
      extraConfig = mkOption {
        type = types.attrsOf types.anything;
        default = { };
        description = "Additional configuration, merged into firecracker's document. List elements are merged by id.";
      };
    };

    crosvm = {
      inherit extraArgs;
      package = package "crosvm";
      pivotRoot = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The empty directory that is the root of jailed devices; null means crosvm's default, `/var/empty`.";
      };
    };

    kvmtool = {
      inherit extraArgs;
      package = package "kvmtool";
    };
  };
}
