# Evaluates the properties of definitions (mkIf, mkMerge, priorities, order).
lib:
let
  inherit (builtins)
    any
    concatMap
    filter
    foldl'
    head
    isAttrs
    isList
    map
    mapAttrs
    sort
    ;
  isType = type: value: isAttrs value && (value._type or null) == type;

  # Returns the definitions of one option whose conditions hold.
  discharge =
    definition:
    if isType "merge" definition.value then
      concatMap (value: discharge (definition // { inherit value; })) definition.value.contents
    else if isType "if" definition.value then
      if definition.value.condition then
        discharge (definition // { value = definition.value.content; })
      else
        [ ]
    else
      [ definition ];

  priorityOf =
    definition: if isType "override" definition.value then definition.value.priority else 100;
  orderOf = definition: if isType "order" definition.value then definition.value.priority else 1000;
  content =
    type: definition:
    if isType type definition.value then
      definition // { value = definition.value.content; }
    else
      definition;

  # Returns the definitions with the highest priority, in their order.
  settle =
    definitions:
    let
      there = concatMap discharge definitions;
      strongest = foldl' (
        least: definition: if priorityOf definition < least then priorityOf definition else least
      ) 9999 there;
      kept = map (content "override") (filter (definition: priorityOf definition == strongest) there);
      ordered =
        if any (definition: isType "order" definition.value) kept then
          sort (first: second: orderOf first < orderOf second) kept
        else
          kept;
    in
    map (content "order") ordered;
in
{
  inherit isType discharge settle;

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge =
    contents:
    assert isList contents;
    {
      _type = "merge";
      inherit contents;
    };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkOrder = priority: content: {
    _type = "order";
    inherit priority content;
  };
  mkOptionType = type: { check = _: true; } // type;
  mkOptionDefault = lib.mkOverride 1500;
  mkDefault = lib.mkOverride 1000;
  mkForce = lib.mkOverride 50;
  mkVMOverride = lib.mkOverride 10;
  mkBefore = lib.mkOrder 500;
  mkAfter = lib.mkOrder 1500;

  # Turns a property of a set into the same property of each of its members.
  pushDown =
    value:
    if isType "merge" value then
      concatMap lib.pushDown value.contents
    else if isType "if" value then
      map (mapAttrs (_: lib.mkIf value.condition)) (lib.pushDown value.content)
    else if isType "override" value then
      map (mapAttrs (_: lib.mkOverride value.priority)) (lib.pushDown value.content)
    else
      [ value ];

  mergeDefinitions =
    place: type: definitions:
    let
      settled = settle definitions;
      misfits = filter (definition: !(type.check definition.value)) settled;
    in
    if misfits != [ ] then
      throw "A definition for option `${lib.showOption place}' is not of type `${type.name}' (${(head misfits).file})"
    else
      type.merge place settled;
}
