# The small functions of the library.
lib:
let
  inherit (builtins)
    attrNames
    concatStringsSep
    elem
    elemAt
    filter
    genList
    head
    isString
    length
    listToAttrs
    map
    match
    replaceStrings
    split
    stringLength
    substring
    ;
in
{
  # Lists.
  optional = condition: item: if condition then [ item ] else [ ];
  optionals = condition: items: if condition then items else [ ];
  last = items: elemAt items (length items - 1);
  init = items: genList (elemAt items) (length items - 1);
  imap0 = f: items: genList (index: f index (elemAt items index)) (length items);
  unique = builtins.foldl' (kept: item: if elem item kept then kept else kept ++ [ item ]) [ ];
  findFirst =
    predicate: default: items:
    let
      found = filter predicate items;
    in
    if found == [ ] then default else head found;

  lists.findFirstIndex =
    predicate: default: items:
    let
      indexes = filter (index: predicate (elemAt items index)) (genList (index: index) (length items));
    in
    if indexes == [ ] then default else head indexes;

  toList = value: if builtins.isList value then value else [ value ];

  # Attribute sets.
  recursiveUpdate =
    first: second:
    first
    // builtins.mapAttrs (
      name: value:
      if builtins.isAttrs value && builtins.isAttrs (first.${name} or null) then
        lib.recursiveUpdate first.${name} value
      else
        value
    ) second;
  hiPrio =
    package:
    package
    // {
      meta = package.meta or { } // {
        priority = -10;
      };
    };
  optionalAttrs = condition: set: if condition then set else { };
  nameValuePair = name: value: { inherit name value; };
  genAttrs = names: f: listToAttrs (map (name: lib.nameValuePair name (f name)) names);
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  mapAttrs' = f: set: listToAttrs (lib.mapAttrsToList f set);
  filterAttrs =
    predicate: set:
    lib.genAttrs (filter (name: predicate name set.${name}) (attrNames set)) (name: set.${name});

  # Strings.
  boolToString = value: if value then "true" else "false";
  optionalString = condition: string: if condition then string else "";
  concatMapStrings = f: items: concatStringsSep "" (map f items);
  concatMapStringsSep =
    separator: f: items:
    concatStringsSep separator (map f items);
  hasPrefix = prefix: string: substring 0 (stringLength prefix) string == prefix;
  hasSuffix =
    suffix: string:
    stringLength string >= stringLength suffix
    && substring (stringLength string - stringLength suffix) (-1) string == suffix;
  hasInfix = infix: string: length (split (lib.escapeRegex infix) string) > 1;
  removePrefix =
    prefix: string:
    if lib.hasPrefix prefix string then substring (stringLength prefix) (-1) string else string;
  removeSuffix =
    suffix: string:
    if lib.hasSuffix suffix string then
      substring 0 (stringLength string - stringLength suffix) string
    else
      string;
  escapeRegex = lib.escape (lib.stringToCharacters "\\[{()^$?*+|.");
  toLower = replaceStrings (lib.stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ") (
    lib.stringToCharacters "abcdefghijklmnopqrstuvwxyz"
  );
  escape = characters: replaceStrings characters (map (character: "\\" + character) characters);
  stringToCharacters = string: genList (index: substring index 1 string) (stringLength string);
  splitString = separator: string: filter isString (split (lib.escapeRegex separator) string);
  escapeShellArg =
    argument:
    let
      text = toString argument;
    in
    if match "[[:alnum:],._+:@%/-]+" text != null then
      text
    else
      "'${replaceStrings [ "'" ] [ "'\\''" ] text}'";
  escapeShellArgs = lib.concatMapStringsSep " " lib.escapeShellArg;

  # Packages.
  getExe = package: "${package}/bin/${package.meta.mainProgram}";
  getExe' = package: name: "${package}/bin/${name}";
  makeBinPath = lib.concatMapStringsSep ":" (package: "${package}/bin");

}
