# The caches for store disks: the service that all builds of this host share, and the cache directory of the machines'
# user with its garbage collection.
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

  # Both need only their directory; the service also needs its socket.
  hardening = import ./hardening.nix // {
    CapabilityBoundingSet = [ "" ];
    DevicePolicy = "closed";
    IPAddressDeny = "any";
    KeyringMode = "private";
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateNetwork = true;
    ProcSubset = "pid";
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    RestrictAddressFamilies = [ "AF_UNIX" ];
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
            # A socket that preserves message boundaries.
            ListenSequentialPacket = "${socketDirectory}/cache.sock";
            # Every user can connect, because clients are not trusted anyway.
            SocketMode = "0666";
            DirectoryMode = "0755";
            RemoveOnStop = true;
          };
        };

        systemd.services.microvm-image-cache = {
          description = "Cache service of store disks";
          requires = [ "microvm-image-cache.socket" ];
          # It queries Nix's daemon for valid store paths.
          after = [
            "microvm-image-cache.socket"
            "nix-daemon.socket"
          ];
          # A build starts it by connecting. There is no limit, so it starts again even if it was killed many times.
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

        # The directory instead of the socket, so that builds find a socket that is created again in the meantime. With
        # the question mark, builds also start if the directory does not exist.
        nix.settings = lib.mkIf cache.service.sandbox {
          extra-sandbox-paths = [ "${socketDirectory}?" ];
        };
      })
    ]
  );
}
