//! Parses the requests of a guest, as a pure function of the bytes that it wrote. None of them is trusted.
//!
//! A request is a chain of descriptors: first buffers that the device reads, which begin with a header of 16 bytes,
//! then buffers that it writes, whose last byte is for the status. Source: VIRTIO 1.2, sections 2.7.4 and 5.2.6.
//! Drivers may divide header, data and status into any buffers.

use std::ops::Range;

/// The unit of positions and lengths in bytes, whatever the block size of the disk.
pub const SECTOR_BYTES: u64 = 512;
/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 16;
/// Length of a serial number in bytes; a shorter one ends with a zero byte.
pub const SERIAL_BYTES: usize = 20;

/// The request is done.
pub const STATUS_OK: u8 = 0;
/// The request failed.
pub const STATUS_IO_ERROR: u8 = 1;
/// The device does not support the request.
pub const STATUS_UNSUPPORTED: u8 = 2;

const TYPE_READ: u32 = 0;
const TYPE_WRITE: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_SERIAL: u32 = 8;

/// A buffer of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its address in the guest's memory.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
}

/// Who writes a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The guest: the device reads it.
    Driver,
    /// The device: the guest reads it.
    Device,
}

/// The buffers of one request, in two parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The device reads these. Only the header is used, because the disk is read-only.
    pub from_driver: Vec<Buffer>,
    /// The device writes data to these.
    pub to_driver: Vec<Buffer>,
    /// The address of the status byte, the last one of the chain; `None` if the device may write nothing.
    pub status_address: Option<u64>,
}

/// The chain breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a buffer that the device reads comes after one that it writes")]
pub struct BufferOrderError;

impl Chain {
    /// Divides a chain into the buffers that are read and those that are written, and removes the status byte from its
    /// end.
    ///
    /// # Errors
    /// [`BufferOrderError`].
    pub fn of(buffers: impl IntoIterator<Item = (Buffer, Writer)>) -> Result<Self, BufferOrderError> {
        let mut chain = Self::default();
        for (buffer, writer) in buffers {
            match writer {
                Writer::Driver if !chain.to_driver.is_empty() => return Err(BufferOrderError),
                Writer::Driver => chain.from_driver.push(buffer),
                Writer::Device => chain.to_driver.push(buffer),
            }
        }
        // Empty buffers are allowed, and ignored.
        while let Some(last) = chain.to_driver.last_mut() {
            if last.length == 0 {
                chain.to_driver.pop();
                continue;
            }
            last.length -= 1;
            chain.status_address = last.address.checked_add(u64::from(last.length));
            if last.length == 0 {
                chain.to_driver.pop();
            }
            break;
        }
        Ok(chain)
    }

    /// Length of the data in bytes: less than 2^48, because a chain has at most 2^16 buffers.
    pub fn data_bytes(&self) -> u64 {
        self.to_driver.iter().map(|buffer| u64::from(buffer.length)).sum()
    }
}

/// What a request requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Return these bytes of the disk.
    Read(Range<u64>),
    /// Return the serial number.
    Serial,
    /// Nothing: all data is on the disk already.
    Flush,
    /// Only return this status.
    Refuse(u8),
}

/// Parses a header. A request for bytes after the first `disk_bytes` fails.
pub fn parse(header: &[u8; HEADER_BYTES], data_bytes: u64, disk_bytes: u64) -> Request {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = *header;
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        TYPE_READ => {
            let range = u64::from_le_bytes(sector)
                .checked_mul(SECTOR_BYTES)
                .and_then(|start| Some(start..start.checked_add(data_bytes)?));
            match range {
                Some(range) if range.end <= disk_bytes && data_bytes.is_multiple_of(SECTOR_BYTES) => {
                    Request::Read(range)
                }
                _ => Request::Refuse(STATUS_IO_ERROR),
            }
        }
        TYPE_SERIAL => Request::Serial,
        TYPE_FLUSH => Request::Flush,
        TYPE_WRITE => Request::Refuse(STATUS_IO_ERROR),
        _ => Request::Refuse(STATUS_UNSUPPORTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buffer(address: u64, length: u32) -> Buffer {
        Buffer { address, length }
    }

    fn header(kind: u32, sector: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0xff; HEADER_BYTES];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    const DISK: u64 = 8 * SECTOR_BYTES;

    #[test]
    fn the_last_byte_that_the_device_writes_is_the_status() {
        use Writer::{Device, Driver};
        let chain = Chain::of([
            (buffer(0, 16), Driver),
            (buffer(100, 512), Device),
            (buffer(900, 513), Device),
            (buffer(5, 0), Device),
        ])
        .unwrap();
        assert_eq!(chain.from_driver, [buffer(0, 16)]);
        assert_eq!(chain.to_driver, [buffer(100, 512), buffer(900, 512)]);
        assert_eq!((chain.status_address, chain.data_bytes()), (Some(1412), 1024));

        let alone = Chain::of([(buffer(0, 16), Driver), (buffer(7, 1), Device)]).unwrap();
        assert_eq!((alone.to_driver.len(), alone.status_address), (0, Some(7)));
        assert_eq!(Chain::of([(buffer(0, 16), Driver)]).unwrap().status_address, None);
        assert_eq!(Chain::of([(buffer(3, 0), Device)]).unwrap().status_address, None);
        assert_eq!(Chain::of([(buffer(u64::MAX, 2), Device)]).unwrap().status_address, None);
        assert_eq!(Chain::of([(buffer(0, 1), Device), (buffer(0, 16), Driver)]), Err(BufferOrderError));
    }

    #[test]
    fn only_whole_sectors_of_the_disk_are_read() {
        let read = |sector, bytes| parse(&header(TYPE_READ, sector), bytes, DISK);
        let error = Request::Refuse(STATUS_IO_ERROR);
        assert_eq!(read(0, DISK), Request::Read(0..DISK));
        assert_eq!(read(7, 512), Request::Read(3584..4096));
        assert_eq!(read(8, 0), Request::Read(4096..4096));
        assert_eq!(read(7, 1024), error);
        assert_eq!(read(0, 511), error);
        assert_eq!(read(9, 0), error);
        assert_eq!(read(u64::MAX, 512), error);
        assert_eq!(read(u64::MAX / 512, 512), error);
        assert_eq!(read(0, !511), error);
    }

    #[test]
    fn the_disk_cannot_be_written_and_unknown_requests_are_refused() {
        assert_eq!(parse(&header(TYPE_WRITE, 0), 0, DISK), Request::Refuse(STATUS_IO_ERROR));
        // Discard, write zeroes, secure erase, and none at all.
        for kind in [11, 13, 14, 2, u32::MAX] {
            assert_eq!(parse(&header(kind, 0), 512, DISK), Request::Refuse(STATUS_UNSUPPORTED));
        }
        assert_eq!(parse(&header(TYPE_SERIAL, 9), 20, DISK), Request::Serial);
        assert_eq!(parse(&header(TYPE_FLUSH, 9), 0, DISK), Request::Flush);
    }

    proptest! {
        #[test]
        fn everything_that_is_read_is_on_the_disk(bytes: [u8; HEADER_BYTES], data: u64, disk in 0..1_u64 << 48) {
            if let Request::Read(range) = parse(&bytes, data, disk) {
                prop_assert!(range.start <= range.end && range.end <= disk && range.end - range.start == data);
            }
        }
    }
}
