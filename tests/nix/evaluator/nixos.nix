# The NixOS options that the modules of guests and hosts read or set, only as precise as they need, and a toplevel that
# fails with failed assertions, like that of NixOS.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  anything = option types.anything { };
  list = type: option (types.listOf type) [ ];
  set = option (types.attrsOf types.anything) { };
  bool = option types.bool;

  fileSystem =
    { config, name, ... }:
    {
      options = {
        mountPoint = option types.str name;
        device = option (types.nullOr types.str) null;
        fsType = option types.str "auto";
        options = option (types.listOf types.str) [ "defaults" ];
        neededForBoot = bool false;
        noCheck = bool false;
        depends = list types.str;
        overlay = {
          lowerdir = option (types.nullOr (types.listOf types.str)) null;
          upperdir = option (types.nullOr types.str) null;
          workdir = option (types.nullOr types.str) null;
        };
      };
      config = lib.mkIf (config.overlay.lowerdir != null) {
        fsType = "overlay";
        device = lib.mkDefault "overlay";
        options = [
          "lowerdir=${builtins.concatStringsSep ":" config.overlay.lowerdir}"
          "upperdir=${config.overlay.upperdir}"
          "workdir=${config.overlay.workdir}"
        ];
      };
    };

  failed = builtins.filter (assertion: !assertion.assertion) config.assertions;
in
{
  options = {
    assertions = list types.raw;
    warnings = list types.str;
    fileSystems = option (types.attrsOf (types.submodule fileSystem)) { };
    networking = {
      hostName = option types.str "nixos";
      hostId = option (types.nullOr types.str) null;
      useNetworkd = bool false;
      extraHosts = option types.lines "";
      firewall = anything;
      nftables = anything;
      hosts = option (types.attrsOf (types.listOf types.str)) { };
      nat = anything;
      dhcpcd = anything;
      networkmanager = anything;
      interfaces = anything;
    };
    nix = {
      enable = bool true;
      package = option types.package pkgs.nix;
      optimise.automatic = bool false;
      settings = anything;
    };
    boot = {
      kernelPackages = option types.raw { kernel = pkgs.linux; };
      kernelParams = list types.str;
      kernelModules = list types.str;
      blacklistedKernelModules = list types.str;
      kernel.sysctl = anything;
      loader.grub.enable = bool true;
      swraid.enable = bool true;
      initrd = {
        availableKernelModules = list types.str;
        kernelModules = list types.str;
        supportedFilesystems = list types.str;
        includeDefaultModules = bool true;
        postMountCommands = option types.lines "";
        systemd = {
          enable = bool false;
          # As in NixOS 24.05; later it is `tpm2.enable`.
          enableTpm2 = bool true;
          services = set;
          package = option types.package pkgs.bash;
          storePaths = list types.raw;
        };
        services.lvm.enable = bool false;
      };
    };
    system = {
      build = {
        toplevel = mkOption { type = types.package; };
        initialRamdisk = mkOption { type = types.package; };
      };
      boot.loader = {
        kernelFile = option types.str "bzImage";
        initrdFile = option types.str "initrd";
      };
      switch.enable = bool true;
      stateVersion = option types.str "";
      activationScripts = set;
      checks = list types.raw;
    };
    systemd =
      lib.genAttrs [
        "generators"
        "network"
        "services"
        "sockets"
        "targets"
        "timers"
        "units"
      ] (_: anything)
      // {
        tmpfiles.rules = list types.str;
      };
    documentation.enable = bool true;
    environment = {
      systemPackages = list types.raw;
      pathsToLink = list types.str;
      etc = set;
    };
    hardware = anything;
    programs = anything;
    security = anything;
    services = anything;
    users = anything;
    virtualisation.libvirtd.enable = bool false;
  };

  config = {
    services.openssh.enable = lib.mkDefault false;
    programs.ssh.package = lib.mkDefault pkgs.bash;
    system.build = {
      inherit (pkgs.fixture) initialRamdisk;
      toplevel =
        if failed == [ ] then
          pkgs.fixture.toplevel
        else
          throw "Failed assertions:\n${
            lib.concatMapStringsSep "\n" (assertion: "- ${assertion.message}") failed
          }";
    };
  };
}
