# The settings of the host's kernel, users and directories.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm;
  libvirt = config.virtualisation.libvirtd.enable;

  # The command uses the same directories as this host's services, also below sudo, which does not pass environment
  # variables.
  command = pkgs.runCommand "microvm-command" { meta.mainProgram = "microvm"; } ''
    mkdir -p "$out/bin"
    # A user-defined package may not have this directory.
    if [ -d ${cfg.host.package}/share ]; then
      ln -s ${cfg.host.package}/share "$out/share"
    fi
    cat >"$out/bin/microvm" <<'COMMAND'
    #!${pkgs.runtimeShell}
    export MICROVM_STATE_DIR="''${MICROVM_STATE_DIR:-${cfg.stateDir}}"
    export MICROVM_FIRST_USER_ID="''${MICROVM_FIRST_USER_ID:-${toString cfg.host.firstUserId}}"
    export MICROVM_IMAGE_CACHE="''${MICROVM_IMAGE_CACHE:-${cfg.host.imageCache.directory}}"
    exec ${lib.getExe cfg.host.package} "$@"
    COMMAND
    chmod +x "$out/bin/microvm"
  '';
in
{
  config = lib.mkIf cfg.host.enable {
    boot.kernelModules = [
      "tun"
      "tap"
      "vhost_net"
      "vhost_vsock"
    ];
    # Equal memory pages of several machines are stored once.
    hardware.ksm.enable = lib.mkDefault true;

    users.users.microvm = {
      isSystemUser = true;
      group = "kvm";
    };
    # With passed-through devices, all of a machine's memory is locked.
    security.pam.loginLimits = [
      {
        domain = "microvm";
        item = "memlock";
        # soft and hard limit
        type = "-";
        value = "infinity";
      }
    ];

    # libvirt's module creates the same wrapper.
    security.wrappers = lib.mkIf (cfg.host.bridgeHelper.enable && !libvirt) {
      qemu-bridge-helper = {
        source = "${pkgs.qemu_kvm}/libexec/qemu-bridge-helper";
        owner = "root";
        group = "root";
        capabilities = "cap_net_admin+ep";
      };
    };
    environment.etc."qemu/bridge.conf" = lib.mkIf cfg.host.bridgeHelper.enable {
      text = lib.mkDefault "allow all\n";
    };

    systemd.tmpfiles.rules = [
      "d ${cfg.stateDir} 0755 root root -"
      "d /run/microvm 0755 root root -"
      # The locks of volumes, named by device and inode number. A machine sees only the locks of its own volumes.
      "d /run/microvm/.volume-locks 0700 root root -"
      "d /run/microvm-roots 0700 root root -"
      "d /var/cache/microvm-store-disks 0750 microvm kvm -"
      "d /nix/var/nix/gcroots/microvm 0755 root root -"
    ];

    environment.systemPackages = [
      command
      cfg.host.imageCache.package
    ];
  };
}
