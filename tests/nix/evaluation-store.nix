# Tests of the disk and the share through which a guest gets its store, and of the file systems that it needs; a part of
# evaluation.nix.
{
  each,
  evaluate,
  guest,
  lib,
  overlayVolume,
  share,
  specOf,
}:
let
  fileSystemsOf =
    configuration:
    builtins.mapAttrs (
      _: fileSystem:
      "${fileSystem.device} ${fileSystem.fsType} ${builtins.concatStringsSep "," fileSystem.options}"
      + lib.optionalString fileSystem.neededForBoot " needed-for-boot"
    ) configuration.config.fileSystems;
  root = "rootfs tmpfs size=50%,mode=0755 needed-for-boot";
  afterModules = "x-systemd.after=systemd-modules-load.service";
  overlayMount = "overlay overlay lowerdir=/nix/.ro-store,upperdir=/nix/.rw-store/store,workdir=/nix/.rw-store/work needed-for-boot";
in
{
  "with the host's store there is no store disk" = {
    expected = null;
    found =
      (specOf (guest {
        shares = [ share ];
      })).storeDisk;
  };
  "with a disk built on the host, the store contains only its plan" = {
    expected = [
      "builder"
      "live"
      "plan"
      "serial"
    ];
    found =
      builtins.attrNames
        (specOf (guest {
          storeDiskBuild = "host";
        })).storeDisk;
  };
  "a live disk is served from a plan, and mounted by its serial number on every hypervisor" = {
    expected = {
      live = true;
      serial = "nix-store";
      fsType = "erofs";
      device = "/dev/disk/by-id/virtio-nix-store";
    };
    found =
      let
        live = guest {
          hypervisor = "firecracker";
          storeDiskBuild = "live";
        };
        store = live.config.fileSystems."/nix/store";
      in
      {
        inherit ((specOf live).storeDisk) live serial;
        inherit (store) fsType device;
      };
  };
  "persistent memory is an image without a serial number, mounted with DAX" = {
    expected = {
      transport = "pmem";
      serial = null;
      device = "/dev/pmem0";
      hasDax = true;
      modules = true;
    };
    found =
      let
        mapped = guest { storeDiskTransport = "pmem"; };
        store = mapped.config.fileSystems."/nix/store";
      in
      {
        inherit ((specOf mapped).storeDisk) transport serial;
        inherit (store) device;
        hasDax = builtins.elem "dax=always" store.options;
        modules = builtins.elem "virtio_pmem" mapped.config.boot.initrd.kernelModules;
      };
  };
  "a closure-only share names the list of the closure's paths, and its guest caches files" = {
    expected = {
      hasList = true;
      sets = false;
      cache = "always";
      cacheOfOthers = "auto";
    };
    found =
      let
        spec = specOf (guest {
          shares = [ (share // { closureOnly = true; }) ];
        });
        shared = builtins.head spec.shares;
      in
      {
        hasList = lib.hasSuffix "-microvm-closure-guest" shared.closure;
        sets = shared ? closureOnly;
        inherit (shared) cache;
        cacheOfOthers =
          (builtins.head
            (specOf (guest {
              shares = [ share ];
            })).shares
          ).cache;
      };
  };
  "a sealed disk is opened in stage 1 before it is mounted, and its image is beside its root hash" = {
    expected = {
      verity = true;
      image = "store.squashfs";
      device = "/dev/mapper/nix-store";
      bindsTo = [ "dev-vda.device" ];
      requiredBy = [ "sysroot-nix-store.mount" ];
      hasSystemd = true;
    };
    found =
      let
        sealed = guest {
          storeDiskVerity = true;
          hypervisor = "kvmtool";
        };
        inherit (sealed.config.boot.initrd) systemd;
      in
      {
        inherit ((specOf sealed).storeDisk) verity;
        image = baseNameOf (specOf sealed).storeDisk.image;
        inherit (sealed.config.fileSystems."/nix/store") device;
        inherit (systemd.services.microvm-sealed-store) bindsTo requiredBy;
        hasSystemd = systemd.enable;
      };
  };
  "the store disk is mounted by its serial number if the hypervisor supports one" = {
    expected = {
      qemu = "/dev/disk/by-id/virtio-nix-store";
      cloud-hypervisor = "/dev/disk/by-id/virtio-nix-store";
      crosvm = "/dev/disk/by-id/virtio-nix-store";
      firecracker = "/dev/vda";
      kvmtool = "/dev/vda";
    };
    found = each (hypervisor: (guest { inherit hypervisor; }).config.fileSystems."/nix/store".device);
  };
  "the machine spec contains the store disk's serial number if the hypervisor supports one" = {
    expected = {
      qemu = "nix-store";
      cloud-hypervisor = "nix-store";
      crosvm = "nix-store";
      firecracker = null;
      kvmtool = null;
    };
    found = each (
      hypervisor:
      (specOf (guest {
        inherit hypervisor;
      })).storeDisk.serial
    );
  };
  "a plain guest has its root in memory and a read-only store" = {
    expected = {
      "/" = root;
      "/nix/store" = "/dev/disk/by-id/virtio-nix-store squashfs ro,${afterModules} needed-for-boot";
    };
    found = fileSystemsOf (guest { });
  };
  "a writable layer is on the volume at its mount point" = {
    expected = {
      "/" = root;
      "/nix/.ro-store" = "/dev/vda squashfs ro,${afterModules} needed-for-boot";
      "/nix/.rw-store" = "/dev/vdb ext4 defaults needed-for-boot";
      "/nix/store" = overlayMount;
      "/var" = "/dev/disk/by-label/var ext4 ro";
    };
    found = fileSystemsOf (guest {
      hypervisor = "kvmtool";
      writableStoreOverlay = "/nix/.rw-store";
      volumes = [
        overlayVolume
        {
          image = "var.img";
          mountPoint = "/var";
          label = "var";
          size = 64;
          readOnly = true;
        }
      ];
    });
  };
  "with the host's store by 9p there is no disk, and volumes start at vda" = {
    expected = {
      "/" = root;
      "/nix/.ro-store" =
        "store 9p trans=virtio,version=9p2000.L,msize=65536,ro,${afterModules} needed-for-boot";
      "/nix/.rw-store" = "/dev/vda ext4 defaults needed-for-boot";
      "/nix/store" = overlayMount;
    };
    found = fileSystemsOf (guest {
      shares = [ share ];
      writableStoreOverlay = "/nix/.rw-store";
      volumes = [ overlayVolume ];
    });
  };
  "the host's store by virtiofs is bind-mounted to /nix/store" = {
    expected = {
      "/" = root;
      "/nix/.ro-store" = "store virtiofs defaults,ro,${afterModules} needed-for-boot";
      "/nix/store" = "/nix/.ro-store none bind,ro needed-for-boot";
    };
    found = fileSystemsOf (guest {
      hypervisor = "crosvm";
      shares = [ (share // { proto = "virtiofs"; }) ];
    });
  };
  "what is added to a persistent layer is on the disk before Nix records it, if Nix can" = {
    expected = {
      memory = null;
      volume = true;
      old-nix = null;
      lix = true;
      old-lix = null;
    };
    found =
      let
        with-package =
          package: volumes:
          (evaluate {
            nix.package = package;
            microvm = {
              inherit volumes;
              writableStoreOverlay = "/nix/.rw-store";
            };
          }).config.nix.settings.fsync-store-paths or null;
        nix = version: {
          type = "derivation";
          inherit version;
          outPath = "/nix";
          pname = "nix";
        };
        lix = version: nix version // { pname = "lix"; };
      in
      {
        memory = with-package (nix "2.26.3") [ ];
        volume = with-package (nix "2.26.3") [ overlayVolume ];
        old-nix = with-package (nix "2.24.14") [ overlayVolume ];
        lix = with-package (lix "2.92.0") [ overlayVolume ];
        old-lix = with-package (lix "2.91.1") [ overlayVolume ];
      };
  };
  "a writable layer on virtiofs stores its metadata in user attributes" = {
    expected = true;
    found =
      lib.hasInfix "userxattr"
        (fileSystemsOf (guest {
          writableStoreOverlay = "/nix/.rw-store";
          shares = [
            {
              tag = "rw";
              proto = "virtiofs";
              source = "rw";
              mountPoint = "/nix/.rw-store";
            }
          ];
        }))."/nix/store";
  };
  "the host's store is shared read-only with every protocol" = {
    expected = {
      "9p" = {
        crosvm = "mounted";
        kvmtool = "mounted";
        qemu = "mounted and refused";
      };
      virtiofs = "mounted and refused";
      virtiofs-1-12 = "mounted";
      unless-said-otherwise = "writable";
      other-directory = "writable";
    };
    found =
      let
        access =
          hypervisor: settings: module:
          let
            configuration = evaluate {
              imports = [ module ];
              microvm = {
                inherit hypervisor;
                shares = [ (share // settings) ];
              };
            };
            isMounted = builtins.elem "ro" configuration.config.fileSystems."/nix/.ro-store".options;
            isRefused = (builtins.head (specOf configuration).shares).readOnly;
          in
          if isMounted then "mounted${lib.optionalString isRefused " and refused"}" else "writable";
        # Nixpkgs' own is older in NixOS 24.05.
        byVirtiofsd =
          version:
          access "cloud-hypervisor" { proto = "virtiofs"; } (
            { pkgs, ... }:
            {
              microvm.virtiofsd.package = pkgs.virtiofsd // {
                inherit version;
              };
            }
          );
      in
      {
        "9p" = lib.genAttrs [ "crosvm" "kvmtool" "qemu" ] (hypervisor: access hypervisor { } { });
        virtiofs = byVirtiofsd "1.13.0";
        virtiofs-1-12 = byVirtiofsd "1.12.0";
        unless-said-otherwise = access "qemu" { readOnly = false; } { };
        other-directory = access "qemu" {
          source = "/srv";
          mountPoint = "/nix/.ro-store";
        } { };
      };
  };
  "exactly the mounts that the store needs are kept until the end of a shutdown" = {
    expected = {
      plain = [ "nix-store.mount" ];
      volume = [
        "nix-.ro\\x2dstore.mount"
        "nix-.rw\\x2dstore.mount"
        "nix-store.mount"
      ];
      share = [
        "nix-.ro\\x2dstore.mount"
        "nix-store.mount"
      ];
      above = [
        "nix-.ro\\x2dstore.mount"
        "nix-store.mount"
        "nix.mount"
      ];
    };
    found =
      let
        exempt =
          settings:
          builtins.attrNames (
            lib.filterAttrs (
              _: unit: lib.hasInfix "DefaultDependencies=false" (unit.text or "")
            ) (guest settings).config.systemd.units
          );
        data = {
          image = "data.img";
          mountPoint = "/nixos-data";
          size = 64;
        };
        writableStoreOverlay = "/nix/.rw-store";
      in
      {
        plain = exempt { volumes = [ data ]; };
        volume = exempt {
          inherit writableStoreOverlay;
          volumes = [
            overlayVolume
            data
          ];
        };
        share = exempt { shares = [ share ]; };
        above = exempt {
          inherit writableStoreOverlay;
          volumes = [ (overlayVolume // { mountPoint = "/nix"; }) ];
        };
      };
  };
}
