# What is derived from the name of a machine: the MAC address and the tap interface of its interface in a network of the
# host, and its vsock address. Guests and hosts compute them independently, so this file is the only place that defines
# them. A change here changes the addresses of all machines that use them.
let
  inherit (builtins)
    concatStringsSep
    foldl'
    genList
    hashString
    stringLength
    substring
    ;

  digits = {
    "0" = 0;
    "1" = 1;
    "2" = 2;
    "3" = 3;
    "4" = 4;
    "5" = 5;
    "6" = 6;
    "7" = 7;
    "8" = 8;
    "9" = 9;
    a = 10;
    b = 11;
    c = 12;
    d = 13;
    e = 14;
    f = 15;
  };
  fromHex =
    text:
    foldl' (number: index: number * 16 + digits.${substring index 1 text}) 0 (
      genList (index: index) (stringLength text)
    );

  # `what` makes the hashes for different purposes independent. A slash is in no name of a machine or network.
  hash = what: names: hashString "sha256" (concatStringsSep "/" ([ "microvm ${what}" ] ++ names));

  # IFNAMSIZ in <linux/if.h>, without the terminating zero.
  maxInterfaceName = 15;
in
{
  inherit fromHex hash maxInterfaceName;

  # A number that is less than `limit`, at most 2^28.
  numberBelow =
    limit: what: names:
    let
      number = fromHex (substring 0 7 (hash what names));
    in
    number - number / limit * limit;

  # A locally administered unicast address: its first byte is 02, and 40 bits are of the hash.
  macAddress =
    { network, machine }:
    let
      text = hash "MAC address" [
        network
        machine
      ];
    in
    "02:" + concatStringsSep ":" (genList (index: substring (index * 2) 2 text) 5);

  # The prefix of all tap interfaces in a network. The bridge accepts them by this prefix, also those of machines that the
  # host's configuration does not declare. A network's name contains no `-`, so no prefix is the start of another.
  tapPrefix = network: "${network}-";

  # NETWORK-MACHINE, with a hash instead of a machine's name that is too long.
  tapName =
    { network, machine }:
    let
      prefix = "${network}-";
      space = maxInterfaceName - stringLength prefix;
    in
    prefix
    + (
      if stringLength machine <= space then
        machine
      else
        substring 0 space (
          hash "tap" [
            network
            machine
          ]
        )
    );

  # At least 65536, so that it differs from the small numbers that people choose, and less than 2^29, which all
  # hypervisors accept.
  vsockCid = machine: 65536 + fromHex (substring 0 7 (hash "vsock" [ machine ]));
}
