//! What a worker thread does: reading, hashing, compressing, asking the cache.

use super::buffers::SpareBuffers;
use super::source::Member;
use super::{BuildError, CacheTrust};
use crate::cache::{Cache, CacheError, Lookup};
use crate::encode::Encoder;
use crate::image::codec::Workspace as Decoder;
use crate::segment::{ContentHash, RANGE_BYTES, Segment, SegmentKey, SegmentKind, encode_segment, fragment_content};
use crate::settings::ImageSettings;
use crate::squashfs::format::BLOCK_PLAIN;
use crate::tree::{Entry, NodeId};

/// A piece of work.
#[derive(Debug)]
pub(super) enum Job {
    /// Reads and hashes small files of one store path.
    ReadFiles {
        /// Number of the store path.
        member: usize,
        /// The files.
        nodes: Vec<NodeId>,
    },
    /// Reads a range of a file whose content is not known, and does `then` with it.
    ReadRange {
        /// Which range.
        range: RangeRef,
        /// What to do.
        then: Then,
    },
    /// Makes or finds the segment of a range whose content hash is known.
    KnownRange {
        /// Which range.
        range: RangeRef,
        /// Its hash.
        content: ContentHash,
    },
    /// Makes or finds the segment of bytes that have been read.
    Bytes {
        /// Key of the segment.
        key: SegmentKey,
        /// The content.
        bytes: Vec<u8>,
    },
    /// Makes or finds a fragment block of files whose hashes are known.
    KnownFragment {
        /// Number of the store path.
        member: usize,
        /// The files, with their hashes and sizes.
        files: Vec<(NodeId, ContentHash, u32)>,
    },
}

/// A range of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct RangeRef {
    /// Number of the store path.
    pub(super) member: usize,
    /// The file.
    pub(super) node: NodeId,
    /// Number of the range.
    pub(super) range: usize,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// What to do with a range that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Make or find its segment: no other file of the image can be equal.
    Encode,
    /// Hand the bytes over: whether another file is equal is not known yet.
    Keep,
    /// Only hash it: the file is too large to be kept.
    Hash,
}

/// What a job gives.
#[derive(Debug)]
pub(super) enum Product {
    /// Of [`Job::ReadFiles`]: the contents one after the other, and their hashes.
    Files {
        /// The contents.
        bytes: Vec<u8>,
        /// The hashes.
        hashes: Vec<ContentHash>,
    },
    /// A segment, and the hash of its content where the job had to find it out.
    Segment {
        /// The hash, unless nobody needs it.
        content: Option<ContentHash>,
        /// The segment.
        segment: Segment,
        /// Where it came from.
        origin: Origin,
    },
    /// Of [`Then::Keep`].
    Kept {
        /// The hash.
        content: ContentHash,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Of [`Then::Hash`].
    Hashed {
        /// The hash.
        content: ContentHash,
    },
}

/// Where a segment came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The cache.
    Cached,
    /// It was compressed.
    Compressed,
    /// It was compressed because its cache entry was damaged.
    Rebuilt,
}

/// What all workers share.
pub(super) struct Workshop<'a> {
    /// The store paths, in the order of their data.
    pub(super) members: &'a [Member],
    /// Codec and block sizes.
    pub(super) settings: &'a ImageSettings,
    /// The cache, if there is one.
    pub(super) cache: Option<&'a Cache>,
    /// How much it is trusted.
    pub(super) trust: CacheTrust,
    /// Buffers for segments.
    pub(super) buffers: &'a SpareBuffers,
    /// Takes what went wrong with the cache: none of it stops a build.
    pub(super) cache_troubles: &'a (dyn Fn(CacheError) + Sync),
}

/// One worker: its codec and its buffer.
pub(super) struct Worker<'a> {
    workshop: &'a Workshop<'a>,
    encoder: Encoder,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    /// Sets the codec up.
    pub(super) fn new(workshop: &'a Workshop<'a>) -> Result<Self, BuildError> {
        Ok(Self {
            workshop,
            encoder: Encoder::new(workshop.settings)?,
            decoder: Decoder::default(),
            buffer: Vec::new(),
        })
    }

    /// Does a piece of work.
    pub(super) fn run(&mut self, job: Job) -> Result<Product, BuildError> {
        match job {
            Job::ReadFiles { member, nodes } => self.read_files(member, &nodes),
            Job::ReadRange { range, then } => self.read_range(range, then),
            Job::KnownRange { range, content } => self.known_range(range, content),
            Job::KnownFragment { member, files } => self.known_fragment(member, &files),
            Job::Bytes { key, bytes } => {
                let (segment, origin) = self.segment(key, &bytes)?;
                Ok(Product::Segment { content: Some(key.content), segment, origin })
            }
        }
    }

    fn read_files(&self, member: usize, nodes: &[NodeId]) -> Result<Product, BuildError> {
        let member = &self.workshop.members[member];
        let lengths: Vec<usize> = nodes.iter().map(|node| member.file_length(*node)).collect();
        let mut bytes = vec![0; lengths.iter().sum()];
        let mut hashes = Vec::with_capacity(nodes.len());
        let mut rest = &mut bytes[..];
        for (node, length) in nodes.iter().zip(lengths) {
            let (content, behind) = rest.split_at_mut(length);
            member.read(*node, 0, content)?;
            hashes.push(*blake3::hash(content).as_bytes());
            rest = behind;
        }
        Ok(Product::Files { bytes, hashes })
    }

    fn read_range(&mut self, range: RangeRef, then: Then) -> Result<Product, BuildError> {
        let mut buffer = self.take_buffer(range.length);
        let bytes = &mut buffer[..range.length];
        self.workshop.members[range.member].read(range.node, range.range, bytes)?;
        let needs_hash = then != Then::Encode || self.workshop.cache.is_some();
        let content = needs_hash.then(|| *blake3::hash(bytes).as_bytes());
        let product = match (then, content) {
            (Then::Keep, Some(content)) => Product::Kept { content, bytes: bytes.to_vec() },
            (Then::Hash, Some(content)) => Product::Hashed { content },
            (_, content) => {
                let (segment, origin) = match content {
                    Some(content) => self.segment(SegmentKey { kind: SegmentKind::File, content }, bytes)?,
                    None => (self.encode(SegmentKind::File, bytes)?, Origin::Compressed),
                };
                Product::Segment { content, segment, origin }
            }
        };
        self.buffer = buffer;
        Ok(product)
    }

    fn known_range(&mut self, range: RangeRef, content: ContentHash) -> Result<Product, BuildError> {
        let key = SegmentKey { kind: SegmentKind::File, content };
        let member = &self.workshop.members[range.member];
        let (segment, origin) = self.known(key, range.length, |bytes| {
            member.read(range.node, range.range, bytes)?;
            member.expect_content(range.node, bytes, &content)
        })?;
        Ok(Product::Segment { content: Some(content), segment, origin })
    }

    fn known_fragment(&mut self, member: usize, files: &[(NodeId, ContentHash, u32)]) -> Result<Product, BuildError> {
        let contents: Vec<_> = files.iter().map(|(_, content, size_bytes)| (*content, *size_bytes)).collect();
        let content = fragment_content(&contents);
        let key = SegmentKey { kind: SegmentKind::Fragment, content };
        let length = files.iter().map(|(_, _, size_bytes)| *size_bytes as usize).sum();
        let member = &self.workshop.members[member];
        let (segment, origin) = self.known(key, length, |mut rest| {
            for (node, content, size_bytes) in files {
                let (bytes, behind) = rest.split_at_mut(*size_bytes as usize);
                member.read(*node, 0, bytes)?;
                member.expect_content(*node, bytes, content)?;
                rest = behind;
            }
            Ok(())
        })?;
        Ok(Product::Segment { content: Some(content), segment, origin })
    }

    /// The segment of a content that need not be read unless the cache lacks it; `read` fills in its bytes.
    fn known(
        &mut self,
        key: SegmentKey,
        length: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), BuildError>,
    ) -> Result<(Segment, Origin), BuildError> {
        let damage = match self.look_up(&key, length) {
            Lookup::Hit(segment) => return Ok((segment, Origin::Cached)),
            Lookup::Miss => Damage::None,
            Lookup::Damaged => Damage::Found,
        };
        let mut buffer = self.take_buffer(length);
        read(&mut buffer[..length])?;
        let made = self.make(key, &buffer[..length], damage);
        self.buffer = buffer;
        made
    }

    /// A buffer of at least `length` bytes. It is put back afterwards: zeroing a new one each time would cost as much as
    /// copying the content does.
    fn take_buffer(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        buffer
    }

    /// The segment of a content at hand.
    fn segment(&mut self, key: SegmentKey, content: &[u8]) -> Result<(Segment, Origin), BuildError> {
        let mut damage = Damage::None;
        match self.look_up(&key, content.len()) {
            Lookup::Hit(segment) => {
                if self.workshop.trust == CacheTrust::Checksums || self.holds(&segment, content) {
                    return Ok((segment, Origin::Cached));
                }
                damage = Damage::Found;
            }
            Lookup::Damaged => damage = Damage::Found,
            Lookup::Miss => {}
        }
        self.make(key, content, damage)
    }

    fn look_up(&self, key: &SegmentKey, length: usize) -> Lookup<Segment> {
        let Some(cache) = self.workshop.cache else { return Lookup::Miss };
        match cache.load_segment(key, self.workshop.buffers.take()) {
            Ok(Lookup::Hit(segment)) if segment.input_bytes as usize != length => Lookup::Damaged,
            Ok(found) => found,
            Err(error) => {
                (self.workshop.cache_troubles)(error);
                Lookup::Miss
            }
        }
    }

    /// Whether a cached segment, decompressed, is the content.
    fn holds(&mut self, segment: &Segment, content: &[u8]) -> bool {
        let settings = self.workshop.settings;
        let blocks = content.chunks(settings.block_size_bytes() as usize);
        let mut rest = segment.stored();
        let mut decoded = vec![0; settings.block_size_bytes() as usize];
        blocks.len() == segment.words.len()
            && segment.words.iter().zip(blocks).all(|(word, block)| {
                let Some((stored, behind)) = rest.split_at_checked((word & !BLOCK_PLAIN) as usize) else {
                    return false;
                };
                rest = behind;
                if *word == 0 {
                    block.iter().all(|byte| *byte == 0)
                } else if word & BLOCK_PLAIN != 0 {
                    stored == block
                } else {
                    let length = self.decoder.decode(settings.compression(), stored, &mut decoded);
                    length.is_ok_and(|length| decoded[..length] == *block)
                }
            })
    }

    fn make(&mut self, key: SegmentKey, content: &[u8], damage: Damage) -> Result<(Segment, Origin), BuildError> {
        let segment = self.encode(key.kind, content)?;
        if let Some(cache) = self.workshop.cache
            && let Err(error) = cache.store_segment(&key, &segment)
        {
            (self.workshop.cache_troubles)(error);
        }
        let origin = match damage {
            Damage::None => Origin::Compressed,
            Damage::Found => Origin::Rebuilt,
        };
        Ok((segment, origin))
    }

    fn encode(&mut self, kind: SegmentKind, content: &[u8]) -> Result<Segment, BuildError> {
        let block_size_bytes = self.workshop.settings.block_size_bytes();
        Ok(encode_segment(&mut self.encoder, kind, content, block_size_bytes, self.workshop.buffers.take())?)
    }
}

/// Whether an entry was found that was not what it should be.
#[derive(Clone, Copy, Debug)]
enum Damage {
    None,
    Found,
}

impl Member {
    /// Length of a file, which is at most that of a segment.
    fn file_length(&self, node: NodeId) -> usize {
        match self.tree().entry(node) {
            Entry::File { size_bytes, .. } => usize::try_from(size_bytes).unwrap_or(usize::MAX),
            Entry::Directory { .. } | Entry::Symlink { .. } => 0,
        }
    }

    /// Fills `out` with a range of a file.
    fn read(&self, node: NodeId, range: usize, out: &mut [u8]) -> Result<(), BuildError> {
        let file = self.open(node)?;
        file.read_range(range as u64 * RANGE_BYTES, out)?;
        file.finish()
    }

    /// Content that the cache knows under a hash must have that hash still.
    fn expect_content(&self, node: NodeId, bytes: &[u8], content: &ContentHash) -> Result<(), BuildError> {
        if blake3::hash(bytes).as_bytes() == content {
            return Ok(());
        }
        Err(BuildError::Changed { path: self.path_of(node) })
    }
}
