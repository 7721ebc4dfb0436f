# What the hypervisors support, from the launcher's table, and the launcher's message for what they do not support.
{ lib }:
let
  table = builtins.fromJSON (builtins.readFile ../nixos-modules/microvm/capabilities.json);
  hypervisors = import ./hypervisors.nix;

  names =
    list:
    if builtins.length list < 2 then
      builtins.concatStringsSep "" list
    else
      "${builtins.concatStringsSep ", " (lib.init list)} and ${lib.last list}";
in
rec {
  inherit table;

  can = hypervisor: feature: table.${feature}.hypervisors.${hypervisor}.can;

  # Whether a machine that uses it without support is refused; otherwise the machine runs without it, with a warning.
  refuses = feature: table.${feature}.refuse;

  sentence =
    {
      machine,
      option,
      hypervisor,
      feature,
    }:
    let
      able = builtins.filter (other: can other feature) hypervisors;
      alternatives = if able == [ ] then "no other hypervisor can" else "${names able} can";
    in
    "${machine}: microvm.${option}: ${hypervisor} ${
      table.${feature}.hypervisors.${hypervisor}.reason
    }; ${alternatives}";
}
