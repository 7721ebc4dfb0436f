# Functions that read lists of command-line arguments, for modules that extend `microvm.HYPERVISOR.extraArgs`.
{ lib }:
let
  step =
    names: state: argument:
    let
      name = lib.findFirst (name: argument == name || lib.hasPrefix "${name}=" argument) null names;
    in
    if state.isValue then
      state
      // {
        isValue = false;
        values = state.values ++ [ argument ];
      }
    else if name == null then
      state // { args = state.args ++ [ argument ]; }
    else if argument == name then
      state // { isValue = true; }
    else
      state // { values = state.values ++ [ (lib.removePrefix "${name}=" argument) ]; };
in
{
  # Returns the values of an option (which can have several names), given as two arguments or with `=`, and the other
  # arguments.
  extractOptValues =
    names: arguments:
    let
      found = lib.foldl' (step (lib.toList names)) {
        isValue = false;
        values = [ ];
        args = [ ];
      } arguments;
    in
    if found.isValue then
      throw "extractOptValues: the last argument, `${lib.last arguments}`, has no value"
    else
      { inherit (found) values args; };

  # Returns the value of KEY in `a=1,KEY=2`, or null if it is missing.
  extractParamValue =
    key: text:
    let
      parts = if text == null then [ ] else lib.splitString "," text;
      found = builtins.filter (lib.hasPrefix "${key}=") parts;
    in
    if found == [ ] then null else lib.removePrefix "${key}=" (builtins.head found);
}
