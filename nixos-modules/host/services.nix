# The services of all machines in the state directory, whether declared or created by `microvm create`. Their names and
# order are those of microvm.nix. A machine's directory determines which of them it needs.
#
# Root runs nothing that a machine's user can replace: `microvm unit` starts every program of a runner, and checks
# the owner of the links to it. `docs/host.md` describes the isolation.
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

  # The time in seconds for a guest to shut down. The rest of systemd's timeout is for ending its hypervisor.
  stopTimeout = toString (cfg.host.startupTimeout * 2 / 3);

  unit = task: "${lib.getExe cfg.host.package} unit ${task}";
  environment = {
    MICROVM_STATE_DIR = cfg.stateDir;
    MICROVM_RUNTIME_DIR = "/run/microvm";
    # Two machines of one flake can have the same host name, but never the same directory.
    MICROVM_NAME = "%i";
    MICROVM_FIRST_USER_ID = toString cfg.host.firstUserId;
  };

  # A service that starts before the machine and stops with it. It is skipped if the runner does not need it.
  helper =
    {
      description,
      program,
      stop ? null,
      after ? [ ],
    }:
    {
      inherit description environment;
      # It must stop before the link to the booted runner is removed.
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
        # The interfaces already belong to the machine's user. The devices get this owner in the machine's root
        # directory.
        ExecStart = unit "call %i ${program} --owner root";
      }
      // lib.optionalAttrs (stop != null) {
        # The booted runner must remove what it has created.
        ExecStop = unit "call --if-there %i ${stop}";
      };
    };

  # None of the five hypervisors needs what these settings forbid.
  hardening = import ./hardening.nix // {
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
      "AF_NETLINK"
      "AF_VSOCK"
    ];
  };

  # Machines that are suspended when the host shuts down.
  inherit (cfg.host) suspendOnShutdown;
  suspendsAtShutdown = suspendOnShutdown != false && suspendOnShutdown != [ ];
  onlyThese = lib.optionalString (builtins.isList suspendOnShutdown) (
    lib.concatMapStrings (name: " --only ${name}") suspendOnShutdown
  );
  settings =
    hardening
    // lib.optionalAttrs suspendsAtShutdown {
      # Saving a large memory takes longer than a shutdown. Both have limits of their own.
      TimeoutStopSec = "infinity";
    };

  # The services that only some machines need.
  special =
    name: settings:
    lib.optionalAttrs (settings.readablePaths ++ settings.writablePaths != [ ]) {
      "microvm-root@${name}" = {
        overrideStrategy = "asDropin";
        environment = {
          MICROVM_READABLE_PATHS = lib.concatStringsSep ":" settings.readablePaths;
          MICROVM_WRITABLE_PATHS = lib.concatStringsSep ":" settings.writablePaths;
        };
        # Without this, NixOS would override the template's PATH.
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
            # Nothing needs the booted runner any more, so Nix may collect it.
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
            # There is no limit, because the host may have to build the store disk first.
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
            # A supervisor is needed to stop kvmtool, which is possible only through its console, and to forward a
            # guest's notification that it is ready.
            MICROVM_SUPERVISE = "1";
            # The unit already confines the machine, and its root directory contains the store disk built by the host.
            MICROVM_CONFINED = "1";
          };
          serviceConfig = settings // {
            Type = if cfg.host.useNotifySockets then "notify" else "simple";
            NotifyAccess = "main";
            RootDirectory = "${roots}/%i";
            # ExecStop needs the host's services, so it runs in the host's root directory.
            RootDirectoryStartOnly = true;
            WorkingDirectory = state;
            SyslogIdentifier = "microvm@%i";
            # `!`: the unit's confinement applies, except for the user. `enter` switches to the machine's user.
            ExecStart = "!${unit "enter %i microvm-run --stop-timeout ${stopTimeout}"}";
            # `+`: runs with all privileges, because the host's other services refuse requests of the machine's user.
            ExecStartPost = "-+${unit "call --if-there %i microvm-register"}";
            # After a successful suspend, the shutdown ends the paused hypervisor at once.
            ExecStop = lib.optional suspendsAtShutdown "-+${unit "suspend-at-shutdown %i${onlyThese}"}" ++ [
              "-!${unit "enter --if-there %i microvm-shutdown --timeout ${stopTimeout}"}"
            ];
            ExecStopPost = "-+${unit "call --if-there %i microvm-unregister"}";
            # systemd skips ExecStop while a guest boots. The launcher then asks the guest to shut down, if it still can.
            KillMode = "mixed";
            TimeoutSec = cfg.host.startupTimeout;
            Restart = "always";
            RestartSec = "5s";
            User = "microvm";
            Group = "kvm";
            LimitNOFILE = 1048576;
            LimitMEMLOCK = "infinity";
            UMask = "0077";

            # Everything in the root directory is mounted read-only, except what the machine may write.
            ProtectSystem = "full";
            ProtectProc = "invisible";
            DevicePolicy = "closed";
            # These devices exist on any host. `microvm-root@` adds the other devices of a machine's spec.
            DeviceAllow = [
              "/dev/kvm rw"
              "/dev/net/tun rw"
              "/dev/vhost-net rw"
              "/dev/vhost-vsock rw"
              "char-pts rw"
            ];
            # `enter` needs these. NoNewPrivileges prevents other processes from regaining them.
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
