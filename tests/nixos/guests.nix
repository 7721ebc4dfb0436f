# The guests that are booted: by the scenario's name the boots, in a row, over one state directory.
#   machine   the guest's module
#   end       how the boot ends: poweroff, reboot, crash (sysrq) in the guest; stop (microvm-shutdown), cut (SIGKILL) from outside
#   outside   shell commands run on the host in the state directory when the guest's checks are done
# `shared` is a directory that the host has for them: token, key, key.pub, directory/.
{ shared, lib }:
let
  # Paths of a guest's own, made in an earlier boot or in this one, are valid and there; a build works; the system survives a
  # garbage collection.
  nixWorks =
    { pkgs, ... }:
    {
      rig.checks = ''
        kept=/nix/.rw-store/rig; mkdir -p $kept
        [ ! -e $kept/result ] || { root() { nix-store --gc --print-roots | grep -F $kept/result; }; check 'the result of a build from before is a root' root; }
        for name in added of-bash; do
          [ ! -e $kept/$name ] || { check "$name from before is valid" nix-store --check-validity "$(cat $kept/$name)"; check "$name from before is there" test -e "$(cat $kept/$name)"; }
        done
        if [ -e $kept/of-system ]; then
          path=$(cat $kept/of-system)
          if [ "$(cat $kept/system)" = "$(readlink -f /run/current-system)" ]; then check 'what was built from the same system stays' test -e "$path"
          else check 'what was built from another system is gone' test ! -e "$path"; check 'and not valid' sh -c "! nix-store --check-validity $path"; fi
        fi
        check 'the database agrees with the store' nix-store --verify
        echo hello >/tmp/hello; check 'a file is added' sh -c "nix-store --add /tmp/hello >$kept/added"
        build() { # NAME PATH
          nix-build --out-link $kept/result --expr "derivation { name = \"$1\"; system = \"x86_64-linux\"; builder = \"${pkgs.bash}/bin/bash\"; input = builtins.storePath \"$2\"; shell = builtins.storePath \"${pkgs.bash}\"; args = [ \"-c\" \"echo \$input > \$out\" ]; }" >$kept/$1
        }
        check 'a build from the system works' build of-system "$(readlink -f /run/current-system)"
        check 'a build works' build of-bash ${pkgs.bash}
        readlink -f /run/current-system >$kept/system
        ln -sfn "$(cat $kept/added)" /nix/var/nix/gcroots/rig-added
        ln -sfn "$(cat $kept/of-system)" /nix/var/nix/gcroots/rig-of-system
        # The notes of these checks outlive a crash. What Nix wrote must do so without this.
        sync $kept/added $kept/of-bash $kept/of-system $kept/system $kept
        check 'garbage is collected' nix-collect-garbage
        check 'the system survives it' nix-store --check-validity "$(readlink -f /run/current-system)"
        check 'the daemon answers' env NIX_REMOTE=daemon nix store ping
        same 'nothing failed meanwhile' "$(systemctl list-units --failed --plain --no-legend)" ""
      '';
    };
  writableOn = storage: {
    imports = [ nixWorks ];
    microvm = {
      writableStoreOverlay = "/nix/.rw-store";
    }
    // storage;
  };
  upgraded = machine: {
    imports = [ machine ];
    environment.etc.upgraded.text = "yes";
    rig.checks = lib.mkBefore "check 'the new system runs' test -e /etc/upgraded";
  };
  storeVolume = {
    image = "rw.img";
    label = "rw-store";
    mountPoint = "/nix/.rw-store";
    size = 256;
  };
  hostStore = proto: {
    tag = "ro-store";
    inherit proto;
    source = "/nix/store";
    mountPoint = "/nix/.ro-store";
  };
  closureOnly = proto: hostStore proto // { closureOnly = true; };
  scripted = {
    boot.initrd.systemd.enable = lib.mkForce false;
    # There is no dhcpcd among the wrapped packages.
    networking.useDHCP = false;
    imports = [ ./wrapping/scripted-initrd.nix ];
  };
  # What a guest has for vsock, started without its device: few kernels without KVM have vhost_vsock.
  withoutVsockDevice =
    { config, pkgs, ... }:
    let
      spec = pkgs.writeText "machine.json" (
        builtins.toJSON (removeAttrs config.microvm.machineSpec [ "vsock" ])
      );
    in
    {
      microvm = {
        vsock.cid = 5;
        vsock.ssh.enable = true;
        binScripts.microvm-run = lib.mkForce "exec ${lib.getExe' pkgs.microvm-test-launcher "microvm"} run ${spec} \"$@\"";
      };
    };
  readsOnly.rig.checks = ''
    check 'the store cannot be written' sh -c '! touch /nix/store/x'
    check 'the database agrees with the store' nix-store --verify
    same 'the store is as Nix expects it' "$(stat -c '%a %u:%g' /nix/store)" '1775 0:30000'
  '';
in
{
  plain.boots = [ { machine = readsOnly; } ];
  # For comparison with `plain`.
  not-optimized.boots = [
    {
      machine = {
        imports = [
          readsOnly
          scripted
        ];
        microvm.optimize.enable = false;
      };
    }
  ];
  # Its store disk is built when it starts, and it has a graphics card without a window.
  squashfs-by-host.boots = [
    {
      machine = {
        imports = [ readsOnly ];
        microvm.storeDiskBuild = "host";
        microvm.graphics.enable = true;
        microvm.graphics.backend = "headless";
        rig.checks = "check 'there is a graphics card' test -e /dev/dri/card0";
      };
      end = "stop";
    }
  ];
  live.boots = [
    {
      machine = {
        imports = [ readsOnly ];
        microvm.storeDiskBuild = "live";
      };
      end = "stop";
    }
  ];
  # An erofs store disk that is mapped as persistent memory.
  pmem.boots = [
    {
      machine = {
        imports = [ readsOnly ];
        microvm.storeDiskType = "erofs";
        microvm.storeDiskTransport = "pmem";
        rig.checks = ''
          check 'the store is read without a page cache' sh -c 'grep " /nix/store erofs .*dax=always" /proc/mounts'
          block() { dd if=/dev/pmem0 bs=4096 count=1 iflag=direct 2>/dev/null | sha256sum; }
          before=$(block)
          dd if=/dev/zero of=/dev/pmem0 bs=4096 count=1 oflag=direct
          same 'what the guest writes to the image is dropped' "$(block)" "$before"
        '';
      };
    }
  ];
  store-by-9p.boots = [
    {
      machine = {
        imports = [ readsOnly ];
        microvm.shares = [ (hostStore "9p") ];
        rig.checks = "check 'the host refuses to write, whatever the guest mounts' sh -c '! { mount -o remount,rw /nix/.ro-store && touch /nix/.ro-store/x; }'";
      };
    }
  ];
  store-by-virtiofs.boots = [
    {
      machine = {
        imports = [ readsOnly ];
        microvm.shares = [ (hostStore "virtiofs") ];
      };
    }
  ];
  closure-only.boots = [
    {
      machine = {
        imports = [ readsOnly ];
        microvm.shares = [ (closureOnly "virtiofs") ];
        rig.checks = ''
          registration=$(grep -o 'regInfo=[^ ]*' /proc/cmdline | cut -d/ -f1-4)
          closure() { { nix-store --query --requisites /run/current-system; echo "$registration"; } | sed 's,.*/,,' | sort; }
          same 'the share has the closure and its registration, and nothing else' "$(comm -3 <(ls /nix/.ro-store | sort) <(closure) | xargs)" ""
        '';
      };
      end = "stop";
    }
  ];
  # The writable layer of this one is over an erofs store disk.
  writable-in-memory.boots = [
    {
      machine = writableOn { storeDiskType = "erofs"; };
      end = "reboot";
    }
  ];
  # Only the closure is shared here and in `overlay-on-share`, because Nix reads the whole lower store when it collects garbage.
  writable-by-9p.boots = [ { machine = writableOn { shares = [ (closureOnly "9p") ]; }; } ];
  # A crash, an upgrade, and the machine's death with the same system after it.
  writable-volume.boots =
    let
      machine = writableOn { volumes = [ storeVolume ]; };
    in
    [
      {
        inherit machine;
        end = "crash";
      }
      {
        machine = upgraded machine;
        end = "cut";
      }
      {
        machine = upgraded machine;
        end = "reboot";
      }
    ];
  # The layer is a directory of the host.
  overlay-on-share.boots =
    let
      machine = writableOn {
        shares = [
          (closureOnly "virtiofs")
          {
            tag = "rw-store";
            proto = "virtiofs";
            source = "rw-store";
            mountPoint = "/nix/.rw-store";
          }
        ];
      };
    in
    [
      {
        inherit machine;
        end = "cut";
      }
      { machine = upgraded machine; }
    ];
  # The profile of NixOS without Perl. It allows no path with this word in its name, so the name of the system differs.
  perlless.boots = [
    {
      machine =
        { modulesPath, ... }:
        {
          imports = [
            readsOnly
            (modulesPath + "/profiles/perlless.nix")
          ];
          system.name = "no-interpreter";
          users.mutableUsers = lib.mkForce true;
          rig.checks = "check '/etc is an overlay' sh -c 'grep \"^overlay /etc overlay \" /proc/mounts'";
        };
    }
  ];
  # Nothing optimized, and stage 1 by NixOS' script instead of systemd.
  scripted.boots =
    let
      machine = {
        imports = [
          scripted
          (writableOn {
            volumes = [ storeVolume ];
            credentialFiles.token = "${shared}/token";
            optimize.enable = false;
          })
        ];
      };
    in
    [
      {
        inherit machine;
        end = "reboot";
      }
      { inherit machine; }
    ];
  devices.boots =
    let
      machine =
        { pkgs, ... }:
        {
          microvm = {
            volumes = [
              {
                image = "var.img";
                label = "var";
                mountPoint = "/var";
                size = 256;
              }
              {
                image = "data.img";
                serial = "datadisk";
                mountPoint = "/srv/data";
                size = 64;
                fsType = "ext2";
              }
              {
                image = "fat.img";
                mountPoint = "/srv/fat";
                size = 64;
                fsType = "vfat";
              }
              {
                image = "swap.img";
                serial = "swapdisk";
                mountPoint = null;
                size = 64;
                autoCreate = false;
              }
            ];
            preStart = "[ -e swap.img ] || { truncate -s 64M swap.img; mkswap swap.img; }";
            shares = [
              {
                tag = "shared";
                source = "${shared}/directory";
                mountPoint = "/srv/shared";
              }
            ];
            credentialFiles.token = "${shared}/token";
            interfaces = [
              {
                type = "user";
                id = "net0";
                mac = "02:00:00:00:00:01";
              }
            ];
            forwardPorts = [
              {
                host.port = 2222;
                guest.port = 22;
              }
            ];
          };
          swapDevices = [ { device = "/dev/disk/by-id/virtio-swapdisk"; } ];
          imports = [ withoutVsockDevice ];
          services.openssh.enable = true;
          users.users.root.openssh.authorizedKeys.keyFiles = [ "${shared}/key.pub" ];
          systemd.services.reads-credential = {
            wantedBy = [ "multi-user.target" ];
            serviceConfig = {
              Type = "oneshot";
              RemainAfterExit = true;
              LoadCredential = "token";
            };
            script = ''cp "$CREDENTIALS_DIRECTORY/token" /run/token'';
          };
          systemd.services.rig-checks.path = [ pkgs.socat ];
          rig.checks = ''
            same 'sshd listens on vsock' "$(systemctl is-active sshd-vsock.socket)" active
            check 'the guest has vsock to itself' modprobe vsock_loopback
            same 'sshd answers on vsock' "$(socat -T 300 -u VSOCK-CONNECT:1:22 - 2>&1 | head -c 8)" 'SSH-2.0-'
            same 'a service has the credential' "$(cat /run/token)" secret-of-the-rig
            same 'nobody else may read it' "$(stat -c %a /run/credentials/@system/token)" 400
            check 'there is swap' grep -q /dev/vd /proc/swaps
            check 'the share is written to' touch /srv/shared/from-guest
            for directory in /srv/data /srv/fat /var/lib; do check "$directory is written to" sh -c "echo boot >>$directory/boots"; done
            value boots "$(wc -l </srv/data/boots)"
            value machine-id "$(cat /etc/machine-id)"
            value journal-boots "$(journalctl --list-boots --no-pager | grep -c ' [0-9a-f]\{32\} ')"
            check 'the interface has an address' sh -c 'for n in $(seq 60); do ip -4 -br addr | grep -q 10.0.2.15 && exit; sleep 1; done; exit 1'
          '';
        };
      ssh = ''ssh -i "$SHARED/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=60 -p 2222 root@127.0.0.1 systemctl is-system-running'';
    in
    [
      {
        inherit machine;
        end = "stop";
        outside = ''
          [ "$(${ssh})" = running ]
          [ -e "$SHARED/directory/from-guest" ]
        '';
      }
      {
        inherit machine;
        end = "reboot";
        # The same machine: its id, its journal of two boots, its volumes.
        outside = ''
          told() { sed -n "s/.*RIG: value: $1 //p" "$2" | tr -d '\r'; }
          [ "$(told machine-id console-0)" = "$(told machine-id console-1)" ]
          [ "$(told boots console-1)" = 2 ]
          [ "$(told journal-boots console-1)" = 2 ]
        '';
      }
    ];
}
