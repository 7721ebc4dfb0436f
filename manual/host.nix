# Evaluates a module of the manual as the configuration of a host, with the minimal evaluator of the tests, which accepts
# any value for most options of NixOS. So it also checks what a reader who copies a network could miss.
{ module, fixtures }:
let
  lib = import ../tests/nix/evaluator;
  pkgs = import ../tests/nix/evaluator/packages.nix {
    work = /. + "${fixtures}/work/small";
    kernel = /. + "${fixtures}/work/kernel";
    programs = ../lib/hypervisors.nix;
  };
  inherit
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ../tests/nix/evaluator/nixos.nix
        ../nixos-modules/host
        {
          microvm.host.package = pkgs.microvm;
          microvm.host.imageCache.package = pkgs.microvm-image;
        }
        module
      ];
    })
    config
    ;
  network = config.systemd.network or { };
  networks = builtins.attrValues (network.networks or { });
  servers = builtins.filter (unit: unit.networkConfig.DHCPServer or false) networks;
  isOpen =
    interface:
    builtins.elem 67 (config.networking.firewall.interfaces.${interface}.allowedUDPPorts or [ ]);
in
{
  refused =
    map (assertion: assertion.message) (
      builtins.filter (assertion: !assertion.assertion) config.assertions
    )
    ++ lib.optional (
      networks != [ ] && !(network.enable or config.networking.useNetworkd)
    ) "systemd.network.enable: is off, so the networks have no effect"
    ++ map (unit: "networking.firewall: drops DHCP on ${unit.matchConfig.Name}") (
      builtins.filter (unit: !isOpen unit.matchConfig.Name) servers
    );
  machines = lib.concatLists (
    lib.mapAttrsToList (
      _: network:
      lib.mapAttrsToList (
        name: { mac, address }: "${toString address}  ${name}.${network.domain}  ${mac}"
      ) network.machines
    ) config.microvm.host.network
  );
}
