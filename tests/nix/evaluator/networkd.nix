# Writes the units of networkd from `systemd.network`, as NixOS does: `{ "NAME.netdev" = TEXT; "NAME.network" = TEXT; }`.
{ lib }:
network:
let
  word = value: if builtins.isBool value then lib.boolToString value else toString value;
  lines =
    section:
    lib.concatMapStrings (
      name: lib.concatMapStrings (value: "${name}=${word value}\n") (lib.toList section.${name})
    ) (builtins.attrNames section);
  section =
    attribute: title: unit:
    lib.optionalString (unit.${attribute} or { } != { }) "[${title}]\n${lines unit.${attribute}}\n";
  write =
    suffix: sections: units:
    lib.mapAttrs' (
      name: unit:
      lib.nameValuePair "${name}.${suffix}" (
        lib.concatMapStrings ({ attribute, title }: section attribute title unit) sections
        + unit.extraConfig or ""
      )
    ) units;
  of = attribute: title: { inherit attribute title; };
in
write "netdev" [ (of "netdevConfig" "NetDev") ] (network.netdevs or { })
// write "network" [
  (of "matchConfig" "Match")
  (of "linkConfig" "Link")
  (of "networkConfig" "Network")
  (of "dhcpServerConfig" "DHCPServer")
  (of "ipv6SendRAConfig" "IPv6SendRA")
  (of "bridgeConfig" "Bridge")
] (network.networks or { })
