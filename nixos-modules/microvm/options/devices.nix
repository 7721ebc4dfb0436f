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
        description = "The bus of the device.";
      };
      path = mkOption {
        type = types.str;
        example = "0000:01:00.0";
        description = "pci: the address; usb: `vendorid=0xabcd,productid=0x0123`.";
      };
      qemu = {
        id = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "qemu: the identifier of the device.";
        };
        bus = mkOption {
          type = types.nullOr types.str;
          default = null;
          description = "qemu: the bus to which the device is attached.";
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
      description = "Devices of the host to pass through to the guest.";
    };

    credentialFiles = mkOption {
      type = types.attrsOf types.path;
      default = { };
      example = {
        token = "/run/secrets/token";
      };
      description = "Secrets for the guest's systemd: maps credential names to files on the host, which are read at every start. Write the paths as strings: a path literal such as `./secret` is refused, because the file would be in the Nix store, where every user can read it.";
    };

    rng = mkOption {
      type = types.bool;
      default = true;
      description = "Whether to add a virtio entropy source.";
    };
  };
}
