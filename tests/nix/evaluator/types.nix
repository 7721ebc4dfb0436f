# The option types.
lib:
let
  inherit (builtins)
    all
    concatLists
    elem
    filter
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    map
    mapAttrs
    match
    substring
    toJSON
    ;

  mergeEqual =
    place: definitions:
    if all (definition: definition.value == (head definitions).value) definitions then
      (head definitions).value
    else
      throw "The option `${lib.showOption place}' has conflicting definition values: ${
        builtins.concatStringsSep ", " (map (definition: definition.file) definitions)
      }";
  # Packages and functions cannot be compared.
  mergeOne =
    place: definitions:
    if length definitions == 1 then (head definitions).value else mergeEqual place definitions;
  simple = name: check: {
    inherit name check;
    merge = mergeOne;
  };

  under =
    name: definitions:
    map (definition: {
      inherit (definition) file;
      value = definition.value.${name};
    }) (filter (definition: definition.value ? ${name}) definitions);
  namesOf =
    definitions:
    builtins.attrNames (
      builtins.foldl' (all: definition: all // mapAttrs (_: _: null) definition.value) { } definitions
    );

  mergeAnything =
    place: definitions:
    let
      values = map (definition: definition.value) definitions;
      isSet = value: isAttrs value && !(value ? outPath);
    in
    if all isSet values then
      lib.genAttrs (namesOf definitions) (
        name: lib.mergeDefinitions (place ++ [ name ]) types.anything (under name definitions)
      )
    else
      # As in nixpkgs, lists are not merged.
      mergeOne place definitions;

  attrsLike = isLazy: element: {
    name = "attribute set of ${element.name}";
    inherit element;
    check = isAttrs;
    emptyValue.value = { };
    merge =
      place: definitions:
      let
        pushed = builtins.concatMap (
          definition:
          map (value: {
            inherit (definition) file;
            inherit value;
          }) (lib.pushDown definition.value)
        ) definitions;
        # Checking whether a condition holds evaluates the value, which a lazy set must not do.
        isThere = name: isLazy || builtins.concatMap lib.discharge (under name pushed) != [ ];
      in
      lib.genAttrs (filter isThere (namesOf pushed)) (
        name: lib.mergeDefinitions (place ++ [ name ]) element (under name pushed)
      );
  };

  submodule = modules: {
    name = "submodule";
    check = value: isAttrs value || isFunction value || isPath value;
    emptyValue.value = { };
    inherit modules;
    extend = other: submodule (modules ++ other.modules);
    merge =
      place: definitions:
      let
        name._module.args.name = lib.last place;
        define =
          definition:
          if isAttrs definition.value then
            {
              _file = definition.file;
              config = definition.value;
            }
          else
            definition.value;
        evaluated = lib.evalModules {
          prefix = place;
          modules = modules ++ [ name ] ++ map define definitions;
        };
      in
      removeAttrs evaluated.config [ "_module" ];
  };

  types = {
    bool = simple "boolean" isBool;
    int = simple "integer" isInt;
    str = simple "string" isString;
    nonEmptyStr = simple "non-empty string" (value: isString value && match "[ \t\n]*" value == null);
    path = simple "path" (
      value: isPath value || (isString value && substring 0 1 value == "/") || value ? outPath
    );
    package = simple "package" (
      value: (value.type or null) == "derivation" || isString value || isPath value
    );
    raw = simple "raw value" (_: true);
    anything = {
      name = "anything";
      check = _: true;
      merge = mergeAnything;
    };
    ints = {
      unsigned = simple "unsigned integer" (value: isInt value && value >= 0);
      positive = simple "positive integer" (value: isInt value && value > 0);
      between = low: high: simple "integer" (value: isInt value && value >= low && value <= high);
    };
    port = types.ints.between 0 65535;
    strMatching =
      expression:
      simple "string matching ${expression}" (value: isString value && match expression value != null);
    enum = values: simple "one of ${toJSON values}" (value: elem value values);
    lines = {
      name = "strings concatenated with \"\\n\"";
      check = isString;
      merge =
        _: definitions: builtins.concatStringsSep "\n" (map (definition: definition.value) definitions);
    };
    listOf = element: {
      name = "list of ${element.name}";
      inherit element;
      check = isList;
      emptyValue.value = [ ];
      merge =
        place: definitions:
        let
          item =
            file: index: value:
            let
              settled = lib.settle [ { inherit file value; } ];
            in
            lib.optional (settled != [ ]) (
              lib.mergeDefinitions (place ++ [ "[${toString index}]" ]) element settled
            );
        in
        concatLists (
          map (definition: concatLists (lib.imap0 (item definition.file) definition.value)) definitions
        );
    };
    attrsOf = attrsLike false;
    lazyAttrsOf = attrsLike true;
    nullOr = element: {
      name = "null or ${element.name}";
      check = value: value == null || element.check value;
      merge =
        place: definitions:
        if all (definition: definition.value == null) definitions then
          null
        else
          element.merge place (filter (definition: definition.value != null) definitions);
    };
    either = first: second: {
      name = "${first.name} or ${second.name}";
      check = value: first.check value || second.check value;
      merge =
        place: definitions:
        if all (definition: first.check definition.value) definitions then
          first.merge place definitions
        else
          second.merge place definitions;
    };
    submodule = module: submodule (if isList module then module else [ module ]);
    deferredModule = {
      name = "module";
      check = value: isAttrs value || isFunction value || isPath value;
      merge = _: definitions: { imports = map (definition: definition.value) definitions; };
    };
  };
in
types
