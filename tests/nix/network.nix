# Hosts with networks, for tests/nix/network.sh and tests/nix/run.sh: what the host module makes of them, and what it
# refuses.
{
  work,
  kernel,
  programs,
}:
let
  lib = import ./evaluator;
  pkgs = import ./evaluator/packages.nix { inherit work kernel programs; };
  host =
    module:
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ./evaluator/nixos.nix
        ../../nixos-modules/host
        {
          microvm.host.package = pkgs.microvm;
          microvm.host.imageCache.package = pkgs.microvm-image;
        }
        module
      ];
    }).config;
  guest =
    name: network: further:
    import ./evaluator/system.nix {
      inherit work kernel programs;
      module = {
        imports = [ further ];
        networking.hostName = name;
        microvm.vsock.cid = "auto";
        microvm.interfaces = [
          {
            type = "tap";
            inherit network;
          }
        ];
      };
    };
  inherit (import ./networks.nix) machines networks;
  networked = host {
    microvm.host.network = networks;
    microvm.vms = lib.mapAttrs (name: network: { evaluatedConfig = guest name network { }; }) machines;
  };
  specs = lib.mapAttrs (_: vm: vm.configuration.config.microvm.machineSpec) networked.microvm.vms;

  refusalsOf =
    module:
    map (assertion: assertion.message) (
      builtins.filter (assertion: !assertion.assertion) (host module).assertions
    );
  refused = network: refusalsOf { microvm.host.network = network; };
  lan =
    further:
    refused {
      lan = {
        address = "10.7.0.1/24";
      }
      // further;
    };
  many = map (number: "machine${toString number}") [
    1
    2
    3
  ];
in
{
  inherit specs;
  units = import ./evaluator/networkd.nix { inherit lib; } networked.systemd.network;
  resolved = networked.environment.etc."systemd/resolved.conf.d/microvm.conf".text;
  facts = {
    failed = map (assertion: assertion.message) (
      builtins.filter (assertion: !assertion.assertion) networked.assertions
    );
    inherit (networked.networking)
      dhcpcd
      firewall
      hosts
      networkmanager
      ;
    machines = lib.mapAttrs (_: network: network.machines) networked.microvm.host.network;
    interfaces = lib.mapAttrs (
      _: spec: map (interface: { inherit (interface) id mac; }) spec.interfaces
    ) specs;
    cids = lib.mapAttrs (_: spec: spec.vsock.cid) specs;
    resolved = networked.services.resolved.enable;
    networkd = networked.systemd.network.enable;
    inherit (networked.boot.kernel) sysctl;
    # With the forward rules of the firewall that nftables makes.
    forwardRules =
      (host {
        microvm.host.network = networks;
        networking.firewall.filterForward = true;
      }).networking.firewall.extraForwardRules;
    # A host without networks changes nothing.
    none = (host { }).systemd.network or { };
  };
  refusals = lib.concatLists [
    (refused { "lan-of-all".address = "10.7.0.1/24"; })
    (refused { Lan.address = "10.7.0.1/24"; })
    (lan { bridge = "a-bridge-of-16by"; })
    (lan { domain = "no domain"; })
    (refused { lan.address = "10.7.0.1"; })
    (refused { lan.address = "10.7.0.300/24"; })
    (refused { lan.address = "10.7.0.1/30"; })
    (refused { lan.address = "10.0.0.1/8"; })
    (refused { lan.address = "10.7.0.0/24"; })
    (refused { lan.address = "10.7.0.255/24"; })
    (lan { address6 = "fd00:7::1"; })
    (lan { address6 = "fd00:7::/64"; })
    (refused {
      lan.address = "10.7.0.1/16";
      cell.address = "10.7.3.1/24";
    })
    (refused {
      lan = {
        address = "10.7.0.1/24";
        address6 = "fd00:7::1/64";
        bridge = "br0";
      };
      cell = {
        address = "10.8.0.1/24";
        address6 = "fd00:0007:0::2/64";
        bridge = "br0";
      };
    })
    (lan {
      leases = {
        a.address = "10.7.1.20";
        b.address = "10.7.0.1";
        c.address = "10.7.0.20/24";
        d.address = "10.7.0.255";
        e.mac = "02:00:00:00:00";
        f.address = "10.7.0.30";
        g.address = "10.7.0.30";
        h.mac = "02:00:00:00:00:01";
        i.mac = "02:00:00:00:00:01";
      };
    })
    (refused {
      lan = {
        address = "10.7.0.1/29";
        leases = lib.genAttrs many (_: { });
      };
    })
    (refusalsOf {
      microvm.host.network.lan.address = "10.7.0.1/24";
      services.resolved.enable = false;
    })
    (refusalsOf {
      microvm.host.network.lan.address = "10.7.0.1/24";
      microvm.vms.web.evaluatedConfig = guest "web" "lam" { };
    })
    (map (assertion: assertion.message) (
      builtins.filter (assertion: !assertion.assertion)
        (guest "web" "lan" {
          microvm.interfaces = [
            {
              type = "tap";
              network = "lan";
              id = "another";
              mac = "02:00:00:00:00:01";
            }
            {
              type = "user";
              network = "lan-2";
            }
          ];
        }).config.assertions
    ))
  ];
}
