//! The disk as a vhost-user device: the features that it offers to the hypervisor, and the requests in the guest's queues.
//!
//! Each queue has a thread, which completes requests in the order in which it takes them. So the used index of a queue, which
//! is in the guest's memory, says which requests are done. After a reconnection the device continues from there: it repeats
//! the requests that an earlier server took and did not complete, which is harmless because nothing is ever written to the disk.

use super::content::DiskContent;
use super::request::{
    Buffer, Chain, HEADER_BYTES, Request, SECTOR_BYTES, SERIAL_BYTES, STATUS_IO_ERROR, STATUS_OK, Writer, parse,
};
use std::io;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// The memory of the guest, which the hypervisor may replace.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The serial number. The guest sees the disk as `/dev/disk/by-id/virtio-nix-store`.
pub const SERIAL: &[u8] = b"nix-store";
/// Maximum number of queues of a device; each has a thread.
pub const MAX_QUEUES: usize = 64;
/// Maximum length of a queue.
const MAX_QUEUE_SIZE: usize = 1024;
/// Maximum number of data buffers in one request: with header and status they fill a queue of 128, the shortest that
/// hypervisors create.
const MAX_SEGMENTS: u32 = 126;
/// EROFS reads blocks of this size; the driver reads no smaller parts.
const BLOCK_BYTES: u32 = 4096;
/// Number of bytes that a queue reads from the store at once.
const BUFFER_BYTES: usize = 256 << 10;

/// The device. One serves one connection.
pub struct Device {
    content: Arc<dyn DiskContent>,
    memory: Memory,
    queues: Vec<QueueState>,
    /// Whether the hypervisor has sent a message.
    is_used: AtomicBool,
    failures: Mutex<Failures>,
}

#[derive(Default)]
struct QueueState {
    /// Whether requests were taken since the queue was started.
    is_running: AtomicBool,
    buffer: Mutex<Vec<u8>>,
}

/// Counts the read errors, and reports some of them.
struct Failures {
    count: u64,
    report: Box<dyn FnMut(&str) + Send>,
}

/// The result of taking the next request from a queue.
enum Taken {
    Completed,
    NoRequest,
    /// The hypervisor has stopped the queue.
    Stopped,
}

impl Device {
    /// Creates a device with `queues` queues, 1 to [`MAX_QUEUES`]. `report` receives a line for read errors of the store.
    pub fn new(
        content: Arc<dyn DiskContent>,
        memory: Memory,
        queues: usize,
        report: impl FnMut(&str) + Send + 'static,
    ) -> Self {
        let queues = (0..queues.clamp(1, MAX_QUEUES)).map(|_| QueueState::default()).collect();
        let failures = Mutex::new(Failures { count: 0, report: Box::new(report) });
        Self { content, memory, queues, is_used: AtomicBool::new(false), failures }
    }

    /// Returns whether the peer has sent a message; one that only tests whether a process listens has not.
    pub fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// The device's configuration, `struct virtio_blk_config` of VIRTIO 1.2, 5.2.4. Fields of features that are not offered
    /// are zero.
    fn config(&self) -> [u8; 256] {
        let mut config = [0; 256];
        config[..8].copy_from_slice(&(self.content.size_bytes() / SECTOR_BYTES).to_le_bytes());
        config[12..16].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        config[20..24].copy_from_slice(&BLOCK_BYTES.to_le_bytes());
        config[34..36].copy_from_slice(&u16::try_from(self.queues.len()).unwrap_or(1).to_le_bytes());
        config
    }

    /// Takes and completes requests until there are none.
    fn run_queue(&self, state: &QueueState, vring: &VringMutex) -> Result<(), virtio_queue::Error> {
        if !state.is_running.swap(true, Ordering::AcqRel) {
            // In order, so everything up to the used index is done, and nothing after it.
            let done = vring.queue_used_idx()?;
            vring.set_queue_next_avail(done);
        }
        let mut empty_rounds = 0;
        loop {
            vring.disable_notification()?;
            empty_rounds += 1;
            loop {
                match self.run_request(state, vring)? {
                    Taken::Completed => empty_rounds = 0,
                    Taken::NoRequest => break,
                    // The requests in the ring stay there until the queue is started again. Enabling notifications would
                    // report them, forever.
                    Taken::Stopped => return Ok(()),
                }
            }
            // A request can arrive right before notifications are enabled, but then the next round finds it. Otherwise the
            // driver counts a request that cannot be read, which would keep this thread busy for ever.
            if !vring.enable_notification()? || empty_rounds == 2 {
                return Ok(());
            }
        }
    }

    /// Takes and completes one request, if there is one. The hypervisor can stop the queue only between two requests.
    fn run_request(&self, state: &QueueState, vring: &VringMutex) -> Result<Taken, virtio_queue::Error> {
        let mut ring = vring.get_mut();
        if !ring.is_enabled() || !ring.get_queue().ready() {
            return Ok(Taken::Stopped);
        }
        let memory = self.memory.memory();
        let Some(chain) = ring.get_queue_mut().iter(memory.clone())?.next() else {
            return Ok(Taken::NoRequest);
        };
        let head = chain.head_index();
        let written = self.complete(chain, &memory, state);
        ring.add_used(head, written)?;
        if ring.needs_notification()? {
            // The hypervisor has closed it, so it is about to end.
            let _ = ring.signal_used_queue();
        }
        Ok(Taken::Completed)
    }

    /// Carries out the request in a chain. Returns the number of bytes that were written to its buffers.
    fn complete<M>(&self, chain: DescriptorChain<M>, memory: &GuestMemoryMmap, state: &QueueState) -> u32
    where
        M: Deref<Target = GuestMemoryMmap>,
    {
        let buffers = chain.map(|descriptor| {
            let writer = if descriptor.is_write_only() { Writer::Device } else { Writer::Driver };
            (Buffer { address: descriptor.addr().0, length: descriptor.len() }, writer)
        });
        // Without a status byte, the guest only sees that its chain was returned.
        let Ok(chain) = Chain::of(buffers) else { return 0 };
        let Some(status_address) = chain.status_address else { return 0 };
        let (status, data) = self.answer(memory, &chain, state);
        match memory.write_obj(status, GuestAddress(status_address)) {
            Ok(()) => data.saturating_add(1),
            Err(_) => data,
        }
    }

    /// Returns the status of a request, and how much data was written.
    fn answer(&self, memory: &GuestMemoryMmap, chain: &Chain, state: &QueueState) -> (u8, u32) {
        let Some(header) = read_header(memory, &chain.from_driver) else { return (STATUS_IO_ERROR, 0) };
        let data_bytes = chain.data_bytes();
        let mut scatter = Scatter::new(memory, &chain.to_driver);
        match parse(&header, data_bytes, self.content.size_bytes()) {
            Request::Refuse(status) => (status, 0),
            Request::Flush => (STATUS_OK, 0),
            Request::Serial => {
                let mut serial = [0; SERIAL_BYTES];
                serial[..SERIAL.len()].copy_from_slice(SERIAL);
                let length = SERIAL_BYTES.min(usize::try_from(data_bytes).unwrap_or(SERIAL_BYTES));
                match scatter.write(&serial[..length]) {
                    Ok(()) => (STATUS_OK, u32::try_from(length).unwrap_or(0)),
                    Err(_) => (STATUS_IO_ERROR, 0),
                }
            }
            Request::Read(range) => self.read(range, &mut scatter, state),
        }
    }

    fn read(&self, range: Range<u64>, scatter: &mut Scatter<'_>, state: &QueueState) -> (u8, u32) {
        let mut buffer = locked(&state.buffer);
        let mut at = range.start;
        let mut written = 0_u32;
        while at < range.end {
            let length = usize::try_from(range.end - at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            if let Err(error) = self.content.read_at(at, &mut buffer[..length]) {
                self.report_failure(at, &error);
                return (STATUS_IO_ERROR, written);
            }
            if scatter.write(&buffer[..length]).is_err() {
                return (STATUS_IO_ERROR, written);
            }
            at += length as u64;
            written = written.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        }
        (STATUS_OK, written)
    }

    /// Reports the first read error, and then each time that their number has doubled.
    fn report_failure(&self, at: u64, error: &io::Error) {
        let mut failures = locked(&self.failures);
        failures.count += 1;
        let count = failures.count;
        if count.is_power_of_two() {
            let report = &mut failures.report;
            report(&format!(
                "read error {count} of the store disk, at byte {at}: {error}; the guest sees an I/O error"
            ));
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the header, which may be divided between buffers.
fn read_header(memory: &GuestMemoryMmap, from_driver: &[Buffer]) -> Option<[u8; HEADER_BYTES]> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    for buffer in from_driver {
        let length = usize::try_from(buffer.length).ok()?.min(HEADER_BYTES - filled);
        memory.read_slice(&mut header[filled..filled + length], GuestAddress(buffer.address)).ok()?;
        filled += length;
    }
    (filled == HEADER_BYTES).then_some(header)
}

/// Writes a stream of bytes to buffers of the guest.
struct Scatter<'a> {
    memory: &'a GuestMemoryMmap,
    buffers: &'a [Buffer],
    /// Bytes of the first buffer that are written.
    filled: usize,
}

/// A buffer of the guest is not in its memory.
struct NotInMemory;

impl<'a> Scatter<'a> {
    fn new(memory: &'a GuestMemoryMmap, buffers: &'a [Buffer]) -> Self {
        Self { memory, buffers, filled: 0 }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), NotInMemory> {
        while !bytes.is_empty() {
            let (buffer, others) = self.buffers.split_first().ok_or(NotInMemory)?;
            let left = usize::try_from(buffer.length).map_err(|_| NotInMemory)? - self.filled;
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            let address = buffer.address.checked_add(self.filled as u64).ok_or(NotInMemory)?;
            self.memory.write_slice(now, GuestAddress(address)).map_err(|_| NotInMemory)?;
            self.filled += now.len();
            if now.len() == left {
                (self.buffers, self.filled) = (others, 0);
            }
            bytes = later;
        }
        Ok(())
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        self.queues.len()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.is_used.store(true, Ordering::Relaxed);
        let bits = [
            VIRTIO_F_VERSION_1,
            VIRTIO_BLK_F_RO,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_MQ,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
        ];
        bits.into_iter().fold(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), |all, bit| all | 1 << bit)
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {
        // Each queue has this setting.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
        let bytes = range.and_then(|(start, length)| Some(start..start.checked_add(length)?));
        bytes.and_then(|bytes| self.config().get(bytes).map(<[u8]>::to_vec)).unwrap_or_default()
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        // `memory` is the one that was replaced in place.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.queues.len()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        if let Some(state) = usize::try_from(queue).ok().and_then(|queue| self.queues.get(queue)) {
            state.is_running.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn reset_device(&self) {
        for state in &self.queues {
            state.is_running.store(false, Ordering::Release);
        }
    }

    fn handle_event(&self, _event: u16, _set: EventSet, vrings: &[VringMutex], thread: usize) -> io::Result<()> {
        let (Some(state), [vring]) = (self.queues.get(thread), vrings) else { return Ok(()) };
        // The rings of this queue are not in the guest's memory, or contain invalid values, which affects only this guest. An error
        // would end the thread; without one, a driver that restarts the queue gets answers again.
        let _ = self.run_queue(state, vring);
        Ok(())
    }
}
