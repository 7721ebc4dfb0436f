# Tests of hosts in a cluster; a part of evaluation.nix.
{
  guest,
  lib,
  pkgs,
}:
let
  host =
    settings:
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ./evaluator/nixos.nix
        ../../nixos-modules/cluster
        {
          networking.hostName = "host1";
          microvm.host.package = pkgs.microvm;
          microvm.host.imageCache.package = pkgs.microvm-image;
        }
        settings
      ];
    }).config;
  node = id: {
    inherit id;
    addresses = [ "10.0.0.${toString id}" ];
    memory = 4096;
  };
  three = {
    host1 = node 1;
    host2 = node 2;
    host3 = node 3;
  };
  fenced = targets: {
    power = {
      agent = "fence_apc";
      inherit targets;
      parameters.ip = "10.2.0.1";
      passwordFile = "/run/secrets/power";
    };
  };
  cluster =
    settings:
    host {
      microvm.cluster = {
        name = "rack";
        nodes = three;
        authKeyFile = "/run/secrets/corosync";
        fencing.devices = fenced (builtins.attrNames three);
      }
      // settings;
    };
  refusals =
    config:
    map (assertion: lib.removePrefix "microvm.cluster." assertion.message) (
      builtins.filter (assertion: !assertion.assertion) config.assertions
    );
  of = settings: refusals (cluster settings);
  machine = guest { };
  good = cluster {
    sharedPaths = [ "/srv/vm" ];
    machines.web = {
      flake.nixosConfigurations.web = machine;
      prefer = [ "host1" ];
      timeouts.ready = 300;
    };
  };
  document = builtins.fromJSON (builtins.unsafeDiscardStringContext good.microvm.cluster.file.json);
in
{
  "a cluster becomes one document" = {
    expected = {
      refusals = [ ];
      version = 1;
      nodes = builtins.mapAttrs (_: node: node // { vcpus = null; }) three;
      web = {
        runner = builtins.unsafeDiscardStringContext "${machine.config.microvm.declaredRunner}";
        memory = null;
        prefer = [ "host1" ];
        apartFrom = [ ];
        migrate = null;
        timeouts = {
          start = 180;
          stop = 120;
          drain = null;
          monitor = 20;
          migrate = null;
          ready = 300;
        };
      };
      qdevice = null;
      stateDirectory = "/var/lib/microvms";
    };
    found = {
      refusals = refusals good;
      inherit (document)
        nodes
        qdevice
        stateDirectory
        version
        ;
      inherit (document.machines) web;
    };
  };
  "the host of a cluster runs Pacemaker with generated configurations" = {
    expected = {
      key = true;
      agent = true;
      flags = [
        "--with-ocfrapath"
        "--with-fence-bindir"
      ];
      applies = true;
      restart = "no";
      # Pacemaker stops before its machines, and moves them.
      before = [ "pacemaker.service" ];
      ports = [
        {
          from = 5405;
          to = 5412;
        }
      ];
    };
    found = {
      key = lib.hasInfix "/corosync.conf" good.environment.etc."corosync/corosync.conf".source;
      agent = lib.any (
        package: lib.hasInfix "microvm-resource-agent" "${package}"
      ) good.environment.systemPackages;
      flags = map (flag: builtins.head (lib.splitString "=" flag)) (
        builtins.filter (
          flag: lib.hasInfix "ocfrapath" flag || lib.hasInfix "fence-bindir" flag
        ) good.services.pacemaker.package.configureFlags
      );
      applies = lib.hasInfix " cluster apply --on-coordinator " good.systemd.services.microvm-cluster.serviceConfig.ExecStart;
      restart = good.systemd.services."microvm@web".serviceConfig.Restart;
      inherit (good.systemd.services."microvm@web") before;
      ports = good.networking.firewall.allowedUDPPortRanges;
    };
  };
  "clusters that cannot work are refused with what to do" = {
    expected = {
      two = [
        "nodes: there are 2 hosts; when one of two fails, the other one cannot know whether it has a majority. Add hosts until there are three, or set `qdevice.host` to a server outside of the cluster that has a vote"
      ];
      twoWithVote = [ ];
      unfenced = [
        "fencing.devices: no device covers `host2`, `host3`, so the cluster cannot know that a failed host no longer writes; add a device, or set `fencing.acceptDataLoss`"
      ];
      accepted = [ ];
      elsewhere = [
        "nodes: this host, `host9`, is missing; the names are those in networking.hostName"
      ];
      key = [
        "authKeyFile: `/nix/store/key` is in the Nix store, which every user can read; use a file outside of it, such as /run/secrets/NAME"
      ];
      password = [
        "fencing.devices.power.passwordFile: `/nix/store/password` is in the Nix store, which every user can read; use a file outside of it, such as /run/secrets/NAME"
      ]
      ++
        map
          (
            name:
            "fencing.devices.power.parameters.${name}: would be in the Nix store, which every user can read; write the password into a file and set `passwordFile`"
          )
          [
            "Passwd"
            "snmp-community"
            "token"
          ];
      bridges = [
        "bridges: this host has no bridge `br1`; a machine needs bridges of the same names on all hosts. Define them in networking.bridges, systemd.network.netdevs or microvm.host.network"
      ];
      autostart = [
        "machines.web: the cluster starts this machine, so its hosts must not: set microvm.vms.web.autostart to false"
      ];
      root = [
        "machines.booted-web: would have the same garbage collection root as `web`; rename one of them"
      ];
      suspended = [
        "machines.web: the cluster moves this machine to another host at shutdown, so its hosts must not suspend it: list only other machines in microvm.host.suspendOnShutdown"
      ];
    };
    found = {
      two = of {
        nodes = removeAttrs three [ "host3" ];
      };
      twoWithVote = of {
        nodes = removeAttrs three [ "host3" ];
        qdevice = {
          host = "vote.example.org";
          package = pkgs.bash;
        };
      };
      unfenced = of { fencing.devices = fenced [ "host1" ]; };
      accepted = of { fencing.acceptDataLoss = true; };
      elsewhere = refusals (host {
        networking.hostName = lib.mkForce "host9";
        microvm.cluster = {
          name = "rack";
          nodes = three;
          authKeyFile = "/run/key";
          fencing.acceptDataLoss = true;
        };
      });
      key = of { authKeyFile = "/nix/store/key"; };
      password = of {
        fencing.devices.power = (fenced (builtins.attrNames three)).power // {
          passwordFile = "/nix/store/password";
          parameters = {
            Passwd = "secret";
            snmp-community = "secret";
            token = "secret";
            password_script = "/run/secrets/power.sh";
            key_file = "/run/secrets/key";
            access_key = "name";
          };
        };
      };
      bridges = of { bridges = [ "br1" ]; };
      autostart = refusals (host {
        microvm.autostart = [ "web" ];
        microvm.cluster = {
          name = "rack";
          nodes = three;
          authKeyFile = "/run/key";
          fencing.acceptDataLoss = true;
          machines.web.flake.nixosConfigurations.web = machine;
        };
      });
      root = of {
        machines.web.flake.nixosConfigurations.web = machine;
        machines.booted-web.flake.nixosConfigurations.booted-web = machine;
      };
      suspended = refusals (host {
        microvm.host.suspendOnShutdown = true;
        microvm.cluster = {
          name = "rack";
          nodes = three;
          authKeyFile = "/run/key";
          fencing.acceptDataLoss = true;
          machines.web.flake.nixosConfigurations.web = machine;
        };
      });
    };
  };
}
