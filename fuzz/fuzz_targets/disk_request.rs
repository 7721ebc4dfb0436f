//! Invariant: whatever buffers a guest gives to the server of a store disk, and whatever is in their header, the request is
//! refused or reads only bytes of the disk, as many as fit into the buffers.

#![no_main]

use imagebuilder::serve::request::{Buffer, Chain, HEADER_BYTES, Request, SECTOR_BYTES, Writer, parse};
use libfuzzer_sys::fuzz_target;

/// One buffer in the input: address, length and writer.
const RECORD_BYTES: usize = 13;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let Some((disk, rest)) = rest.split_first_chunk::<4>() else { return };
    let disk_bytes = u64::from(u32::from_le_bytes(*disk)) * SECTOR_BYTES;
    let buffers = rest.chunks_exact(RECORD_BYTES).map(|record| {
        let address = u64::from_le_bytes(record[..8].try_into().expect("8 bytes"));
        let length = u32::from_le_bytes(record[8..12].try_into().expect("4 bytes"));
        (Buffer { address, length }, if record[12] & 1 == 0 { Writer::Driver } else { Writer::Device })
    });
    let given: u64 = rest
        .chunks_exact(RECORD_BYTES)
        .map(|record| u64::from(u32::from_le_bytes(record[8..12].try_into().expect("4 bytes"))))
        .sum();
    let Ok(chain) = Chain::of(buffers) else { return };
    // The status has a byte of its own.
    assert!(chain.data_bytes() + u64::from(chain.status_address.is_some()) <= given);
    if let Request::Read(range) = parse(header, chain.data_bytes(), disk_bytes) {
        assert!(range.start <= range.end && range.end <= disk_bytes);
        assert_eq!(range.end - range.start, chain.data_bytes());
        assert_eq!(range.start % SECTOR_BYTES, 0);
    }
});
