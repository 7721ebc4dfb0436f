# Pacemaker and Corosync, with what NixOS' modules of them lack.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm.cluster;
  microvm = lib.getExe config.microvm.host.package;
  system = "/run/current-system/sw";

  # Pacemaker has the directories of its agents compiled in. With those of the running system, agents change without
  # building Pacemaker again.
  pacemaker = pkgs.pacemaker.overrideAttrs (old: {
    configureFlags = old.configureFlags ++ [
      "--with-ocfrapath=${pkgs.ocf-resource-agents}/usr/lib/ocf/resource.d:${system}/lib/ocf/resource.d"
      "--with-fence-bindir=${system}/bin"
    ];
  });

  # The resource agent. Pacemaker runs it by this name.
  agent = pkgs.runCommand "microvm-resource-agent" { } ''
    mkdir -p "$out/lib/ocf/resource.d/microvm"
    cat >"$out/lib/ocf/resource.d/microvm/MicroVM" <<'AGENT'
    #!${pkgs.runtimeShell}
    export MICROVM_FIRST_USER_ID=${toString config.microvm.host.firstUserId}
    exec ${microvm} ocf "$@"
    AGENT
    chmod +x "$out/lib/ocf/resource.d/microvm/MicroVM"
  '';

  stateDirectories = map (directory: "d /var/lib/pacemaker${directory} 0750 hacluster pacemaker -") [
    ""
    "/blackbox"
    "/cib"
    "/cores"
    "/pengine"
  ];
in
{
  config = lib.mkIf cfg.enable {
    services = {
      corosync = {
        enable = true;
        clusterName = cfg.name;
        nodelist = lib.mapAttrsToList (name: node: {
          nodeid = node.id;
          inherit name;
          ring_addrs = node.addresses;
        }) cfg.nodes;
      };
      pacemaker = {
        enable = true;
        package = lib.mkDefault pacemaker;
      };
    };

    environment = {
      # The module of NixOS has no options for timeouts, links, votes and the place of the key.
      etc."corosync/corosync.conf".source = lib.mkForce "${cfg.configuration}/corosync.conf";
      # The package of `microvm` contains an agent too, which does not set the variable.
      systemPackages = [ (lib.hiPrio agent) ] ++ cfg.fencing.packages;
      pathsToLink = [ "/lib/ocf" ];
    };

    networking.firewall.allowedUDPPortRanges = lib.optional cfg.openFirewall {
      # One port for each link: corosync.conf(5), `mcastport` in `interface`.
      from = 5405;
      to = 5405 + 7;
    };

    systemd = {
      # The module of NixOS lets systemd create the directory for root, and Pacemaker's daemons, which are not root, cannot
      # use it after the next start.
      tmpfiles.rules = stateDirectories;
      services = {
        pacemaker = {
          serviceConfig.StateDirectory = lib.mkForce "";
          # Otherwise a machine would create an empty volume where the shared storage is not mounted yet.
          unitConfig.RequiresMountsFor = cfg.sharedPaths;
          # What the resource agent runs.
          path = [
            config.nix.package
            pkgs.openssh
            pkgs.iproute2
          ];
        };

        # Every host has the same configuration, and the one that makes the decisions applies it. Its file contains the store
        # paths of all runners, so every host has them.
        microvm-cluster = {
          description = "Configuration of the cluster ${cfg.name}";
          wantedBy = [ "multi-user.target" ];
          after = [ "pacemaker.service" ];
          requires = [ "pacemaker.service" ];
          path = [ config.services.pacemaker.package ];
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
            ExecStart = "${microvm} cluster apply --on-coordinator --wait 120 ${cfg.file}";
            TimeoutStartSec = 300;
            # The other hosts may start later.
            Restart = "on-failure";
            RestartSec = 10;
          };
        };
      }
      # Only the cluster restarts its machines. When the host shuts down, Pacemaker ends first and moves them to other hosts.
      // lib.mapAttrs' (
        name: _:
        lib.nameValuePair "microvm@${name}" {
          overrideStrategy = "asDropin";
          before = [ "pacemaker.service" ];
          unitConfig.RequiresMountsFor = cfg.sharedPaths;
          serviceConfig.Restart = lib.mkForce "no";
          # Without this, NixOS would override the template's PATH.
          path = lib.mkForce [ ];
        }
      ) cfg.machines
      // lib.optionalAttrs (cfg.qdevice.host != null) {
        corosync-qdevice = {
          description = "Vote of the server ${cfg.qdevice.host}";
          wantedBy = [ "multi-user.target" ];
          after = [ "corosync.service" ];
          requires = [ "corosync.service" ];
          before = [ "pacemaker.service" ];
          serviceConfig.ExecStart = "${cfg.qdevice.package}/bin/corosync-qdevice -f";
          serviceConfig.Restart = "on-failure";
        };
      };
    };
  };
}
