# The machine itself: hypervisor, CPUs, memory, kernel.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    literalExpression
    mkEnableOption
    mkOption
    types
    ;
  cfg = config.microvm;
in
{
  options.microvm = {
    guest.enable = mkEnableOption "the microVM guest" // {
      default = true;
      description = "Whether this configuration is made to run in a microVM.";
    };

    hypervisor = mkOption {
      type = types.enum (import ../../../lib/hypervisors.nix);
      default = "qemu";
      description = "The hypervisor that `microvm.declaredRunner` starts.";
    };

    vmHostPackages = mkOption {
      type = types.raw;
      # An emulated guest may be of another platform; its hypervisor runs where it is built.
      default = if cfg.cpu == null then pkgs else pkgs.buildPackages;
      defaultText = literalExpression "if config.microvm.cpu == null then pkgs else pkgs.buildPackages";
      description = "The packages of the host: hypervisors, virtiofsd and the launcher come from here, not from the guest's.";
    };

    machineId = mkOption {
      type = types.nullOr types.str;
      default =
        let
          # microvm.nix' rule: a guest that is moved over stays the same machine to its journal and to DHCP servers.
          hash = builtins.hashString "sha256" "microvm.nix:${config.networking.hostName}";
          part = start: length: builtins.substring start length hash;
        in
        "${part 0 8}-${part 8 4}-${part 12 4}-${part 16 4}-${part 20 12}";
      defaultText = "a UUID made from the host name";
      description = "The machine's id, a UUID: `/etc/machine-id`, the SMBIOS system UUID and the id under which the host registers it.";
    };

    vcpu = mkOption {
      type = types.ints.positive;
      default = 1;
      description = "Number of virtual CPUs.";
    };

    cpu = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "The CPU to emulate; null is the host's. KVM runs it where it can: on x86.";
    };

    mem = mkOption {
      type = types.ints.positive;
      default = 512;
      description = "Memory in MiB.";
    };

    hugepageMem = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the memory is backed by huge pages of the host.";
    };

    hotplugMem = mkOption {
      type = types.ints.unsigned;
      default = 0;
      description = "Most memory in MiB that can be plugged into the running machine, on top of `mem`.";
    };

    hotpluggedMem = mkOption {
      type = types.ints.unsigned;
      default = cfg.hotplugMem;
      defaultText = literalExpression "config.microvm.hotplugMem";
      description = "How much of `hotplugMem` in MiB is plugged in at start.";
    };

    balloon = mkOption {
      type = types.bool;
      default = false;
      description = "Whether there is a balloon, by which the host can take memory back.";
    };

    initialBalloonMem = mkOption {
      type = types.ints.unsigned;
      default = 0;
      description = "Size of the balloon at start in MiB.";
    };

    deflateOnOOM = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the balloon gives its memory back when the guest runs out of it.";
    };

    kernel = mkOption {
      type = types.package;
      default = config.boot.kernelPackages.kernel;
      defaultText = literalExpression "config.boot.kernelPackages.kernel";
      description = "The kernel that the hypervisor boots.";
    };

    initrdPath = mkOption {
      type = types.path;
      default = "${config.system.build.initialRamdisk}/${config.system.boot.loader.initrdFile}";
      defaultText = literalExpression ''"''${config.system.build.initialRamdisk}/''${config.system.boot.loader.initrdFile}"'';
      description = "The initrd that the hypervisor boots.";
    };

    kernelParams = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = ''
        Kernel parameters of the runner: those of `boot.kernelParams`, and others. They are not part of the system's
        toplevel, so they may name it. What the hypervisor needs for its console is added by the launcher.
      '';
    };

    user = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "The user to switch to when the hypervisor is started as root.";
    };

    socket = mkOption {
      type = types.nullOr types.str;
      default = "${config.networking.hostName}.sock";
      defaultText = literalExpression ''"''${config.networking.hostName}.sock"'';
      description = "The hypervisor's control socket, relative to the state directory. Null has the same default in the launcher.";
    };

    consoleSocket = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "console.sock";
      description = "A socket on which the console is served with scrollback for `microvm console`; null is the terminal of the runner.";
    };

    optimize.enable = mkOption {
      type = types.bool;
      default = true;
      description = "Whether to leave out what a microVM rarely needs: documentation, waiting for the network, TPM, software RAID.";
    };
  };
}
