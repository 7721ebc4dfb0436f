//! Counts where the bytes of an image came from.

use crate::report::CacheReport;
use crate::segment::Origin;

/// Counts by store path and by bytes.
#[derive(Debug)]
pub(super) struct Tally {
    members: Vec<MemberTally>,
    bytes: CacheReport,
    /// Files whose content is in the image already.
    pub(super) duplicate_files: u64,
    /// Bytes of those files.
    pub(super) duplicate_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct MemberTally {
    compressed: bool,
    rebuilt: bool,
}

impl Tally {
    /// Nothing counted.
    pub(super) fn new(members: usize) -> Self {
        Self {
            members: vec![MemberTally::default(); members],
            bytes: CacheReport::default(),
            duplicate_files: 0,
            duplicate_bytes: 0,
        }
    }

    /// A segment of a store path was written.
    pub(super) fn wrote(&mut self, member: usize, input_bytes: u64, origin: Origin) {
        let tally = &mut self.members[member];
        match origin {
            Origin::Cached => self.bytes.hit_bytes += input_bytes,
            Origin::Compressed => {
                tally.compressed = true;
                self.bytes.missed_bytes += input_bytes;
            }
            Origin::Rebuilt => {
                (tally.compressed, tally.rebuilt) = (true, true);
                self.bytes.missed_bytes += input_bytes;
                self.bytes.rebuilt_bytes += input_bytes;
            }
        }
    }

    /// A file was in the image already.
    pub(super) fn duplicate(&mut self, bytes: u64) {
        self.duplicate_files += 1;
        self.duplicate_bytes += bytes;
    }

    /// The manifest of a store path was damaged.
    pub(super) fn damaged_manifest(&mut self, member: usize) {
        self.members[member].rebuilt = true;
    }

    /// The counts as the report has them.
    pub(super) fn report(&self) -> CacheReport {
        let missed = self.members.iter().filter(|member| member.compressed).count() as u64;
        CacheReport {
            enabled: true,
            hit_paths: self.members.len() as u64 - missed,
            missed_paths: missed,
            rebuilt_paths: self.members.iter().filter(|member| member.rebuilt).count() as u64,
            ..self.bytes.clone()
        }
    }
}
