# Opens macvtap interfaces as file descriptors, for custom runners. This project's launcher opens them itself.
{ lib }:
{
  # Returns the descriptor numbers of each interface, by its id, and the shell code that opens them.
  makeMacvtap =
    {
      # a configuration's `microvm`
      microvmConfig,
      # with `tapMultiQueue` an interface has one descriptor per CPU
      hypervisorConfig ? { },
      # the first number; 0 to 2 are the standard streams
      firstDescriptor ? 3,
    }:
    let
      queues = if hypervisorConfig.tapMultiQueue or false then microvmConfig.vcpu else 1;
      ids = map (interface: interface.id) (
        builtins.filter (interface: interface.type == "macvtap") microvmConfig.interfaces
      );
      numbered = lib.imap0 (index: id: {
        inherit id;
        numbers = builtins.genList (queue: firstDescriptor + index * queues + queue) queues;
      }) ids;
    in
    {
      macvtapFds = lib.listToAttrs (map ({ id, numbers }: lib.nameValuePair id numbers) numbered) // {
        # the first number that is free for other files
        nextFreeFd = firstDescriptor + builtins.length ids * queues;
      };
      openMacvtapFds = lib.concatMapStrings (
        { id, numbers }:
        lib.concatMapStrings (
          number: "exec ${toString number}<>/dev/tap\"$(cat '/sys/class/net/${id}/ifindex')\"\n"
        ) numbers
      ) numbered;
    };
}
