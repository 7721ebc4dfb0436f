# Makes a qemu runner from any NixOS configuration, even if it was not made for a microVM. It uses the host's store, a
# root file system in memory, user networking, and none of the configuration's disks.
{ lib }:
configuration:
let
  # The file systems of disks that do not exist. They remain defined, but are never mounted.
  absent =
    lib.mapAttrs
      (
        _: _:
        lib.mkVMOverride {
          device = "none";
          fsType = "tmpfs";
          options = [ "noauto" ];
          neededForBoot = false;
        }
      )
      (
        removeAttrs configuration.config.fileSystems [
          "/"
          "/nix/store"
          "/nix/.ro-store"
        ]
      );
  root."/" = lib.mkVMOverride (import ../nixos-modules/microvm/memory-root.nix);
  adapted = configuration.extendModules {
    modules = [
      ../nixos-modules/microvm
      {
        fileSystems = absent // root;
        swapDevices = lib.mkVMOverride [ ];
        microvm = {
          hypervisor = lib.mkVMOverride "qemu";
          writableStoreOverlay = lib.mkVMOverride null;
          volumes = lib.mkVMOverride [ ];
          forwardPorts = lib.mkVMOverride [ ];
          shares = lib.mkVMOverride [
            {
              tag = "ro-store";
              proto = "9p";
              source = "/nix/store";
              mountPoint = "/nix/.ro-store";
            }
          ];
          interfaces = lib.mkVMOverride [
            {
              type = "user";
              id = "user";
              mac = "02:00:00:00:00:01";
            }
          ];
        };
      }
    ];
  };
in
adapted.config.microvm.declaredRunner
