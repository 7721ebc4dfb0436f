//! Tests of the device with a simulated hypervisor and driver, which also send invalid data.

use super::content::{DiskContent, StoreContent};
use super::request::{STATUS_IO_ERROR, STATUS_OK, STATUS_UNSUPPORTED};
use super::*;
use crate::block_map::{BlockMap, Extent, FileId, Source, StoreFiles, StorePathTree};
use crate::store_path::StorePath;
use crate::tree::{FileMode, Tree};
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY_BYTES: usize = 4 << 20;
const QUEUE_SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x10_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const READ: u32 = 0;
const SERIAL: u32 = 8;

/// A pattern in which every sector differs.
struct Pattern;

fn pattern(start: u64, buffer: &mut [u8]) {
    for (at, byte) in (start..).zip(buffer) {
        *byte = (at / 512 * 7 + at % 251) as u8;
    }
}

impl DiskContent for Pattern {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn read_at(&self, start: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        pattern(start, buffer);
        Ok(())
    }
}

/// A descriptor as the guest writes it.
type Descriptor = (u64, u32, u16, u16);

/// A simulated hypervisor with a guest whose driver can write anything.
struct Guest {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    /// Where the hypervisor has mapped the memory.
    user_address: u64,
    kick: EventFd,
    call: EventFd,
    /// Requests that were made available.
    available: u16,
}

fn guest_file() -> File {
    let file = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY_BYTES as u64).unwrap();
    file
}

/// Serves `content` to the returned end of a connection.
fn server(content: Arc<dyn DiskContent>) -> (Frontend, JoinHandle<Result<(), ServeError>>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.sock");
    let (listener, own_socket) = socket::bind(&path).unwrap();
    let server = thread::spawn(move || serve(&content, listener, 2, |_| ()));
    // A connection that only tests whether a process listens.
    drop(UnixStream::connect(&path).unwrap());
    let frontend = Frontend::connect(&path, 2).unwrap();
    drop(own_socket);
    (frontend, server)
}

impl Guest {
    fn start(frontend: Frontend) -> Self {
        Self::continued(frontend, guest_file())
    }

    /// Connects a guest that has already run with this memory.
    fn continued(mut frontend: Frontend, file: File) -> Self {
        let range = (GuestAddress(0), MEMORY_BYTES, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        assert_eq!(features & 1 << 5, 1 << 5, "the disk is not read-only");
        // Without EVENT_IDX each request is signalled.
        let accepted = features & !(1 << 29);
        let protocol = frontend.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG));
        frontend
            .set_protocol_features(
                protocol
                    & (VhostUserProtocolFeatures::CONFIG
                        | VhostUserProtocolFeatures::MQ
                        | VhostUserProtocolFeatures::REPLY_ACK),
            )
            .unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(accepted | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()).unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(memory.iter().next().unwrap()).unwrap();
        let user_address = region.userspace_addr;
        frontend.set_mem_table(&[region]).unwrap();
        let (kick, call) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(0).unwrap());
        let mut guest = Self { frontend, memory, user_address, kick, call, available: 0 };
        guest.start_queue(0);
        guest
    }

    fn start_queue(&mut self, base: u16) {
        self.start_queue_with(base, AVAILABLE);
    }

    fn start_queue_with(&mut self, base: u16, available: u64) {
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: self.user_address + DESCRIPTORS,
            used_ring_addr: self.user_address + USED,
            avail_ring_addr: self.user_address + available,
            log_addr: None,
        };
        self.frontend.set_vring_num(0, QUEUE_SIZE).unwrap();
        self.frontend.set_vring_addr(0, &config).unwrap();
        self.frontend.set_vring_base(0, base).unwrap();
        self.frontend.set_vring_call(0, &self.call).unwrap();
        self.frontend.set_vring_kick(0, &self.kick).unwrap();
        self.frontend.set_vring_enable(0, true).unwrap();
    }

    /// The driver resets the queue, as after an error.
    fn restart_queue(&mut self) {
        self.frontend.get_vring_base(0).unwrap();
        self.memory.write_slice(&[0; 0x1000], GuestAddress(AVAILABLE)).unwrap();
        self.memory.write_slice(&[0; 0x1000], GuestAddress(USED)).unwrap();
        self.available = 0;
        let _ = self.call_count();
        self.start_queue(0);
    }

    fn write_header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    }

    /// Writes descriptors and makes the chain from the first one available.
    fn submit(&mut self, descriptors: &[Descriptor]) {
        self.write_descriptors(DESCRIPTORS, descriptors);
        self.memory.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
        let slot = AVAILABLE + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        self.memory.write_obj(0_u16, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(AVAILABLE + 2)).unwrap();
        self.kick.write(1).unwrap();
    }

    fn write_descriptors(&self, table: u64, descriptors: &[Descriptor]) {
        for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
            let at = table + index * 16;
            self.memory.write_obj(*address, GuestAddress(at)).unwrap();
            self.memory.write_obj(*length, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(*flags, GuestAddress(at + 12)).unwrap();
            self.memory.write_obj(*next, GuestAddress(at + 14)).unwrap();
        }
    }

    /// Waits until all available chains have been returned.
    fn wait(&self) {
        while self.used() != self.available {
            self.call.read().unwrap();
        }
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    fn call_count(&self) -> u64 {
        self.call.write(1).unwrap();
        self.call.read().unwrap()
    }

    /// Returns the status of the chain; 0xee means none.
    fn status_of(&mut self, descriptors: &[Descriptor]) -> u8 {
        self.submit(descriptors);
        self.wait();
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    /// Reads sectors as a correct driver does.
    fn read(&mut self, sector: u64, length: u32) -> (u8, Vec<u8>) {
        self.write_header(READ, sector);
        let status = self.status_of(&[(HEADER, 16, NEXT, 1), (DATA, length, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)]);
        let mut data = vec![0; length as usize];
        self.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        (status, data)
    }

    fn expect_honest_read(&mut self) {
        let (status, data) = self.read(3, 4096);
        let mut expected = vec![0; 4096];
        pattern(3 * 512, &mut expected);
        assert!(status == STATUS_OK && data == expected, "an honest request fails with status {status}");
    }
}

#[test]
fn a_guest_reads_the_disk_and_its_serial_number() {
    let (frontend, server) = server(Arc::new(Pattern));
    let mut guest = Guest::start(frontend);
    let (_, config) = guest.frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).unwrap();
    assert_eq!(config[..8], 2048_u64.to_le_bytes());
    assert_eq!(config[20..24], 4096_u32.to_le_bytes());
    assert_eq!(config[34..36], 2_u16.to_le_bytes());
    assert_eq!(guest.frontend.get_queue_num().unwrap(), 2);

    guest.expect_honest_read();
    // More than is read at once.
    let (status, data) = guest.read(0, 1 << 20);
    let mut expected = vec![0; 1 << 20];
    pattern(0, &mut expected);
    assert!(status == STATUS_OK && data == expected);

    guest.write_header(SERIAL, 0);
    let status = guest.status_of(&[(HEADER, 16, NEXT, 1), (DATA, 20, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)]);
    let mut serial = [0xff; 20];
    guest.memory.read_slice(&mut serial, GuestAddress(DATA)).unwrap();
    assert_eq!((status, &serial), (STATUS_OK, b"nix-store\0\0\0\0\0\0\0\0\0\0\0"));

    drop(guest);
    server.join().unwrap().unwrap();
}

#[test]
fn buffers_may_be_divided_anywhere_and_listed_in_an_indirect_table() {
    let (frontend, _server) = server(Arc::new(Pattern));
    let mut guest = Guest::start(frontend);
    guest.write_header(READ, 1);
    let pieces = [
        (HEADER, 1, NEXT, 1),
        (HEADER + 1, 0, NEXT, 2),
        (HEADER + 1, 15, NEXT, 3),
        (DATA, 1, NEXT | WRITE, 4),
        (DATA + 1, 510, NEXT | WRITE, 5),
        (DATA + 511, 1, NEXT | WRITE, 6),
        (STATUS, 1, WRITE, 0),
    ];
    let mut expected = vec![0; 512];
    pattern(512, &mut expected);
    let table = 0x8000;
    guest.write_descriptors(table, &pieces);
    for chain in [&pieces[..], &[(table, 7 * 16, INDIRECT, 0)]] {
        guest.memory.write_slice(&[0; 512], GuestAddress(DATA)).unwrap();
        assert_eq!(guest.status_of(chain), STATUS_OK);
        let mut data = vec![0; 512];
        guest.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        assert_eq!(data, expected);
    }
}

#[test]
fn a_hostile_driver_gets_io_errors_and_the_next_request_works() {
    const OUTSIDE: u64 = MEMORY_BYTES as u64;
    let (frontend, server) = server(Arc::new(Pattern));
    let mut guest = Guest::start(frontend);
    let status = (STATUS, 1, WRITE, 0);
    let chains: &[(&str, u8, &[Descriptor])] = &[
        ("data outside of memory", STATUS_IO_ERROR, &[(HEADER, 16, NEXT, 1), (OUTSIDE, 512, NEXT | WRITE, 2), status]),
        (
            "data over the end of memory",
            STATUS_IO_ERROR,
            &[(HEADER, 16, NEXT, 1), (OUTSIDE - 8, 512, NEXT | WRITE, 2), status],
        ),
        (
            "data at the end of addresses",
            STATUS_IO_ERROR,
            &[(HEADER, 16, NEXT, 1), (u64::MAX, 512, NEXT | WRITE, 2), status],
        ),
        ("a huge request", STATUS_IO_ERROR, &[(HEADER, 16, NEXT, 1), (DATA, u32::MAX - 511, NEXT | WRITE, 2), status]),
        ("half a sector", STATUS_IO_ERROR, &[(HEADER, 16, NEXT, 1), (DATA, 256, NEXT | WRITE, 2), status]),
        (
            "a header outside of memory",
            STATUS_IO_ERROR,
            &[(OUTSIDE, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), status],
        ),
        ("a short header", STATUS_IO_ERROR, &[(HEADER, 15, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), status]),
        ("no header", STATUS_IO_ERROR, &[(DATA, 512, NEXT | WRITE, 1), status]),
        (
            "the header is the status",
            STATUS_UNSUPPORTED,
            &[(STATUS, 16, NEXT, 1), (DATA, 511, NEXT | WRITE, 2), status],
        ),
        ("no status", 0xee, &[(HEADER, 16, 0, 0)]),
        (
            "a status outside of memory",
            0xee,
            &[(HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), (OUTSIDE, 1, WRITE, 0)],
        ),
        ("a header after the data", 0xee, &[(DATA, 512, NEXT | WRITE, 1), (HEADER, 16, NEXT, 2), status]),
        ("a chain without an end", STATUS_IO_ERROR, &[(HEADER, 16, NEXT, 1), (STATUS, 1, NEXT | WRITE, 1)]),
        ("a next descriptor that does not exist", 0xee, &[(HEADER, 16, NEXT, 999)]),
        ("a table outside of memory", 0xee, &[(OUTSIDE, 32, INDIRECT, 0)]),
        ("a table of an odd length", 0xee, &[(HEADER, 17, INDIRECT, 0)]),
        ("a table that lists itself", 0xee, &[(DESCRIPTORS, 16, INDIRECT, 0)]),
        ("data over the rings", STATUS_OK, &[(HEADER, 16, NEXT, 1), (DESCRIPTORS, 512, NEXT | WRITE, 2), status]),
    ];
    for (name, expected, chain) in chains {
        guest.write_header(READ, 0);
        guest.memory.write_obj(0xffff_u32, GuestAddress(STATUS)).unwrap();
        assert_eq!(guest.status_of(chain), *expected, "{name}");
        guest.expect_honest_read();
    }
    // A write, a request that does not exist, and sectors past the end.
    for (kind, sector, expected) in [
        (1, 0, STATUS_IO_ERROR),
        (77, 0, STATUS_UNSUPPORTED),
        (READ, 2048, STATUS_IO_ERROR),
        (READ, u64::MAX, STATUS_IO_ERROR),
    ] {
        guest.write_header(kind, sector);
        let chain = [(HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)];
        assert_eq!(guest.status_of(&chain), expected);
        guest.expect_honest_read();
    }
    drop(guest);
    server.join().unwrap().unwrap();
}

#[test]
fn invalid_rings_stop_only_their_own_queue_until_it_is_restarted() {
    let (frontend, server) = server(Arc::new(Pattern));
    let mut guest = Guest::start(frontend);
    guest.expect_honest_read();
    // More requests than the queue has places: nothing is taken, and nothing is answered.
    guest.memory.write_obj(guest.available.wrapping_add(1000), GuestAddress(AVAILABLE + 2)).unwrap();
    guest.kick.write(1).unwrap();
    guest.restart_queue();
    guest.expect_honest_read();
    // A wrong used index harms only the driver that wrote it.
    guest.memory.write_obj(0x8000_u16, GuestAddress(USED + 2)).unwrap();
    guest.kick.write(1).unwrap();
    guest.restart_queue();
    guest.expect_honest_read();
    // A ring that begins in the guest's memory and ends outside of it: no request is taken from it.
    guest.frontend.get_vring_base(0).unwrap();
    guest.memory.write_obj(1_u16, GuestAddress(MEMORY_BYTES as u64 - 2)).unwrap();
    guest.start_queue_with(0, MEMORY_BYTES as u64 - 4);
    guest.kick.write(1).unwrap();
    guest.restart_queue();
    guest.expect_honest_read();
    drop(guest);
    server.join().unwrap().unwrap();
}

#[test]
fn after_a_reconnection_requests_that_were_not_completed_are_done_without_a_kick() {
    let file = guest_file();
    let (frontend, first) = server(Arc::new(Pattern));
    let mut guest = Guest::continued(frontend, file.try_clone().unwrap());
    guest.expect_honest_read();
    // The queue is stopped: new requests stay in the ring.
    guest.frontend.set_vring_enable(0, false).unwrap();
    guest.write_header(READ, 3);
    guest.submit(&[(HEADER, 16, NEXT, 1), (DATA, 4096, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)]);
    let available = guest.available;
    drop(guest);
    first.join().unwrap().unwrap();
    guest_is_answered(file, available);
}

/// The hypervisor connects to a new server, and reports that the request in the ring was already taken.
fn guest_is_answered(file: File, available: u16) {
    let (frontend, _second) = server(Arc::new(Pattern));
    let mut guest = Guest::continued(frontend, file);
    guest.frontend.get_vring_base(0).unwrap();
    guest.available = available;
    guest.start_queue(available);
    guest.wait();
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), STATUS_OK);
}

/// A store with one file, and the map of a disk with 512 bytes of metadata, the file and zeros.
fn store_disk(directory: &Path, content: &[u8]) -> StoreContent {
    let name = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-file";
    fs::write(directory.join(name), content).unwrap();
    let mut tree = Tree::default();
    tree.add_file(b"", content.len() as u64, FileMode::Regular).unwrap();
    let store_path = StorePathTree { path: StorePath::from_base_name(name).unwrap(), tree };
    let length = content.len() as u64;
    let extents = [
        Extent { start: 0, length: 512, source: Source::Metadata { offset: 0 } },
        Extent { start: 512, length, source: Source::File { file: FileId { store_path: 0, node: 0 }, offset: 0 } },
        Extent { start: 512 + length, length: 100, source: Source::Zeros },
    ];
    let files = Arc::new(StoreFiles::new(directory.to_owned(), vec![store_path]));
    StoreContent::open(BlockMap::new(files, vec![b'm'; 512], extents).unwrap()).unwrap()
}

#[test]
fn the_disk_is_metadata_files_and_zeros_up_to_a_whole_sector() {
    let directory = tempfile::tempdir().unwrap();
    let disk = store_disk(directory.path(), &[b'f'; 700]);
    assert_eq!(disk.size_bytes(), 1536);
    let mut bytes = vec![0xff; 1536];
    disk.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [vec![b'm'; 512], vec![b'f'; 700], vec![0; 324]].concat());
    let mut part = [0xff; 4];
    disk.read_at(510, &mut part).unwrap();
    assert_eq!(&part, b"mmff");
}

#[test]
fn a_store_file_that_has_changed_or_is_a_link_now_is_an_io_error_of_the_guest() {
    let name = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-file";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(name);
    let changes: [&dyn Fn(); 3] =
        [&|| fs::write(&file, "longer than before").unwrap(), &|| fs::remove_file(&file).unwrap(), &|| {
            std::os::unix::fs::symlink("/etc/passwd", &file).unwrap()
        }];
    let content = store_disk(directory.path(), &[b'f'; 512]);
    for change in changes {
        change();
        let error = content.read_at(512, &mut [0; 512]).unwrap_err().to_string();
        assert!(!error.is_empty());
        content.read_at(0, &mut [0; 512]).unwrap();
    }
    let (frontend, _server) = server(Arc::new(content));
    let mut guest = Guest::start(frontend);
    assert_eq!(guest.read(1, 512).0, STATUS_IO_ERROR);
    assert_eq!(guest.read(0, 512), (STATUS_OK, vec![b'm'; 512]));
}

#[test]
fn the_socket_is_private_and_nothing_but_a_left_over_socket_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.sock");
    // A killed server removes nothing.
    std::mem::forget(socket::bind(&path).unwrap().1);
    assert!(path.exists());
    let (listener, own_socket) = socket::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(socket::bind(&path), Err(socket::SocketError::InUse { .. })));
    drop((listener, own_socket));
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    assert!(matches!(socket::bind(&path), Err(socket::SocketError::NotASocket { .. })));
}

#[test]
fn a_confined_server_reads_the_closure_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("store")).unwrap();
    fs::write(directory.path().join("other"), "other").unwrap();
    let content = store_disk(&directory.path().join("store"), &[b'f'; 512]);
    fs::write(directory.path().join("store/1c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-other"), "other").unwrap();
    let other = |name: &str| directory.path().join(name);
    // Landlock confines threads, so only this one is confined.
    let seen = thread::scope(|scope| {
        let confined = scope.spawn(|| {
            let store_paths = confine::open_store_paths(content.map().files()).unwrap();
            if confine::restrict_files(&store_paths).unwrap() == confine::FileAccess::Unrestricted {
                return None;
            }
            let read = content.read_at(512, &mut [0; 512]).is_ok();
            let kind = |name: &str| fs::read(other(name)).unwrap_err().kind();
            let written = fs::write(other("new"), "new").unwrap_err().kind();
            Some((read, kind("other"), kind("store/1c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-other"), written))
        });
        confined.join().unwrap()
    });
    let denied = std::io::ErrorKind::PermissionDenied;
    match seen {
        Some(seen) => assert_eq!(seen, (true, denied, denied, denied)),
        None => assert!(
            std::env::var_os("MICROVM_TEST_REQUIRE_TOOLS").is_none(),
            "this kernel has no Landlock, so nothing was shown"
        ),
    }
    assert_eq!(fs::read(other("other")).unwrap(), b"other");
}
