# The caches of store disks: the service that all builds of this host share, and the directory of the machines' user, with
# its garbage collection.
{
  config,
  lib,
  ...
}:
let
  cfg = config.microvm;
  cache = cfg.host.imageCache;
  serviceUser = "microvm-image-cache";
  socketDirectory = "/run/microvm-image";

  # Neither needs more than its directory, and the service a socket beside.
  hardening = {
    CapabilityBoundingSet = [ "" ];
    DevicePolicy = "closed";
    IPAddressDeny = "any";
    KeyringMode = "private";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateNetwork = true;
    PrivateTmp = true;
    ProcSubset = "pid";
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictAddressFamilies = [ "AF_UNIX" ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
  };
in
{
  config = lib.mkIf cfg.host.enable (
    lib.mkMerge [
      {
        systemd.tmpfiles.rules = [ "d ${cache.directory} 0750 microvm kvm -" ];

        systemd.services.microvm-image-cache-gc = {
          description = "Garbage collection of the cache of store disks";
          serviceConfig = hardening // {
            Type = "oneshot";
            ExecStart = "${lib.getExe cache.package} cache gc --cache ${cache.directory} --max-size ${cache.maxSize}";
            User = "microvm";
            Group = "kvm";
            UMask = "0027";
            ReadWritePaths = [ cache.directory ];
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
      }

      (lib.mkIf cache.service.enable {
        users.users.${serviceUser} = {
          isSystemUser = true;
          group = serviceUser;
        };
        users.groups.${serviceUser} = { };

        systemd.sockets.microvm-image-cache = {
          description = "Socket of the cache service of store disks";
          wantedBy = [ "sockets.target" ];
          socketConfig = {
            # Messages keep their boundaries.
            ListenSequentialPacket = "${socketDirectory}/cache.sock";
            # Clients are not trusted: everybody may ask.
            SocketMode = "0666";
            DirectoryMode = "0755";
            RemoveOnStop = true;
          };
        };

        systemd.services.microvm-image-cache = {
          description = "Cache service of store disks";
          requires = [ "microvm-image-cache.socket" ];
          # It asks Nix which store paths are valid.
          after = [
            "microvm-image-cache.socket"
            "nix-daemon.socket"
          ];
          # It starts whenever a build asks; one that was killed many times is still started again.
          unitConfig.StartLimitIntervalSec = 0;
          serviceConfig = hardening // {
            ExecStart = "${lib.getExe cache.package} cache serve --cache /var/cache/microvm-image-service --max-size ${cache.maxSize} --idle-exit 300";
            User = serviceUser;
            Group = serviceUser;
            UMask = "0077";
            CacheDirectory = "microvm-image-service";
            CacheDirectoryMode = "0700";
            LimitNOFILE = 16384;
            TasksMax = 512;
          };
        };

        # The directory, not the socket: a socket that is made again during a build is found by the build. The question
        # mark lets builds start when the directory is not there.
        nix.settings = lib.mkIf cache.service.sandbox {
          extra-sandbox-paths = [ "${socketDirectory}?" ];
        };
      })
    ]
  );
}
