# Looking into a list of command-line arguments: for those who add to `microvm.HYPERVISOR.extraArgs`.
{ lib }:
let
  step =
    name: state: argument:
    if state.isValue then
      state
      // {
        isValue = false;
        values = state.values ++ [ argument ];
      }
    else if argument == name then
      state // { isValue = true; }
    else if lib.hasPrefix "${name}=" argument then
      state // { values = state.values ++ [ (lib.removePrefix "${name}=" argument) ]; }
    else
      state // { args = state.args ++ [ argument ]; };
in
{
  # The values of an option, given as two words or with `=`, and the arguments without it.
  extractOptValues =
    name: arguments:
    let
      found = lib.foldl' (step name) {
        isValue = false;
        values = [ ];
        args = [ ];
      } arguments;
    in
    if found.isValue then
      throw "extractOptValues: the last argument, `${name}`, has no value"
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
