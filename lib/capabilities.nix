# The features that the hypervisors support, from the launcher's table, and the launcher's messages for those that they
# do not.
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

  # Whether a machine that uses an unsupported feature is refused. If not, it runs without the feature and prints a
  # warning.
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
      alternatives =
        if able == [ ] then "no other hypervisor supports it" else "supported by ${names able}";
    in
    "${machine}: microvm.${option}: ${hypervisor} ${
      table.${feature}.hypervisors.${hypervisor}.reason
    }; ${alternatives}";
}
