# sshd on vsock, for `microvm ssh`.
{ config, lib, ... }:
let
  cfg = config.microvm;
  # NixOS 24.05 has another option for the package, and creates the host keys in another unit.
  openssh = config.services.openssh.package or config.programs.ssh.package;
  makesHostKeys = [
    "sshd-keygen.service"
    "sshd.service"
  ];
in
{
  config = lib.mkIf (cfg.guest.enable && cfg.vsock.ssh.enable) {
    services.openssh.enable = true;
    systemd.sockets.sshd-vsock = {
      description = "SSH on vsock";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ "vsock::22" ];
      socketConfig.Accept = true;
    };
    systemd.services."sshd-vsock@" = {
      description = "SSH session on vsock";
      after = makesHostKeys;
      wants = makesHostKeys;
      serviceConfig = {
        ExecStart = "-${lib.getExe' openssh "sshd"} -i -f /etc/ssh/sshd_config";
        StandardInput = "socket";
        KillMode = "process";
      };
    };
    boot.kernelModules = [ "vmw_vsock_virtio_transport" ];
  };
}
