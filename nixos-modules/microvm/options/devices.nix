# Devices of the host, credentials.
{ lib, ... }:
let
  inherit (lib) mkOption types;

  device = {
    options = {
      bus = mkOption {
        type = types.enum [
          "pci"
          "usb"
        ];
        description = "The bus it sits on.";
      };
      path = mkOption {
        type = types.str;
        example = "0000:01:00.0";
        description = "pci: its address; usb: `vendorid=0xabcd,productid=0x0123`.";
      };
      qemu = {
        id = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "qemu: the device's identifier.";
        };
        bus = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "qemu: the bus it is attached to.";
        };
        deviceExtraArgs = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "qemu: further properties, in qemu's own syntax.";
        };
      };
    };
  };
in
{
  options.microvm = {
    devices = mkOption {
      type = types.listOf (types.submodule device);
      default = [ ];
      description = "Devices of the host that the guest gets for itself.";
    };

    credentialFiles = mkOption {
      type = types.attrsOf types.path;
      default = { };
      description = "Secrets for the guest's systemd: credential name to file on the host. They reach neither the store nor a command line.";
    };

    rng = mkOption {
      type = types.bool;
      default = true;
      description = "Whether there is a virtio entropy source.";
    };
  };
}
