# The machine spec: the configuration's values under the names that the launcher reads. The launcher makes all
# decisions.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
  capabilities = import ../../lib/capabilities.nix { inherit lib; };
  onlyFor = hypervisor: value: if cfg.hypervisor == hypervisor then value else { };
  inherit (cfg.vmHostPackages.stdenv) hostPlatform;
  kernelPlatform = pkgs.stdenv.hostPlatform;

  # These hypervisors load an uncompressed ELF on x86. It is in the package's output `dev`, which the others do not
  # need.
  loadsElf =
    kernelPlatform.isx86_64
    && builtins.elem cfg.hypervisor [
      "cloud-hypervisor"
      "firecracker"
      "crosvm"
    ];

  storeDisk =
    if cfg.storeDiskBuild == "derivation" then
      {
        image = "${cfg.storeDisk}";
        transport = cfg.storeDiskTransport;
      }
    else
      {
        plan = "${cfg.storeDiskPlan}";
        builder = lib.getExe cfg.imageBuilder.package;
        live = cfg.storeDiskBuild == "live";
      }
      // lib.optionalAttrs (cfg.storeDiskBuild == "host" && cfg.storeDiskType == "erofs") {
        image = "${config.networking.hostName}-store.erofs";
      };
  # Persistent memory has no serial number, and a disk that is served brings its own.
  hasSerial =
    cfg.storeDiskBuild == "live"
    || capabilities.can cfg.hypervisor "VolumeSerial" && cfg.storeDiskTransport == "block";

  shellScript =
    name: text:
    "${cfg.vmHostPackages.writeShellScript "microvm-${config.networking.hostName}-${name}" text}";

  # For the host's store, a read-only mount in the guest is sufficient, so a hypervisor that cannot enforce it is no
  # reason to refuse the machine.
  refusesWrites = {
    "9p" = capabilities.can cfg.hypervisor "NinePReadOnly";
    virtiofs = builtins.compareVersions (cfg.virtiofsd.package.version or "1.13") "1.13" >= 0;
  };
  share =
    share:
    removeAttrs share [ "closureOnly" ]
    // lib.optionalAttrs share.closureOnly { closure = "${cfg.closurePaths}"; }
    // lib.optionalAttrs (share.source == "/nix/store") {
      readOnly = share.readOnly && refusesWrites.${share.proto};
    };

  interface =
    {
      type,
      id,
      mac,
      bridge,
      macvtap,
      tap,
      # Only the host's configuration needs it.
      ...
    }:
    {
      inherit
        type
        id
        mac
        bridge
        tap
        ;
    }
    // lib.optionalAttrs (macvtap.link != null) { inherit macvtap; };
in
{
  config.microvm.machineSpec = {
    version = 1;
    name = config.networking.hostName;
    architecture = kernelPlatform.qemuArch;
    inherit (cfg)
      hypervisor
      vcpu
      cpu
      mem
      hugepageMem
      hotplugMem
      hotpluggedMem
      balloon
      initialBalloonMem
      deflateOnOOM
      machineId
      writableStoreOverlay
      volumes
      forwardPorts
      devices
      rng
      socket
      consoleSocket
      user
      prettyProcnames
      ;
    # toString does not copy a path into the store; credentials.nix refuses one.
    credentialFiles = lib.mapAttrs (_: toString) cfg.credentialFiles;
    kernel = "${cfg.kernel}/${config.system.boot.loader.kernelFile}";
    vmlinux = if loadsElf then "${cfg.kernel.dev}/vmlinux" else null;
    initrd = "${cfg.initrdPath}";
    # They contain paths of the guest. If the guest has a store disk, the runner does not depend on these paths, so they
    # are not copied with it.
    kernelParams =
      if cfg.storeOnDisk then
        map builtins.unsafeDiscardStringContext cfg.kernelParams
      else
        cfg.kernelParams;
    storeDisk =
      if cfg.storeOnDisk then
        storeDisk
        // {
          serial = if hasSerial then "nix-store" else null;
        }
        // lib.optionalAttrs cfg.storeDiskVerity { verity = true; }
      else
        null;
    shares = map share cfg.shares;
    interfaces = map interface cfg.interfaces;
    graphics = {
      inherit (cfg.graphics)
        enable
        backend
        gl
        vulkan
        hostmem
        socket
        ;
      program =
        if cfg.graphics.enable && cfg.hypervisor == "crosvm" then
          lib.getExe' cfg.graphics.crosvmPackage "crosvm"
        else
          null;
    };
    vsock = { inherit (cfg.vsock) cid notify; };
    preStart = lib.optional (cfg.preStart != "") [
      (shellScript "pre-start" ''
        set -eu
        ${cfg.preStart}
      '')
    ];
    extraArgsScript =
      if cfg.extraArgsScript == null then null else shellScript "extra-arguments" cfg.extraArgsScript;

    qemu = onlyFor "qemu" {
      program = "${cfg.qemu.package}/bin/qemu-system-${kernelPlatform.qemuArch}";
      inherit (cfg.qemu)
        machine
        machineOpts
        accelerator
        serialConsole
        pcieRootPorts
        bridgeHelper
        extraArgs
        ;
    };
    cloudHypervisor = onlyFor "cloud-hypervisor" {
      program = lib.getExe' cfg.cloud-hypervisor.package "cloud-hypervisor";
      inherit (cfg.cloud-hypervisor) platformOEMStrings extraArgs;
    };
    firecracker = onlyFor "firecracker" {
      program = lib.getExe' cfg.firecracker.package "firecracker";
      inherit (cfg.firecracker)
        cpu
        driveIoEngine
        extraConfig
        extraArgs
        ;
    };
    crosvm = onlyFor "crosvm" {
      program = lib.getExe' cfg.crosvm.package "crosvm";
      inherit (cfg.crosvm) pivotRoot extraArgs;
    };
    kvmtool = onlyFor "kvmtool" {
      program = lib.getExe' cfg.kvmtool.package "lkvm";
      inherit (cfg.kvmtool) extraArgs;
    };
    virtiofsd =
      lib.optionalAttrs (hostPlatform.isLinux && lib.any (share: share.proto == "virtiofs") cfg.shares)
        (
          {
            program = lib.getExe' cfg.virtiofsd.package "virtiofsd";
            threadPoolSize =
              if builtins.isInt cfg.virtiofsd.threadPoolSize then cfg.virtiofsd.threadPoolSize else null;
            inherit (cfg.virtiofsd) group extraArgs;
          }
          // lib.optionalAttrs (cfg.virtiofsd.inodeFileHandles != null) {
            inherit (cfg.virtiofsd) inodeFileHandles;
          }
        );
  };
}
