# The options of nixos.nix as releases after 24.05 have them: TPM options with new names, a package option of sshd, checks
# before a switch, stage 1 by systemd as the default (from 26.05 on), no settings of the scripted stage 1 and no activation
# scripts (from 26.11 on, or later).
args@{
  lib,
  pkgs,
  ...
}:
let
  nixos = import ./nixos.nix args;
  anything = lib.mkOption {
    type = lib.types.anything;
    default = { };
  };
  enable = lib.mkOption {
    type = lib.types.bool;
    default = true;
  };
in
{
  options = nixos.options // {
    boot = nixos.options.boot // {
      initrd = removeAttrs nixos.options.boot.initrd [ "postMountCommands" ] // {
        systemd = {
          inherit enable;
          services = anything;
          inherit (nixos.options.boot.initrd.systemd) package storePaths;
          tpm2 = { inherit enable; };
        };
      };
    };
    system = removeAttrs nixos.options.system [ "activationScripts" ] // {
      preSwitchChecks = lib.mkOption {
        type = lib.types.attrsOf lib.types.str;
        default = { };
      };
    };
    systemd = nixos.options.systemd // {
      tpm2 = { inherit enable; };
    };
  };

  config = nixos.config // {
    services.openssh = {
      enable = lib.mkDefault false;
      package = pkgs.coreutils;
    };
  };
}
