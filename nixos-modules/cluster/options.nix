# The options of a cluster. They are the same on all of its hosts, and become `cluster.json`: `microvm schema --cluster`.
{ lib, pkgs, ... }:
let
  inherit (lib) literalExpression mkOption types;
  optional =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  names =
    description:
    mkOption {
      type = types.listOf types.str;
      default = [ ];
      inherit description;
    };
  seconds =
    default: description:
    mkOption {
      type = types.ints.positive;
      inherit default description;
    };

  node.options = {
    id = mkOption {
      type = types.ints.positive;
      description = "The number of the host. It must be unique and must never change.";
    };
    addresses = mkOption {
      type = types.listOf types.str;
      example = [
        "10.0.0.1"
        "10.1.0.1"
      ];
      description = "The IP addresses of the host, one for each link. Corosync uses another link when one fails.";
    };
    memory = mkOption {
      type = types.ints.positive;
      description = "The memory in MiB that machines can use on the host. Leave some for the host itself.";
    };
    vcpus = optional types.ints.positive "The number of virtual CPUs of machines that the host runs; with null, any number.";
  };

  fenceDevice.options = {
    agent = mkOption {
      type = types.str;
      example = "fence_ipmilan";
      description = "The fence agent. Its package is in `microvm.cluster.fencing.packages`.";
    };
    targets = mkOption {
      type = types.listOf types.str;
      description = "The hosts that the device can fence.";
    };
    ports = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = "For each host, its outlet or name on the device, if that differs from the host's name.";
    };
    parameters = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = literalExpression ''{ ip = "10.2.0.1"; username = "fence"; lanplus = "1"; }'';
      description = "The parameters of the agent, without passwords.";
    };
    passwordFile = optional types.str "A file on every host with the device's password, readable by root only, and not in the Nix store.";
    timeout = seconds 60 "The time limit in seconds for fencing a host.";
  };

  machine =
    { config, name, ... }:
    {
      options = {
        flake = optional types.raw "A flake that contains the machine as `nixosConfigurations.NAME`.";
        runner = mkOption {
          type = types.package;
          default =
            if config.flake != null then
              (config.flake.nixosConfigurations.${name}
                or (throw "microvm.cluster.machines.${name}.flake: has no nixosConfigurations.${name}")
              ).config.microvm.declaredRunner
            else
              throw "microvm.cluster.machines.${name}: set `runner` or `flake`";
          defaultText = "the declared runner in `flake`";
          description = "The runner of the machine, such as `self.packages.x86_64-linux.web`.";
        };
        memory = optional types.ints.positive "The memory in MiB that the machine takes up on its host; null means the memory in its configuration, including `hotplugMem`.";
        prefer = names "The hosts that the machine prefers, best first. The machine does not move back to a preferred host by itself.";
        apartFrom = names "The machines that never run on the same host as this one.";
        migrate =
          optional
            (types.enum [
              "live"
              "suspend"
              "cold"
            ])
            "How the machine moves to another host: it keeps running, is suspended and resumed, or is shut down and booted. With null, `live` if it supports that and `migration.command` is set, otherwise `suspend` if it supports that and `migration.directory` is set, otherwise `cold`.";
        timeouts = {
          start = seconds 180 "The time limit in seconds for starting the hypervisor, including copying the runner.";
          stop = seconds 120 "The time limit in seconds for a stop. If it takes longer, the host is fenced.";
          drain = optional types.ints.positive "The time in seconds for the guest to shut down before its hypervisor is killed; with null, two thirds of `stop`.";
          monitor = seconds 20 "The time limit in seconds for checking whether the machine runs, which happens every 10 seconds.";
          migrate = optional types.ints.positive "The time limit in seconds for a move to another host; null means 120 seconds plus 64 seconds for each GiB of memory.";
          ready = optional types.ints.positive "The time in seconds for the guest to boot. A guest that has not reported by then that it is ready is restarted; with null, the guest is not checked. Requires `microvm.vsock.notify` of the machine.";
        };
      };
    };
in
{
  options.microvm.cluster = {
    enable = mkOption {
      type = types.bool;
      default = true;
      description = "Whether this host is part of the cluster.";
    };
    name = mkOption {
      type = types.str;
      example = "rack1";
      description = "The cluster's name. Hosts only join a cluster with the same name.";
    };
    nodes = mkOption {
      type = types.attrsOf (types.submodule node);
      default = { };
      example = literalExpression ''{ host1 = { id = 1; addresses = [ "10.0.0.1" ]; memory = 65536; }; }'';
      description = "All hosts of the cluster, by `networking.hostName`.";
    };
    authKeyFile = mkOption {
      type = types.str;
      example = "/run/secrets/corosync";
      description = "The key of the cluster, made by `corosync-keygen`: a file on every host, readable by root only, and not in the Nix store.";
    };
    openFirewall = mkOption {
      type = types.bool;
      default = true;
      description = "Whether to open the UDP ports of Corosync in the firewall of NixOS. Messages without the key are dropped.";
    };
    totem = {
      token = optional types.ints.positive "The time in milliseconds without a token after which a host counts as failed, at least 100; with null, Corosync's default of 3000. `tokenCoefficient` is added for each host beyond two.";
      tokenCoefficient = optional types.ints.positive "The time in milliseconds that is added to `token` for each host beyond two; with null, Corosync's default of 650.";
      consensus = optional types.ints.positive "The time in milliseconds in which the hosts must agree on a new membership; with null, 1.2 times the token.";
    };
    qdevice = {
      host = optional types.str "A server outside of the cluster that runs corosync-qnetd and has a vote. A cluster of two hosts requires it.";
      algorithm = mkOption {
        type = types.enum [
          "ffsplit"
          "lms"
        ];
        default = "ffsplit";
        description = "Which half of the cluster gets the vote: one of two equal halves, or the last host that still reaches the server.";
      };
      package = mkOption {
        type = types.nullOr types.package;
        default = pkgs.corosync-qdevice or null;
        defaultText = literalExpression "pkgs.corosync-qdevice, if Nixpkgs has it";
        description = "The package of the daemon `corosync-qdevice`.";
      };
    };
    fencing = {
      devices = mkOption {
        type = types.attrsOf (types.submodule fenceDevice);
        default = { };
        description = "The devices that fence a failed host, so that it no longer writes to shared storage.";
      };
      packages = mkOption {
        type = types.listOf types.package;
        default = [ ];
        example = literalExpression "[ pkgs.fence-agents ]";
        description = "The packages that contain the fence agents, in `bin`.";
      };
      action = mkOption {
        type = types.enum [
          "reboot"
          "off"
        ];
        default = "reboot";
        description = "Whether a failed host is switched off and on again, or only off.";
      };
      acceptDataLoss = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether to accept that a host without a fence device cannot be fenced. Without any device, machines start elsewhere
          although the failed host may still write to their volumes, which destroys data.
        '';
      };
    };
    cache = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://cache.example.org";
      description = "The store from which a host copies a runner that it does not have. Signatures are checked.";
    };
    sharedPaths = mkOption {
      type = types.listOf types.path;
      default = [ ];
      example = [ "/srv/vm" ];
      description = "The directories that all hosts share. Volumes and shares of the machines must be in one of them.";
    };
    bridges = names "The bridges that every host has, for interfaces of type `bridge`. Each host must define them.";
    migration = {
      directory = optional types.path "A directory in `sharedPaths` for machines that are suspended on one host and resumed on another. It contains their memory, so only root may have access to it.";
      command = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "ssh -i /run/secrets/migration root@NODE microvm ocf receive";
        description = "The command that runs `microvm ocf receive` on another host, for live migration; the word NODE is replaced with the host. With null, it is ssh as root.";
      };
    };
    machines = mkOption {
      type = types.attrsOf (types.submodule machine);
      default = { };
      example = literalExpression ''{ web = { flake = inputs.machines; prefer = [ "host1" ]; apartFrom = [ "web2" ]; }; }'';
      description = "The machines of the cluster.";
    };
    file = mkOption {
      type = types.package;
      readOnly = true;
      description = "The generated `cluster.json`, for `microvm cluster check`.";
    };
    configuration = mkOption {
      type = types.package;
      readOnly = true;
      description = "The generated `corosync.conf` and `cib.xml`, and the hosts of the machines in `placement`. It is built only if the cluster passes `microvm cluster check`.";
    };
  };
}
