# For each row of the launcher's table, the option that uses the feature, and settings that use it. evaluation.nix tests
# every hypervisor with each feature that it does not support. Rows whose condition is simple need no entry.
let
  interface = type: {
    inherit type;
    id = "vm-guest";
    mac = "02:00:00:00:00:01";
  };
  interfaces = type: {
    option = "interfaces[0].type";
    settings.interfaces = [
      (
        interface type
        // {
          macvtap.link = "eth0";
          bridge = if type == "bridge" then "br0" else null;
        }
      )
    ];
  };
  share = settings: {
    shares = [
      (
        {
          tag = "a";
          source = "/srv/a";
          mountPoint = "/a";
        }
        // settings
      )
    ];
  };
  volume = option: value: {
    option = "volumes[0].${option}";
    settings.volumes = [
      {
        image = "a.img";
        size = 8;
        ${option} = value;
      }
    ];
  };
  forward = from: {
    option = "forwardPorts[0]";
    settings.interfaces = [ (interface "user") ];
    settings.forwardPorts = [
      {
        inherit from;
        host.port = 8080;
        guest.port = 80;
      }
    ];
  };
  device = bus: path: {
    option = "devices[0]";
    settings.devices = [ { inherit bus path; } ];
  };
  plain = option: value: {
    inherit option;
    settings.${option} = value;
  };

  # The settings for features whose condition in the table tests one field of the machine for one value.
  table = builtins.fromJSON (builtins.readFile ../../nixos-modules/microvm/capabilities.json);
  nested =
    names: value:
    if names == [ ] then
      value
    else
      {
        ${builtins.head names} = nested (builtins.tail names) value;
      };
  byCondition =
    feature:
    let
      condition = builtins.head table.${feature}.uses;
      test = builtins.head condition.tests;
    in
    {
      inherit (condition) option;
      settings = nested (builtins.filter builtins.isString (builtins.split "[.]" test.field)) test.is;
    };
  isSimple =
    feature:
    let
      inherit (table.${feature}) uses;
    in
    builtins.length uses == 1
    && builtins.all (
      condition:
      condition.each == "" && builtins.length condition.tests == 1 && builtins.head condition.tests ? is
    ) uses;
  simple = builtins.filter isSimple (builtins.attrNames table);
in
builtins.listToAttrs (
  map (name: {
    inherit name;
    value = byCondition name;
  }) simple
)
// {
  Console = plain "consoleSocket" "console.sock";
  CpuModel = plain "cpu" "core2duo";
  Credentials = plain "credentialFiles" { token = "/etc/token"; };
  DevicePci = device "pci" "0000:01:00.0";
  DeviceUsb = device "usb" "vendorid=0x1,productid=0x2";
  ForwardFromGuest = forward "guest";
  ForwardFromHost = forward "host";
  GuestNotification = {
    option = "vsock.notify";
    settings.vsock = {
      cid = 3;
      notify = true;
    };
  };
  HotplugMemory = plain "hotplugMem" 64;
  InitialBalloon = {
    option = "initialBalloonMem";
    settings.balloon = true;
    settings.initialBalloonMem = 64;
  };
  InterfaceBridge = interfaces "bridge";
  InterfaceMacvtap = interfaces "macvtap";
  InterfaceTap = interfaces "tap";
  InterfaceUser = interfaces "user";
  MachineId = plain "machineId" "a67472e5-570e-8c5a-818c-ae3c77701050";
  NineP = {
    option = "shares[0].proto";
    settings = share { proto = "9p"; };
  };
  NinePReadOnly = {
    option = "shares[0].readOnly";
    settings = share { readOnly = true; };
  };
  NinePSecurityModel = {
    option = "shares[0].securityModel";
    settings = share { securityModel = "mapped"; };
  };
  TapVhost = {
    option = "interfaces[0].tap.vhost";
    settings.interfaces = [ (interface "tap" // { tap.vhost = true; }) ];
  };
  Virtiofs = {
    option = "shares[0].proto";
    settings = share { proto = "virtiofs"; };
  };
  VolumeDirect = volume "direct" true;
  VolumeQcow2 = volume "imageType" "qcow2";
  LiveStoreDisk = {
    option = "storeDiskBuild";
    settings.storeDiskBuild = "live";
  };
  PmemStoreDisk = {
    option = "storeDiskTransport";
    settings.storeDiskTransport = "pmem";
  };
  SealedStoreDisk = {
    option = "storeDiskVerity";
    settings.storeDiskVerity = true;
  };
  VolumeSerial = volume "serial" "a";
  VolumeVhd = volume "imageType" "vhd";
  VolumeVhdx = volume "imageType" "vhdx";
  Vsock = {
    option = "vsock.cid";
    settings.vsock.cid = 3;
  };
}
