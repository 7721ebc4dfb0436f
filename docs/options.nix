# Generates docs/options.md, the options of guests, hosts and clusters, from the modules. tests/nix/run.sh checks that it is
# current.
#   nix-instantiate --eval --strict --json docs/options.nix ARGUMENTS | jq -r .
{
  work ? null,
  kernel ? null,
  programs ? null,
  packages ? null,
}:
let
  # Always uses the evaluator of the tests, because other module systems have other names for types.
  lib = import ../tests/nix/evaluator;
  pkgs =
    if packages != null then
      packages
    else
      import ../tests/nix/evaluator/packages.nix { inherit work kernel programs; };
  optionsOf =
    module:
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        ../tests/nix/evaluator/nixos.nix
        module
      ];
    }).options.microvm;

  # The modules of a submodule, also within lists and sets.
  submodules =
    type:
    if type ? modules then
      type.modules
    else if type ? element then
      submodules type.element
    else
      null;
  step = type: if lib.hasPrefix "list" type.name then "*" else "<name>";

  value =
    declaration:
    let
      default = declaration.defaultText or declaration.default;
    in
    if default._type or null == "literalExpression" then
      "`${default.text}`"
    else if declaration ? defaultText then
      default
    else
      "`${builtins.toJSON default}`";

  entry = place: declaration: ''
    ### `${lib.showOption place}`

    ${lib.removeSuffix "\n" declaration.description}

    Type: ${declaration.type.name}.${
      if declaration ? default || declaration ? defaultText then
        " Default: ${value declaration}."
      else if declaration.readOnly or false then
        " Read-only."
      else
        " Has no default."
    }

  '';

  document =
    place: tree:
    if lib.isType "option" tree then
      let
        modules = submodules tree.type;
        # Only the names and types are used. The name of the submodule is unknown, and nothing that depends on it is
        # evaluated.
        inner =
          (lib.evalModules {
            modules = modules ++ [ { _module.args.name = "<name>"; } ];
          }).options;
      in
      lib.optionalString (!(tree.internal or false)) (
        entry place tree
        + lib.optionalString (modules != null) (
          document (place ++ [ (step tree.type) ]) (removeAttrs inner [ "_module" ])
        )
      )
    else
      lib.concatMapStrings (name: document (place ++ [ name ]) tree.${name}) (builtins.attrNames tree);
in
''
  # Options

  This page is generated from the modules. Options that also exist in microvm.nix have the same names, types and defaults,
  except for [those that differ](migration.md#options-that-differ).

  ## Of guests: `nixosModules.microvm`

''
+ document [ "microvm" ] (optionsOf ../nixos-modules/microvm)
+ ''
  ## Of hosts: `nixosModules.host`

''
+ document [ "microvm" ] (optionsOf ../nixos-modules/host)
+ ''

  ## Of clusters: `nixosModules.cluster`

''
+ document [ "microvm" "cluster" ] (optionsOf ../nixos-modules/cluster).cluster
