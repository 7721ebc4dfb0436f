# Refuses invalid configurations before anything is built: the launcher's checks, with the names of the options, and
# checks that only NixOS can do.
{ config, lib, ... }:
let
  cfg = config.microvm;
  machine = config.networking.hostName;
  capabilities = import ../../lib/capabilities.nix { inherit lib; };

  refuse = option: reason: {
    assertion = false;
    message = "${machine}: microvm.${option}: ${reason}";
  };
  unless =
    condition: option: reason:
    lib.optional (!condition) (refuse option reason);

  indexed =
    option: list: f:
    lib.concatLists (lib.imap0 (index: item: f "${option}[${toString index}]" item) list);

  # An assertion for each value that occurs twice in the list.
  distinct =
    what: items:
    (lib.foldl'
      (
        { seen, found }:
        { option, value }:
        if seen ? ${value} then
          {
            inherit seen;
            found = found ++ [ (refuse option "the ${what} `${value}` is already used by ${seen.${value}}") ];
          }
        else
          {
            seen = seen // {
              ${value} = option;
            };
            inherit found;
          }
      )
      {
        seen = { };
        found = [ ];
      }
      (builtins.filter (item: item.value != null) items)
    ).found;
  field =
    option: name: list:
    lib.imap0 (index: item: {
      option = "${option}[${toString index}].${name}";
      value = item.${name};
    }) list;

  # The launcher's table says when a machine uses a feature, in terms of the machine spec. The spec itself is not
  # evaluated here: it contains packages that a refused configuration may not have.
  uses = capabilities.uses (
    cfg
    // {
      storeDisk =
        if cfg.storeOnDisk then
          {
            live = cfg.storeDiskBuild == "live";
            transport = cfg.storeDiskTransport;
            verity = cfg.storeDiskVerity;
          }
        else
          null;
      # The host's store is read-only by default. If the hypervisor cannot enforce that, only the guest's mount is
      # read-only.
      shares = map (
        share: share // { readOnly = share.readOnly && share.source != "/nix/store"; }
      ) cfg.shares;
    }
  );
  # The options of the machine spec that have other names here.
  optionNames = {
    "storeDisk.live" = "storeDiskBuild";
    "storeDisk.transport" = "storeDiskTransport";
    "storeDisk.verity" = "storeDiskVerity";
  };

  impossible = builtins.filter ({ feature, ... }: !capabilities.can cfg.hypervisor feature) uses;
  sentence =
    { feature, option }:
    capabilities.sentence {
      inherit machine feature;
      inherit (cfg) hypervisor;
      option = optionNames.${option} or option;
    };
  inherit (builtins.partition ({ feature, ... }: capabilities.refuses feature) impossible)
    right
    wrong
    ;

  capabilityAssertions = map (asked: {
    assertion = false;
    message = sentence asked;
  }) right;

  noHypervisor = "belongs to a hypervisor that is not supported; set microvm.hypervisor to one of ${lib.concatStringsSep ", " (import ../../lib/hypervisors.nix)}";
  formerAssertions =
    lib.concatLists (
      lib.mapAttrsToList (option: reason: unless (cfg.${option} == null) option reason) {
        alioth = noHypervisor;
        balloonMem = "is not supported; set microvm.balloon = true, and microvm.initialBalloonMem to the size of the balloon at the start";
        bootDisk = "is not supported: every hypervisor boots microvm.kernel directly; remove it";
        stratovirt = noHypervisor;
        vfkit = noHypervisor;
      }
    )
    ++
      unless (cfg.qemu.bios == null) "qemu.bios"
        "is not supported: qemu boots microvm.kernel without firmware; to use your own firmware, set microvm.qemu.extraArgs = [ \"-bios\" PATH ]";

  volumeAssertions =
    distinct "image" (field "volumes" "image" cfg.volumes)
    ++ distinct "serial number" (field "volumes" "serial" cfg.volumes)
    ++ distinct "label" (field "volumes" "label" cfg.volumes)
    ++ indexed "volumes" cfg.volumes (
      option: volume:
      unless (
        volume.size != null || !volume.autoCreate || lib.hasPrefix "/dev/" volume.image
      ) "${option}.size" "must be set, because autoCreate is on"
    );

  shareAssertions =
    distinct "tag" (field "shares" "tag" cfg.shares)
    ++ distinct "socket" (field "shares" "socket" cfg.shares)
    ++ indexed "shares" cfg.shares (
      option: share:
      unless (
        share.proto != "virtiofs" || share.socket != null
      ) "${option}.socket" "must be set, because the protocol is virtiofs"
      ++ lib.optionals share.closureOnly (
        unless (
          share.source == "/nix/store"
        ) "${option}.closureOnly" "is for a share of `/nix/store`, but the source is `${share.source}`"
        ++ unless share.readOnly "${option}.closureOnly" "needs readOnly = true"
        ++
          unless (share.proto == "virtiofs" || capabilities.can cfg.hypervisor "NinePReadOnly")
            "${option}.closureOnly"
            "needs proto = \"virtiofs\", because ${cfg.hypervisor} cannot share a directory read-only by 9p"
      )
      ++ unless (
        !(
          share.proto == "virtiofs"
          && share.posixAcl
          && lib.any (lib.hasPrefix "--translate-") (cfg.virtiofsd.extraArgs ++ share.extraArgs)
        )
      ) "${option}.posixAcl" "is incompatible with translated user and group ids; set it to false"
    )
    ++ unless (
      cfg.storeOnDisk || lib.any (share: share.source == "/nix/store") cfg.shares
    ) "storeOnDisk" "is off, so a share must have the source `/nix/store`";

  interfaceAssertions =
    distinct "id" (field "interfaces" "id" cfg.interfaces)
    ++ distinct "network" (field "interfaces" "network" cfg.interfaces)
    ++ distinct "MAC address" (
      field "interfaces" "mac" (
        # With user networking, each interface has its own network.
        map (
          interface: if interface.type == "user" then interface // { mac = null; } else interface
        ) cfg.interfaces
      )
    )
    ++ indexed "interfaces" cfg.interfaces (
      option: interface:
      unless ((interface.type == "bridge") == (interface.bridge != null)) "${option}.bridge" (
        if interface.type == "bridge" then
          "must be set, because the type is \"bridge\""
        else
          "has an effect only with type = \"bridge\", but the type is \"${interface.type}\""
      )
      ++
        unless (interface.network == null || interface.type == "tap") "${option}.network"
          "has an effect only with type = \"tap\", but the type is \"${interface.type}\""
      ++
        unless (interface.network == null || builtins.match "[a-z][a-z0-9]{0,7}" interface.network != null)
          "${option}.network"
          "`${toString interface.network}` is not the name of a network, which has at most 8 lower-case letters and digits"
      ++ unless (
        interface.type != "macvtap" || interface.macvtap.link != null
      ) "${option}.macvtap.link" "must be set, because the type is \"macvtap\""
      ++ unless (
        !builtins.elem interface.type [
          "tap"
          "macvtap"
        ]
        || builtins.stringLength interface.id <= 15
      ) "${option}.id" "`${interface.id}` has more than the 15 bytes of an interface's name"
    )
    ++ unless (
      cfg.forwardPorts == [ ] || lib.any (interface: interface.type == "user") cfg.interfaces
    ) "forwardPorts" "require an interface with type = \"user\"";

  otherAssertions =
    unless (!cfg.vsock.ssh.enable || cfg.vsock.cid != null) "vsock.ssh.enable" "needs microvm.vsock.cid"
    ++ unless (!cfg.vsock.notify || cfg.vsock.cid != null) "vsock.notify" "requires microvm.vsock.cid"
    ++ unless (
      !cfg.graphics.enable || cfg.graphics.backend != "cocoa"
    ) "graphics.backend" "\"cocoa\" is supported on macOS only; set \"gtk\" or \"headless\""
    ++ unless (
      !cfg.graphics.enable || cfg.graphics.vulkan == null || cfg.graphics.gl != false
    ) "graphics.vulkan" "requires the host's OpenGL; do not set graphics.gl to false"
    ++ unless (
      !cfg.guest.enable || cfg.initialBalloonMem == 0 || cfg.balloon
    ) "initialBalloonMem" "needs microvm.balloon = true"
    ++
      unless
        (
          cfg.writableStoreOverlay == null
          || !(config.nix.optimise.automatic || config.nix.settings.auto-optimise-store or false)
        )
        "writableStoreOverlay"
        "breaks when Nix makes hard links in the store; turn nix.optimise.automatic and nix.settings.auto-optimise-store off"
    ++ unless (
      cfg.storeDiskBuild == "derivation"
      || cfg.storeDiskType == "squashfs"
      || cfg.storeDiskErofsFlags == [ ]
    ) "storeDiskBuild" "\"host\" does not run mkfs.erofs; set microvm.storeDiskErofsFlags = [ ]"
    ++ unless (
      cfg.storeDiskBuild != "live" || cfg.storeDiskType == "erofs"
    ) "storeDiskBuild" "\"live\" serves an erofs; set microvm.storeDiskType = \"erofs\""
    ++
      unless
        (
          cfg.storeDiskTransport == "block" || cfg.storeDiskType == "erofs" && cfg.storeDiskErofsFlags == [ ]
        )
        "storeDiskTransport"
        "\"pmem\" needs an erofs that is not compressed; set microvm.storeDiskType = \"erofs\" and storeDiskErofsFlags = [ ]"
    ++
      unless (cfg.storeDiskTransport == "block" || cfg.storeDiskBuild == "derivation")
        "storeDiskTransport"
        "\"pmem\" maps an image that Nix builds; set microvm.storeDiskBuild = \"derivation\""
    ++ lib.optionals cfg.storeDiskVerity sealAssertions;

  # What cannot be sealed.
  sealAssertions =
    unless cfg.storeOnDisk "storeDiskVerity"
      "checks the store disk, but the guest has a share of `/nix/store` instead; set storeOnDisk = true, or storeDiskVerity = false"
    ++ unless (
      cfg.storeDiskBuild != "live"
    ) "storeDiskVerity" "checks an image, and storeDiskBuild = \"live\" has none; choose one of the two"
    ++
      unless (cfg.storeDiskTransport == "block") "storeDiskVerity"
        "checks blocks that the guest reads from a disk, but storeDiskTransport = \"pmem\" maps them into its memory; choose one of the two"
    ++
      unless (cfg.storeDiskErofsFlags == [ ]) "storeDiskVerity"
        "needs microvm-image, but mkfs.erofs builds the image; set storeDiskErofsFlags = [ ]"
    ++
      unless config.boot.initrd.systemd.enable "storeDiskVerity"
        "needs boot.initrd.systemd.enable = true";
in
{
  config = lib.mkIf cfg.guest.enable {
    assertions =
      lib.optional (machine == "") {
        assertion = false;
        message = "networking.hostName: must be set, because it names the microVM";
      }
      ++ formerAssertions
      ++ capabilityAssertions
      ++ volumeAssertions
      ++ shareAssertions
      ++ interfaceAssertions
      ++ otherAssertions;

    warnings =
      map sentence wrong
      ++ lib.optional (
        cfg.mem < 32
      ) "${machine}: microvm.mem: Linux with its initrd rarely boots with less than 32 MiB"
      ++ lib.optional (
        config.nix.optimise.automatic or false && cfg.writableStoreOverlay == null
      ) "${machine}: nix.optimise.automatic: a read-only store cannot be optimised"
      ++ indexed "volumes" cfg.volumes (
        option: volume:
        lib.optional (volume.label != null && !volume.autoCreate)
          "${machine}: microvm.${option}.label: autoCreate is off, so the image must already have the label `${volume.label}`"
      );
  };
}
