# A guest with a screen, keyboard and pointer, which a VNC viewer on this computer shows: vncviewer localhost:0
{ lib, ... }:
{
  networking.hostName = "qemu-vnc";
  microvm = {
    hypervisor = "qemu";
    qemu = {
      # The small machine has no PCI slot for a graphics card.
      machine = "q35";
      extraArgs = [
        "-vnc"
        "127.0.0.1:0"
        "-device"
        "virtio-vga"
        "-device"
        "virtio-keyboard-pci"
        "-device"
        "virtio-tablet-pci"
      ];
    };
  };
  # Without the module's `drm`.
  boot.blacklistedKernelModules = lib.mkForce [ ];
  boot.kernelModules = [ "virtio_gpu" ];
}
