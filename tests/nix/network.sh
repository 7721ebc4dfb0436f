#!/usr/bin/env bash
# network.sh DIRECTORY MICROVM: tests the networks of the host module with a real systemd-networkd, in namespaces that leave
# nothing behind. Guests are network namespaces behind the machines' tap interfaces, with a DHCP client. The host has the
# firewall that NixOS makes of these networks. systemd-resolved, which scripts/setup.sh unpacks, answers DNS queries.
# MICROVM_TEST_RESOLVED is another one. Without it, this part is skipped, or fails with MICROVM_TEST_REQUIRE_TOOLS=1.
# tests/nix/run.sh runs this script as root.
#   DIRECTORY   units.json, resolved.json, facts.json, specs.json: the values of tests/nix/network.nix
#   MICROVM     the program
set -euo pipefail

die() { printf 'error: %s\n' "$1" >&2; [ ! -s /run/networkd.log ] || tail -n 30 /run/networkd.log >&2; exit 1; }
say() { printf 'nix: %s\n' "$*" >&2; }
networkd=/usr/lib/systemd/systemd-networkd
here=$(dirname "$(realpath "$0")")
resolved=${MICROVM_TEST_RESOLVED:-$here/../../target/resolved/lib/systemd/systemd-resolved}

[ $# -eq 2 ] || { printf 'error: usage: %s DIRECTORY MICROVM\n' "$0" >&2; exit 2; }
if [ -z "${MICROVM_TEST_IN_NAMESPACE:-}" ]; then
  MICROVM_TEST_IN_NAMESPACE=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private "$(realpath "$0")" "$@"
fi
directory=$(realpath "$1") microvm=$(realpath "$2")
if [ -f "$resolved" ] && [ -x "$resolved" ]; then
  resolved=$(realpath "$resolved")
else
  [ "${MICROVM_TEST_REQUIRE_TOOLS:-}" != 1 ] || die "systemd-resolved is missing; run scripts/setup.sh"
  resolved=
fi

wait_until() { # COMMAND...: waits until it succeeds, for at most 120 s
  local printed end=$((SECONDS + 120))
  until printed=$("$@" 2>&1); do
    [ $SECONDS -lt $end ] || die "within 120 s this did not succeed: $*; it printed: $printed"
    sleep 0.1
  done
}
fact() { jq -r "$1" "$directory/facts.json"; }

# The relay between a machine's tap and the interface of its guest, which takes the place of a hypervisor.
# shellcheck disable=SC2016 # Perl's variables
relay='
  use Fcntl;
  sub tap { # opens a tap interface of the current namespace
    sysopen(my $tap, "/dev/net/tun", O_RDWR) or die "cannot open /dev/net/tun: $!";
    # TUNSETIFF in <linux/if_tun.h>, with IFF_TAP | IFF_NO_PI
    ioctl($tap, 0x400454ca, pack("a16 s x22", $_[0], 0x1002)) or die "cannot use the tap $_[0]: $!";
    return $tap;
  }
  my ($code, $name, $guest, $number) = @ARGV;
  if (!defined $number) {
    $^F = 100; # the other program inherits it
    my $tap = tap($name);
    exec "ip", "netns", "exec", $guest, "perl", "-e", $code, $code, $name, $guest, fileno($tap);
  }
  open(my $host, "+<&=", $number) or die "cannot use descriptor $number: $!";
  my $end = tap("eth0");
  my %other = (fileno($host) => $end, fileno($end) => $host);
  while (1) {
    my $ready = "";
    vec($ready, fileno($_), 1) = 1 for $host, $end;
    select($ready, undef, undef, undef);
    for my $from ($host, $end) {
      vec($ready, fileno($from), 1) or next;
      # Fails while the other interface is down.
      my $length = sysread($from, my $frame, 65536);
      syswrite($other{fileno($from)}, $frame) if $length;
    }
  }'

# Sets the address of a lease and keeps its values in /run/lease-MAC.
cat_client() {
  cat <<'CLIENT'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address replace "$ip/$mask" dev "$interface"
ip route replace default via "$router"
printf '%s\n' "ip=$ip" "dns=$dns" "domain=$domain" "router=$router" >"/run/lease-$(cat "/sys/class/net/$interface/address")"
CLIENT
}

start_guest() { # MACHINE [MAC]: its spec has the tap and the MAC address
  local machine=$1 tap mac=${2:-}
  jq --arg machine "$machine" '.[$machine]' "$directory/specs.json" >"/run/$machine.json"
  tap=$(jq -r '.interfaces[0].id' "/run/$machine.json")
  [ -n "$mac" ] || mac=$(jq -r '.interfaces[0].mac' "/run/$machine.json")
  "$microvm" tap up "/run/$machine.json" --owner root >/dev/null 2>/run/tap.log || die "$(cat /run/tap.log)"
  ip netns add "$machine"
  perl -e "$relay" "$relay" "$tap" "$machine" 2>>/run/relay.log &
  wait_until ip -n "$machine" link show eth0
  ip -n "$machine" link set lo up
  ip -n "$machine" link set eth0 address "$mac" up
  wait_until test -e "/sys/class/net/$tap/master"
}
lease() { # MACHINE: asks for an address
  local mac
  ip netns exec "$1" timeout 120 busybox udhcpc -i eth0 -f -q -n -t 100 -T 1 -O domain -s /run/client >/run/udhcpc.log 2>&1 ||
    { cat /run/udhcpc.log /run/relay.log >&2; die "$1 got no address by DHCP"; }
  mac=$(ip netns exec "$1" cat /sys/class/net/eth0/address)
  cat "/run/lease-$mac"
}
expect_lease() { # MACHINE LINE...
  local machine=$1 got line
  shift
  got=$(lease "$machine")
  for line in "$@"; do grep -qx "$line" <<<"$got" || die "$machine did not get $line: $(tr '\n' ' ' <<<"$got")"; done
}
reaches() { ip netns exec "$1" ping -c 1 -W 2 "$2"; } # MACHINE ADDRESS

mount -t tmpfs tmpfs /run
mount -t sysfs -o ro sysfs /sys
mount -t tmpfs tmpfs /etc/systemd
mkdir -p /run/systemd/netif/{links,leases,lldp} /run/systemd/resolve /run/microvm /etc/systemd/{network,resolved.conf.d}
chown -R systemd-network: /run/systemd/netif
jq -r 'keys[]' "$directory/units.json" | while read -r unit; do
  jq -r --arg unit "$unit" '.[$unit]' "$directory/units.json" >"/etc/systemd/network/$unit"
done
cat_client >/run/client
chmod +x /run/client
export MICROVM_RUNTIME_DIR=/run/microvm

# What the host's configuration of the kernel and of /etc sets.
jq -r '.sysctl | to_entries[] | .key + " " + (if .value == true then "1" else .value | tostring end)' "$directory/facts.json" |
  while read -r key value; do echo "$value" >"/proc/sys/${key//.//}"; done
{ echo '127.0.0.1 localhost'; fact '.hosts | to_entries[] | .key + " " + (.value | join(" "))'; } >/run/hosts
mount --bind /run/hosts /etc/hosts

# Another network, that the host is connected to.
ip link set lo up
ip netns add outside
ip link add up0 type veth peer name eth0 netns outside
ip address add 198.51.100.2/24 dev up0
ip link set up0 up
ip -n outside address add 198.51.100.1/24 dev eth0
ip -n outside link set lo up
ip -n outside link set eth0 up
serve() { # COMMAND...: runs, with this command in front, a server on port 80 that prints the address of its client
  "$@" perl -MIO::Socket::INET -e '
    my $server = IO::Socket::INET->new(LocalPort => 80, Listen => 5, ReuseAddr => 1) or die "cannot listen: $!";
    while (my $client = $server->accept) { print $client $client->peerhost; close $client; }' &
  wait_until "$@" grep -q ' 00000000:0050 ' /proc/net/tcp
}
serve ip netns exec outside

SYSTEMD_LOG_LEVEL=info "$networkd" >/run/networkd.log 2>&1 &
wait_until sh -c 'ip address show lan | grep -q 10.7.0.1/24'
wait_until sh -c 'ip address show microvm-cell | grep -q 10.8.0.1/28'
! grep -i 'unknown\|invalid\|ignoring' /run/networkd.log >&2 || die "networkd does not accept the units"
nft -f "$here/network-firewall.nft" || die "nft does not accept the firewall of NixOS"
for machine in web mail one two; do start_guest "$machine"; done

expect_lease web "ip=$(fact .machines.lan.web.address)" router=10.7.0.1 dns=10.7.0.1 domain=lan.internal
expect_lease mail ip=10.7.0.20
expect_lease one "ip=$(fact .machines.cell.one.address)" dns=9.9.9.9 domain=cell.internal
expect_lease two "ip=$(fact .machines.cell.two.address)"
say "under networkd: machines get their fixed addresses"

# A machine that the host does not know joins by the name of its tap interface.
jq '. + {stranger: (.web | .interfaces[0].id = "lan-stranger")}' "$directory/specs.json" >/run/specs.json
mount --bind /run/specs.json "$directory/specs.json"
start_guest stranger 02:00:00:00:00:99
dynamic=$(lease stranger | sed -n 's/^ip=10\.7\.0\.//p')
[ "$dynamic" -ge 128 ] || die "a machine without a fixed address got 10.7.0.$dynamic"
say "under networkd: another machine gets a dynamic address"

wait_until reaches web 10.7.0.1
wait_until ping -c 1 -W 2 "$(fact .machines.lan.web.address)"
wait_until reaches web 10.7.0.20
wait_until sh -c 'ip -n web -6 address show dev eth0 | grep -q fd00:7:'
wait_until reaches web fd00:7::1
say "under networkd: machines reach the host and each other, and have IPv6 addresses of the prefix"

remote() { ip netns exec "$1" busybox nc -w 120 198.51.100.1 80 </dev/null; } # MACHINE
[ "$(remote web)" = 198.51.100.2 ] || die "web reaches another network as $(remote web)"
ip -n outside route add 10.8.0.0/28 via 198.51.100.2
[ "$(remote one)" = "$(fact .machines.cell.one.address)" ] || die "one, without NAT, reaches another network as $(remote one)"
say "under networkd: NAT hides a machine's address, and without NAT it is routed"

serve ip netns exec mail
[ "$(ip netns exec outside busybox nc -w 120 198.51.100.2 8080 </dev/null)" = 198.51.100.1 ] || die "the forwarded port does not reach mail"
serve env
[ "$(busybox nc -w 120 127.0.0.1 80 </dev/null)" = 127.0.0.1 ] || die "the host does not reach its own port"
# What no rule accepts passes this one, at the end of the chain, before the policy drops it.
nft 'add counter inet nixos-fw refused; add rule inet nixos-fw input iifname "lan" tcp dport 80 counter name "refused"'
is_refused() { nft list counter inet nixos-fw refused | grep -q 'packets [1-9]'; }
! is_refused || die "a connection was refused before there was one"
ip netns exec web busybox nc 10.7.0.1 80 </dev/null >/run/closed.log 2>&1 &
client=$!
wait_until is_refused
kill "$client"
say "under networkd: a port of the host is forwarded to a machine, and the firewall closes the host's others"

one=$(fact .machines.cell.one.address) two=$(fact .machines.cell.two.address)
ip netns exec two nft "add table ip watch; add counter ip watch arrived; add chain ip watch input { type filter hook input priority 0; }
  add rule ip watch input ip saddr $one counter name arrived"
arrived() { ip netns exec two nft list counter ip watch arrived | sed -n 's/.*packets \([0-9]*\) .*/\1/p'; }
# one sends packets to two. Whether they arrive is known when the host has answered what one sends later, and two what the
# host sends later.
arrives() {
  local before
  before=$(arrived)
  ip netns exec one ping -c 3 -i 0.2 -W 1 "$two" >/dev/null 2>&1 || true
  wait_until reaches one 10.8.0.1
  wait_until ping -c 1 -W 2 "$two"
  [ "$(arrived)" -gt "$before" ]
}
send_to() { ip -n one neighbour replace "$two" lladdr "$1" dev eth0 nud permanent; } # MAC
isolate() { bridge link set dev "$(jq -r '.interfaces[0].id' /run/one.json)" isolated "$1"; } # on|off
# With the module br_netfilter, the firewall drops packets within this bridge too, and a test of the bridge alone proves nothing.
pass_firewall() { nft insert rule inet nixos-fw forward iifname microvm-cell accept; }
restore_firewall() { nft delete rule inet nixos-fw forward handle "$(nft -a list chain inet nixos-fw forward | sed -n 's/.*"microvm-cell" accept # handle //p')"; }

send_to "$(jq -r '.interfaces[0].mac' /run/two.json)"
! arrives || die "isolated machines reach each other"
pass_firewall
! arrives || die "only the firewall keeps isolated machines from reaching each other"
isolate off
wait_until arrives
isolate on
# The same packets by way of the host, which a rule of networkd and the firewall both prevent.
send_to "$(cat /sys/class/net/microvm-cell/address)"
! arrives || die "only the firewall keeps isolated machines from reaching each other by way of the host"
ip rule del priority 1000
wait_until arrives
restore_firewall
! arrives || die "the firewall lets isolated machines reach each other by way of the host"
wait_until reaches web "$two"
say "under networkd: isolated machines do not reach each other, not even by way of the host, but other networks do"

if [ -n "$resolved" ]; then
  id systemd-resolve >/dev/null 2>&1 || { cp /etc/passwd /run/passwd; echo 'systemd-resolve:x:997:997::/:/usr/sbin/nologin' >>/run/passwd; mount --bind /run/passwd /etc/passwd; }
  chown "$(id -u systemd-resolve):$(id -g systemd-resolve)" /run/systemd/resolve
  jq -r . "$directory/resolved.json" >/etc/systemd/resolved.conf.d/microvm.conf
  "$resolved" >/run/resolved.log 2>&1 &
  asks() { ip netns exec web busybox nslookup "$1" "$2" 2>/dev/null | grep -q "Address.*: $3\$"; }
  wait_until asks mail.lan.internal 10.7.0.1 10.7.0.20
  wait_until asks mail 10.7.0.1 10.7.0.20
  wait_until asks web.lan.internal fd00:7::1 "$(fact .machines.lan.web.address)"
  say "under networkd: machines look up each other's names with systemd-resolved"
else
  say "skipped: the names of machines are not looked up: there is no systemd-resolved"
fi
