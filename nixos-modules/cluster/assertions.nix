# Refuses clusters before anything is built. `microvm cluster check` finds the same and more when the host is built.
{ config, lib, ... }:
let
  cfg = config.microvm.cluster;
  nodes = builtins.attrNames cfg.nodes;
  devices = builtins.attrValues cfg.fencing.devices;
  quoted = lib.concatMapStringsSep ", " (name: "`${name}`");
  isMachineName = import ../../lib/is-machine-name.nix;

  unless = assertion: option: reason: {
    inherit assertion;
    message = "microvm.cluster.${option}: ${reason}";
  };
  uncovered = builtins.filter (
    node: !lib.any (device: builtins.elem node device.targets) devices
  ) nodes;

  # The bridges that this host defines.
  bridges =
    builtins.attrNames (config.networking.bridges or { })
    ++ map (network: network.bridge) (builtins.attrValues config.microvm.host.network)
    ++ builtins.filter (name: name != null) (
      map (
        netdev:
        let
          device = netdev.netdevConfig or { };
        in
        if device.Kind or null == "bridge" then device.Name or null else null
      ) (builtins.attrValues (config.systemd.network.netdevs or { }))
    );
  missing = builtins.filter (bridge: !builtins.elem bridge bridges) cfg.bridges;

  secrets = {
    inherit (cfg) authKeyFile;
  }
  // lib.filterAttrs (_: file: file != null) (
    lib.mapAttrs' (
      name: device: lib.nameValuePair "fencing.devices.${name}.passwordFile" device.passwordFile
    ) cfg.fencing.devices
  );
  secretAssertions = lib.mapAttrsToList (
    option: file:
    unless (!lib.hasPrefix builtins.storeDir file) option
      "`${file}` is in the Nix store, which every user can read; use a file outside of it, such as /run/secrets/NAME"
  ) secrets;
  # From the launcher; a test compares them.
  secretNames = builtins.fromJSON (builtins.readFile ./secret-parameters.json);
  isSecret =
    parameter:
    let
      plain = lib.replaceStrings [ "-" ] [ "_" ] (lib.toLower parameter);
    in
    (plain == "key" || lib.any (word: lib.hasInfix word plain) secretNames.words)
    && !lib.any (end: lib.hasSuffix end plain) secretNames.places;
  parameterAssertions = lib.concatLists (
    lib.mapAttrsToList (
      name: device:
      map (
        parameter:
        unless false "fencing.devices.${name}.parameters.${parameter}"
          "would be in the Nix store, which every user can read; write the password into a file and set `passwordFile`"
      ) (builtins.filter isSecret (builtins.attrNames device.parameters))
    ) cfg.fencing.devices
  );

  isSuspended =
    name:
    let
      selected = config.microvm.host.suspendOnShutdown;
    in
    if builtins.isList selected then builtins.elem name selected else selected;
  machineAssertions = lib.concatLists (
    lib.mapAttrsToList (name: _: [
      (unless (isMachineName name) "machines.${name}"
        "use 1 to 64 letters, digits, `.`, `_` and `-`, starting with a letter or `_`"
      )
      (unless (!(cfg.machines ? "booted-${name}")) "machines.booted-${name}"
        "would have the same garbage collection root as `${name}`; rename one of them"
      )
      (unless (!builtins.elem name config.microvm.autostart) "machines.${name}"
        "the cluster starts this machine, so its hosts must not: set microvm.vms.${name}.autostart to false"
      )
      (unless (!isSuspended name) "machines.${name}"
        "the cluster moves this machine to another host at shutdown, so its hosts must not suspend it: list only other machines in microvm.host.suspendOnShutdown"
      )
    ]) cfg.machines
  );
in
{
  config.assertions = lib.mkIf cfg.enable (
    [
      (unless (builtins.length nodes >= 3 || (builtins.length nodes == 2 && cfg.qdevice.host != null))
        "nodes"
        "there are ${toString (builtins.length nodes)} hosts; when one of two fails, the other one cannot know whether it has a majority. Add hosts until there are three, or set `qdevice.host` to a server outside of the cluster that has a vote"
      )
      (unless (builtins.elem config.networking.hostName nodes) "nodes"
        "this host, `${config.networking.hostName}`, is missing; the names are those in networking.hostName"
      )
      (unless (uncovered == [ ] || cfg.fencing.acceptDataLoss) "fencing.devices"
        "no device covers ${quoted uncovered}, so the cluster cannot know that a failed host no longer writes; add a device, or set `fencing.acceptDataLoss`"
      )
      (unless (
        cfg.qdevice.host == null || cfg.qdevice.package != null
      ) "qdevice.package" "this Nixpkgs has no package corosync-qdevice; set the option to one")
      (unless (missing == [ ]) "bridges"
        "this host has no bridge ${quoted missing}; a machine needs bridges of the same names on all hosts. Define them in networking.bridges, systemd.network.netdevs or microvm.host.network"
      )
    ]
    ++ secretAssertions
    ++ parameterAssertions
    ++ machineAssertions
  );
}
