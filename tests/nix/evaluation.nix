# Tests the results of the modules for configurations, with the minimal module evaluator, or with Nixpkgs' module system
# if `packages` is given. Returns the failed tests, each with the expected and the actual value; the empty set means
# success.
{
  work ? null,
  kernel ? null,
  programs ? null,
  packages ? null,
}:
let
  lib = if packages == null then import ./evaluator else packages.lib;
  evaluateOver =
    nixos: module:
    import ./evaluator/system.nix {
      inherit
        work
        kernel
        programs
        packages
        module
        nixos
        ;
    };
  evaluate = evaluateOver ./evaluator/nixos.nix;
  library = import ../../lib { inherit lib; };
  isX86 = packages == null || packages.stdenv.hostPlatform.isx86_64;
  guest = settings: evaluate { microvm = settings; };
  hypervisors = import ../../lib/hypervisors.nix;
  each = f: lib.genAttrs hypervisors f;

  specOf = configuration: configuration.config.microvm.machineSpec;

  share = {
    tag = "store";
    source = "/nix/store";
    mountPoint = "/nix/.ro-store";
  };
  overlayVolume = {
    image = "rw-store.img";
    mountPoint = "/nix/.rw-store";
    size = 256;
  };

  refused = import ./refusals.nix;
  asking = import ./asking.nix;
  inherit (library) capabilities;
  messagesOf =
    module:
    map (assertion: assertion.message) (
      builtins.filter (assertion: !assertion.assertion) (evaluate module).config.assertions
    );

  tests = {
    "a configured machine id becomes that of the guest" = {
      expected = {
        text = "00000000000000000000000000000001\n";
        mode = "0444";
      };
      found = {
        inherit
          ((evaluate { environment.etc.machine-id.text = "00000000000000000000000000000001\n"; })
            .config.environment.etc.machine-id
          )
          text
          mode
          ;
      };
    };
    "an empty host name is reported" = {
      expected = [ "networking.hostName: must be set, because it names the microVM" ];
      found = messagesOf { networking.hostName = ""; };
    };
    "an initrd has the drivers of disks and keyboards only without optimisation" = {
      expected = {
        optimized = false;
        not = true;
      };
      found = {
        optimized = (guest { }).config.boot.initrd.includeDefaultModules;
        not = (guest { optimize.enable = false; }).config.boot.initrd.includeDefaultModules;
      };
    };
    "the machine spec has the uncompressed kernel only for hypervisors that load it" = {
      expected = {
        qemu = true;
        cloud-hypervisor = !isX86;
        crosvm = !isX86;
        firecracker = !isX86;
        kvmtool = true;
      };
      found = each (
        hypervisor:
        (specOf (guest {
          inherit hypervisor;
        })).vmlinux == null
      );
    };
    "graphics drivers are loaded in a guest with a screen and blacklisted in others" = {
      expected = {
        screen = {
          loads = true;
          keepsAway = false;
        };
        none = {
          loads = false;
          keepsAway = true;
        };
      };
      found =
        let
          drivers =
            enable:
            let
              inherit (guest { graphics = { inherit enable; }; }) config;
            in
            {
              loads = builtins.elem "virtio_gpu" config.boot.kernelModules;
              keepsAway = builtins.elem "drm" config.boot.blacklistedKernelModules;
            };
        in
        {
          screen = drivers true;
          none = drivers false;
        };
    };
    "only crosvm has a graphics process" = {
      expected = {
        qemu = false;
        crosvm = true;
      };
      found = lib.genAttrs [ "qemu" "crosvm" ] (
        hypervisor:
        (specOf (guest {
          inherit hypervisor;
          graphics.enable = true;
        })).graphics.program != null
      );
    };
    "the machine spec has only the section of the chosen hypervisor" = {
      expected = {
        qemu = { };
        firecracker.extraArgs = [ "--level" ];
      };
      found =
        let
          spec = specOf (guest {
            hypervisor = "firecracker";
            qemu.extraArgs = [ "-vga" ];
            firecracker.extraArgs = [ "--level" ];
          });
        in
        {
          inherit (spec) qemu;
          firecracker = { inherit (spec.firecracker) extraArgs; };
        };
    };
    "qemu uses the bridge helper that the host module installs" = {
      expected = "/run/wrappers/bin/qemu-bridge-helper";
      found = (specOf (guest { })).qemu.bridgeHelper;
    };
    "the kernel parameters have the path of the closure's registration if the guest has Nix" = {
      expected = {
        with-nix = true;
        without = false;
      };
      found =
        let
          isTold = module: lib.any (lib.hasPrefix "regInfo=") (specOf (evaluate module)).kernelParams;
        in
        {
          with-nix = isTold { };
          without = isTold { nix.enable = false; };
        };
    };
    "Nix's state persists exactly if the writable layer persists" = {
      expected = {
        volume = "/nix/.rw-store/var";
        memory = "";
      };
      found =
        let
          state =
            volumes:
            (guest {
              inherit volumes;
              writableStoreOverlay = "/nix/.rw-store";
            }).config.systemd.services.microvm-register-closure.environment.PERSISTENT_STATE;
        in
        {
          volume = state [ overlayVolume ];
          memory = state [ ];
        };
    };
    "each runner has its own hypervisor" = {
      expected = each (hypervisor: hypervisor);
      found = builtins.mapAttrs (_: runner: runner.hypervisor) (guest { }).config.microvm.runner;
    };
    "the declared runner is that of the chosen hypervisor" = {
      expected = "microvm-firecracker-guest";
      found = (guest { hypervisor = "firecracker"; }).config.microvm.declaredRunner.name;
    };
    "a runner's attributes are those that hosts read" = {
      expected = {
        canShutdown = true;
        supportsNotifySocket = true;
        tapMultiQueue = true;
        registerWithMachined = false;
        mainProgram = "microvm-run";
      };
      found =
        let
          runner =
            (guest {
              vcpu = 2;
              vsock.cid = 3;
              vsock.notify = true;
            }).config.microvm.declaredRunner;
        in
        {
          inherit (runner)
            canShutdown
            supportsNotifySocket
            tapMultiQueue
            registerWithMachined
            ;
          inherit (runner.meta) mainProgram;
        };
    };
    "a machine id is made from the name, as in microvm.nix" = {
      expected = "7f24513f-4cfc-c3c1-d45e-a90b18590f2a";
      found = (guest { }).config.microvm.machineId;
    };
    "stage 1 passes credentials on, except with qemu, whose firmware does" = {
      expected = {
        qemu = "neither";
        cloud-hypervisor = "systemd";
        firecracker = "systemd";
        crosvm = "script";
        kvmtool = "script";
      };
      found = each (
        hypervisor:
        let
          inherit
            ((guest {
              inherit hypervisor;
              credentialFiles.token = "/etc/token";
            }).config.boot
            )
            initrd
            ;
        in
        if initrd.systemd.services ? microvm-credentials then
          "systemd"
        else if lib.hasInfix "/microvm-credentials" initrd.postMountCommands then
          "script"
        else
          "neither"
      );
    };
    "stage 1 uses systemd on hypervisors on which it was tested, and the default of NixOS on others" = {
      expected = {
        of-24-05 = {
          qemu = true;
          kvmtool = false;
        };
        of-26-05 = {
          qemu = true;
          kvmtool = true;
        };
      };
      found =
        let
          isSystemd =
            default:
            lib.genAttrs [ "qemu" "kvmtool" ] (
              hypervisor:
              (evaluate {
                microvm = { inherit hypervisor; };
                boot.initrd.systemd.enable = lib.mkOverride 1400 default;
              }).config.boot.initrd.systemd.enable
            );
        in
        {
          of-24-05 = isSystemd false;
          of-26-05 = isSystemd true;
        };
    };
    "Nix leaves the owner and the mode of a read-only store alone" = {
      expected = {
        read-only = "";
        writable = "nixbld";
      };
      found =
        builtins.mapAttrs (_: settings: (guest settings).config.nix.settings.build-users-group or "nixbld")
          {
            read-only = { };
            writable.writableStoreOverlay = "/nix/.rw-store";
          };
    };
    "a guest on a release after 24.05 sets the options that the release has" = {
      expected = {
        tpm-of-24-05 = false;
        tpm-of-stage-1 = false;
        tpm-of-system = false;
        credentials = true;
        sshd = "services.openssh.package";
      };
      found =
        let
          newer = evaluateOver ./evaluator/newer-nixos.nix {
            microvm = {
              hypervisor = "crosvm";
              credentialFiles.token = "/etc/token";
              vsock.cid = 5;
              vsock.ssh.enable = true;
            };
          };
          inherit (newer.config) boot systemd;
          command = systemd.services."sshd-vsock@".serviceConfig.ExecStart;
        in
        {
          tpm-of-24-05 = (evaluate { }).config.boot.initrd.systemd.enableTpm2;
          tpm-of-stage-1 = boot.initrd.systemd.tpm2.enable;
          tpm-of-system = systemd.tpm2.enable;
          credentials = boot.initrd.systemd.services ? microvm-credentials;
          sshd =
            if lib.hasPrefix "-${newer.config.services.openssh.package}/bin/sshd " command then
              "services.openssh.package"
            else
              command;
        };
    };
    "a guest that is not optimized keeps its TPM, and so does one whose user enables it" = {
      expected = {
        default = [
          false
          false
        ];
        not-optimized = [
          true
          true
        ];
        enabled = [
          true
          true
        ];
      };
      found =
        builtins.mapAttrs
          (
            _: module:
            let
              inherit (evaluateOver ./evaluator/newer-nixos.nix module) config;
            in
            [
              config.boot.initrd.systemd.tpm2.enable
              config.systemd.tpm2.enable
            ]
          )
          {
            default = { };
            not-optimized.microvm.optimize.enable = false;
            enabled = {
              boot.initrd.systemd.tpm2.enable = true;
              systemd.tpm2.enable = true;
            };
          };
    };
    "the architecture in the machine spec is that of the guest's packages" = {
      expected = if isX86 then "x86_64" else "aarch64";
      found = (specOf (guest { })).architecture;
    };
    "extractOptValues removes an option in every notation" = {
      expected = {
        taken = {
          values = [
            "cid=3,socket=a"
            "boot=2"
          ];
          args = [
            "--seccomp"
            "true"
          ];
        };
        several = {
          values = [
            "short"
            "long"
          ];
          args = [ "--quiet" ];
        };
        socket = "a";
        none = null;
      };
      found = {
        taken = library.extractOptValues "--vsock" [
          "--vsock"
          "cid=3,socket=a"
          "--seccomp"
          "true"
          "--vsock=boot=2"
        ];
        several =
          library.extractOptValues
            [ "-p" "--platform" ]
            [
              "-p"
              "short"
              "--quiet"
              "--platform=long"
            ];
        socket = library.extractParamValue "socket" "cid=3,socket=a";
        none = library.extractParamValue "id" "cid=3,socket=a";
      };
    };
    "each macvtap interface has its own descriptors" = {
      expected = {
        macvtapFds.vm-b = [
          3
          4
        ];
        macvtapFds.nextFreeFd = 5;
        openMacvtapFds =
          lib.concatMapStrings (number: "exec ${number}<>/dev/tap\"$(cat '/sys/class/net/vm-b/ifindex')\"\n")
            [
              "3"
              "4"
            ];
      };
      found = library.makeMacvtap {
        microvmConfig.vcpu = 2;
        microvmConfig.interfaces = [
          {
            type = "tap";
            id = "vm-a";
          }
          {
            type = "macvtap";
            id = "vm-b";
          }
        ];
        hypervisorConfig.tapMultiQueue = true;
      };
    };
    "a running system can be switched only if it uses the host's store" = {
      expected = {
        disk = false;
        share = true;
      };
      found =
        let
          canSwitch =
            shares:
            (builtins.tryEval
              (evaluate {
                services.openssh.enable = true;
                microvm = { inherit shares; };
              }).config.microvm.deploy.sshSwitch.name
            ).success;
        in
        {
          disk = canSwitch [ ];
          share = canSwitch [ share ];
        };
    };
    "volumes after vdz have two letters" = {
      expected = "ab";
      found =
        (lib.last (
          library.withDriveLetters {
            storeOnDisk = true;
            volumes = builtins.genList (_: { }) 27;
          }
        )).letter;
    };
    "an unsupported feature is refused or causes a warning, with the reason and the hypervisors that support it" =
      {
        expected = [ ];
        found = lib.concatMap (
          feature:
          let
            inherit (asking.${feature}) option settings;
            problem =
              hypervisor:
              let
                inherit (guest (settings // { inherit hypervisor; })) config;
                refusals = map (assertion: assertion.message) (
                  builtins.filter (assertion: !assertion.assertion) config.assertions
                );
                sentence = capabilities.sentence {
                  machine = "guest";
                  inherit option hypervisor feature;
                };
              in
              builtins.elem sentence (if capabilities.refuses feature then refusals else config.warnings);
          in
          map (hypervisor: "${feature} of ${hypervisor}") (
            builtins.filter (hypervisor: problem hypervisor != !capabilities.can hypervisor feature) hypervisors
          )
        ) (builtins.attrNames asking);
      };
    "every row of the capability table is tested, except those without an option" = {
      expected = [
        "GracefulStop"
        "LiveMigration"
        "OtherArchitecture"
        "StoreDisk"
        "Suspend"
        "TapMultiQueue"
        "WithoutKvm"
      ];
      found = builtins.attrNames (removeAttrs capabilities.table (builtins.attrNames asking));
    };
    "interfaces of type user may have equal MAC addresses" = {
      expected = [ ];
      found = messagesOf {
        microvm.interfaces =
          map
            (type: {
              inherit type;
              id = "vm-${type}";
              mac = "02:00:00:00:00:01";
            })
            [
              "user"
              "tap"
            ];
      };
    };
    "a runner with a store disk does not refer to store paths of the guest" = {
      expected = {
        disk = false;
        share = true;
      };
      found =
        let
          isNeeded =
            shares:
            lib.any builtins.hasContext
              (specOf (guest {
                inherit shares;
              })).kernelParams;
        in
        {
          disk = isNeeded [ ];
          share = isNeeded [ share ];
        };
    };
    "a feature that a hypervisor can omit causes a warning" = {
      expected = [
        "guest: microvm.volumes[0].serial: firecracker cannot set serial numbers; supported by qemu, cloud-hypervisor and crosvm"
      ];
      found =
        (guest {
          hypervisor = "firecracker";
          volumes = [
            {
              image = "a.img";
              size = 8;
              serial = "a";
            }
          ];
        }).config.warnings;
    };
  }
  // import ./evaluation-store.nix {
    inherit
      each
      evaluate
      guest
      lib
      overlayVolume
      share
      specOf
      ;
  }
  // import ./evaluation-cluster.nix {
    inherit guest lib;
    inherit (guest { }) pkgs;
  }
  // builtins.listToAttrs (
    map (refusal: {
      name = "refused: ${builtins.concatStringsSep " / " refusal.expected}";
      value = {
        expected = map (message: "guest: microvm.${message}") refusal.expected;
        found = messagesOf refusal.module;
      };
    }) refused
  );
in
builtins.mapAttrs (_: test: { inherit (test) expected found; }) (
  lib.filterAttrs (_: test: test.expected != test.found) tests
)
// lib.optionalAttrs (builtins.length (builtins.attrNames tests) < 50) {
  "some tests have the same name, so that only one of them is run" = builtins.attrNames tests;
}
