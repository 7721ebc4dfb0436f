# The screen.
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
    enable = mkEnableOption "a screen: a virtio graphics card, and with qemu a keyboard and a pointer";

    backend = mkOption {
      type = types.enum [
        "gtk"
        "cocoa"
        "headless"
      ];
      default = "gtk";
      description = "Where qemu shows the screen: \"gtk\" in a window of the desktop in whose session the machine is started, \"headless\" nowhere by itself. \"cocoa\" is macOS', and refused.";
    };

    gl = mkOption {
      type = types.nullOr types.bool;
      default = null;
      description = "Whether the host's OpenGL draws for the guest; null is where the host has a render node, `/dev/dri/renderD*`, else with a warning the guest draws by itself.";
    };

    vulkan = mkOption {
      type = types.nullOr (
        types.enum [
          "venus"
          "drm_native_context"
        ]
      );
      default = null;
      description = "qemu: the protocol by which the guest uses the host's Vulkan; null is none.";
    };

    hostmem = mkOption {
      type = types.str;
      default = "256M";
      description = "qemu: the window through which the guest sees the host's graphics memory, with `vulkan`: a power of two in MiB or GiB.";
    };

    socket = mkOption {
      type = types.str;
      default = "${config.networking.hostName}-gpu.sock";
      defaultText = literalExpression ''"''${config.networking.hostName}-gpu.sock"'';
      description = "crosvm: the socket of the process that draws.";
    };

    crosvmPackage = mkOption {
      type = types.package;
      default = cfg.crosvm.package;
      defaultText = literalExpression "config.microvm.crosvm.package";
      description = "crosvm: the package of the process that draws; it must be built with `gpu`.";
    };
  };
}
