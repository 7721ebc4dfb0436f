# Modules: imports, declarations, definitions, and the resulting tree of options and values.
lib:
let
  inherit (builtins)
    addErrorContext
    attrNames
    concatMap
    elem
    filter
    foldl'
    functionArgs
    head
    isFunction
    isPath
    isString
    listToAttrs
    map
    mapAttrs
    removeAttrs
    ;
  special = [
    "_file"
    "key"
    "imports"
    "options"
    "config"
    "disabledModules"
    "meta"
  ];

  # Returns a module and all modules that it imports, without duplicates.
  collect =
    arguments: modules:
    let
      load =
        module:
        let
          isFile = isPath module || isString module;
          file = if isFile then toString module else module._file or "<inline>";
          loaded = if isFile then import module else module;
          value = if isFunction loaded then loaded (arguments file (functionArgs loaded)) else loaded;
          isShort = !(value ? config || value ? options);
          rest = removeAttrs value special;
          config =
            if isShort then
              rest
            else if rest != { } then
              throw "Module `${file}' has an unsupported attribute `${head (attrNames rest)}'"
            else
              value.config or { };
        in
        [
          {
            inherit file config;
            options = value.options or { };
            key = if isFile then file else null;
          }
        ]
        ++ concatMap load (value.imports or [ ]);
      once =
        { seen, kept }:
        module:
        if module.key != null && seen ? ${module.key} then
          { inherit seen kept; }
        else
          {
            seen = if module.key == null then seen else seen // { ${module.key} = true; };
            kept = kept ++ [ module ];
          };
    in
    (foldl' once {
      seen = { };
      kept = [ ];
    } (concatMap load modules)).kept;

  namesIn = items: attrNames (foldl' (all: item: all // mapAttrs (_: _: null) item.value) { } items);
  under =
    name: items:
    map (item: {
      inherit (item) file;
      value = item.value.${name};
    }) (filter (item: item.value ? ${name}) items);

  option =
    place: declarations: definitions:
    let
      join =
        all: declaration:
        all
        // declaration.value
        // (
          if all ? type && declaration.value ? type && all.type ? extend then
            { type = all.type.extend declaration.value.type; }
          else
            { }
        );
      declared = foldl' join { } declarations;
      type = declared.type or lib.types.anything;
      all =
        definitions
        ++ (
          if declared ? default then
            [
              {
                file = "<default>";
                value = lib.mkOptionDefault declared.default;
              }
            ]
          else
            [ ]
        );
      isMissing = lib.settle all == [ ] && !(type ? emptyValue);
      merged =
        if isMissing then
          throw "The option `${lib.showOption place}' is used but not defined."
        else if declared.readOnly or false && builtins.length (lib.settle definitions) > 1 then
          throw "The option `${lib.showOption place}' is read-only, but it's set multiple times."
        else
          lib.mergeDefinitions place type all;
      value = addErrorContext "while evaluating the option `${lib.showOption place}'" merged;
    in
    {
      value = (declared.apply or (x: x)) value;
      option = declared // {
        _type = "option";
        loc = place;
        inherit type value;
      };
      unmatched = [ ];
    };

  walk =
    place: declarations: definitions:
    let
      names = namesIn declarations;
      member =
        name:
        let
          here = place ++ [ name ];
          declared = under name declarations;
          defined = under name definitions;
          options = filter (item: lib.isType "option" item.value) declared;
          pushed = concatMap (
            item:
            map (value: {
              inherit (item) file;
              inherit value;
            }) (lib.pushDown item.value)
          ) defined;
          subtree = walk here declared pushed;
        in
        if options != [ ] then
          option here options defined
        else
          {
            value = subtree.config;
            option = subtree.options;
            inherit (subtree) unmatched;
          };
      members = listToAttrs (
        map (name: {
          inherit name;
          value = member name;
        }) names
      );
      strangers = filter (name: !(elem name names)) (namesIn definitions);
    in
    {
      config = mapAttrs (_: found: found.value) members;
      options = mapAttrs (_: found: found.option) members;
      unmatched =
        concatMap (name: members.${name}.unmatched) names
        ++ map (name: {
          option = lib.showOption (place ++ [ name ]);
          inherit (head (under name definitions)) file;
        }) strangers;
    };

  arguments = {
    options._module.args = lib.mkOption {
      type = lib.types.lazyAttrsOf lib.types.raw;
      default = { };
    };
  };
in
{
  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
    }:
    let
      extendModules =
        {
          modules ? [ ],
          specialArgs ? { },
        }:
        lib.evalModules {
          modules = given.modules ++ modules;
          specialArgs = given.specialArgs // specialArgs;
          inherit prefix;
        };
      given = {
        inherit modules;
        inherit specialArgs;
      };
      always = {
        inherit lib extendModules;
        inherit (tree) options config;
      }
      // specialArgs;
      pass =
        file: wanted:
        always
        // mapAttrs (
          name: _:
          always.${name} or (addErrorContext "while evaluating the module argument `${name}' in ${file}"
            tree.config._module.args.${name}
          )
        ) wanted;
      collected = collect pass ([ arguments ] ++ modules);
      tree =
        walk prefix
          (map (module: {
            inherit (module) file;
            value = module.options;
          }) collected)
          (
            concatMap (
              module:
              map (value: {
                inherit (module) file;
                inherit value;
              }) (lib.pushDown module.config)
            ) collected
          );
      stranger = head tree.unmatched;
    in
    {
      _type = "configuration";
      config =
        if tree.unmatched != [ ] then
          throw "The option `${stranger.option}' does not exist. Defined in ${stranger.file}"
        else
          tree.config;
      inherit (tree) options;
      inherit extendModules;
    };

  mkOption = declaration: declaration // { _type = "option"; };
  mkEnableOption =
    what:
    lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Whether to enable ${what}.";
    };
  showOption = builtins.concatStringsSep ".";
  literalExpression = text: {
    _type = "literalExpression";
    inherit text;
  };
}
