# Macvtap interfaces as file descriptors, for runners of one's own. This project's launcher opens them itself.
{ lib }:
{
  # The number of each interface's descriptor, by its id, and the shell code that opens them.
  makeMacvtap =
    {
      # a configuration's `microvm`
      microvmConfig,
      # the first number; 0 to 2 are the standard streams
      firstDescriptor ? 3,
      ...
    }:
    let
      ids = map (interface: interface.id) (
        builtins.filter (interface: interface.type == "macvtap") microvmConfig.interfaces
      );
      numbered = lib.imap0 (index: id: {
        inherit id;
        number = firstDescriptor + index;
      }) ids;
    in
    {
      macvtapFds = lib.listToAttrs (map ({ id, number }: lib.nameValuePair id number) numbered);
      openMacvtapFds = lib.concatMapStrings (
        { id, number }:
        "exec ${toString number}<>/dev/tap\"$(cat '/sys/class/net/${id}/ifindex')\"\n"
      ) numbered;
    };
}
