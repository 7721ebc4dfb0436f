# Evaluates the flake and the modules with a real NixOS, without the flake command and without network. Nothing is
# built, because building NixOS needs its sources. Returns derivations and values, which tests/nix/run.sh checks.
{ nixpkgs }:
let
  lib = import (nixpkgs + "/lib");
  nixosSystem = import (nixpkgs + "/nixos/lib/eval-config.nix");
  inputs.nixpkgs = {
    lib = lib // {
      inherit nixosSystem;
    };
    legacyPackages = lib.genAttrs [
      "x86_64-linux"
      "aarch64-linux"
    ] (system: import nixpkgs { inherit system; });
  };
  flake = (import ../../flake.nix).outputs {
    inherit (inputs) nixpkgs;
    self = flake // {
      outPath = toString ../..;
    };
  };
  template = (import ../../templates/microvm/flake.nix).outputs {
    inherit (inputs) nixpkgs;
    microvm = flake;
    self = template;
  };

  guest =
    module:
    nixosSystem {
      system = "x86_64-linux";
      modules = [
        flake.nixosModules.microvm
        {
          networking.hostName = "guest";
          system.stateVersion = "24.05";
        }
        module
      ];
    };
  writable = guest {
    microvm = {
      writableStoreOverlay = "/nix/.rw-store";
      volumes = [
        {
          image = "rw-store.img";
          mountPoint = "/nix/.rw-store";
          size = 512;
        }
      ];
      vsock.cid = 5;
      vsock.ssh.enable = true;
    };
  };
  # Its system can be switched over SSH.
  sharing = guest {
    services.openssh.enable = true;
    microvm.shares = [
      {
        tag = "ro-store";
        source = "/nix/store";
        mountPoint = "/nix/.ro-store";
      }
    ];
  };
  hostWith =
    module:
    nixosSystem {
      system = "x86_64-linux";
      modules = [
        flake.nixosModules.host
        {
          boot.loader.grub.enable = false;
          fileSystems."/".device = "/dev/vda";
          system.stateVersion = "24.05";
        }
        module
      ];
    };
  host = hostWith {
    microvm.vms.web.config = {
      system.stateVersion = "24.05";
    };
    microvm.vms.x86_64-linux-qemu-example = {
      inherit flake;
      updateFlake = "path:/srv/machines";
    };
  };
  # Has another module that creates qemu's bridge helper, a machine with its own packages, and an already evaluated
  # machine.
  hostOfOthers = hostWith {
    virtualisation.libvirtd.enable = true;
    microvm.vms.own = {
      pkgs = null;
      config = {
        nixpkgs.config.allowUnfree = true;
        system.stateVersion = "24.05";
      };
    };
    microvm.vms.evaluated.evaluatedConfig = writable;
  };

  clustered = hostWith {
    networking.hostName = "host1";
    imports = [ flake.nixosModules.cluster ];
    microvm.cluster = {
      name = "rack";
      authKeyFile = "/run/secrets/corosync";
      nodes = lib.genAttrs [ "host1" "host2" "host3" ] (name: {
        id = lib.toInt (lib.removePrefix "host" name);
        addresses = [ "10.0.0.${lib.removePrefix "host" name}" ];
        memory = 4096;
      });
      fencing.acceptDataLoss = true;
      machines.web.runner = writable.config.microvm.declaredRunner;
    };
  };

  # The networks of tests/nix/network.nix. Nothing else of this host matters.
  networked = hostWith (
    let
      inherit (import ./networks.nix) machines networks;
    in
    {
      microvm.host.network = networks;
      microvm.vms = lib.mapAttrs (_: network: {
        config = {
          system.stateVersion = "24.05";
          microvm.interfaces = [
            {
              type = "tap";
              inherit network;
            }
          ];
        };
      }) machines;
      networking.nftables.enable = true;
      # The check needs packages that not every unpacked tree has.
      networking.nftables.checkRuleset = false;
      networking.firewall.filterForward = true;
      networking.nat = {
        enable = true;
        externalInterface = "up0";
        forwardPorts = [
          {
            sourcePort = 8080;
            destination = "10.7.0.20:80";
            proto = "tcp";
          }
        ];
      };
    }
  );

  wrongRefusals = builtins.filter (
    { module, expected }:
    map (message: "guest: microvm.${message}") expected != map (assertion: assertion.message) (
      builtins.filter (
        assertion: !assertion.assertion && lib.hasPrefix "guest: microvm." assertion.message
      ) (guest module).config.assertions
    )
  ) (import ./refusals.nix);
in
{
  derivations = {
    packages = builtins.mapAttrs (_: builtins.mapAttrs (_: package: package.drvPath)) flake.packages;
    otherOutputs = builtins.mapAttrs (system: _: {
      # The other checks are packages, which are listed above, and nixfmt, which not every unpacked tree has.
      checks = map (name: flake.checks.${system}.${name}.drvPath) [
        "modules"
        "options-documentation"
        "sources-deadnix"
      ];
      overlay =
        (import nixpkgs {
          inherit system;
          overlays = [ flake.overlays.default ];
        }).microvm-image.drvPath;
    }) flake.packages;
    template = template.packages.x86_64-linux.default.drvPath;
    toplevel = writable.config.system.build.toplevel.drvPath;
    # A configuration that is made for a disk and does not use the microVM module.
    anyConfiguration =
      (import ../../lib/any-configuration.nix { inherit lib; } (nixosSystem {
        system = "x86_64-linux";
        modules = [
          {
            networking.hostName = "laptop";
            boot.loader.systemd-boot.enable = true;
            fileSystems."/" = {
              device = "/dev/disk/by-label/nixos";
              fsType = "ext4";
            };
            fileSystems."/boot" = {
              device = "/dev/disk/by-label/boot";
              fsType = "vfat";
            };
            swapDevices = [ { device = "/dev/disk/by-label/swap"; } ];
            system.stateVersion = "24.05";
          }
        ];
      })).drvPath;
    deploy = map (command: command.drvPath) [
      writable.config.microvm.deploy.installOnHost
      writable.config.microvm.deploy.rebuild
      sharing.config.microvm.deploy.sshSwitch
      sharing.config.microvm.deploy.rebuild
    ];
    # Stage 1 passes them on with a script or a unit.
    credentials = lib.genAttrs [ "kvmtool" "firecracker" ] (
      hypervisor:
      (guest {
        microvm = {
          inherit hypervisor;
          credentialFiles.token = "/etc/token";
        };
      }).config.system.build.toplevel.drvPath
    );
    runners = builtins.mapAttrs (_: runner: runner.drvPath) writable.config.microvm.runner;
    host = host.config.system.build.toplevel.drvPath;
    hostOfOthers = hostOfOthers.config.system.build.toplevel.drvPath;
    networked = networked.config.system.build.toplevel.drvPath;
    clustered = clustered.config.system.build.toplevel.drvPath;
    clusterTest = flake.packages.x86_64-linux.microvm.tests.cluster.drvPath;
    withOtherPackages =
      (flake.lib.buildRunner {
        configuration = writable;
        hypervisor = "kvmtool";
      }).drvPath;
    withoutFlakes =
      (import ../.. { pkgs = inputs.nixpkgs.legacyPackages.x86_64-linux; }).microvm.drvPath;
  };
  fileSystems = builtins.mapAttrs (_: fileSystem: {
    inherit (fileSystem) device fsType options;
  }) writable.config.fileSystems;
  network = {
    units = lib.mapAttrs (_: unit: unit.text) (
      lib.filterAttrs (name: _: lib.hasInfix "microvm" name) networked.config.systemd.network.units
    );
    resolved = networked.config.environment.etc."systemd/resolved.conf.d/microvm.conf".text;
    firewall =
      lib.concatMapStrings (table: "table ${table.family} ${table.name} {\n${table.content}\n}\n")
        (
          builtins.filter (table: table.enable) (
            builtins.attrValues networked.config.networking.nftables.tables
          )
        );
    failed = map (assertion: assertion.message) (
      builtins.filter (assertion: !assertion.assertion) networked.config.assertions
    );
    networkd = networked.config.systemd.services.systemd-networkd.enable or true;
    resolvedEnabled = networked.config.services.resolved.enable;
    waitOnline = networked.config.systemd.network.wait-online.enable;
    sysctl = networked.config.boot.kernel.sysctl."net.ipv4.conf.all.forwarding";
  };
  units = lib.genAttrs (builtins.filter (lib.hasInfix "microvm") (
    builtins.attrNames host.config.systemd.units
  )) (name: host.config.systemd.units.${name}.text or "");
  wrongRefusals = map ({ expected, ... }: expected) wrongRefusals;
}
