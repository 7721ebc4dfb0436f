# The settings of a NixOS with Debian's programs, and the features that it disables.
{
  config,
  lib,
  pkgs,
  modulesPath,
  ...
}:
let
  systemd = config.systemd.package;
in
{
  imports = [
    (modulesPath + "/profiles/minimal.nix")
    ./patience.nix
  ];
  system.stateVersion = "24.05";
  environment.noXlibs = lib.mkForce false;
  boot.kernelPackages = pkgs.linuxPackages;
  boot.enableContainers = false;
  boot.bcache.enable = false;
  boot.initrd.systemd.emergencyAccess = true;
  boot.initrd.systemd.enableTpm2 = false;
  services.lvm.enable = false;
  hardware.enableRedistributableFirmware = false;
  networking.firewall.enable = false;
  networking.resolvconf.enable = false;
  services.nscd.enable = false;
  system.nssModules = lib.mkForce [ ];
  security.sudo.enable = false;
  security.polkit.enable = false;
  programs.nano.enable = false;
  programs.command-not-found.enable = false;
  i18n.supportedLocales = [ ];
  i18n.glibcLocales = pkgs.glibcLocales;
  i18n.defaultLocale = "C.UTF-8";
  fonts.fontconfig.enable = false;
  programs.ssh.setXAuthLocation = false;
  security.pam.services.su.forwardXAuth = lib.mkForce false;
  nix.checkConfig = false;
  nix.channel.enable = false;
  nix.settings.sandbox = false;
  nix.settings.substituters = lib.mkForce [ ];
  environment.defaultPackages = [ ];
  system.disableInstallerTools = true;
  users.users.root.initialHashedPassword = "";
  users.mutableUsers = false;
  systemd.coredump.enable = false;
  systemd.oomd.enable = false;
  security.pam.services.login.rules.session.lastlog.enable = lib.mkForce false;
  services.timesyncd.enable = lib.mkDefault false;

  # Debian's programs expect files in Debian's directories.
  system.activationScripts.debian = {
    deps = [ "specialfs" ];
    text = ''
      mkdir -p /usr/lib /usr/share /lib
      ln -sfnT ${systemd}/lib/systemd /usr/lib/systemd
      ln -sfnT ${systemd}/lib/udev /usr/lib/udev
      ln -sfnT ${systemd}/lib/sysusers.d /usr/lib/sysusers.d
      ln -sfnT /run/booted-system/kernel-modules/lib/modules /lib/modules
      ln -sfnT /lib/modules /usr/lib/modules
      ln -sfnT ${pkgs.openssh}/lib/openssh /usr/lib/openssh
      ln -sfnT ${pkgs.dbus}/share/dbus-1 /usr/share/dbus-1
      ln -sfnT /etc/zoneinfo /usr/share/zoneinfo
      mkdir -p /usr/bin
      ln -sf ${systemd}/bin/* ${pkgs.util-linux}/bin/* ${pkgs.kmod}/bin/* ${pkgs.bash}/bin/bash ${pkgs.linux-pam}/bin/unix_chkpwd ${pkgs.shadow}/bin/login ${pkgs.e2fsprogs}/bin/* /usr/bin/
      ln -sfnT bin /usr/sbin
      ln -sfnT ${pkgs.linux-pam}/lib/security /usr/lib/security
      mkdir -p /run/sshd
    '';
  };
  boot.initrd.systemd = {
    contents."/usr/lib/systemd".source = "${systemd}/lib/systemd";
    contents."/usr/bin".source = config.boot.initrd.systemd.contents."/bin".source;
    contents."/usr/sbin".source = config.boot.initrd.systemd.contents."/bin".source;
    initrdBin = [
      pkgs.util-linux
      pkgs.e2fsprogs
    ];
    contents."/usr/lib/udev".source = "${systemd}/lib/udev";
    contents."/usr/lib/modules".source = "${config.boot.initrd.systemd.contents."/lib".source}/modules";
    # What systemd opens at run time
    storePaths = map (p: "${p}/lib") [
      pkgs.kmod
      pkgs.glibc
    ];
    strip = false;
  };
}
