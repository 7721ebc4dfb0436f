# IP addresses with a prefix length: parsing, overlaps, and addresses within a subnet.
{ lib }:
let
  inherit (builtins)
    elemAt
    fromJSON
    length
    match
    ;
  octet = "(0|[1-9][0-9]{0,2})";
  dotted = "${octet}\\.${octet}\\.${octet}\\.${octet}";
  powerOfTwo = exponent: if exponent == 0 then 1 else 2 * powerOfTwo (exponent - 1);
  toNumber =
    octets:
    let
      numbers = map fromJSON octets;
    in
    if lib.any (number: number > 255) numbers then
      null
    else
      lib.foldl' (all: number: all * 256 + number) 0 numbers;
  modulo = number: divisor: number - number / divisor * divisor;

  group = text: elemAt (match "0*([0-9a-f]+)" (lib.toLower text)) 0;
  groups =
    text:
    if text == "" then
      [ ]
    else
      map (part: if match "[0-9a-fA-F]{1,4}" part == null then null else group part) (
        lib.splitString ":" text
      );
in
rec {
  # The number of an IPv4 address; null if it is not one.
  parse4 =
    text:
    let
      found = match dotted text;
    in
    if found == null then null else toNumber found;

  show4 =
    number:
    lib.concatMapStringsSep "." (divisor: toString (modulo (number / divisor) 256)) [
      16777216
      65536
      256
      1
    ];

  # `10.7.0.1/24` as numbers; null if it is not an IPv4 address with a prefix length.
  parseSubnet4 =
    text:
    let
      found = match "${dotted}/(0|[1-9][0-9]?)" text;
      address = if found == null then null else toNumber (lib.init found);
      prefixLength = fromJSON (lib.last found);
      size = powerOfTwo (32 - prefixLength);
    in
    if address == null || prefixLength > 32 then
      null
    else
      {
        inherit address prefixLength size;
        first = address - modulo address size;
      };

  contains4 = subnet: number: number >= subnet.first && number < subnet.first + subnet.size;
  overlap4 = one: other: contains4 one other.first || contains4 other one.first;

  # `fd00:7::1/64`: the address and its prefix as text; null if it is not an IPv6 address with this prefix length.
  parseSubnet6 =
    text:
    let
      found = match "([0-9a-fA-F:]+)/64" text;
      halves = lib.splitString "::" (elemAt found 0);
      before = groups (elemAt halves 0);
      after = if length halves == 2 then groups (elemAt halves 1) else [ ];
      missing = 8 - length before - length after;
      isValid =
        length halves <= 2
        && !lib.any (part: part == null) (before ++ after)
        && (if length halves == 2 then missing >= 1 else missing == 0);
      all = before ++ builtins.genList (_: "0") missing ++ after;
    in
    if found == null || !isValid then
      null
    else
      {
        address = elemAt found 0;
        prefix = "${
          lib.concatMapStringsSep ":" (elemAt all) [
            0
            1
            2
            3
          ]
        }::/64";
        # The router anycast address, which no host can have: RFC 4291, section 2.6.1.
        isNetwork = lib.all (part: part == "0") (
          map (elemAt all) [
            4
            5
            6
            7
          ]
        );
      };
}
