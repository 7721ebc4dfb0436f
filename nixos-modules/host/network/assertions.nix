# Refuses networks that cannot work, before anything is built.
{ config, lib, ... }:
let
  cfg = config.microvm;
  networks = cfg.host.network;
  addresses = import ../../../lib/addresses.nix { inherit lib; };
  derived = import ../../../lib/derived.nix;
  isMachineName = import ../../../lib/is-machine-name.nix;
  inherit (import ./machines.nix { inherit lib; }) evaluated pool;

  refuse = option: reason: {
    assertion = false;
    message = "microvm.host.network.${option}: ${reason}";
  };
  unless =
    condition: option: reason:
    lib.optional (!condition) (refuse option reason);
  quoted = list: lib.concatMapStringsSep ", " (name: "`${name}`") list;

  # Calls `f` for each pair of different networks, once.
  pairs =
    f:
    let
      names = builtins.attrNames networks;
    in
    lib.concatMap (one: lib.concatMap (other: if one < other then f one other else [ ]) names) names;

  # Each value that several machines have, with the names of the machines.
  shared =
    field: machines:
    let
      values = lib.unique (
        builtins.filter (value: value != null) (lib.mapAttrsToList (_: machine: machine.${field}) machines)
      );
    in
    builtins.filter ({ owners, ... }: builtins.length owners > 1) (
      map (value: {
        inherit value;
        owners = builtins.attrNames (lib.filterAttrs (_: machine: machine.${field} == value) machines);
      }) values
    );
  clashes =
    option: what: field: machines:
    lib.concatMap ({ value, owners }: [
      (refuse option "the ${what} `${value}` is used by ${quoted owners}")
    ]) (shared field machines);

  nameAssertions =
    name: network:
    unless (builtins.match "[a-z][a-z0-9]{0,7}" name != null) name
      "use a letter and at most 7 letters and digits, all lower-case: the names of tap interfaces begin with it"
    ++
      unless
        (
          builtins.match "[A-Za-z0-9_][A-Za-z0-9_.-]*" network.bridge != null
          && builtins.stringLength network.bridge <= derived.maxInterfaceName
        )
        "${name}.bridge"
        "`${network.bridge}` is not the name of an interface, which has at most 15 letters, digits, `_`, `.` and `-`"
    ++ unless (
      builtins.match "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*" network.domain
      != null
    ) "${name}.domain" "`${network.domain}` is not a DNS domain";

  addressAssertions =
    name: network:
    let
      subnet = addresses.parseSubnet4 network.address;
      subnet6 = addresses.parseSubnet6 network.address6;
      offset = subnet.address - subnet.first;
    in
    (
      if addresses.parse4 network.address != null then
        [
          (refuse "${name}.address" "`${network.address}` has no prefix length; write `${network.address}/24`")
        ]
      else if subnet == null then
        [
          (refuse "${name}.address" "`${network.address}` is not an IPv4 address with a prefix length, like `10.7.0.1/24`")
        ]
      else if subnet.prefixLength < 16 || subnet.prefixLength > 29 then
        [
          (refuse "${name}.address" "the prefix length must be from /16 to /29, but it is /${toString subnet.prefixLength}")
        ]
      else
        unless (offset != 0 && offset != subnet.size - 1) "${name}.address"
          "`${network.address}` is the ${
            if offset == 0 then "address of the network itself" else "broadcast address"
          }; give the host another address of the network, like `${
            addresses.show4 (subnet.first + 1)
          }/${toString subnet.prefixLength}`"
    )
    ++ lib.optionals (network.address6 != null) (
      if subnet6 == null then
        [
          (refuse "${name}.address6" "`${network.address6}` is not an IPv6 address with the prefix length /64, like `fd00:7::1/64`")
        ]
      else
        unless (!subnet6.isNetwork) "${name}.address6"
          "`${network.address6}` is the address of the network itself; give the host another address of the network"
    );

  leaseAssertions =
    name: network:
    let
      subnet = addresses.parseSubnet4 network.address;
      inherit (network) machines;
      without = builtins.attrNames (lib.filterAttrs (_: { address, ... }: address == null) machines);
      checkAddress =
        machine: lease:
        let
          option = "${name}.leases.${machine}.address";
          number = addresses.parse4 lease.address;
        in
        lib.optionals (lease.address != null && subnet != null) (
          if number == null then
            [ (refuse option "`${lease.address}` is not an IPv4 address; write it without a prefix length") ]
          else if !addresses.contains4 subnet number then
            [ (refuse option "`${lease.address}` is not in the network ${network.address}") ]
          else if number == subnet.address then
            [ (refuse option "`${lease.address}` is the address of the host") ]
          else
            unless (
              number != subnet.first && number != subnet.first + subnet.size - 1
            ) option "`${lease.address}` is the address of the network itself or its broadcast address"
        );
      checkMac =
        machine: lease:
        unless (lease.mac == null || builtins.match "[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}" lease.mac != null)
          "${name}.leases.${machine}.mac"
          "`${toString lease.mac}` is not a MAC address, like `02:00:00:00:00:01`";
      checkName =
        machine: _:
        unless (isMachineName machine) "${name}.leases" "`${machine}` is not the name of a machine";
    in
    lib.concatLists (
      lib.mapAttrsToList checkAddress network.leases
      ++ lib.mapAttrsToList checkMac network.leases
      ++ lib.mapAttrsToList checkName network.leases
    )
    ++ clashes name "MAC address" "mac" machines
    ++ clashes name "address" "address" machines
    ++ lib.optionals (subnet != null) (
      unless (without == [ ]) "${name}.address"
        "/${toString subnet.prefixLength} has only ${toString (pool subnet).fixed} fixed addresses, including that of the host, so none is left for ${quoted without}; use a shorter prefix length"
    );

  serverAssertions =
    name: network:
    unless (network.nameservers != [ ] || config.services.resolved.enable or false)
      "${name}.nameservers"
      "the host does not run systemd-resolved; enable services.resolved, or set the DNS servers of the machines";

  overlapAssertions = pairs (
    one: other:
    let
      subnetOf = name: addresses.parseSubnet4 networks.${name}.address;
      prefixOf =
        name:
        let
          subnet6 = addresses.parseSubnet6 networks.${name}.address6;
        in
        if networks.${name}.address6 == null || subnet6 == null then null else subnet6.prefix;
    in
    lib.optionals (subnetOf one != null && subnetOf other != null) (
      unless (!addresses.overlap4 (subnetOf one) (subnetOf other)) "${other}.address"
        "`${networks.${other}.address}` overlaps `${networks.${one}.address}` of the network `${one}`"
    )
    ++
      unless (prefixOf one == null || prefixOf one != prefixOf other) "${other}.address6"
        "`${toString networks.${other}.address6}` has the same prefix as `${
          toString networks.${one}.address6
        }` of the network `${one}`"
    ++ unless (
      networks.${one}.bridge != networks.${other}.bridge
    ) "${other}.bridge" "`${networks.${other}.bridge}` is also the bridge of the network `${one}`"
  );

  # The networks of declared machines exist.
  machineAssertions = lib.concatLists (
    lib.mapAttrsToList (
      machine: vm:
      lib.concatMap (
        interface:
        let
          name = interface.network or null;
          known = builtins.attrNames networks;
        in
        lib.optional (name != null && !(networks ? ${name})) {
          assertion = false;
          message = "microvm.vms.${machine}: the interface `${interface.id}` is in the network `${name}`, which is not in microvm.host.network${
            lib.optionalString (known != [ ]) " (${quoted known})"
          }";
        }
      ) vm.configuration.config.microvm.interfaces
    ) (evaluated cfg.vms)
  );

  all = check: lib.concatLists (lib.mapAttrsToList check networks);
in
{
  config = lib.mkIf cfg.host.enable {
    assertions =
      all nameAssertions
      ++ all addressAssertions
      ++ overlapAssertions
      ++ all leaseAssertions
      ++ all serverAssertions
      ++ machineAssertions;
  };
}
