# Graphics.
{ config, lib, ... }:
let
  inherit (lib)
    literalExpression
    mkEnableOption
    mkOption
    types
    ;
  cfg = config.microvm;
in
{
  options.microvm.graphics = {
    enable = mkEnableOption "graphics: a virtio graphics card, and with qemu a keyboard and a pointer";

    backend = mkOption {
      type = types.enum [
        "gtk"
        "cocoa"
        "headless"
      ];
      default = "gtk";
      description = "Where qemu shows the screen: \"gtk\" in a window on the desktop of the session that starts the machine, \"headless\" nowhere. \"cocoa\" requires macOS and is refused.";
    };

    gl = mkOption {
      type = types.nullOr types.bool;
      default = null;
      description = "Whether the host renders for the guest with OpenGL. With null it does if it has a render node, `/dev/dri/renderD*`; otherwise the guest renders in software, with a warning.";
    };

    vulkan = mkOption {
      type = types.nullOr (
        types.enum [
          "venus"
          "drm_native_context"
        ]
      );
      default = null;
      description = "qemu: the protocol for access to the host's Vulkan; null turns it off.";
    };

    hostmem = mkOption {
      type = types.str;
      default = "256M";
      description = "qemu: the size of the window into the host's graphics memory, with `vulkan`: a power of two in MiB or GiB.";
    };

    socket = mkOption {
      type = types.str;
      default = "${config.networking.hostName}-gpu.sock";
      defaultText = literalExpression ''"''${config.networking.hostName}-gpu.sock"'';
      description = "crosvm: the socket of the graphics process.";
    };

    crosvmPackage = mkOption {
      type = types.package;
      default = cfg.crosvm.package;
      defaultText = literalExpression "config.microvm.crosvm.package";
      description = "crosvm: the package of the graphics process; it must be built with `gpu`.";
    };
  };
}
