//! Measures single parts of a build: `cargo bench -p imagebuilder`.

#![allow(missing_docs, reason = "criterion_main makes an undocumented function")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run says why and ends")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use imagebuilder::build::{PackRequest, make_pack};
use imagebuilder::encode::Encoder;
use imagebuilder::open_files::OpenFiles;
use imagebuilder::pack::{PackFile, PackOpener};
use imagebuilder::plan::PlannedPath;
use imagebuilder::segment::{Batch, SegmentKind, encode_segment};
use imagebuilder::settings::{Compression, ImageSettings};
use imagebuilder::squashfs::tables::{Contents, Location, RootEntry, write_tables};
use imagebuilder::store_path::StorePath;
use imagebuilder::tree::{FileMode, Tree};
use std::hint::black_box;
use std::sync::atomic::AtomicBool;

/// Returns 1 MiB that compresses about as well as programs: the benchmark's own machine code.
fn content() -> Vec<u8> {
    let mut content = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    content.truncate(1 << 20);
    content
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

fn packs(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let settings = ImageSettings::default();
    let content = content();
    let location = directory.path().join("file");
    std::fs::write(&location, &content).unwrap();
    let path = StorePath::from_base_name("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-file").unwrap();
    let path = PlannedPath { path, nar_hash: Some(testing::nar_sha256(&location)), nar_size_bytes: None };
    let (settings, location, place) = (&settings, location.as_path(), directory.path());
    let request = PackRequest { path: &path, location, settings, directory: place, earlier: None, jobs: 1 };
    let made = make_pack(&request, &AtomicBool::new(false)).unwrap();
    let opener = || PackOpener::new(settings, OpenFiles::new(1));
    let mut group = criterion.benchmark_group("pack of 1 MiB of content");
    group.throughput(Throughput::Bytes(made.file().metadata().unwrap().len()));
    group.bench_function("open", |bencher| {
        bencher.iter(|| opener().open(PackFile::new(made.file().try_clone().unwrap()).unwrap(), &path).unwrap());
    });
    let pack = opener().open(PackFile::new(made.file().try_clone().unwrap()).unwrap(), &path).unwrap();
    group.bench_function("read and check", |bencher| bencher.iter(|| assert!(pack.check_segments().unwrap())));
    group.finish();
}

/// Locations in which every file is in a fragment block.
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
            let store_path = RootEntry { name: b"store_path", tree: &tree };
            write_tables(&[store_path], &Somewhere, &[], 96, encoders.each_mut().map(Some)).unwrap()
        });
    });
    group.finish();
}

criterion_group!(parts, compressing, packs, tables);
criterion_main!(parts);
