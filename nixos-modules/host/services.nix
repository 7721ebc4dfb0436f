# The services of every machine in the state directory, declared or made by `microvm create`. Names and order are those
# of microvm.nix. A machine's own directory tells which of them it needs.
#
# Root runs nothing that a machine's user can replace: every program of a runner is started by `microvm unit`, which looks
# whose the links to it are. `docs/host.md` has the whole of the isolation.
{
  config,
  lib,
  ...
}:
let
  cfg = config.microvm;
  state = "${cfg.stateDir}/%i";
  roots = "/run/microvm-roots";
  disks = "/var/cache/microvm-store-disks";
  machine = "microvm@%i.service";
  setBooted = "microvm-set-booted@%i.service";
  root = "microvm-root@%i.service";
  helpers = [
    "microvm-tap-interfaces@%i.service"
    "microvm-macvtap-interfaces@%i.service"
    "microvm-pci-devices@%i.service"
    "microvm-virtiofsd@%i.service"
  ];

  unit = task: "${lib.getExe cfg.host.package} unit ${task}";
  environment = {
    MICROVM_STATE_DIR = cfg.stateDir;
    MICROVM_RUNTIME_DIR = "/run/microvm";
    # Two machines of one flake may have the same host name, but never the same directory.
    MICROVM_NAME = "%i";
    MICROVM_FIRST_USER_ID = toString cfg.host.firstUserId;
  };

  # What comes before the machine, ends with it, and is left out by runners that do not need it.
  helper =
    {
      description,
      program,
      stop ? null,
      after ? [ ],
    }:
    {
      inherit description environment;
      # So that it stops before the link to the runner that booted is gone.
      after = after ++ [ setBooted ];
      before = [
        root
        machine
      ];
      partOf = [ machine ];
      unitConfig.ConditionPathExists = "${state}/current/bin/${program}";
      restartIfChanged = false;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        SyslogIdentifier = "${program}@%i";
        WorkingDirectory = state;
        # The interfaces are the machine's user's already, and the devices become it in its root directory.
        ExecStart = unit "call %i ${program} --owner root";
      }
      // lib.optionalAttrs (stop != null) {
        # What was made by the runner that booted is for that one to remove.
        ExecStop = unit "call --if-there %i ${stop}";
      };
    };

  # Nothing here is needed by any of the five hypervisors.
  hardening = {
    LockPersonality = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
      "AF_NETLINK"
      "AF_VSOCK"
    ];
  };

  # What only some machines need, declared with the host or not.
  special =
    name: settings:
    lib.optionalAttrs (settings.readablePaths ++ settings.writablePaths != [ ]) {
      "microvm-root@${name}" = {
        overrideStrategy = "asDropin";
        environment = {
          MICROVM_READABLE_PATHS = lib.concatStringsSep ":" settings.readablePaths;
          MICROVM_WRITABLE_PATHS = lib.concatStringsSep ":" settings.writablePaths;
        };
        # The template's, not another one.
        path = lib.mkForce [ ];
      };
    }
    // lib.optionalAttrs settings.namespaces {
      "microvm@${name}" = {
        overrideStrategy = "asDropin";
        path = lib.mkForce [ ];
        serviceConfig = {
          RestrictNamespaces = [
            "user"
            "mnt"
            "pid"
            "net"
            "ipc"
            "uts"
          ];
          SystemCallFilter = [ "@mount" ];
        };
      };
    };
in
{
  config = lib.mkIf cfg.host.enable {
    systemd.targets.microvms = {
      description = "All microVMs that start with the host";
      wantedBy = [ "multi-user.target" ];
      wants = map (name: "microvm@${name}.service") cfg.autostart;
    };

    systemd.services =
      lib.foldl' (all: name: all // special name cfg.host.machines.${name}) { } (
        builtins.attrNames cfg.host.machines
      )
      // {
        "microvm-tap-interfaces@" = helper {
          description = "Tap interfaces of microVM '%i'";
          program = "tap-up";
          stop = "tap-down";
          after = [ "network.target" ];
        };

        "microvm-macvtap-interfaces@" = helper {
          description = "Macvtap interfaces of microVM '%i'";
          program = "macvtap-up";
          stop = "macvtap-down";
          after = [ "network.target" ];
        };

        "microvm-pci-devices@" = helper {
          description = "Passed-through devices of microVM '%i'";
          program = "pci-setup";
        };

        "microvm-virtiofsd@" = {
          description = "Shared directories of microVM '%i'";
          inherit environment;
          before = [
            root
            machine
          ];
          after = [
            "local-fs.target"
            setBooted
          ];
          partOf = [ machine ];
          unitConfig.ConditionPathExists = "${state}/current/bin/virtiofsd-run";
          restartIfChanged = false;
          serviceConfig = {
            Type = "notify";
            NotifyAccess = "main";
            WorkingDirectory = state;
            SyslogIdentifier = "microvm-virtiofsd@%i";
            ExecStart = unit "call %i virtiofsd-run";
            Restart = "always";
            RestartSec = "5s";
            KillMode = "mixed";
            LimitNOFILE = 1048576;
            inherit (hardening)
              LockPersonality
              ProtectClock
              ProtectHostname
              ProtectKernelLogs
              ProtectKernelModules
              RestrictRealtime
              SystemCallArchitectures
              ;
          };
        };

        "microvm-set-booted@" = {
          description = "User and runner of microVM '%i'";
          inherit environment;
          before = [ machine ];
          partOf = [ machine ];
          unitConfig.ConditionPathExists = "${state}/current/bin/microvm-run";
          restartIfChanged = false;
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
            ExecStart = unit "adopt %i";
            # Nothing needs that runner any longer: Nix may collect it.
            ExecStop = unit "release %i";
          };
        };

        "microvm-root@" = {
          description = "Root directory of microVM '%i'";
          environment = environment // {
            MICROVM_IMAGE_CACHE = cfg.host.imageCache.directory;
          };
          before = [ machine ];
          after = helpers ++ [ setBooted ];
          requires = [ setBooted ];
          partOf = [ machine ];
          unitConfig.ConditionPathExists = "${state}/current/bin/microvm-run";
          restartIfChanged = false;
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
            SyslogIdentifier = "microvm-root@%i";
            ExecStart = unit "root-up %i --roots ${roots} --disks ${disks}${
              lib.concatMapStrings (path: " --readable ${path}") cfg.host.readablePaths
            }";
            ExecStop = unit "root-down %i --roots ${roots}";
            # Where the host makes the store disk, the first time takes as long as it takes.
            TimeoutStartSec = "infinity";
          };
        };

        "microvm@" = {
          description = "MicroVM '%i'";
          requires = helpers ++ [
            setBooted
            root
          ];
          after = [
            "network.target"
          ]
          ++ helpers
          ++ [
            setBooted
            root
          ];
          unitConfig.ConditionPathExists = "${state}/current/bin/microvm-run";
          restartIfChanged = false;
          environment = environment // {
            # kvmtool can be asked to stop only by who holds its console, and somebody must pass on that a guest is ready.
            MICROVM_SUPERVISE = "1";
            # The unit is a jail already, and its root directory holds the store disk that the host has made.
            MICROVM_CONFINED = "1";
          };
          serviceConfig = hardening // {
            Type = if cfg.host.useNotifySockets then "notify" else "simple";
            NotifyAccess = "main";
            RootDirectory = "${roots}/%i";
            # What stops the machine needs the host's services.
            RootDirectoryStartOnly = true;
            WorkingDirectory = state;
            SyslogIdentifier = "microvm@%i";
            # `!`: all of the unit's confinement, but the user is the machine's own, which `enter` becomes.
            ExecStart = "!${unit "enter %i microvm-run"}";
            # `+`: with all rights, because the host's other services would not listen to the machine's user.
            ExecStartPost = "-+${unit "call --if-there %i microvm-register"}";
            ExecStop = "-!${unit "enter --if-there %i microvm-shutdown"}";
            ExecStopPost = "-+${unit "call --if-there %i microvm-unregister"}";
            TimeoutSec = cfg.host.startupTimeout;
            Restart = "always";
            RestartSec = "5s";
            User = "microvm";
            Group = "kvm";
            LimitNOFILE = 1048576;
            LimitMEMLOCK = "infinity";
            UMask = "0077";

            # Everything is mounted read-only in the root directory but what the machine may write.
            ProtectSystem = "full";
            ProtectProc = "invisible";
            DevicePolicy = "closed";
            # Of all that a host may have; other devices of a machine's spec are added one by one by `microvm-root@`.
            DeviceAllow = [
              "/dev/kvm rw"
              "/dev/net/tun rw"
              "/dev/vhost-net rw"
              "/dev/vhost-vsock rw"
              "char-pts rw"
            ];
            # For `enter`; without new privileges nobody gets them again.
            CapabilityBoundingSet = [
              "CAP_SETUID"
              "CAP_SETGID"
            ];
            NoNewPrivileges = true;
            KeyringMode = "private";
            PrivateIPC = true;
            RemoveIPC = true;
            SystemCallErrorNumber = "EPERM";
            SystemCallFilter = [
              "~@clock"
              "~@cpu-emulation"
              "~@debug"
              "~@keyring"
              "~@module"
              "~@mount"
              "~@obsolete"
              "~@raw-io"
              "~@reboot"
              "~@swap"
            ];
          };
        };
      };
  };
}
