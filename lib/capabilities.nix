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

  # The features that a machine uses and that not every hypervisor supports, each with the option that uses it, as in
  # `shares[0].proto`. `machine` has the fields of a machine spec that the table tests.
  uses =
    machine:
    let
      valueAt =
        element: field:
        builtins.foldl' (value: name: value.${name} or null) element (lib.splitString "." field);
      isTrue =
        element: test:
        if test ? is then
          valueAt element test.field == test.is
        else
          valueAt element test.field != test.isNot;
      elements =
        { each, option, ... }:
        if each == "" then
          [
            {
              inherit option;
              element = machine;
            }
          ]
        else
          lib.imap0 (index: element: {
            inherit element;
            option = "${each}[${toString index}]${if option == "" then "" else ".${option}"}";
          }) machine.${each};
      usesOf =
        feature: condition:
        map ({ option, ... }: { inherit feature option; }) (
          builtins.filter ({ element, ... }: builtins.all (isTrue element) condition.tests) (
            elements condition
          )
        );
    in
    builtins.concatLists (
      lib.mapAttrsToList (feature: row: builtins.concatMap (usesOf feature) row.uses) table
    );

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
