# The options of the host's networks.
{ config, lib, ... }:
let
  inherit (lib) literalExpression mkOption types;
  addresses = import ../../../lib/addresses.nix { inherit lib; };
  inherit (import ./machines.nix { inherit lib; }) machinesOf;
  inherit (config.microvm) vms;

  lease = {
    options = {
      mac = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The MAC address; with null, that of the declared machine, or the one that `microvm.interfaces` derives from the machine's name.";
      };
      address = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "10.7.0.20";
        description = "The IPv4 address; with null, one is derived from the machine's name.";
      };
    };
  };

  network =
    { config, name, ... }:
    {
      options = {
        address = mkOption {
          type = types.str;
          example = "10.7.0.1/24";
          description = "The IPv4 address of the host in the network, with the prefix length: from /16 to /29.";
        };
        address6 = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "fd00:7::1/64";
          description = ''
            The IPv6 address of the host in the network, with the prefix length /64. The machines choose their own addresses with
            this prefix (SLAAC). The host routes the prefix and does not translate addresses.
          '';
        };
        bridge = mkOption {
          type = types.str;
          default = name;
          defaultText = "the name of the network";
          description = "The name of the bridge, at most 15 bytes.";
        };
        nat = mkOption {
          type = types.bool;
          default = true;
          description = "Whether the machines reach other networks with the host's IPv4 address. Without it, their addresses are routed.";
        };
        isolated = mkOption {
          type = types.bool;
          default = false;
          description = "Whether the machines of the network cannot reach each other.";
        };
        nameservers = mkOption {
          type = types.listOf types.str;
          default = [ ];
          example = [ "9.9.9.9" ];
          description = ''
            The DNS servers of the machines. If the list is empty, the host is their DNS server: systemd-resolved listens on the
            host's addresses in the network, and resolves the names of the machines.
          '';
        };
        domain = mkOption {
          type = types.str;
          default = "${name}.internal";
          defaultText = literalExpression ''"''${name}.internal"'';
          description = "The DNS domain of the machines: a machine can be reached as `NAME` and `NAME.DOMAIN`.";
        };
        leases = mkOption {
          type = types.attrsOf (types.submodule lease);
          default = { };
          example = literalExpression "{ web.address = \"10.7.0.20\"; mail = { }; }";
          description = ''
            Fixed addresses, by the machine's name. All declared machines with an interface in the network have one already. Add
            machines that were created with `microvm create`, and addresses of your choice.
          '';
        };
        machines = mkOption {
          type = types.attrsOf types.raw;
          readOnly = true;
          default = machinesOf {
            network = name;
            subnet = addresses.parseSubnet4 config.address;
            inherit (config) leases;
            inherit vms;
          };
          defaultText = "the declared machines in the network, and those in `leases`";
          description = "The machines with a fixed address, as `{ mac, address }` by name, for other options of the host.";
        };
      };
    };
in
{
  options.microvm.host.network = mkOption {
    type = types.attrsOf (types.submodule network);
    default = { };
    description = ''
      Networks for the machines of the host. Each is a bridge with DHCP, DNS names for the machines, NAT, and the
      firewall rules that these need. A machine joins with `microvm.interfaces = [ { type = "tap"; network = "NAME"; } ]`. A name
      has at most 8 lower-case letters and digits.
    '';
    example = literalExpression ''{ lan.address = "10.7.0.1/24"; }'';
  };
}
