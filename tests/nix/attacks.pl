#!/usr/bin/perl
# attacks.pl: what code can do that has taken over a machine's hypervisor. It takes the place of qemu in the machine
# `attacker` of systemd.nix, tries everything below, and writes `NAME: yes` or `NAME: no` for each into the file `attacks` of
# its state directory. The machine `victim` runs beside it; the file `victim` names one of that machine's processes.
use strict;
use warnings;
use Fcntl;
use IO::Socket::UNIX;
use Socket;

# What `microvm` asks a hypervisor first.
if (grep { $_ eq '--version' } @ARGV) { print "QEMU emulator version 9.0.0\n"; exit 0; }

my $own = '/var/lib/microvms/attacker';
my $other = '/var/lib/microvms/victim';
open my $file, '<', "$own/victim" or die "no process of the victim is known: $!";
chomp(my $victim = <$file>);
my $block_device = <$file>;
chomp $block_device;
my ($major, $minor) = split /:/, $block_device;

# arch/x86/entry/syscalls/syscall_64.tbl
my %call = (
  socket => 41, ptrace => 101, setuid => 105, setgid => 106, setgroups => 116, mknod => 133, pivot_root => 155,
  settimeofday => 164, mount => 165, umount2 => 166, swapon => 167, reboot => 169, sethostname => 170, iopl => 172,
  init_module => 175, quotactl => 179, add_key => 248, keyctl => 250, unshare => 272, perf_event_open => 298,
  process_vm_readv => 310, open_by_handle_at => 304, setns => 308, bpf => 321, kexec_load => 246, acct => 163, syslog => 103,
  sched_setscheduler => 144, pidfd_open => 434, pidfd_getfd => 438, shmget => 29, shmat => 30, chroot => 161,
);
# A system call that the kernel or the filter refuses gives -1.
sub call { my ($name, @arguments) = @_; my $result = syscall($call{$name}, @arguments); return $result >= 0; }
sub can_read { my ($path) = @_; open(my $in, '<', $path) or return 0; return defined(sysread($in, my $byte, 1)); }
sub can_write { my ($path) = @_; return sysopen(my $out, $path, O_WRONLY); }
sub can_make { my ($path) = @_; return sysopen(my $out, $path, O_WRONLY | O_CREAT | O_EXCL, 0600); }
sub can_list { my ($path) = @_; opendir(my $directory, $path) or return 0; return 1; }
sub can_connect { my ($path) = @_; return defined IO::Socket::UNIX->new(Peer => $path); }
# In a process of its own, since it would change this one.
sub in_child { my ($try) = @_; my $child = fork(); if (!$child) { exit($try->() ? 0 : 1); } waitpid $child, 0; return $? == 0; }
sub tap {
  my ($name) = @_;
  sysopen(my $control, '/dev/net/tun', O_RDWR) or return 0;
  # TUNSETIFF with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
  return ioctl($control, 0x400454ca, pack('a16 S x22', $name, 0x5002));
}

my @attacks = (
  # Its own, which it may use.
  'own volume, read' => sub { can_read("$own/var.img") },
  'own volume, write' => sub { can_write("$own/var.img") },
  'own state directory, new file' => sub { can_make("$own/scratch") },
  'own state directory, remove own file' => sub { unlink "$own/scratch" },
  'own runtime directory, new file' => sub { can_make('/run/microvm/attacker/scratch') },
  'own tap' => sub { tap('vm-attacker') },
  'the store, read' => sub { can_list('/nix/store') },
  'its own process, signal' => sub { kill 0, $$ },

  # The links that determine what root runs for it.
  'own current, replace by a link' => sub { symlink('/tmp', "$own/evil"); rename "$own/evil", "$own/current" },
  'own current, remove' => sub { unlink "$own/current" },
  'own current, rename' => sub { rename "$own/current", "$own/moved" },
  'own booted, replace by a link' => sub { symlink('/tmp', "$own/evil2"); rename "$own/evil2", "$own/booted" },
  'own booted, remove' => sub { unlink "$own/booted" },
  'own toplevel, remove' => sub { unlink "$own/toplevel" },
  'own toplevel, write' => sub { can_write("$own/toplevel/bin/microvm-run") },
  'own state directory, rename' => sub { rename $own, '/var/lib/microvms/moved' },
  'own state directory, change mode' => sub { chmod 0777, $own },
  'own state directory, change owner' => sub { chown $<, $<, $own },
  'own state directory, a program with its user\'s rights' => sub { can_make("$own/setuid"); chmod 04755, "$own/setuid" },

  # The other machine's files and sockets.
  'state directories, list' => sub { my @all = glob '/var/lib/microvms/*'; @all > 1 },
  'state directories, new one' => sub { mkdir '/var/lib/microvms/evil' },
  'victim\'s state directory, list' => sub { can_list($other) },
  'victim\'s volume, read' => sub { can_read("$other/var.img") },
  'victim\'s volume, write' => sub { can_write("$other/var.img") },
  'victim\'s volume by its process, read' => sub { can_read("/proc/$victim/root$other/var.img") || can_read("/proc/$victim/cwd/var.img") },
  'victim\'s control socket' => sub { can_connect("$other/victim.sock") },
  'victim\'s console' => sub { can_connect('/run/microvm/victim/console.sock') },
  'victim\'s notes, read' => sub { can_read('/run/microvm/victim/process.json') },
  'victim\'s notes, new file' => sub { can_make('/run/microvm/victim/evil') },
  'runtime directories, new one' => sub { mkdir '/run/microvm/evil' },
  'victim\'s root directory, list' => sub { can_list('/run/microvm-roots') },
  'victim\'s tap' => sub { tap('vm-victim') },

  # The other machine's processes.
  'victim\'s process, see' => sub { -e "/proc/$victim/stat" },
  'victim\'s process, environment' => sub { can_read("/proc/$victim/environ") },
  'victim\'s process, memory' => sub { can_read("/proc/$victim/mem") },
  'victim\'s process, memory by system call' => sub { my $local = 'x' x 8; my $vector = pack('p Q', $local, 8); call('process_vm_readv', $victim + 0, $vector, 1, pack('Q Q', 0x400000, 8), 1, 0) },
  'victim\'s process, descriptors' => sub { can_list("/proc/$victim/fd") },
  'victim\'s process, trace' => sub { call('ptrace', 16, $victim + 0, 0, 0) },
  'victim\'s process, signal' => sub { kill 0, $victim },
  'victim\'s process, take a descriptor' => sub { my $handle = syscall($call{pidfd_open}, $victim + 0, 0); $handle >= 0 && call('pidfd_getfd', $handle, 0, 0) },
  'victim\'s namespaces, enter' => sub { sysopen(my $in, "/proc/$victim/ns/mnt", O_RDONLY) or return 0; return call('setns', fileno($in), 0) },
  'the first process, signal' => sub { kill 0, 1 },
  'the first process, environment' => sub { can_read('/proc/1/environ') },
  'shared memory of another user' => sub { my $id = syscall($call{shmget}, 4711, 0, 0); $id >= 0 },

  # The host's files and services.
  'host\'s passwords' => sub { can_read('/etc/shadow') },
  'host\'s machine id' => sub { can_read('/etc/machine-id') },
  'host\'s users, change' => sub { can_write('/etc/passwd') },
  'root\'s home directory, list' => sub { can_list('/root') },
  'home directories, list' => sub { can_list('/home') },
  'a secret that everybody on the host may read' => sub { can_read('/srv/secret') },
  'host\'s temporary files' => sub { can_read('/tmp/of-host') || can_read('/var/tmp/of-host') },
  'host\'s shared memory' => sub { can_read('/dev/shm/of-host') },
  'host\'s logs, list' => sub { can_list('/var/log') },
  'root directory, new file' => sub { can_make('/evil') },
  'the store, new path' => sub { mkdir '/nix/store/evil' },
  'Nix database, read' => sub { can_list('/nix/var/nix/db') },
  'Nix daemon' => sub { can_connect('/nix/var/nix/daemon-socket/socket') },
  'roots of the garbage collection, new one' => sub { symlink '/tmp', '/nix/var/nix/gcroots/microvm/evil' },
  'image cache, list' => sub { can_list('/var/cache/microvm-image') },
  'image cache, new file' => sub { can_make('/var/cache/microvm-image/evil') },
  'store disks of others, list' => sub { can_list('/var/cache/microvm-store-disks') },
  'message bus' => sub { can_connect('/run/dbus/system_bus_socket') },
  'service manager' => sub { can_connect('/run/systemd/private') },
  'journal, read' => sub { can_list('/run/log/journal') },

  # Devices.
  'block device, host\'s node' => sub { can_read('/dev/block-of-host') },
  'block device, own node' => sub { call('mknod', "$own/disk", 060600, $major * 256 + $minor) && can_read("$own/disk") },
  'memory device' => sub { can_read('/dev/mem') },
  'kernel messages' => sub { can_read('/dev/kmsg') || call('syslog', 3, my $buffer = ' ' x 16, 16) },
  'control groups, change' => sub { can_write('/sys/fs/cgroup/cgroup.procs') || can_write('/proc/self/../sys/fs/cgroup') },
  'kernel parameters, change' => sub { can_write('/proc/sys/kernel/core_pattern') },
  'firmware variables, list' => sub { can_list('/sys/kernel/debug') && glob('/sys/kernel/debug/*') },

  # Rights.
  'become root' => sub { in_child(sub { call('setuid', 0) }) },
  'become the victim' => sub { in_child(sub { call('setuid', $< + 1) }) },
  'join the group of disks' => sub { in_child(sub { call('setgroups', 1, pack('L', 6)) }) },
  'a program with the rights of root' => sub { -u '/usr/bin/su' && in_child(sub { my $said = `/usr/bin/mount -t tmpfs tmpfs /tmp 2>/dev/null`; $? == 0 }) },
  'user namespace' => sub { in_child(sub { call('unshare', 0x10000000) }) },
  'mount namespace' => sub { in_child(sub { call('unshare', 0x20000) }) },
  'network namespace' => sub { in_child(sub { call('unshare', 0x40000000) }) },
  'process namespace' => sub { in_child(sub { call('unshare', 0x20000000) }) },
  'mount' => sub { call('mount', my $source = 'tmpfs', my $target = '/tmp', my $type = 'tmpfs', 0, 0) },
  'unmount' => sub { call('umount2', my $target = '/sys', 2) },
  'change the root directory' => sub { in_child(sub { call('chroot', my $target = '/tmp') }) },
  'pivot the root directory' => sub { call('pivot_root', my $new = '/tmp', my $old = '/tmp') },
  'open by handle' => sub { call('open_by_handle_at', -100, my $handle = "\0" x 136, 0) },
  'keyring, add a key' => sub { call('add_key', my $type = 'user', my $name = 'evil', my $payload = 'x', 1, -5) },
  'keyring, of its user' => sub { call('keyctl', 0, -4, 1) },
  'load a BPF program' => sub { call('bpf', 0, my $attributes = "\0" x 72, 72) },
  'watch events of the kernel' => sub { call('perf_event_open', my $attributes = "\0" x 112, -1, 0, -1, 0) },
  'load a module' => sub { call('init_module', my $image = "\0" x 16, 16, my $parameters = '') },
  'load another kernel' => sub { call('kexec_load', 0, 0, 0, 0) },
  'restart the host' => sub { call('reboot', 0xfee1dead, 672274793, 0x89abcdef, 0) },
  'swap' => sub { call('swapon', my $path = "$own/var.img", 0) },
  'set the clock' => sub { call('settimeofday', my $now = pack('q q', 1, 0), 0) },
  'set the host\'s name' => sub { call('sethostname', my $name = 'evil', 4) },
  'ports of the hardware' => sub { call('iopl', 3) },
  'process accounting' => sub { call('acct', my $path = "$own/var.img") },
  'real-time priority' => sub { call('sched_setscheduler', 0, 1, my $parameter = pack('l', 1)) },

  # The network.
  'packets of the host' => sub { socket(my $packets, 17, SOCK_RAW, 768) },
  'raw network packets' => sub { socket(my $packets, PF_INET, SOCK_RAW, 1) },
  'new network interface' => sub { tap('evil0') },
  'host\'s loopback' => sub { socket(my $tcp, PF_INET, SOCK_STREAM, 6) },
);

open my $report, '>', "$own/attacks.new" or die "attacks.new: $!";
while (my ($name, $attack) = splice @attacks, 0, 2) {
  my $works = eval { $attack->() };
  print $report "$name: ", ($works ? 'yes' : 'no'), "\n";
}
close $report;
rename "$own/attacks.new", "$own/attacks";
sleep 1 while 1;
