# The cache of the store disks that are made on this host, and its garbage collection.
{
  config,
  lib,
  ...
}:
let
  cfg = config.microvm;
  cache = cfg.host.imageCache;
in
{
  config = lib.mkIf cfg.host.enable {
    systemd.tmpfiles.rules = [ "d ${cache.directory} 0750 microvm kvm -" ];

    systemd.services.microvm-image-cache-gc = {
      description = "Garbage collection of the cache of store disks";
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${lib.getExe cache.package} cache gc --cache ${cache.directory} --max-size ${cache.maxSize}";
        User = "microvm";
        Group = "kvm";
        ReadWritePaths = [ cache.directory ];
        CapabilityBoundingSet = [ "" ];
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateNetwork = true;
        PrivateTmp = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectSystem = "strict";
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [ "@system-service" ];
      };
    };

    systemd.timers.microvm-image-cache-gc = {
      description = "Garbage collection of the cache of store disks";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = cache.gcDates;
        Persistent = true;
        RandomizedDelaySec = "1h";
      };
    };
  };
}
