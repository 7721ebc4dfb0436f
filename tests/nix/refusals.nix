# Configurations that are refused, and the messages: every assertion of the guest module, and every row of the
# launcher's table that refuses a machine.
let
  on = hypervisor: settings: expected: {
    module.microvm = settings // {
      inherit hypervisor;
    };
    inherit expected;
  };
  interface = {
    type = "tap";
    id = "vm-guest";
    mac = "02:00:00:00:00:01";
  };
  user = interface // {
    type = "user";
  };
  volume = {
    image = "a.img";
    size = 8;
  };
  share = {
    tag = "a";
    source = "/srv/a";
    mountPoint = "/a";
  };
  virtiofs = share // {
    proto = "virtiofs";
  };
  forward = {
    host.port = 8080;
    guest.port = 80;
  };
in
[
  (on "cloud-hypervisor" { shares = [ share ]; } [
    "shares[0].proto: cloud-hypervisor has no 9p; use virtiofs; supported by qemu, crosvm and kvmtool"
  ])
  (on "firecracker" { shares = [ virtiofs ]; } [
    "shares[0].proto: firecracker does not support shares; supported by qemu, cloud-hypervisor and crosvm"
  ])
  (on "kvmtool" { shares = [ virtiofs ]; } [
    "shares[0].proto: kvmtool has no vhost-user devices, so no virtiofs; supported by qemu, cloud-hypervisor and crosvm"
  ])
  (on "crosvm" { shares = [ (share // { readOnly = true; }) ]; } [
    "shares[0].readOnly: crosvm cannot share a directory read-only by 9p; supported by qemu"
  ])
  (on "firecracker" { interfaces = [ user ]; } [
    "interfaces[0].type: firecracker has no user networking; supported by qemu, cloud-hypervisor and kvmtool"
  ])
  (on "kvmtool"
    {
      interfaces = [
        (
          interface
          // {
            type = "bridge";
            bridge = "br0";
          }
        )
      ];
    }
    [
      "interfaces[0].type: kvmtool has no bridge helper; add a tap to the bridge on the host; supported by qemu"
    ]
  )
  (on "kvmtool" { hotplugMem = 64; } [
    "hotplugMem: kvmtool has no virtio-mem; supported by qemu, cloud-hypervisor and firecracker"
  ])
  (on "qemu"
    {
      balloon = true;
      initialBalloonMem = 64;
    }
    [
      "initialBalloonMem: qemu starts with an empty balloon; fill it with `microvm balloon`; supported by cloud-hypervisor, firecracker and crosvm"
    ]
  )
  (on "crosvm" {
    devices = [
      {
        bus = "usb";
        path = "vendorid=0x1,productid=0x2";
      }
    ];
  } [ "devices[0]: crosvm supports USB devices only while it runs; supported by qemu" ])
  (on "firecracker"
    {
      devices = [
        {
          bus = "pci";
          path = "0000:01:00.0";
        }
      ];
    }
    [
      "devices[0]: firecracker does not support PCI passthrough; supported by qemu, cloud-hypervisor, crosvm and kvmtool"
    ]
  )
  (on "cloud-hypervisor" { cpu = "core2duo"; } [
    "cpu: cloud-hypervisor always uses the host's CPU; supported by qemu"
  ])
  (on "crosvm"
    {
      interfaces = [ user ];
      forwardPorts = [ forward ];
    }
    [
      "forwardPorts[0]: crosvm has no user networking, so no forwarded ports; supported by qemu and cloud-hypervisor"
      "interfaces[0].type: crosvm has no user networking, and passt does not work with it; supported by qemu, cloud-hypervisor and kvmtool"
    ]
  )
  (on "cloud-hypervisor" { graphics.enable = true; } [
    "graphics.enable: cloud-hypervisor has no graphics card; only a patched one has `--gpu`; supported by qemu and crosvm"
  ])
  (on "qemu"
    {
      graphics = {
        enable = true;
        backend = "cocoa";
        vulkan = "venus";
        gl = false;
      };
    }
    [
      "graphics.backend: \"cocoa\" is supported on macOS only; set \"gtk\" or \"headless\""
      "graphics.vulkan: requires the host's OpenGL; do not set graphics.gl to false"
    ]
  )
  (on "firecracker" { volumes = [ (volume // { imageType = "qcow2"; }) ]; } [
    "volumes[0].imageType: firecracker supports raw images only; supported by qemu, cloud-hypervisor and crosvm"
  ])
  (on "qemu"
    {
      volumes = [
        (volume // { label = "x"; })
        (
          volume
          // {
            label = "x";
            serial = "s";
          }
        )
        {
          image = "b.img";
          serial = "s";
        }
      ];
    }
    [
      "volumes[1].image: the image `a.img` is already used by volumes[0].image"
      "volumes[2].serial: the serial number `s` is already used by volumes[1].serial"
      "volumes[1].label: the label `x` is already used by volumes[0].label"
      "volumes[2].size: must be set, because autoCreate is on"
    ]
  )
  (on "qemu"
    {
      shares = [
        virtiofs
        (virtiofs // { mountPoint = "/b"; })
      ];
    }
    [
      "shares[1].tag: the tag `a` is already used by shares[0].tag"
      "shares[1].socket: the socket `guest-virtiofs-a.sock` is already used by shares[0].socket"
    ]
  )
  (on "qemu" { shares = [ (virtiofs // { socket = null; }) ]; } [
    "shares[0].socket: must be set, because the protocol is virtiofs"
  ])
  (on "qemu" { shares = [ (virtiofs // { extraArgs = [ "--translate-uid=map:0:1:1" ]; }) ]; } [
    "shares[0].posixAcl: is incompatible with translated user and group ids; set it to false"
  ])
  (on "qemu" { storeOnDisk = false; } [
    "storeOnDisk: is off, so a share must have the source `/nix/store`"
  ])
  (on "qemu"
    {
      interfaces = [
        interface
        interface
      ];
    }
    [
      "interfaces[1].id: the id `vm-guest` is already used by interfaces[0].id"
      "interfaces[1].mac: the MAC address `02:00:00:00:00:01` is already used by interfaces[0].mac"
    ]
  )
  (on "qemu" { interfaces = [ (interface // { id = "sixteen-bytes-16"; }) ]; } [
    "interfaces[0].id: `sixteen-bytes-16` has more than the 15 bytes of an interface's name"
  ])
  (on "qemu" { interfaces = [ (interface // { type = "bridge"; }) ]; } [
    "interfaces[0].bridge: must be set, because the type is \"bridge\""
  ])
  (on "qemu" { interfaces = [ (interface // { bridge = "br0"; }) ]; } [
    "interfaces[0].bridge: has an effect only with type = \"bridge\", but the type is \"tap\""
  ])
  (on "qemu" { interfaces = [ (interface // { type = "macvtap"; }) ]; } [
    "interfaces[0].macvtap.link: must be set, because the type is \"macvtap\""
  ])
  (on "qemu" { forwardPorts = [ forward ]; } [
    "forwardPorts: require an interface with type = \"user\""
  ])
  (on "qemu" { vsock.ssh.enable = true; } [ "vsock.ssh.enable: needs microvm.vsock.cid" ])
  (on "qemu" { credentialFiles.token = ./refusals.nix; } [
    "credentialFiles.token: the file would be in the Nix store, where every user of the host can read it; set the option to the path of a file on the host, as a string: \"/run/secrets/token\""
  ])
  (on "firecracker" { credentialFiles.key = "${builtins.storeDir}/key"; } [
    "credentialFiles.key: the file would be in the Nix store, where every user of the host can read it; set the option to the path of a file on the host, as a string: \"/run/secrets/key\""
  ])
  (on "qemu" { vsock.notify = true; } [ "vsock.notify: requires microvm.vsock.cid" ])
  (on "crosvm" { initialBalloonMem = 64; } [ "initialBalloonMem: needs microvm.balloon = true" ])
  {
    module = {
      microvm.writableStoreOverlay = "/nix/.rw-store";
      nix.optimise.automatic = true;
    };
    expected = [
      "writableStoreOverlay: breaks when Nix makes hard links in the store; turn nix.optimise.automatic and nix.settings.auto-optimise-store off"
    ];
  }
  (on "qemu" {
    storeDiskBuild = "host";
    storeDiskType = "erofs";
    storeDiskErofsFlags = [ "-zlz4hc" ];
  } [ "storeDiskBuild: \"host\" does not run mkfs.erofs; set microvm.storeDiskErofsFlags = [ ]" ])
  (on "qemu" {
    storeDiskBuild = "live";
    storeDiskType = "squashfs";
  } [ "storeDiskBuild: \"live\" serves an erofs; set microvm.storeDiskType = \"erofs\"" ])
  (on "qemu"
    {
      storeDiskBuild = "live";
      storeDiskTransport = "pmem";
    }
    [
      "storeDiskTransport: \"pmem\" maps an image that Nix builds; set microvm.storeDiskBuild = \"derivation\""
    ]
  )
  (on "qemu"
    {
      storeDiskVerity = true;
      storeDiskBuild = "live";
    }
    [
      "storeDiskVerity: checks an image, and storeDiskBuild = \"live\" has none; choose one of the two"
    ]
  )
  (on "qemu"
    {
      storeDiskVerity = true;
      storeDiskTransport = "pmem";
    }
    [
      "storeDiskVerity: checks blocks that the guest reads from a disk, but storeDiskTransport = \"pmem\" maps them into its memory; choose one of the two"
    ]
  )
  (on "qemu"
    {
      storeDiskVerity = true;
      storeDiskType = "erofs";
      storeDiskErofsFlags = [ "-zlz4hc" ];
    }
    [
      "storeDiskVerity: needs microvm-image, but mkfs.erofs builds the image; set storeDiskErofsFlags = [ ]"
    ]
  )
  (on "qemu"
    {
      storeDiskVerity = true;
      shares = [
        {
          tag = "store";
          source = "/nix/store";
          mountPoint = "/nix/store";
        }
      ];
    }
    [
      "storeDiskVerity: checks the store disk, but the guest has a share of `/nix/store` instead; set storeOnDisk = true, or storeDiskVerity = false"
    ]
  )
  {
    module = {
      microvm.storeDiskVerity = true;
      boot.initrd.systemd.enable = false;
    };
    expected = [ "storeDiskVerity: needs boot.initrd.systemd.enable = true" ];
  }
  (on "qemu"
    {
      shares = [
        {
          tag = "home";
          source = "/home";
          mountPoint = "/home";
          closureOnly = true;
          readOnly = true;
        }
      ];
    }
    [
      "shares[0].closureOnly: is for a share of `/nix/store`, but the source is `/home`"
    ]
  )
  (on "kvmtool"
    {
      shares = [
        {
          tag = "store";
          source = "/nix/store";
          mountPoint = "/nix/store";
          closureOnly = true;
        }
      ];
    }
    [
      "shares[0].closureOnly: needs proto = \"virtiofs\", because kvmtool cannot share a directory read-only by 9p"
    ]
  )
  (on "qemu" { balloonMem = 512; } [
    "balloonMem: is not supported; set microvm.balloon = true, and microvm.initialBalloonMem to the size of the balloon at the start"
  ])
  (on "qemu" { qemu.bios.enable = true; } [
    "qemu.bios: is not supported: qemu boots microvm.kernel without firmware; to use your own firmware, set microvm.qemu.extraArgs = [ \"-bios\" PATH ]"
  ])
  (on "qemu" { bootDisk.enable = true; } [
    "bootDisk: is not supported: every hypervisor boots microvm.kernel directly; remove it"
  ])
  (on "qemu" { vfkit.extraArgs = [ ]; } [
    "vfkit: belongs to a hypervisor that is not supported; set microvm.hypervisor to one of qemu, cloud-hypervisor, firecracker, crosvm, kvmtool"
  ])
]
