# Runners of the fixture closure, which tests/nix/run.sh builds with Nix and boots.
{
  work,
  kernel,
  programs,
}:
let
  lib = import ./evaluator;
  system = import ./evaluator/system.nix;
  configure =
    settings:
    system {
      inherit work kernel programs;
      module.microvm = settings;
    };

  # Unlike the initrd of NixOS, the fixture's initrd has no fstab. It mounts the file systems in systemd.mount-extra=.
  mountParameters =
    configuration:
    lib.mapAttrsToList (
      mountPoint: fileSystem:
      "systemd.mount-extra=${
        builtins.concatStringsSep ":" [
          fileSystem.device
          mountPoint
          fileSystem.fsType
          (builtins.concatStringsSep "," (
            builtins.filter (option: !lib.hasPrefix "x-" option && option != "defaults") fileSystem.options
          ))
        ]
      }"
    ) (lib.filterAttrs (mountPoint: _: mountPoint != "/") configuration.config.fileSystems);

  bootable =
    settings:
    let
      all = settings // {
        qemu.accelerator = "tcg";
      };
    in
    configure (
      all
      // {
        kernelParams = mountParameters (configure all) ++ [ "guest.actions=report,persist" ];
      }
    );

  changed = import ../../fixtures/closure {
    inherit work kernel;
    modules = "modules-initrd";
    install = [
      "bash"
      "coreutils"
    ];
    changed = "coreutils";
  };

  plain = bootable { mem = 256; };
  writable = {
    mem = 256;
    writableStoreOverlay = "/nix/.rw-store";
    volumes = [
      {
        image = "rw-store.img";
        mountPoint = "/nix/.rw-store";
        size = 64;
        serial = "rw-store";
      }
    ];
  };
  everything = configure {
    vcpu = 2;
    vsock.cid = 7;
    balloon = true;
    preStart = "echo starting";
    registerWithMachined = true;
    interfaces = [
      {
        type = "tap";
        id = "vm-guest";
        mac = "02:00:00:00:00:01";
      }
      {
        type = "macvtap";
        id = "vm-macvtap";
        mac = "02:00:00:00:00:02";
        macvtap.link = "eth0";
        macvtap.mode = "bridge";
      }
    ];
    shares = [
      {
        proto = "virtiofs";
        tag = "home";
        source = "/srv/home";
        mountPoint = "/home";
      }
    ];
    devices = [
      {
        bus = "pci";
        path = "0000:01:00.0";
      }
    ];
    binScripts.tap-up = lib.mkAfter "echo up";
  };
  refused = (configure { kernelParams = [ "a\nb" ]; }).config.microvm;
in
{
  plain = plain.config.microvm.declaredRunner;
  plainStoreDisk = plain.config.microvm.storeDisk;
  # The same store disk after one package changed.
  changedStoreDisk =
    (system {
      inherit work kernel programs;
      module.system.build.toplevel = lib.mkForce changed.toplevel;
    }).config.microvm.storeDisk;
  plainStorePlan = plain.config.microvm.storeDiskPlan;
  erofs =
    (bootable {
      mem = 256;
      storeDiskType = "erofs";
      storeDiskBuild = "host";
    }).config.microvm.declaredRunner;
  erofsStoreDisk = (configure { storeDiskType = "erofs"; }).config.microvm.storeDisk;
  compressedErofsStoreDisk =
    (configure {
      storeDiskType = "erofs";
      storeDiskErofsFlags = [ "-zlz4hc" ];
    }).config.microvm.storeDisk;
  writable = (bootable writable).config.microvm.declaredRunner;
  onHost = (bootable (writable // { storeDiskBuild = "host"; })).config.microvm.declaredRunner;
  everything = everything.config.microvm.declaredRunner;
  refused = refused.declaredRunner;
  inherit
    ((system {
      inherit work kernel programs;
      module = {
        services.openssh.enable = true;
        microvm.shares = [
          {
            tag = "store";
            source = "/nix/store";
            mountPoint = "/nix/.ro-store";
          }
        ];
      };
    }).config.microvm.deploy
    )
    rebuild
    ;
  rebuildWithDisk = (configure { }).config.microvm.deploy.rebuild;
  five = (configure { }).config.microvm.runner;
}
