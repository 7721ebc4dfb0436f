# Looking into a list of command-line arguments: for those who add to `microvm.HYPERVISOR.extraArgs`.
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
  # The values of an option, or of one with several names, given as two words or with `=`, and the arguments without it.
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

  # The value of KEY in `a=1,KEY=2`; null without one.
  extractParamValue =
    key: text:
    let
      parts = if text == null then [ ] else lib.splitString "," text;
      found = builtins.filter (lib.hasPrefix "${key}=") parts;
    in
    if found == [ ] then null else lib.removePrefix "${key}=" (builtins.head found);
}
