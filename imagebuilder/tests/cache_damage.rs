//! A damaged, forged or shared cache never affects an image.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use imagebuilder::build::{BuildError, BuildOptions, CacheTrust, Digests, Durability, build};
use imagebuilder::cache::Cache;
use imagebuilder::cache::maintenance::{self, GcMode};
use imagebuilder::cache::outputs::{PlanKey, Published};
use imagebuilder::encode::Encoder;
use imagebuilder::open_files::OpenFiles;
use imagebuilder::pack::{
    NewSegment, PackHead, PackOpener, PackSource, PackSourceError, segment_checksum, write_index,
};
use imagebuilder::plan::{ImagePlan, PlannedPath};
use imagebuilder::progress::{Phase, Progress, Silent};
use imagebuilder::report::{BuildReport, Outcome};
use imagebuilder::segment::{Batch, SegmentKind, encode_segment};
use imagebuilder::settings::ImageSettings;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::built::closure;
use support::store_tree::{Item, Store, base_name, mixed_tree};

/// Changes the bytes of a pack.
type Damage = fn(&mut Vec<u8>);
/// Changes a file of the store.
type Change = fn(&Path);

struct Bench {
    store: Store,
    directory: tempfile::TempDir,
    plan: ImagePlan,
    reference: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        Self::of(Store::new([
            ("one", mixed_tree(1)),
            ("two", mixed_tree(2)),
            ("three", Item::directory([("file", Item::file("content"))])),
        ]))
    }

    fn of(store: Store) -> Self {
        let mut closure = closure(store.path());
        for planned in &mut closure.paths {
            planned.nar_hash = Some(testing::nar_sha256(&store.path().join(planned.path.base_name())));
        }
        let plan = ImagePlan::new(closure, ImageSettings::default());
        let directory = tempfile::tempdir().unwrap();
        let mut bench = Self { store, directory, plan, reference: Vec::new() };
        let options = BuildOptions { cache: None, ..bench.options() };
        build(&bench.plan, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
        bench.reference = fs::read(bench.output()).unwrap();
        bench
    }

    fn output(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn options(&self) -> BuildOptions {
        BuildOptions {
            output: self.output(),
            cache: Some(self.cache()),
            packs: None,
            cache_trust: CacheTrust::Checksums,
            jobs: 2,
            digests: Digests::Skip,
            durability: Durability::Synced,
        }
    }

    /// Removes the image, builds it again with the cache, and checks it.
    fn build_with(&self, trust: CacheTrust) -> BuildReport {
        let _ = fs::remove_file(self.output());
        let options = BuildOptions { cache_trust: trust, ..self.options() };
        let report = build(&self.plan, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
        assert!(fs::read(self.output()).unwrap() == self.reference, "the image differs: {report:?}");
        report
    }

    fn build(&self) -> BuildReport {
        self.build_with(CacheTrust::Checksums)
    }

    /// Returns the paths of all packs in the cache.
    fn packs(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.cache().join("v2/packs")];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { open.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        assert!(!found.is_empty());
        found
    }
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_packs_are_detected_replaced_and_counted() {
    let bench = Bench::new();
    bench.build();
    let damages = [
        ("empty", Vec::clear as Damage),
        ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
        ("longer", |bytes| bytes.push(0)),
        ("first bit", |bytes| bytes[0] ^= 1),
        ("last bit", |bytes| *bytes.last_mut().unwrap() ^= 0x80),
        ("footer", |bytes| {
            let at = bytes.len() - 56;
            bytes[at] ^= 1;
        }),
        ("length of the index", |bytes| {
            let at = bytes.len() - 33;
            bytes[at] ^= 0x80;
        }),
        ("index", |bytes| {
            let at = bytes.len() - 60;
            bytes[at] ^= 1;
        }),
        ("zeros, as after a power cut", |bytes| bytes.fill(0)),
        ("zeros in the blocks", |bytes| bytes[..16].fill(0)),
    ];
    for (what, damage) in damages {
        for pack in bench.packs() {
            rewrite(&pack, damage);
        }
        let report = bench.build();
        assert_eq!(report.cache.rebuilt_paths, 3, "{what}");
        assert!(report.cache.rebuilt_bytes > 0, "{what}");
        let again = bench.build();
        assert_eq!((again.cache.hit_paths, again.cache.rebuilt_paths), (3, 0), "{what}: {again:?}");
    }
    // One of several packs.
    rewrite(&bench.packs()[1], |bytes| bytes[0] ^= 1);
    assert_eq!(bench.build().cache.rebuilt_paths, 1);
}

#[test]
fn a_pack_under_the_name_of_another_is_ignored() {
    let bench = Bench::new();
    bench.build();
    let packs = bench.packs();
    let first = fs::read(&packs[0]).unwrap();
    for pack in &packs[1..] {
        fs::write(pack, &first).unwrap();
    }
    assert_eq!(bench.build().cache.rebuilt_paths, 2);
    assert_eq!(bench.build().cache.rebuilt_paths, 0);
}

#[test]
fn a_forged_pack_with_a_valid_checksum_is_found_by_the_comparison_with_the_store() {
    let bench = Bench::new();
    bench.build();
    // The attacker builds a pack from a store whose files have other bytes, and gives it the victim's name and hash.
    let forged = Bench::of(Store::new([("three", Item::directory([("file", Item::file("CONTENT"))]))]));
    forged.build();
    let settings = ImageSettings::default();
    let open = |cache: &Path, path| {
        let file = Cache::open(cache).unwrap().find_pack(path, &settings).unwrap().unwrap();
        PackOpener::new(&settings, OpenFiles::new(1)).open(file, path).unwrap()
    };
    let pack = open(&forged.cache(), &forged.plan.paths[0]);
    let mut stored = vec![0; pack.segments()[0].bytes as usize];
    pack.read(pack.segments()[0].at, &mut stored).unwrap();
    let victim = bench.plan.paths.iter().find(|planned| planned.path.name() == "three").unwrap();
    let cache = Cache::open(&bench.cache()).unwrap();
    let file = cache.new_pack(&settings).unwrap().unwrap();
    file.file().write_all_at(&stored, 0).unwrap();
    let head = PackHead { path: victim, settings: &settings, tree: pack.tree(), range_hashes: pack.range_hashes() };
    let words = pack.words(&pack.segments()[0]).to_vec();
    let new = NewSegment { words, checksum: segment_checksum(&stored) };
    write_index(file.file(), stored.len() as u64, &head, &[new]).unwrap();
    cache.keep_pack(victim, &settings, &file).unwrap();
    drop(cache);
    let _ = fs::remove_file(bench.output());
    build(&bench.plan, &bench.options(), &mut Silent, &AtomicBool::new(false)).unwrap();
    assert!(fs::read(bench.output()).unwrap() != bench.reference, "anyone who can write to the cache is trusted");
    let _ = fs::remove_file(bench.output());

    let options = BuildOptions { cache_trust: CacheTrust::VerifyAgainstStore, ..bench.options() };
    build(&bench.plan, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
    assert!(fs::read(bench.output()).unwrap() == bench.reference);
    // The forged pack has been replaced.
    assert_eq!(bench.build().cache.missed_paths, 0);
}

#[test]
fn forged_blocks_with_valid_checksums_are_found_by_the_comparison_with_the_store() {
    let bench = Bench::new();
    let content = vec![0x5a; 300_000];
    Item::directory([("file", Item::file(content.clone()))])
        .write(&bench.store.path().join(base_name("four")), bench.store.path());
    let mut plan = ImagePlan::new(closure(bench.store.path()), ImageSettings::default());
    for planned in &mut plan.paths {
        planned.nar_hash = Some(testing::nar_sha256(&bench.store.path().join(planned.path.base_name())));
    }
    let image = |cache: Option<PathBuf>, cache_trust| {
        let _ = fs::remove_file(bench.output());
        let options = BuildOptions { cache, cache_trust, ..bench.options() };
        let report = build(&plan, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
        (fs::read(bench.output()).unwrap(), report)
    };
    let reference = image(None, CacheTrust::Checksums).0;

    image(Some(bench.cache()), CacheTrust::Checksums);
    let settings = ImageSettings::default();
    let cache = Cache::open(&bench.cache()).unwrap();
    let path = plan.paths.iter().find(|planned| planned.path.name() == "four").unwrap();
    let found = cache.find_pack(path, &settings).unwrap().unwrap();
    let pack = PackOpener::new(&settings, OpenFiles::new(1)).open(found, path).unwrap();
    let mut encoder = Encoder::new(&settings).unwrap();
    let lie = vec![0xa5; content.len()];
    let mut batch = Batch::default();
    let size = settings.block_size_bytes();
    let segment = encode_segment(&mut encoder, SegmentKind::File, &lie, size, &mut batch).unwrap();
    let stored = batch.stored(&segment);
    let forged = cache.new_pack(&settings).unwrap().unwrap();
    forged.file().write_all_at(stored, 0).unwrap();
    let head = PackHead { path, settings: &settings, tree: pack.tree(), range_hashes: pack.range_hashes() };
    let new = NewSegment { words: segment.words.clone(), checksum: segment_checksum(stored) };
    write_index(forged.file(), stored.len() as u64, &head, &[new]).unwrap();
    cache.keep_pack(path, &settings, &forged).unwrap();
    drop(cache);

    // As documented: anyone who can write to the cache can forge content, and --cache-verify finds it.
    assert!(image(Some(bench.cache()), CacheTrust::Checksums).0 != reference);
    let (verified, report) = image(Some(bench.cache()), CacheTrust::VerifyAgainstStore);
    assert!(verified == reference);
    assert_eq!((report.cache.rebuilt_paths, report.cache.rebuilt_bytes), (1, content.len() as u64));
    assert!(image(Some(bench.cache()), CacheTrust::Checksums).0 == reference);
}

#[test]
fn an_existing_image_is_kept_until_it_or_the_plan_changes() {
    let bench = Bench::new();
    assert_eq!(bench.build().outcome, Outcome::Built);
    let build_again = |plan: &ImagePlan| {
        let report = build(plan, &bench.options(), &mut Silent, &AtomicBool::new(false)).unwrap();
        (report.outcome, fs::read(bench.output()).unwrap() == bench.reference)
    };
    assert_eq!(build_again(&bench.plan), (Outcome::Unchanged, true));
    // Change a byte, and restore the length and the times that a program can set.
    let modified = fs::metadata(bench.output()).unwrap().modified().unwrap();
    rewrite(&bench.output(), |bytes| bytes[5000] ^= 1);
    fs::File::open(bench.output()).unwrap().set_modified(modified).unwrap();
    assert_eq!(build_again(&bench.plan), (Outcome::Built, true));
    assert_eq!(build_again(&bench.plan), (Outcome::Unchanged, true));
    let mut other = bench.plan.clone();
    other.paths.pop();
    assert_eq!(build_again(&other), (Outcome::Built, false));
    assert_eq!(build_again(&bench.plan), (Outcome::Built, true));
}

#[test]
fn a_record_describes_the_image_of_its_own_build_not_that_of_another() {
    let bench = Bench::new();
    let report = bench.build();
    let cache = Cache::open(&bench.cache()).unwrap();
    let key = PlanKey::of(&bench.plan).unwrap();
    let published = Published { file: fs::File::open(bench.output()).unwrap(), is_synced: true };
    // Another build publishes its image before this one has written its record.
    let other = bench.directory.path().join("other");
    fs::write(&other, "the image of another plan").unwrap();
    fs::rename(&other, bench.output()).unwrap();
    cache.remember_build(&key, &bench.output(), &published, &report).unwrap();
    assert!(cache.finished_build((&key, &bench.plan), &bench.output(), Durability::Synced).is_none());
    drop(cache);
    assert_eq!(bench.build().outcome, Outcome::Built);
}

#[test]
fn builds_that_share_a_cache_do_not_disturb_each_other_and_collections_do_not_disturb_them() {
    let noise = |number: u64| Item::file(support::seeded::Seeded::new(number).noise(200_000));
    let bench = &Bench::of(Store::new([("one", mixed_tree(1)), ("two", noise(2)), ("three", noise(3))]));
    let running = &AtomicUsize::new(6);
    std::thread::scope(|scope| {
        for number in 0..6 {
            scope.spawn(move || {
                let output = bench.directory.path().join(format!("image-{number}"));
                let options = BuildOptions { output: output.clone(), ..bench.options() };
                for _ in 0..2 {
                    let _ = fs::remove_file(&output);
                    let built = build(&bench.plan, &options, &mut Silent, &AtomicBool::new(false));
                    let same = built.is_ok() && fs::read(&output).unwrap() == bench.reference;
                    if !same {
                        // The collections must end even if a build fails.
                        running.store(0, Ordering::Relaxed);
                    }
                    assert!(same, "{number}: {:?}", built.err());
                }
                let _ = running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            });
        }
        let mut removed = 0;
        while running.load(Ordering::Relaxed) > 0 {
            removed += maintenance::gc(&bench.cache(), 0, GcMode::Remove).unwrap().removed_entries;
        }
        removed += maintenance::gc(&bench.cache(), 0, GcMode::Remove).unwrap().removed_entries;
        assert!(removed > 0);
    });
    bench.build();
    assert_eq!(maintenance::fsck(&bench.cache()).unwrap().damaged, Vec::<PathBuf>::new());
}

#[test]
fn a_killed_build_leaves_a_usable_cache_and_no_image() {
    let bench = Bench::new();
    let plan = bench.directory.path().join("paths");
    let list: String = bench.plan.paths.iter().map(|path| format!("{}\n", path.path)).collect();
    fs::write(&plan, list).unwrap();
    let output = bench.directory.path().join("killed");
    for milliseconds in [0, 5, 10, 20, 40, 80, 160] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_microvm-image"))
            .args(["build", "--quiet", "--paths-from"])
            .arg(&plan)
            .arg("--store-dir")
            .arg(bench.store.path())
            .arg("--cache")
            .arg(bench.cache())
            .arg("-o")
            .arg(&output)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        // If the build is killed before its end, there is no image; after it, there is a complete one.
        match fs::read(&output) {
            Ok(image) => assert!(image == bench.reference, "after {milliseconds} ms"),
            Err(_) => assert!(!finished),
        }
        let _ = fs::remove_file(&output);
        let _ = bench.build();
        assert_eq!(maintenance::fsck(&bench.cache()).unwrap().damaged, Vec::<PathBuf>::new());
    }
}

#[test]
fn packs_removed_by_a_collection_are_created_again_by_the_next_build() {
    let bench = Bench::new();
    bench.build();
    let full = maintenance::stat(&bench.cache()).unwrap();
    assert_eq!(full.packs, 3);
    let half = full.total_bytes() / 2;
    let foretold = maintenance::gc(&bench.cache(), half, GcMode::DryRun).unwrap();
    assert_eq!(maintenance::stat(&bench.cache()).unwrap(), full);
    let collected = maintenance::gc(&bench.cache(), half, GcMode::Remove).unwrap();
    assert_eq!(collected, foretold);
    assert!(collected.removed_entries > 0 && collected.kept_bytes <= half);
    assert_eq!(maintenance::stat(&bench.cache()).unwrap().total_bytes(), collected.kept_bytes);
    let report = bench.build();
    assert!(report.cache.missed_bytes > 0 && report.cache.rebuilt_paths == 0, "{report:?}");
    maintenance::gc(&bench.cache(), 0, GcMode::Remove).unwrap();
    assert_eq!(maintenance::stat(&bench.cache()).unwrap().total_bytes(), 0);
    assert_eq!(bench.build().cache.hit_bytes, 0);
}

#[test]
fn a_check_of_the_cache_removes_damaged_packs() {
    let bench = Bench::new();
    bench.build();
    let packs = bench.packs();
    rewrite(&packs[0], |bytes| bytes[0] ^= 1);
    rewrite(&packs[1], Vec::clear);
    let stranger = packs[0].with_file_name("stranger");
    fs::write(&stranger, "no pack").unwrap();
    let checked = maintenance::fsck(&bench.cache()).unwrap();
    assert_eq!(checked.entries, 4);
    let mut damaged = checked.damaged;
    damaged.sort();
    let mut expected = vec![packs[0].clone(), packs[1].clone(), stranger];
    expected.sort();
    assert_eq!(damaged, expected);
    assert_eq!(maintenance::fsck(&bench.cache()).unwrap().damaged, Vec::<PathBuf>::new());
    assert_eq!(bench.build().cache.rebuilt_paths, 0);
}

/// Calls a function that changes the store when the phase of the blocks begins.
struct Meddle<F: FnMut()>(F);

impl<F: FnMut()> Progress for Meddle<F> {
    fn begin(&mut self, phase: Phase, _total_bytes: u64) {
        if phase == Phase::Blocks {
            (self.0)();
        }
    }

    fn advance(&mut self, _input_bytes: u64, _cached_bytes: u64, _stored_bytes: u64) {}

    fn warn(&mut self, _message: &str) {}
}

#[test]
fn a_file_that_changes_or_vanishes_while_it_is_read_ends_the_build() {
    let changes = [
        ("grown", (|path| fs::write(path, vec![1; 400_001]).unwrap()) as Change),
        ("cut", |path| fs::write(path, "").unwrap()),
        ("written", |path| fs::write(path, vec![2; 400_000]).unwrap()),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, change) in changes {
        let bench = Bench::new();
        fs::remove_file(bench.output()).unwrap();
        let victim = bench.store.store_path("two").join("zeros");
        let mut meddle = Meddle(|| change(&victim));
        let error = build(&bench.plan, &bench.options(), &mut meddle, &AtomicBool::new(false)).unwrap_err();
        let BuildError::Changed { path } = &error else { panic!("{what}: {error}") };
        assert_eq!(*path, victim, "{what}");
        assert_eq!(error.to_string(), format!("{} changed or vanished while it was read", victim.display()));
        let left: Vec<_> =
            fs::read_dir(bench.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["cache"], "{what}");
    }
}

#[test]
fn an_interrupted_build_leaves_the_existing_image_unchanged() {
    let bench = Bench::new();
    fs::write(bench.output(), "the image before").unwrap();
    let cancel = AtomicBool::new(false);
    let mut meddle = Meddle(|| cancel.store(true, Ordering::Relaxed));
    let error = build(&bench.plan, &bench.options(), &mut meddle, &cancel).unwrap_err();
    assert!(matches!(error, BuildError::Interrupted), "{error}");
    assert_eq!(fs::read(bench.output()).unwrap(), b"the image before");
    assert_eq!(bench.build().cache.rebuilt_paths, 0);
}

/// Cancels the build as soon as the cache has a pack.
struct CancelWithPack<'a>(&'a Bench, &'a AtomicBool);

impl Progress for CancelWithPack<'_> {
    fn begin(&mut self, _phase: Phase, _total_bytes: u64) {}

    fn advance(&mut self, _input_bytes: u64, _cached_bytes: u64, _stored_bytes: u64) {
        let settings = fs::read_dir(self.0.cache().join("v2/packs")).into_iter().flatten().flatten();
        let any = settings.flat_map(|directory| fs::read_dir(directory.path()).unwrap()).next().is_some();
        self.1.fetch_or(any, Ordering::Relaxed);
    }

    fn warn(&mut self, _message: &str) {}
}

#[test]
fn an_interrupted_first_build_keeps_the_packs_that_are_finished() {
    // More than is read ahead: the first packs are finished long before the end.
    let noise = |number: u64| Item::file(support::seeded::Seeded::new(number).noise(1 << 20));
    let names: Vec<String> = (0..32).map(|number| format!("path-{number:02}")).collect();
    let bench = Bench::of(Store::new(names.iter().zip(0..).map(|(name, number)| (name.as_str(), noise(number)))));
    let cancel = AtomicBool::new(false);
    let options = BuildOptions { jobs: 1, ..bench.options() };
    let error = build(&bench.plan, &options, &mut CancelWithPack(&bench, &cancel), &cancel).unwrap_err();
    assert!(matches!(error, BuildError::Interrupted), "{error}");
    let (kept, report) = (bench.packs().len() as u64, bench.build());
    assert!((1..32).contains(&kept) && report.cache.hit_paths == kept, "{kept}: {report:?}");
}

#[test]
fn an_existing_image_updates_the_times_of_its_packs_once_a_day() {
    let bench = Bench::new();
    bench.build();
    let age = |path: &Path, hours: u64| {
        let time = std::time::SystemTime::now() - Duration::from_secs(hours * 3600);
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    };
    let hours = |path: &Path| fs::metadata(path).unwrap().modified().unwrap().elapsed().unwrap().as_secs() / 3600;
    let record = fs::read_dir(bench.cache().join("v2/outputs")).unwrap().next().unwrap().unwrap().path();
    let unchanged = || {
        let report = build(&bench.plan, &bench.options(), &mut Silent, &AtomicBool::new(false)).unwrap();
        assert_eq!(report.outcome, Outcome::Unchanged);
    };
    // All packs are old, but the record is not, so no time is updated.
    bench.packs().iter().for_each(|pack| age(pack, 50));
    age(&record, 23);
    unchanged();
    assert!(hours(&record) >= 22 && bench.packs().iter().all(|pack| hours(pack) >= 49));
    // A day later, all times are updated.
    age(&record, 25);
    unchanged();
    assert!(hours(&record) == 0 && bench.packs().iter().all(|pack| hours(pack) == 0));
}

/// A source without packs. When it is queried for the second time, so after the first store path has been looked up in
/// the cache, it changes the cache.
#[derive(Debug)]
struct ChangesCache {
    queries: AtomicUsize,
    cache: PathBuf,
    change: Change,
}

impl PackSource for ChangesCache {
    fn find_pack(&self, _: &PlannedPath, _: &ImageSettings) -> Result<Option<fs::File>, PackSourceError> {
        if self.queries.fetch_add(1, Ordering::Relaxed) == 1 {
            (self.change)(&self.cache);
        }
        Ok(None)
    }
}

#[test]
fn a_cache_removed_or_replaced_while_a_build_keeps_its_directory_open_does_not_affect_the_image() {
    fn packs_of(cache: &Path) -> PathBuf {
        fs::read_dir(cache.join("v2/packs")).unwrap().next().unwrap().unwrap().path()
    }
    let changes: [(&str, Change, u64); 4] = [
        // What the collection and a simultaneous build do.
        (
            "directory replaced",
            (|cache| {
                let (packs, former) = (packs_of(cache), cache.join("former"));
                fs::rename(&packs, &former).unwrap();
                fs::create_dir(&packs).unwrap();
                for pack in fs::read_dir(&former).unwrap().map(Result::unwrap) {
                    fs::copy(pack.path(), packs.join(pack.file_name())).unwrap();
                }
                fs::remove_dir_all(&former).unwrap();
            }) as Change,
            3,
        ),
        ("packs collected", |cache| assert!(maintenance::gc(cache, 0, GcMode::Remove).unwrap().removed_entries > 2), 1),
        (
            "packs collected, directory replaced",
            |cache| {
                let packs = packs_of(cache);
                maintenance::gc(cache, 0, GcMode::Remove).unwrap();
                assert!(!packs.exists());
                fs::create_dir(packs).unwrap();
            },
            1,
        ),
        ("cache removed", |cache| fs::remove_dir_all(cache).unwrap(), 1),
    ];
    for (what, change, hits) in changes {
        let bench = Bench::new();
        bench.build();
        let _ = fs::remove_file(bench.output());
        let source = Arc::new(ChangesCache { queries: AtomicUsize::new(0), cache: bench.cache(), change });
        let options = BuildOptions { jobs: 1, packs: Some(source), ..bench.options() };
        let report = build(&bench.plan, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
        assert!(fs::read(bench.output()).unwrap() == bench.reference, "{what}: {report:?}");
        // Paths are looked up by several threads, and another one can find a pack just before the change.
        assert!(report.cache.hit_paths >= hits && report.cache.rebuilt_paths == 0, "{what}: {:?}", report.cache);
        bench.build();
        assert_eq!(bench.build().cache.missed_paths, 0, "{what}");
    }
}

#[test]
fn a_kept_directory_that_was_replaced_is_opened_again() {
    let bench = Bench::new();
    bench.build();
    let (cache, settings) = (Cache::open(&bench.cache()).unwrap(), ImageSettings::default());
    let opener = PackOpener::new(&settings, OpenFiles::new(8));
    let found = || bench.plan.paths.iter().filter_map(|path| Some((cache.find_pack(path, &settings).unwrap()?, path)));
    assert_eq!(found().count(), 3);
    maintenance::gc(&bench.cache(), 0, GcMode::Remove).unwrap();
    assert_eq!(found().count(), 0);
    bench.build();
    assert!(found().count() == 3 && found().all(|(file, path)| opener.open(file, path).is_ok()));
}

#[test]
fn packs_that_change_after_they_were_opened_are_read_as_they_were_or_made_again() {
    let noise = |number: u64| Item::file(support::seeded::Seeded::new(number).noise(200_000));
    let bench = Bench::of(Store::new([("one", noise(1)), ("two", noise(2)), ("three", noise(3))]));
    let changes: [(&str, Change, u64); 4] = [
        ("removed", (|pack| fs::remove_file(pack).unwrap()) as Change, 0),
        (
            "replaced",
            |pack| {
                fs::remove_file(pack).unwrap();
                fs::write(pack, vec![0; 200_000]).unwrap();
            },
            0,
        ),
        ("overwritten", |pack| rewrite(pack, |bytes| bytes.fill(0)), 3),
        ("cut", |pack| fs::File::options().write(true).open(pack).unwrap().set_len(100_000).unwrap(), 3),
    ];
    for (what, change, rebuilt) in changes {
        bench.build();
        fs::remove_file(bench.output()).unwrap();
        let packs = bench.packs();
        // If packs are damaged, the blocks are written a second time.
        let mut times = 0;
        let mut meddle = Meddle(|| {
            times += 1;
            if times == 1 {
                packs.iter().for_each(|pack| change(pack));
            }
        });
        let report = build(&bench.plan, &bench.options(), &mut meddle, &AtomicBool::new(false)).unwrap();
        assert!(fs::read(bench.output()).unwrap() == bench.reference, "{what}: {report:?}");
        assert_eq!(report.cache.rebuilt_paths, rebuilt, "{what}");
    }
}
