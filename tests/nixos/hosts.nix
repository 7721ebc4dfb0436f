# The hosts that are booted as containers: for each scenario a list of systems. The first one is booted, and `checks`
# switches to the others.
# `guest NAME MODULE` evaluates a NixOS as a flake does.
{ pkgs, guest }:
let
  inherit (pkgs) lib;
  host = {
    boot.isContainer = true;
    networking = {
      hostName = "host";
      useNetworkd = true;
      useDHCP = false;
      useHostResolvConf = false;
    };
    systemd.network.wait-online.enable = false;
    # /sys is read-only in a container.
    hardware.ksm.enable = false;
    # An emulated guest may need minutes to shut down.
    microvm.host.startupTimeout = 1500;
    # The paths of this computer's qemu and its libraries in the container.
    microvm.host.readablePaths = [
      "/host/lib64"
      "/host/usr"
    ];
  };
  machine = name: {
    imports = [
      ./wrapping/system.nix
      ./guest-settings.nix
    ];
    networking.hostName = name;
    microvm = {
      mem = 512;
      storeDiskBuild = "host";
      interfaces = [
        {
          type = "tap";
          id = "vm-${name}";
          mac = "02:00:00:00:00:${builtins.substring 0 2 (builtins.hashString "sha256" name)}";
        }
      ];
    };
  };
  first = {
    imports = [ host ];
    microvm.vms = {
      web.config = machine "web";
      steady = {
        config = machine "steady";
        restartIfChanged = false;
      };
      asleep = {
        config = machine "asleep";
        autostart = false;
      };
    };
  };
  second = {
    imports = [ first ];
    microvm.vms.web.config.environment.etc.second.text = "yes";
    microvm.vms.steady.config.environment.etc.second.text = "yes";
    environment.etc.second.text = "yes";
  };
  third = {
    imports = [ second ];
    microvm.vms.steady.config.environment.etc.third.text = "yes";
  };
  small = name: {
    imports = [ (machine name) ];
    microvm.mem = lib.mkForce 256;
    microvm.vcpu = 1;
  };
  # A flake as a host has it: a store path with outputs.
  flake =
    module:
    pkgs.writeTextDir "flake.nix" "{ }"
    // {
      nixosConfigurations = builtins.listToAttrs (
        map
          (name: {
            inherit name;
            value = guest name {
              imports = [
                (small name)
                module
              ];
            };
          })
          [
            "from-flake"
            "own-flake"
          ]
      );
    };
  # Shared by the systems, so that each machine is evaluated once.
  unchanged = flake { };
  byHand = guest "by-hand" {
    imports = [ (small "by-hand") ];
    microvm.consoleSocket = "console.sock";
  };
  withFlake = fromFlake: {
    imports = [ host ];
    microvm = {
      vms.from-flake.flake = fromFlake;
      vms.own-flake = {
        flake = unchanged;
        updateFlake = "path:/srv/machines";
        autostart = false;
      };
      autostart = [ "by-hand" ];
    };
    # The files of the flake of the machine made by hand.
    environment.etc = {
      "rig/by-hand".source = byHand.config.microvm.declaredRunner;
      "rig/own-flake".source = unchanged.nixosConfigurations.own-flake.config.microvm.declaredRunner;
    };
  };
  # At the time of the checks networkd may still wait for an interface.
  answers = "answers() { for n in $(seq 120); do ping -c 1 -W 5 \"$1\" >/dev/null 2>&1 && return; sleep 1; done; return 1; }";
  # Two machines on one bridge: `left` by tap, with its address from the host and a share by virtiofs; `right` by macvtap and
  # by qemu's bridge helper.
  left = {
    imports = [
      (small "left")
      ./guest-checks.nix
    ];
    microvm = {
      mem = lib.mkOverride 40 512;
      shares = [
        {
          proto = "virtiofs";
          tag = "data";
          source = "data";
          mountPoint = "/srv/data";
        }
      ];
    };
    rig.checks = ''
      check 'the share is written to' sh -c 'echo from-left >/srv/data/from-left'
      ${answers}
      check 'the host answers' answers 10.9.0.1
      check 'the address is from the host' sh -c 'ip -4 -br addr | grep -E " 10\.9\.0\.1[0-9]{2}/24"'
      check 'the other machine answers by macvtap' answers 10.9.0.3
      check 'and by the bridge helper' answers 10.9.0.4
    '';
  };
  right =
    let
      mac = {
        macvtap = "02:00:00:00:01:03";
        bridge = "02:00:00:00:01:04";
      };
      addressed = mac: address: {
        matchConfig.MACAddress = mac;
        address = [ address ];
      };
    in
    {
      imports = [
        (small "right")
        ./guest-checks.nix
      ];
      microvm = {
        mem = lib.mkOverride 40 512;
        interfaces = lib.mkForce [
          {
            type = "macvtap";
            id = "vm-right";
            mac = mac.macvtap;
            macvtap.link = "uplink";
            macvtap.mode = "bridge";
          }
          {
            type = "bridge";
            id = "vm-right-lan";
            mac = mac.bridge;
            bridge = "lan";
          }
        ];
      };
      systemd.network.networks."10-macvtap" = addressed mac.macvtap "10.9.0.3/24";
      systemd.network.networks."10-bridge" = addressed mac.bridge "10.9.0.4/24";
      # Each address is answered by its own interface.
      boot.kernel.sysctl."net.ipv4.conf.all.arp_ignore" = 1;
      rig.checks = ''
        ${answers}
        check 'the host answers' answers 10.9.0.1
      '';
    };
in
{
  network = {
    systems = [
      {
        imports = [ host ];
        microvm.vms.left.config = left;
        microvm.vms.right.config = right;
        # Creates the nodes of macvtap interfaces as udev would, which a container does not have.
        systemd.services.rig-nodes = {
          wantedBy = [ "multi-user.target" ];
          before = [ "network.target" ];
          script = ''
            while sleep 1; do
              for device in /sys/class/macvtap/tap*; do
                [ ! -e "$device/dev" ] || [ -e "/dev/''${device##*/}" ] || mknod -m 0600 "/dev/''${device##*/}" c $(tr : ' ' <"$device/dev")
              done
            done
          '';
        };
        systemd.network = {
          netdevs."10-lan".netdevConfig = {
            Kind = "bridge";
            Name = "lan";
          };
          # What would be a network card, and the end of its cable.
          netdevs."10-uplink" = {
            netdevConfig = {
              Kind = "veth";
              Name = "uplink";
            };
            peerConfig.Name = "cable";
          };
          networks."10-lan" = {
            matchConfig.Name = "lan";
            address = [ "10.9.0.1/24" ];
            networkConfig.DHCPServer = true;
            dhcpServerConfig.PoolOffset = 100;
            dhcpServerConfig.PoolSize = 50;
            # Debian's networkd waits for a unit that stores leases, which NixOS 24.05 does not have.
            extraConfig = "[DHCPServer]\nPersistLeases=no\n";
          };
          networks."10-members" = {
            matchConfig.Name = "vm-left cable";
            networkConfig.Bridge = "lan";
          };
          networks."10-uplink" = {
            matchConfig.Name = "uplink";
            networkConfig.LinkLocalAddressing = "no";
          };
        };
      }
    ];
    checks = ./host-network.sh;
  };
  flakes = {
    systems = [
      {
        imports = [ (withFlake unchanged) ];
        microvm.vms.leaving.config = small "leaving";
      }
      (withFlake (flake {
        environment.etc.second.text = "yes";
      }))
    ];
    checks = ./host-flakes.sh;
  };
  declared = {
    systems = [
      first
      second
      third
    ];
    checks = ./host-declared.sh;
  };
}
