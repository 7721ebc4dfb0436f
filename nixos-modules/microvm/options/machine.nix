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
      description = "Whether this configuration runs in a microVM.";
    };

    hypervisor = mkOption {
      type = types.enum (import ../../../lib/hypervisors.nix);
      default = "qemu";
      description = "The hypervisor that `microvm.declaredRunner` starts.";
    };

    vmHostPackages = mkOption {
      type = types.raw;
      # An emulated guest may have another platform; its hypervisor runs on the build platform.
      default = if cfg.cpu == null then pkgs else pkgs.buildPackages;
      defaultText = literalExpression "if config.microvm.cpu == null then pkgs else pkgs.buildPackages";
      description = "The packages of the host: hypervisors, virtiofsd and the launcher come from here, not from the guest's packages.";
    };

    machineId = mkOption {
      type = types.nullOr types.str;
      default =
        let
          # microvm.nix's rule, so that a guest from there stays the same machine to its journal and to DHCP servers.
          hash = builtins.hashString "sha256" "microvm.nix:${config.networking.hostName}";
          part = start: length: builtins.substring start length hash;
        in
        "${part 0 8}-${part 8 4}-${part 12 4}-${part 16 4}-${part 20 12}";
      defaultText = "a UUID made from the host name";
      description = "The id of the machine, a UUID: its `/etc/machine-id`, its SMBIOS system UUID, and its id on the host.";
    };

    vcpu = mkOption {
      type = types.ints.positive;
      default = 1;
      description = "The number of virtual CPUs.";
    };

    cpu = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "The CPU model; null means the host's CPU. KVM supports other models on x86 only.";
    };

    mem = mkOption {
      type = types.ints.positive;
      default = 512;
      description = "The memory in MiB.";
    };

    hugepageMem = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to allocate the memory as huge pages of the host.";
    };

    hotplugMem = mkOption {
      type = types.ints.unsigned;
      default = 0;
      description = "The memory in MiB that can be added to the running machine, in addition to `mem`.";
    };

    hotpluggedMem = mkOption {
      type = types.ints.unsigned;
      default = cfg.hotplugMem;
      defaultText = literalExpression "config.microvm.hotplugMem";
      description = "The part of `hotplugMem` in MiB that is added at the start.";
    };

    balloon = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to add a balloon device, with which the host can reclaim memory.";
    };

    initialBalloonMem = mkOption {
      type = types.ints.unsigned;
      default = 0;
      description = "The size of the balloon at the start, in MiB.";
    };

    deflateOnOOM = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the balloon returns its memory to the guest when the guest runs out of memory.";
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
        Kernel parameters of the runner: those in `boot.kernelParams`, and others. They are not part of the system's
        toplevel, so they can refer to it. The launcher adds the parameters that the hypervisor needs for its console.
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
      description = "The control socket of the hypervisor, relative to the state directory. With null, it is `NAME.sock`.";
    };

    consoleSocket = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "console.sock";
      description = "The socket on which the supervisor serves the console, with scrollback, for `microvm console`. With null, the console is on the terminal of the runner.";
    };

    optimize.enable = mkOption {
      type = types.bool;
      default = true;
      description = "Whether to turn off what a microVM rarely needs: documentation, drivers of other computers in the initrd, waiting for the network, TPM, software RAID. It also turns on networkd, and on qemu, cloud-hypervisor and firecracker systemd in stage 1. It sets the kernel parameter `8250.nr_uarts=1`, and turns off `system.switch.enable` unless the guest uses the host's store and has an SSH server.";
    };
  };
}
