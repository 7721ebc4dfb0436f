# Interfaces, forwarded ports, vsock.
{ lib, ... }:
let
  inherit (lib) literalExpression mkOption types;

  interface = {
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
      id = mkOption {
        type = types.str;
        description = "The name of the interface; for `tap` and `macvtap` its name on the host, at most 15 bytes.";
      };
      mac = mkOption {
        type = types.str;
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
        type = types.nullOr types.ints.unsigned;
        default = null;
        description = "The vsock address of the guest, at least 3; with null there is no vsock.";
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
