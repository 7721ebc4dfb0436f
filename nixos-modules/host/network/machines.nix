# The machines of a network whose addresses are known when the host is built: the declared machines with an interface in
# the network, and those in `leases`.
{ lib }:
let
  derived = import ../../../lib/derived.nix;
  addresses = import ../../../lib/addresses.nix { inherit lib; };
in
rec {
  # The machines that have a configuration. The host refuses the others.
  evaluated = lib.filterAttrs (
    _: vm: vm.flake != null || vm.config != null || vm.evaluatedConfig != null
  );

  # The interfaces of a declared machine in a network.
  interfacesOf =
    network: vm:
    builtins.filter (
      interface: interface.network or null == network
    ) vm.configuration.config.microvm.interfaces;

  # The addresses are split: a machine's fixed address is in the first half, and networkd gives addresses of the second
  # half to all others. Offsets are counted from the first address of the subnet.
  pool =
    subnet:
    let
      half = subnet.size / 2;
    in
    {
      offset = half;
      # Without the broadcast address.
      size = half - 1;
      # Without the network's own address.
      fixed = half - 1;
    };

  # Returns `{ mac, address }` of each machine, by name. `address` is null if no address is free.
  machinesOf =
    {
      network,
      subnet,
      leases,
      vms,
    }:
    let
      declared = lib.filterAttrs (_: interfaces: interfaces != [ ]) (
        lib.mapAttrs (_: interfacesOf network) (evaluated vms)
      );
      wanted = lib.mapAttrs (_: lease: lease.address) leases;
      names = builtins.attrNames (declared // leases);
      macOf =
        machine:
        let
          lease = leases.${machine} or { mac = null; };
        in
        if lease.mac != null then
          lease.mac
        else if declared ? ${machine} then
          (builtins.head declared.${machine}).mac
        else
          derived.macAddress { inherit network machine; };

      inherit (pool subnet) fixed;
      given = builtins.filter (address: address != null) (builtins.attrValues wanted);
      # The address that a machine prefers depends only on its name, so another machine rarely changes it.
      next =
        taken: start: tries:
        let
          place = start + tries;
          address = addresses.show4 (subnet.first + 1 + (place - place / fixed * fixed));
        in
        if tries >= fixed then
          null
        else if builtins.elem address taken then
          next taken start (tries + 1)
        else
          address;
      assign =
        all: machine:
        let
          address =
            if wanted.${machine} or null != null then
              wanted.${machine}
            else
              next all.taken (derived.numberBelow fixed "address" [
                network
                machine
              ]) 0;
        in
        {
          taken = all.taken ++ [ address ];
          found = all.found // {
            ${machine} = {
              mac = macOf machine;
              inherit address;
            };
          };
        };
    in
    if subnet == null || fixed < 1 then
      lib.genAttrs names (machine: {
        mac = macOf machine;
        address = wanted.${machine} or null;
      })
    else
      (lib.foldl' assign {
        taken = [ (addresses.show4 subnet.address) ] ++ given;
        found = { };
      } names).found;
}
