# A guest with a screen, keyboard and pointer. Connect to it with a VNC viewer on this computer: vncviewer localhost:0
{
  networking.hostName = "qemu-vnc";
  microvm = {
    hypervisor = "qemu";
    graphics = {
      enable = true;
      backend = "headless";
    };
    qemu.extraArgs = [
      "-vnc"
      "127.0.0.1:0"
    ];
  };
}
