//! What a worker thread does: reading, hashing, compressing, asking the cache.

use super::buffers::SpareBuffers;
use super::source::Member;
use super::{BuildError, CacheTrust};
use crate::cache::{Cache, CacheError, Lookup};
use crate::encode::Encoder;
use crate::image::codec::Workspace as Decoder;
use crate::segment::{Batch, ContentHash, Origin, RANGE_BYTES, Segment, SegmentKey, SegmentKind};
use crate::segment::{encode_segment, fragment_content};
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
    /// Makes or finds segments of one store path whose content hashes are known.
    Known {
        /// Number of the store path.
        member: usize,
        /// The segments, in the order of the image.
        segments: Vec<KnownSegment>,
    },
    /// Makes or finds the segment of bytes that have been read.
    Bytes {
        /// Key of the segment.
        key: SegmentKey,
        /// The content.
        bytes: Vec<u8>,
    },
}

/// A segment that need not be read unless the cache lacks it.
#[derive(Debug)]
pub(super) enum KnownSegment {
    /// A range of a file, and its hash.
    Range(RangeRef, ContentHash),
    /// A fragment block: its files, with their hashes and sizes.
    Fragment(Vec<(NodeId, ContentHash, u32)>),
}

impl KnownSegment {
    /// Length of its content in bytes.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Range(range, _) => range.length,
            Self::Fragment(files) => files.iter().map(|(_, _, size_bytes)| *size_bytes as usize).sum(),
        }
    }

    fn key(&self) -> SegmentKey {
        match self {
            Self::Range(_, content) => SegmentKey { kind: SegmentKind::File, content: *content },
            Self::Fragment(files) => {
                let contents: Vec<_> = files.iter().map(|(_, content, size_bytes)| (*content, *size_bytes)).collect();
                SegmentKey { kind: SegmentKind::Fragment, content: fragment_content(&contents) }
            }
        }
    }
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
    /// Of [`Then::Encode`]: the segment of the range, and its hash unless nobody needs it.
    Encoded {
        /// The hash.
        content: Option<ContentHash>,
        /// The segment.
        batch: Batch,
    },
    /// Of [`Job::Bytes`] and [`Job::Known`]: the segments that were asked for.
    Segments(Batch),
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
            buffer: vec![0; RANGE_BYTES as usize],
        })
    }

    /// Does a piece of work.
    pub(super) fn run(&mut self, job: Job) -> Result<Product, BuildError> {
        match job {
            Job::ReadFiles { member, nodes } => self.read_files(member, &nodes),
            Job::ReadRange { range, then } => self.read_range(range, then),
            Job::Known { member, segments } => {
                let mut batch = Batch::new(self.workshop.buffers.take_roomy());
                segments.iter().try_for_each(|segment| self.known(member, segment, &mut batch))?;
                Ok(Product::Segments(batch))
            }
            Job::Bytes { key, bytes } => {
                let mut batch = self.new_batch(bytes.len());
                self.segment(key, &bytes, &mut batch)?;
                self.workshop.buffers.give(bytes);
                Ok(Product::Segments(batch))
            }
        }
    }

    fn read_files(&self, member: usize, nodes: &[NodeId]) -> Result<Product, BuildError> {
        let member = &self.workshop.members[member];
        let lengths: Vec<usize> = nodes.iter().map(|node| member.file_length(*node)).collect();
        let mut bytes = self.workshop.buffers.take_filled(lengths.iter().sum());
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
        let mut buffer = match then {
            // These bytes are handed over.
            Then::Keep => self.workshop.buffers.take_filled(range.length),
            Then::Encode | Then::Hash => self.take_buffer(range.length),
        };
        let bytes = &mut buffer[..range.length];
        self.workshop.members[range.member].read(range.node, range.range, bytes)?;
        let needs_hash = then != Then::Encode || self.workshop.cache.is_some();
        let content = needs_hash.then(|| *blake3::hash(bytes).as_bytes());
        let product = match (then, content) {
            (Then::Keep, Some(content)) => return Ok(Product::Kept { content, bytes: buffer }),
            (Then::Hash, Some(content)) => Product::Hashed { content },
            (_, content) => {
                let mut batch = self.new_batch(range.length);
                match content {
                    Some(content) => {
                        self.segment(SegmentKey { kind: SegmentKind::File, content }, bytes, &mut batch)?
                    }
                    None => {
                        let segment = self.encode(SegmentKind::File, bytes, &mut batch)?;
                        batch.push(segment);
                    }
                }
                Product::Encoded { content, batch }
            }
        };
        self.buffer = buffer;
        Ok(product)
    }

    /// A batch with room for segments of so much content, even if none of it shrinks.
    fn new_batch(&self, content_bytes: usize) -> Batch {
        Batch::new(self.workshop.buffers.take(content_bytes + content_bytes / 128 + 1024))
    }

    /// Adds a segment whose content need not be read unless the cache lacks it.
    fn known(&mut self, member: usize, known: &KnownSegment, batch: &mut Batch) -> Result<(), BuildError> {
        let (key, length) = (known.key(), known.length());
        let damage = match self.look_up(&key, length, batch) {
            Lookup::Hit(segment) => {
                batch.push(segment);
                return Ok(());
            }
            Lookup::Miss => Damage::None,
            Lookup::Damaged => Damage::Found,
        };
        let mut buffer = self.take_buffer(length);
        self.workshop.members[member].read_known(known, &mut buffer[..length])?;
        self.make(key, &buffer[..length], damage, batch)?;
        self.buffer = buffer;
        Ok(())
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

    /// Adds the segment of a content at hand.
    fn segment(&mut self, key: SegmentKey, content: &[u8], batch: &mut Batch) -> Result<(), BuildError> {
        let mut damage = Damage::None;
        match self.look_up(&key, content.len(), batch) {
            Lookup::Hit(segment) => {
                if self.workshop.trust == CacheTrust::Checksums || self.holds(&segment, batch, content) {
                    batch.push(segment);
                    return Ok(());
                }
                damage = Damage::Found;
            }
            Lookup::Damaged => damage = Damage::Found,
            Lookup::Miss => {}
        }
        self.make(key, content, damage, batch)
    }

    fn look_up(&self, key: &SegmentKey, length: usize, batch: &mut Batch) -> Lookup<Segment> {
        let Some(cache) = self.workshop.cache else { return Lookup::Miss };
        match cache.load_segment(key, batch) {
            Ok(Lookup::Hit(segment)) if !self.fits(&segment, length) => Lookup::Damaged,
            Ok(found) => found,
            Err(error) => {
                (self.workshop.cache_troubles)(error);
                Lookup::Miss
            }
        }
    }

    /// Whether a cached segment can be one of so many bytes: a forged one may have other blocks, which no image can hold.
    fn fits(&self, segment: &Segment, length: usize) -> bool {
        let block_bytes = self.workshop.settings.block_size_bytes();
        segment.input_bytes as usize == length
            && segment.words.len() == length.div_ceil(block_bytes as usize)
            && segment.words.iter().all(|word| word & !BLOCK_PLAIN <= block_bytes)
    }

    /// Whether a cached segment, decompressed, is the content.
    fn holds(&mut self, segment: &Segment, batch: &Batch, content: &[u8]) -> bool {
        let settings = self.workshop.settings;
        let blocks = content.chunks(settings.block_size_bytes() as usize);
        let mut rest = batch.stored(segment);
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

    /// Compresses a segment, keeps it in the cache, and adds it.
    fn make(&mut self, key: SegmentKey, content: &[u8], damage: Damage, batch: &mut Batch) -> Result<(), BuildError> {
        let mut segment = self.encode(key.kind, content, batch)?;
        if let Some(cache) = self.workshop.cache
            && let Err(error) = cache.store_segment(&key, &segment, batch.stored(&segment))
        {
            (self.workshop.cache_troubles)(error);
        }
        segment.origin = match damage {
            Damage::None => Origin::Compressed,
            Damage::Found => Origin::Rebuilt,
        };
        batch.push(segment);
        Ok(())
    }

    fn encode(&mut self, kind: SegmentKind, content: &[u8], batch: &mut Batch) -> Result<Segment, BuildError> {
        let block_size_bytes = self.workshop.settings.block_size_bytes();
        Ok(encode_segment(&mut self.encoder, kind, content, block_size_bytes, batch)?)
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

    /// Fills `out` with the content of a segment.
    fn read_known(&self, known: &KnownSegment, out: &mut [u8]) -> Result<(), BuildError> {
        match known {
            KnownSegment::Range(range, content) => {
                self.read(range.node, range.range, out)?;
                self.expect_content(range.node, out, content)
            }
            KnownSegment::Fragment(files) => {
                let mut rest = out;
                for (node, content, size_bytes) in files {
                    let (bytes, behind) = rest.split_at_mut(*size_bytes as usize);
                    self.read(*node, 0, bytes)?;
                    self.expect_content(*node, bytes, content)?;
                    rest = behind;
                }
                Ok(())
            }
        }
    }

    /// Content that the cache knows under a hash must have that hash still.
    fn expect_content(&self, node: NodeId, bytes: &[u8], content: &ContentHash) -> Result<(), BuildError> {
        if blake3::hash(bytes).as_bytes() == content {
            return Ok(());
        }
        Err(BuildError::Changed { path: self.path_of(node) })
    }
}
