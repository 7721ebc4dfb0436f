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
        description = "How it reaches the outside.";
      };
      id = mkOption {
        type = types.str;
        description = "Its name; of `tap` and `macvtap` the name on the host, at most 15 bytes.";
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
        description = "The host's interface that an interface of type `macvtap` hangs on.";
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
        description = "Who may talk with whom over the link.";
      };
      tap.vhost = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the kernel's vhost-net moves the packets.";
      };
    };
  };

  end = defaultAddress: {
    address = mkOption {
      type = types.str;
      default = defaultAddress;
      description = "An IPv4 address; empty is any.";
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
        description = "Whose port leads to the other.";
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
        description = "The guest's vsock address, 3 or more; null is no vsock.";
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
