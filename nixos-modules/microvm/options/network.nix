# Interfaces, forwarded ports, vsock.
{ config, lib, ... }:
let
  inherit (lib) literalExpression mkOption types;
  derived = import ../../../lib/derived.nix;
  machine = config.networking.hostName;

  interface =
    { config, ... }:
    {
      options = {
        type = mkOption {
          type = types.enum [
            "user"
            "tap"
            "macvtap"
            "bridge"
          ];
          description = "The type of the interface.";
        };
        network = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "lan";
          description = ''
            The network of the host that an interface of type `tap` joins: a name in `microvm.host.network`. The interface's `id` and
            `mac` are then derived from the names of the network and the machine.
          '';
        };
        id = mkOption {
          type = types.str;
          defaultText = "derived from the names of `network` and the machine, if `network` is set";
          description = "The name of the interface; for `tap` and `macvtap` its name on the host, at most 15 bytes.";
        };
        mac = mkOption {
          type = types.str;
          defaultText = "derived from the names of `network` and the machine, if `network` is set";
          description = "The guest's MAC address.";
        };
        bridge = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "The bridge that an interface of type `bridge` joins.";
        };
        macvtap.link = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "The interface of the host that an interface of type `macvtap` uses.";
        };
        macvtap.mode = mkOption {
          type = types.enum [
            "private"
            "vepa"
            "bridge"
            "passthru"
            "source"
          ];
          default = "vepa";
          description = "The macvtap mode, which determines who can communicate over the link.";
        };
        tap.vhost = mkOption {
          type = types.bool;
          default = false;
          description = "Whether the kernel moves the packets with vhost-net.";
        };
      };
      config = lib.mkIf (config.network != null) {
        id = lib.mkDefault (
          derived.tapName {
            inherit (config) network;
            inherit machine;
          }
        );
        mac = lib.mkDefault (
          derived.macAddress {
            inherit (config) network;
            inherit machine;
          }
        );
      };
    };

  end = defaultAddress: {
    address = mkOption {
      type = types.str;
      default = defaultAddress;
      description = "The IPv4 address; empty means any address.";
    };
    port = mkOption {
      type = types.port;
      description = "The port.";
    };
  };

  forwardPort = {
    options = {
      from = mkOption {
        type = types.enum [
          "host"
          "guest"
        ];
        default = "host";
        description = "Whether connections to the host's port go to the guest, or the other way around.";
      };
      proto = mkOption {
        type = types.enum [
          "tcp"
          "udp"
        ];
        default = "tcp";
        description = "The protocol.";
      };
      host = end "";
      guest = end "";
    };
  };
in
{
  options.microvm = {
    interfaces = mkOption {
      type = types.listOf (types.submodule interface);
      default = [ ];
      description = "Network interfaces, in the order in which the guest sees them.";
      example = literalExpression ''
        [
          {
            type = "tap";
            id = "vm-web";
            mac = "02:00:00:00:00:01";
          }
        ]
      '';
    };

    forwardPorts = mkOption {
      type = types.listOf (types.submodule forwardPort);
      default = [ ];
      description = "Ports forwarded through the interface of type `user`.";
    };

    vsock = {
      cid = mkOption {
        type = types.nullOr (types.either types.ints.unsigned (types.enum [ "auto" ]));
        default = null;
        apply = cid: if cid == "auto" then derived.vsockCid machine else cid;
        description = ''
          The vsock address (CID) of the guest, at least 3; null means no vsock device. With "auto", it is derived from the machine's
          name. Reading the option returns the number.
        '';
      };
      notify = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the guest's systemd reports over vsock that it has booted.";
      };
      ssh.enable = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the guest's sshd listens on vsock, for `microvm ssh`.";
      };
    };
  };
}
