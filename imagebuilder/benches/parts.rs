//! The inner parts of a build, each by itself: `cargo bench -p imagebuilder`.

#![allow(missing_docs, reason = "criterion_main makes an undocumented function")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run says why and ends")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use imagebuilder::cache::{Cache, Lookup};
use imagebuilder::encode::Encoder;
use imagebuilder::segment::{Batch, Segment, SegmentKey, SegmentKind, encode_segment};
use imagebuilder::settings::{Compression, ImageSettings};
use imagebuilder::squashfs::tables::{Contents, Location, Member, write_tables};
use imagebuilder::tree::{FileMode, Tree};
use std::hint::black_box;

/// A MiB that compresses about as well as programs do: the benchmark's own machine code.
fn content() -> Vec<u8> {
    let mut content = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    content.truncate(1 << 20);
    content
}

fn encode(settings: &ImageSettings, content: &[u8], batch: &mut Batch) -> Segment {
    let mut encoder = Encoder::new(settings).unwrap();
    encode_segment(&mut encoder, SegmentKind::File, content, settings.block_size_bytes(), batch).unwrap()
}

fn compressing(criterion: &mut Criterion) {
    let content = content();
    let mut group = criterion.benchmark_group("compress 1 MiB");
    group.throughput(Throughput::Bytes(content.len() as u64)).sample_size(10);
    for level in [1, 3, 9, 15] {
        let settings = ImageSettings::new(Compression::Zstd, Some(level), None, None).unwrap();
        let mut encoder = Encoder::new(&settings).unwrap();
        group.bench_function(format!("zstd {level}"), |bencher| {
            bencher.iter_batched(
                Batch::default,
                |mut batch| {
                    let size = settings.block_size_bytes();
                    encode_segment(&mut encoder, SegmentKind::File, &content, size, &mut batch).unwrap()
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.bench_function("BLAKE3 of it", |bencher| bencher.iter(|| blake3::hash(black_box(&content))));
    group.finish();
}

fn cached_segments(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let settings = ImageSettings::default();
    let cache = Cache::open(directory.path(), &settings).unwrap();
    let content = content();
    let mut made = Batch::default();
    let segment = encode(&settings, &content, &mut made);
    let stored = made.stored(&segment);
    let key = SegmentKey { kind: SegmentKind::File, content: *blake3::hash(&content).as_bytes() };
    cache.store_segment(&key, &segment, stored).unwrap();
    let mut group = criterion.benchmark_group("cached segment of 1 MiB of content");
    group.throughput(Throughput::Bytes(stored.len() as u64));
    let mut batch = Batch::default();
    group.bench_function("load and check", |bencher| {
        bencher.iter(|| match cache.load_segment(&key, &mut batch).unwrap() {
            Lookup::Hit(segment) => segment,
            Lookup::Miss | Lookup::Damaged => unreachable!("the segment was stored"),
        });
    });
    group.bench_function("store", |bencher| bencher.iter(|| cache.store_segment(&key, &segment, stored).unwrap()));
    group.finish();
}

/// Every file somewhere in a fragment block.
struct Somewhere;

impl Contents for Somewhere {
    fn locate(&self, _member: usize, file: u32) -> Location<'_> {
        Location::Fragment { index: 0, offset: file }
    }
}

fn tables(criterion: &mut Criterion) {
    let mut tree = Tree::default();
    let root = tree.open_directory(b"").unwrap();
    for directory in 0..100 {
        let directory = tree.open_directory(format!("directory-{directory:03}").as_bytes()).unwrap();
        for file in 0..100 {
            tree.add_file(format!("file-{file:03}").as_bytes(), 1000, FileMode::Regular).unwrap();
        }
        tree.close_directory(directory);
    }
    tree.close_directory(root);
    let settings = ImageSettings::default();
    let mut group = criterion.benchmark_group("tables of 10,000 files");
    group.throughput(Throughput::Elements(10_000)).sample_size(20);
    group.bench_function("write", |bencher| {
        bencher.iter(|| {
            let mut encoders = [(); 3].map(|()| Encoder::for_metadata(&settings).unwrap());
            let member = Member { name: b"member", tree: &tree };
            write_tables(&[member], &Somewhere, &[], 96, encoders.each_mut().map(Some)).unwrap()
        });
    });
    group.finish();
}

criterion_group!(parts, compressing, cached_segments, tables);
criterion_main!(parts);
