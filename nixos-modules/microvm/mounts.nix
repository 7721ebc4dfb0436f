# The file systems of the guest: a root in memory, the store from its disk or share, a writable layer over it, volumes
# and shares.
{
  config,
  lib,
  utils,
  ...
}:
let
  cfg = config.microvm;
  capabilities = import ../../lib/capabilities.nix { inherit lib; };
  inherit (import ../../lib/drive-letters.nix { inherit lib; }) withDriveLetters;

  overlay = cfg.writableStoreOverlay;
  lowerStore = if overlay == null then "/nix/store" else "/nix/.ro-store";
  hostStore = lib.findFirst (share: share.source == "/nix/store") null cfg.shares;
  hasSerials = capabilities.can cfg.hypervisor "VolumeSerial";

  # Whether the writable layer is below this mount point, which must then be mounted before the store.
  holdsOverlay =
    mountPoint: overlay != null && lib.hasPrefix "${lib.removeSuffix "/" mountPoint}/" "${overlay}/";

  volumeDevice =
    volume:
    if volume.label != null then
      "/dev/disk/by-label/${volume.label}"
    else if volume.serial != null && hasSerials then
      "/dev/disk/by-id/virtio-${volume.serial}"
    else
      "/dev/vd${volume.letter}";

  shareOptions =
    share:
    {
      "9p" = [
        "trans=virtio"
        "version=9p2000.L"
        "msize=65536"
      ];
      virtiofs = [ "defaults" ];
    }
    .${share.proto}
    ++ lib.optional share.readOnly "ro"
    # The driver is a module that the kernel does not load automatically.
    ++ [ "x-systemd.after=systemd-modules-load.service" ];

  # All programs run from the store, so its mounts, and those that they are below or come from, cannot be unmounted
  # until the end.
  storeDirectories = [
    "/nix/store"
    lowerStore
  ]
  ++ lib.optional (overlay != null) overlay
  ++ lib.optional (hostStore != null) hostStore.mountPoint;
  holdsStore =
    mountPoint:
    mountPoint != "/"
    && lib.any (
      directory: lib.hasPrefix "${lib.removeSuffix "/" mountPoint}/" "${lib.removeSuffix "/" directory}/"
    ) storeDirectories;

  root."/" = lib.mkDefault (import ./memory-root.nix);

  storeDisk = lib.optionalAttrs cfg.storeOnDisk {
    ${lowerStore} = {
      device = if cfg.storeDiskVerity then "/dev/mapper/nix-store" else cfg.storeDiskDevice;
      fsType = cfg.storeDiskType;
      options = [
        "ro"
        "x-systemd.after=systemd-modules-load.service"
      ]
      # Without the guest's own page cache.
      ++ lib.optional (cfg.storeDiskTransport == "pmem") "dax=always";
      neededForBoot = true;
      noCheck = true;
    };
  };

  # A share of the host's store that is mounted elsewhere is bind-mounted to /nix/store.
  storeShare =
    lib.optionalAttrs (!cfg.storeOnDisk && hostStore != null && hostStore.mountPoint != lowerStore)
      {
        ${lowerStore} = {
          device = hostStore.mountPoint;
          fsType = "none";
          options = [
            "bind"
            "ro"
          ];
          neededForBoot = true;
          depends = [ hostStore.mountPoint ];
        };
      };

  storeOverlay = lib.optionalAttrs (overlay != null) {
    "/nix/store" = {
      overlay = {
        lowerdir = [ lowerStore ];
        upperdir = "${overlay}/store";
        workdir = "${overlay}/work";
      };
      # virtiofs has no trusted.* attributes, in which an overlay stores metadata by default.
      options = lib.mkIf (lib.any (
        share: share.proto == "virtiofs" && holdsOverlay share.mountPoint
      ) cfg.shares) [ "userxattr" ];
      neededForBoot = true;
      depends = [
        lowerStore
        overlay
      ];
    };
  };

  volumes = map (
    volume:
    lib.optionalAttrs (volume.mountPoint != null) {
      ${volume.mountPoint} = {
        inherit (volume) fsType;
        device = volumeDevice volume;
        options = lib.mkIf volume.readOnly [ "ro" ];
        neededForBoot = lib.mkDefault (holdsOverlay volume.mountPoint);
      };
    }
  ) (withDriveLetters cfg);

  shares = map (share: {
    ${share.mountPoint} = {
      device = share.tag;
      fsType = share.proto;
      options = shareOptions share;
      neededForBoot = lib.mkDefault (share.source == "/nix/store" || holdsOverlay share.mountPoint);
    };
  }) cfg.shares;
in
{
  config = lib.mkIf cfg.guest.enable {
    # The serial number is unique. If disks have no serial numbers, the store's disk is always the first.
    microvm.storeDiskDevice =
      if cfg.storeDiskTransport == "pmem" then
        "/dev/pmem0"
      else if hasSerials || cfg.storeDiskBuild == "live" then
        "/dev/disk/by-id/virtio-nix-store"
      else
        "/dev/vda";

    fileSystems = lib.mkMerge (
      [
        root
        storeDisk
        storeShare
        storeOverlay
      ]
      ++ volumes
      ++ shares
    );

    # At shutdown, systemd stops a mount, with everything mounted over it, before it ends the last processes. It must
    # keep these mounts until the very end, when nothing from the store is needed any more.
    systemd.units = lib.listToAttrs (
      map (mountPoint: {
        name = "${utils.escapeSystemdPath mountPoint}.mount";
        value = {
          overrideStrategy = "asDropin";
          text = ''
            [Unit]
            DefaultDependencies=false
          '';
        };
      }) (builtins.filter holdsStore (builtins.attrNames config.fileSystems))
    );
  };
}
