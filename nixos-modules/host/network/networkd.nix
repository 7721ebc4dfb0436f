# The bridges, as units of systemd-networkd, and what else of the host they need.
{ config, lib, ... }:
let
  cfg = config.microvm;
  networks = cfg.host.network;
  derived = import ../../../lib/derived.nix;
  addresses = import ../../../lib/addresses.nix { inherit lib; };
  inherit (import ./machines.nix { inherit lib; }) pool;

  some = predicate: lib.any predicate (builtins.attrValues networks);
  isResolver = network: network.nameservers == [ ];
  isIpv6 = network: network.address6 != null;
  each = f: lib.mkMerge (lib.mapAttrsToList f networks);
  withoutLength = address: builtins.head (lib.splitString "/" address);

  lease =
    { mac, address }:
    lib.optionalString (address != null) ''
      [DHCPServerStaticLease]
      MACAddress=${mac}
      Address=${address}
    '';

  # Isolated ports do not exchange frames, but a machine could still send packets for another machine to the host, which
  # would route them back.
  prohibitRoute = family: subnet: interface: ''
    [RoutingPolicyRule]
    Family=${family}
    IncomingInterface=${interface}
    To=${subnet}
    Type=prohibit
    Priority=1000
  '';

  bridgeOf =
    name: network:
    let
      subnet = addresses.parseSubnet4 network.address;
      subnet6 = addresses.parseSubnet6 network.address6;
      isIn4 = subnet != null;
      isIn6 = isIpv6 network && subnet6 != null;
      servers = lib.optionals (!isResolver network) network.nameservers;
      isV6Server = lib.hasInfix ":";
    in
    {
      netdevs."10-microvm-${name}".netdevConfig = {
        Kind = "bridge";
        Name = network.bridge;
      };
      networks."10-microvm-${name}" = {
        matchConfig.Name = network.bridge;
        # It has no carrier before the first machine starts.
        linkConfig.RequiredForOnline = "no";
        networkConfig = {
          Address = [ network.address ] ++ lib.optional isIn6 network.address6;
          ConfigureWithoutCarrier = true;
          DHCPServer = true;
          IPv6AcceptRA = false;
        }
        // lib.optionalAttrs network.nat { IPMasquerade = "ipv4"; }
        // lib.optionalAttrs isIn6 { IPv6SendRA = true; };
        dhcpServerConfig = {
          SendOption = "15:string:${network.domain}";
          DNS =
            if isResolver network then
              withoutLength network.address
            else
              builtins.filter (server: !isV6Server server) servers;
        }
        // lib.optionalAttrs isIn4 {
          PoolOffset = (pool subnet).offset;
          PoolSize = (pool subnet).size;
        };
        ipv6SendRAConfig = lib.optionalAttrs isIn6 {
          DNS = if isResolver network then subnet6.address else builtins.filter isV6Server servers;
          Domains = network.domain;
        };
        # As text, because the options for these sections have another form in newer releases of NixOS.
        extraConfig =
          lib.concatMapStrings lease (builtins.attrValues network.machines)
          + lib.optionalString isIn6 ''
            [IPv6Prefix]
            Prefix=${subnet6.prefix}
          ''
          + lib.optionalString (network.isolated && isIn4) (
            prohibitRoute "ipv4" "${addresses.show4 subnet.first}/${toString subnet.prefixLength}"
              network.bridge
          )
          + lib.optionalString (network.isolated && isIn6) (
            prohibitRoute "ipv6" subnet6.prefix network.bridge
          );
      };
      # The tap interfaces appear when machines start.
      networks."11-microvm-${name}-machines" = {
        matchConfig = {
          Kind = "tun";
          Name = "${derived.tapPrefix name}*";
        };
        linkConfig.RequiredForOnline = "no";
        networkConfig = {
          Bridge = network.bridge;
          LinkLocalAddressing = "no";
        };
        bridgeConfig = lib.optionalAttrs network.isolated { Isolated = true; };
      };
    };

  interfaces = lib.concatLists (
    lib.mapAttrsToList (name: network: [
      network.bridge
      "${derived.tapPrefix name}*"
    ]) networks
  );
  listeners = lib.concatMap (
    network: map withoutLength ([ network.address ] ++ lib.optional (isIpv6 network) network.address6)
  ) (builtins.filter isResolver (builtins.attrValues networks));
in
{
  config = lib.mkIf (cfg.host.enable && networks != { }) {
    systemd.network = lib.mkMerge (
      [
        {
          enable = true;
          # If networkd manages nothing else, it has nothing to wait for.
          wait-online.enable = lib.mkDefault config.networking.useNetworkd;
        }
      ]
      ++ lib.mapAttrsToList bridgeOf networks
    );

    # Before the defaults of NixOS, but after the settings of users and of networking.nat.
    boot.kernel.sysctl = lib.mapAttrs (_: lib.mkOverride 900) (
      {
        "net.ipv4.conf.all.forwarding" = true;
      }
      // lib.optionalAttrs (some isIpv6) {
        "net.ipv6.conf.all.forwarding" = true;
        # 2: a host that forwards still takes its own address from the router of its network.
        "net.ipv6.conf.all.accept_ra" = 2;
        "net.ipv6.conf.default.accept_ra" = 2;
      }
    );

    networking = {
      firewall.interfaces = each (
        _: network: {
          ${network.bridge} = {
            allowedUDPPorts = [ 67 ] ++ lib.optional (isResolver network) 53;
            allowedTCPPorts = lib.optional (isResolver network) 53;
          };
        }
      );
      firewall.extraForwardRules = lib.mkIf (config.networking.firewall.filterForward or false) (
        lib.concatMapStrings (network: ''
          iifname "${network.bridge}" ${lib.optionalString network.isolated "oifname != \"${network.bridge}\" "}accept
        '') (builtins.attrValues networks)
      );
      hosts = each (
        _: network:
        lib.mapAttrs' (
          machine:
          { address, ... }:
          lib.nameValuePair address [
            "${machine}.${network.domain}"
            machine
          ]
        ) (lib.filterAttrs (_: { address, ... }: address != null) network.machines)
      );
      # Other programs that configure networks leave these interfaces alone.
      dhcpcd.denyInterfaces = interfaces;
      networkmanager.unmanaged = map (interface: "interface-name:${interface}") interfaces;
    };

    services.resolved.enable = lib.mkIf (some isResolver) (lib.mkDefault true);
    environment.etc."systemd/resolved.conf.d/microvm.conf" = lib.mkIf (some isResolver) {
      text =
        "[Resolve]\n" + lib.concatMapStrings (address: "DNSStubListenerExtra=${address}\n") listeners;
    };
    # NixOS does not restart it for this file.
    systemd.services.systemd-resolved = lib.mkIf (some isResolver) { restartTriggers = listeners; };
  };
}
