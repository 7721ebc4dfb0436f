# The services of every machine in the state directory, declared or made by `microvm create`. Names and order are those
# of microvm.nix. A machine's own directory tells which of them it needs.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
  state = "${cfg.stateDir}/%i";
  machine = "microvm@%i.service";
  setBooted = "microvm-set-booted@%i.service";
  helpers = [
    "microvm-tap-interfaces@%i.service"
    "microvm-macvtap-interfaces@%i.service"
    "microvm-pci-devices@%i.service"
    "microvm-virtiofsd@%i.service"
  ];

  # What comes before the machine, ends with it, and is left out by runners that do not need it.
  helper =
    {
      description,
      program,
      stop ? null,
      after ? [ ],
    }:
    {
      inherit description;
      # So that it stops before the link to the runner that booted is gone.
      after = after ++ [ setBooted ];
      before = [ machine ];
      partOf = [ machine ];
      unitConfig.ConditionPathExists = "${state}/current/bin/${program}";
      restartIfChanged = false;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        SyslogIdentifier = "${program}@%i";
        WorkingDirectory = state;
        # The launcher makes it for the user who starts the machine; runners of microvm.nix take no notice.
        ExecStart = "${state}/current/bin/${program} --owner microvm";
      }
      // lib.optionalAttrs (stop != null) {
        # What was made by the runner that booted is for that one to remove.
        ExecStop = "${state}/booted/bin/${stop}";
      };
    };

  ifThere =
    program:
    "-${pkgs.writeShellScript "microvm-if-there" ''
      [ ! -x "$1" ] || exec "$@"
    ''} ${program}";
  # With all rights: the host's other services would not listen to the machine's user.
  ifThereAsRoot = program: "+${ifThere program}";

  # Nothing here is needed by any of the five hypervisors.
  hardening = {
    LockPersonality = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    RestrictAddressFamilies = [
      "AF_UNIX"
      "AF_INET"
      "AF_INET6"
      "AF_NETLINK"
      "AF_PACKET"
      "AF_VSOCK"
    ];
  };
in
{
  config = lib.mkIf cfg.host.enable {
    systemd.targets.microvms = {
      description = "All microVMs that start with the host";
      wantedBy = [ "multi-user.target" ];
      wants = map (name: "microvm@${name}.service") cfg.autostart;
    };

    systemd.services = {
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
        before = [ machine ];
        after = [ "local-fs.target" ];
        partOf = [ machine ];
        unitConfig.ConditionPathExists = "${state}/current/bin/virtiofsd-run";
        restartIfChanged = false;
        serviceConfig = {
          Type = "notify";
          NotifyAccess = "all";
          WorkingDirectory = state;
          SyslogIdentifier = "microvm-virtiofsd@%i";
          ExecStart = "${state}/current/bin/virtiofsd-run";
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
        description = "The runner that microVM '%i' is started with";
        before = [ machine ];
        partOf = [ machine ];
        unitConfig.ConditionPathExists = "${state}/current/bin/microvm-run";
        restartIfChanged = false;
        path = [ pkgs.coreutils ];
        scriptArgs = "%i";
        script = ''
          cd ${cfg.stateDir}/"$1"
          ln -sfnT "$(readlink current)" booted.new
          mv -T booted.new booted
        '';
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          # Nothing needs that runner any longer: Nix may collect it.
          ExecStop = "${lib.getExe' pkgs.coreutils "rm"} -f ${state}/booted";
        };
      };

      "microvm@" = {
        description = "MicroVM '%i'";
        requires = helpers ++ [ setBooted ];
        after = [ "network.target" ] ++ helpers ++ [ setBooted ];
        unitConfig.ConditionPathExists = "${state}/current/bin/microvm-run";
        restartIfChanged = false;
        environment = {
          MICROVM_RUNTIME_DIR = "/run/microvm";
          MICROVM_IMAGE_CACHE = cfg.host.imageCache.directory;
          # kvmtool can be asked to stop only by who holds its console, and somebody must pass on that a guest is ready.
          MICROVM_SUPERVISE = "1";
        };
        serviceConfig = hardening // {
          Type = if cfg.host.useNotifySockets then "notify" else "simple";
          NotifyAccess = "all";
          WorkingDirectory = state;
          SyslogIdentifier = "microvm@%i";
          ExecStart = "${state}/current/bin/microvm-run";
          ExecStartPost = ifThereAsRoot "${state}/current/bin/microvm-register";
          ExecStop = ifThere "${state}/booted/bin/microvm-shutdown";
          ExecStopPost = ifThereAsRoot "${state}/booted/bin/microvm-unregister";
          TimeoutSec = cfg.host.startupTimeout;
          Restart = "always";
          RestartSec = "5s";
          User = "microvm";
          Group = "kvm";
          LimitNOFILE = 1048576;
          LimitMEMLOCK = "infinity";
          UMask = "0027";

          # The images may be anywhere but among the system's own files.
          ProtectSystem = "full";
          ProtectProc = "invisible";
          DevicePolicy = "closed";
          DeviceAllow = [
            "/dev/kvm rw"
            "/dev/net/tun rw"
            "/dev/vhost-net rw"
            "/dev/vhost-vsock rw"
            "char-drm rw"
            "char-vfio rw"
            "char-macvtap rw"
            "char-usb_device rw"
            "block-* rw"
            "char-pts rw"
          ];
          # qemu's bridge helper gets this right from its file, which it then must be allowed to.
          CapabilityBoundingSet = if cfg.host.bridgeHelper.enable then [ "CAP_NET_ADMIN" ] else [ "" ];
          NoNewPrivileges = !cfg.host.bridgeHelper.enable;
          KeyringMode = "private";
          SystemCallFilter = [
            "~@clock"
            "~@cpu-emulation"
            "~@debug"
            "~@module"
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
