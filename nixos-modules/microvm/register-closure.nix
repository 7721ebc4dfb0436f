# The guest's Nix database. It contains the paths of the system closure, and with a persistent writable layer also those
# that were added to the store.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
  overlay = cfg.writableStoreOverlay;
  stays =
    overlay != null
    && lib.any (
      mountPoint: mountPoint != null && lib.hasPrefix "${lib.removeSuffix "/" mountPoint}/" "${overlay}/"
    ) (map (part: part.mountPoint) (cfg.volumes ++ cfg.shares));
  # Whether Nix can write the files of a path to the disk before it records the path as valid.
  canFsyncPaths =
    builtins.compareVersions (config.nix.package.version or "") (
      if config.nix.package.pname or "" == "lix" then "2.92" else "2.25"
    ) >= 0;
  readsDatabase = [
    "nix-daemon.service"
    "nix-gc.service"
  ];
in
{
  options.microvm.closureRegistration = lib.mkOption {
    type = lib.types.package;
    internal = true;
    readOnly = true;
    description = "The registration of the system closure for Nix's database.";
  };

  config = lib.mkMerge [
    {
      microvm.closureRegistration = pkgs.closureInfo { rootPaths = [ config.system.build.toplevel ]; };
    }
    # The database is written safely by default, the paths are not. If the machine is killed, paths of the last half minute would
    # be valid, and their files empty.
    (lib.mkIf (cfg.guest.enable && stays && canFsyncPaths) {
      nix.settings.fsync-store-paths = lib.mkDefault true;
    })
    (lib.mkIf (cfg.guest.enable && cfg.registerClosure) {
      # Not in the system's kernel parameters, because the registration depends on the system.
      microvm.kernelParams = [ "regInfo=${cfg.closureRegistration}/registration" ];

      systemd.services.microvm-register-closure = {
        description = "Nix database of the system closure";
        wantedBy = [ "multi-user.target" ];
        before = readsDatabase;
        requiredBy = lib.optionals (overlay != null) [ "nix-daemon.service" ];
        unitConfig.RequiresMountsFor = [ "/nix/store" ] ++ lib.optional (overlay != null) overlay;
        path = [
          config.nix.package
          pkgs.coreutils
          pkgs.findutils
          pkgs.util-linux
        ];
        environment = {
          PERSISTENT_STATE = lib.optionalString stays "${overlay}/var";
          NIX_STATE = "/nix/var/nix";
          STORE_IS_WRITABLE = if overlay == null then "0" else "1";
        };
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
        };
        script = builtins.readFile ./register-closure.sh;
      };
    })
  ];
}
