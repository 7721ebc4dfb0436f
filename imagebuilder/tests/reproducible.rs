//! The same plan always gives the same bytes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use imagebuilder::build::{BuildOptions, CacheTrust, Digests, Durability, build};
use imagebuilder::cache::Cache;
use imagebuilder::cache::block_hashes::BlocksOf;
use imagebuilder::cache::maintenance::{self, GcMode};
use imagebuilder::erofs::Profile;
use imagebuilder::open_files::OpenFiles;
use imagebuilder::pack::PackOpener;
use imagebuilder::pack::block_hashes::BlockHashes;
use imagebuilder::plan::{ImagePlan, PlannedPath};
use imagebuilder::progress::Silent;
use imagebuilder::report::BuildReport;
use imagebuilder::settings::{Compression, ImageFormat, ImageSettings};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use support::built::closure;
use support::seeded::Seeded;
use support::store_tree::{Item, Store, base_name, mixed_tree};

/// Creates several store paths that share small and large files.
fn store() -> Store {
    let shared = Seeded::new(9).text(700_000);
    let large = Seeded::new(10).text(5 << 20);
    let with = |seed, more: Vec<(&str, Item)>| {
        let mut entries = vec![("mixed", mixed_tree(seed)), ("shared", Item::file(shared.clone()))];
        entries.extend(more);
        Item::directory(entries)
    };
    Store::new([
        ("alpha-1.0", with(1, vec![("large", Item::file(large.clone()))])),
        ("beta-2.0", with(2, vec![("large-too", Item::file(large))])),
        ("gamma-3.0", with(1, vec![])),
        ("file", Item::program("a store path may be a file")),
        ("link", Item::symlink("alpha-1.0")),
    ])
}

/// Returns a plan with NAR hashes.
fn hashed_plan(store_dir: &Path, settings: ImageSettings) -> ImagePlan {
    let mut closure = closure(store_dir);
    for planned in &mut closure.paths {
        planned.nar_hash = Some(testing::nar_sha256(&store_dir.join(planned.path.base_name())));
    }
    ImagePlan::new(closure, settings)
}

struct Way {
    jobs: usize,
    cache: Option<PathBuf>,
    trust: CacheTrust,
}

impl Way {
    fn plain(jobs: usize) -> Self {
        Self { jobs, cache: None, trust: CacheTrust::Checksums }
    }

    fn cached(cache: &Path) -> Self {
        Self { jobs: 2, cache: Some(cache.to_owned()), trust: CacheTrust::Checksums }
    }
}

fn image_of(plan: &ImagePlan, way: &Way) -> (Vec<u8>, BuildReport) {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("image");
    let options = BuildOptions {
        output: output.clone(),
        cache: way.cache.clone(),
        packs: None,
        cache_trust: way.trust,
        jobs: way.jobs,
        digests: Digests::Skip,
        durability: Durability::Synced,
    };
    let report = build(plan, &options, &mut Silent, &AtomicBool::new(false)).unwrap();
    (fs::read(output).unwrap(), report)
}

#[track_caller]
fn assert_same(a: &[u8], b: &[u8], what: &str) {
    let difference = a.iter().zip(b).position(|(a, b)| a != b);
    assert!(a == b, "{what}: {} and {} bytes, first difference at {difference:?}", a.len(), b.len());
}

#[test]
fn threads_and_cache_do_not_affect_the_image() {
    let small = Store::new([("one", mixed_tree(1)), ("two", mixed_tree(2))]);
    let large = store();
    for compression in Compression::ALL {
        // Large files are divided into ranges independently of the codec, so one codec is enough for them.
        let store = if compression == Compression::Zstd { &large } else { &small };
        let settings = ImageSettings::new(compression, None, Some(131_072), None).unwrap();
        let plan = hashed_plan(store.path(), settings);
        let reference = image_of(&plan, &Way::plain(1)).0;
        for jobs in [2, 3, 8] {
            assert_same(&reference, &image_of(&plan, &Way::plain(jobs)).0, &format!("{compression:?} -j{jobs}"));
        }
        let cache = tempfile::tempdir().unwrap();
        let way = Way::cached(cache.path());
        for round in ["cold", "warm"] {
            assert_same(&reference, &image_of(&plan, &way).0, &format!("{compression:?} {round}"));
        }
        // Hashes from the store's database and hashes computed by reading give the same image, from the same cache.
        let listed = ImagePlan::new(closure(store.path()), settings);
        let (image, report) = image_of(&listed, &way);
        assert_same(&reference, &image, &format!("{compression:?} from a path list"));
        assert_eq!((report.cache.missed_bytes, report.cache.missed_paths), (0, 0), "{compression:?}");
        let verifying = Way { trust: CacheTrust::VerifyAgainstStore, ..way };
        let (image, report) = image_of(&plan, &verifying);
        assert_same(&reference, &image, &format!("{compression:?} verified"));
        assert_eq!((report.cache.missed_bytes, report.cache.rebuilt_bytes), (0, 0), "{compression:?}");
    }
}

#[test]
fn a_cache_of_other_closures_does_not_affect_the_image() {
    let store = store();
    let whole = hashed_plan(store.path(), ImageSettings::default());
    let reference = image_of(&whole, &Way::plain(2)).0;
    // Part of the closure was built before. Content that is shared with other paths must be stored at the right
    // position, even if the path that comes first is another one than in that part.
    for kept in 0..whole.paths.len() {
        let cache = tempfile::tempdir().unwrap();
        let part: Vec<PlannedPath> = vec![whole.paths[kept].clone()];
        let rest: Vec<PlannedPath> = whole.paths.iter().filter(|path| **path != part[0]).cloned().collect();
        for paths in [part, rest] {
            let plan = ImagePlan { paths, ..whole.clone() };
            let alone = image_of(&plan, &Way::plain(2)).0;
            assert_same(&alone, &image_of(&plan, &Way::cached(cache.path())).0, "a part");
        }
        assert_same(&reference, &image_of(&whole, &Way::cached(cache.path())).0, "the whole after its parts");
    }
}

#[test]
fn order_times_modes_and_hard_links_of_the_store_do_not_affect_the_image() {
    let store = store();
    let plan = ImagePlan::new(closure(store.path()), ImageSettings::default());
    let reference = image_of(&plan, &Way::plain(2)).0;

    // A copy made in another order, with other times, and writable, as a copy made by hand would be.
    let copy = tempfile::tempdir().unwrap();
    copy_reversed(store.path(), copy.path());
    let copied = ImagePlan::new(closure(copy.path()), ImageSettings::default());
    assert_same(&reference, &image_of(&copied, &Way::plain(2)).0, "a copy");

    // Equal files become links to one file, as with `nix-store --optimise`.
    let linked = link_equal_files(copy.path());
    assert!(linked > 20, "only {linked} files were equal to others");
    for jobs in [1, 3] {
        assert_same(&reference, &image_of(&copied, &Way::plain(jobs)).0, "an optimised store");
    }
    let cache = tempfile::tempdir().unwrap();
    for round in ["cold", "warm"] {
        let (image, report) = image_of(&copied, &Way::cached(cache.path()));
        assert_same(&reference, &image, round);
        assert!(report.duplicate_files >= linked, "{report:?}");
    }
}

/// Copies a tree in reverse order of the names.
fn copy_reversed(from: &Path, to: &Path) {
    let mut names: Vec<_> = fs::read_dir(from).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    for name in names.into_iter().rev() {
        let (source, target) = (from.join(&name), to.join(&name));
        let metadata = fs::symlink_metadata(&source).unwrap();
        if metadata.is_symlink() {
            symlink(fs::read_link(&source).unwrap(), target).unwrap();
        } else if metadata.is_dir() {
            fs::create_dir(&target).unwrap();
            copy_reversed(&source, &target);
        } else {
            fs::write(&target, fs::read(&source).unwrap()).unwrap();
            let mode = if metadata.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
            fs::set_permissions(&target, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// Replaces files that have the content and mode of an earlier file with links to it, and returns their number.
fn link_equal_files(root: &Path) -> u64 {
    let mut first = std::collections::HashMap::new();
    let mut linked = 0;
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                open.push(path);
            } else if metadata.is_file() && metadata.len() > 0 {
                let key = (blake3::hash(&fs::read(&path).unwrap()), metadata.permissions().mode());
                let original = first.entry(key).or_insert_with(|| path.clone());
                if *original != path {
                    fs::remove_file(&path).unwrap();
                    fs::hard_link(original, path).unwrap();
                    linked += 1;
                }
            }
        }
    }
    linked
}

#[test]
fn the_environment_does_not_affect_the_image() {
    let store = store();
    let directory = tempfile::tempdir().unwrap();
    let list: String = closure(store.path()).paths.iter().map(|path| format!("{}\n", path.path)).collect();
    fs::write(directory.path().join("paths"), list).unwrap();
    let mut images = Vec::new();
    for (number, (umask, locale, zone)) in
        [("022", "C", "UTC"), ("077", "de_DE.UTF-8", "Asia/Tokyo"), ("000", "tr_TR", "EST5EDT")].into_iter().enumerate()
    {
        let image = directory.path().join(format!("image-{number}"));
        let status = Command::new("sh")
            .args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_microvm-image")])
            .args(["build", "--no-cache", "--quiet", "--paths-from", "paths", "--store-dir"])
            .arg(store.path())
            .arg("-o")
            .arg(&image)
            .env("LC_ALL", locale)
            .env("TZ", zone)
            .env("SOURCE_DATE_EPOCH", number.to_string())
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
        images.push(fs::read(image).unwrap());
    }
    assert_same(&images[0], &images[1], "umask 077, German, Tokyo");
    assert_same(&images[0], &images[2], "umask 000, Turkish, New York");
}

#[test]
fn equal_content_is_stored_once_across_store_paths() {
    let mut seeded = Seeded::new(3);
    for (what, length) in [("small", 9_000), ("one block", 262_144), ("large", 3 << 20), ("several ranges", 9 << 20)] {
        let noise = seeded.noise(length);
        let item = || Item::directory([("data", Item::file(noise.clone()))]);
        let one = Store::new([("one", item())]);
        let three = Store::new([("one", item()), ("three", item()), ("two", item())]);
        let size = |store: &Store| {
            image_of(&ImagePlan::new(closure(store.path()), ImageSettings::default()), &Way::plain(2)).0.len()
        };
        let (once, thrice) = (size(&one), size(&three));
        assert!(once >= length && thrice <= once + 4096, "{what}: {once} and {thrice} bytes");
    }
}

#[test]
fn only_the_changed_path_is_compressed() {
    let mut seeded = Seeded::new(5);
    let mut member = |files: usize| {
        let files: Vec<_> = (0..files)
            .map(|number| {
                let length = 1000 * (1 + seeded.index(400));
                (format!("file-{number}"), Item::file(seeded.text(length)))
            })
            .collect();
        Item::directory(files)
    };
    let items = [("a-1", member(40)), ("b-1", member(30)), ("c-1", member(50))];
    let changed = member(20);
    let store = Store::new(items);
    let cache = tempfile::tempdir().unwrap();
    image_of(&hashed_plan(store.path(), ImageSettings::default()), &Way::cached(cache.path()));

    fs::remove_dir_all(store.store_path("b-1")).unwrap();
    changed.write(&store.path().join(base_name("b-2")), store.path());
    let plan = hashed_plan(store.path(), ImageSettings::default());
    let reference = image_of(&plan, &Way::plain(2)).0;
    // Unchanged paths are not even read: they can be missing.
    for name in ["a-1", "c-1"] {
        fs::remove_dir_all(store.store_path(name)).unwrap();
    }
    let (image, report) = image_of(&plan, &Way::cached(cache.path()));
    assert_same(&reference, &image, "after a change");
    assert_eq!((report.cache.hit_paths, report.cache.missed_paths), (2, 1));
    let changed_bytes: u64 =
        fs::read_dir(store.store_path("b-2")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(report.cache.missed_bytes, changed_bytes - report.duplicate_bytes);
}

#[test]
fn contents_of_the_earlier_version_of_a_path_are_not_compressed_again() {
    let mut seeded = Seeded::new(6);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for number in 0..40 {
        let length = 1000 * (1 + seeded.index(400));
        files.push((format!("{number:02}"), seeded.text(length)));
    }
    files.push(("large".to_owned(), seeded.text(9 << 20)));
    let tree = |files: &[(String, Vec<u8>)]| {
        Item::directory(files.iter().map(|(name, content)| (name.as_str(), Item::file(content.clone()))))
    };
    let cache = tempfile::tempdir().unwrap();
    let old = Store::new([("tool-1.9", tree(&files)), ("other", mixed_tree(3))]);
    image_of(&hashed_plan(old.path(), ImageSettings::default()), &Way::cached(cache.path()));

    // One byte of the last range of the large file, and one of the last small file.
    let mut changed = files;
    changed[40].1[(8 << 20) + 7] ^= 1;
    changed[39].1[3] ^= 1;
    let new = Store::new([("tool-1.10", tree(&changed)), ("other", mixed_tree(3))]);
    let plan = hashed_plan(new.path(), ImageSettings::default());
    let reference = image_of(&plan, &Way::plain(2)).0;
    let (image, report) = image_of(&plan, &Way::cached(cache.path()));
    assert_same(&reference, &image, "with what the earlier version has");
    assert_eq!((report.cache.hit_paths, report.cache.missed_paths), (1, 1));
    // The range of 1 MiB, and the block or blocks of the small file.
    let compressed = report.cache.missed_bytes;
    assert!((1 << 20..(1 << 20) + 400_000).contains(&compressed), "{compressed} bytes were compressed");
    // The new pack is whole, and its link does not outlive it.
    let (image, report) = image_of(&plan, &Way::cached(cache.path()));
    assert_same(&reference, &image, "from the new pack");
    assert_eq!(report.cache.missed_bytes, 0);
    let links = || fs::read_dir(cache.path().join("v2/names")).unwrap().count();
    assert_eq!(links(), 1);
    imagebuilder::cache::maintenance::gc(cache.path(), 0, imagebuilder::cache::maintenance::GcMode::Remove).unwrap();
    assert_eq!(links(), 0);
}

/// Another version of a codec may give other bytes. If a digest changes, the version in the keys of packs must change
/// too (`encode::codec_version`), or `LAYOUT_VERSION` if the layout changed.
#[test]
fn an_image_of_each_codec_has_the_bytes_that_it_had_before() {
    let text: Vec<u8> = (0..40_000u32).flat_map(|number| format!("{} ", number * number % 977).into_bytes()).collect();
    let store = Store::new([(
        "pinned",
        Item::directory([
            ("large", Item::file(text.clone())),
            ("small", Item::file(text[..5000].to_vec())),
            ("zeros", Item::file(vec![0; 300_000])),
        ]),
    )]);
    let found: Vec<String> = Compression::ALL
        .into_iter()
        .map(|compression| {
            let plan = hashed_plan(store.path(), ImageSettings::new(compression, None, None, None).unwrap());
            let image = image_of(&plan, &Way::plain(2)).0;
            format!("{} {}", compression.name(), &blake3::hash(&image).to_hex()[..16])
        })
        .collect();
    assert_eq!(
        found,
        [
            "zstd 6c663f6680961478",
            "gzip 4e84dcfc65cc6498",
            "xz d0d1910b45a37cad",
            "lz4 74c25a712cc12230",
            "none a46b6c0a1a9f2cbc"
        ]
    );
}

/// Returns the number of bytes of a sealed image without its tree, and how many of them were hashed.
fn sealed_bytes(report: &BuildReport) -> (u64, u64) {
    (report.verity.as_ref().unwrap().hash_offset_bytes, report.hashed_bytes.unwrap())
}

/// Returns the files with hashes of the blocks of packs.
fn hashes_files(cache: &Path) -> Vec<PathBuf> {
    let entries = |directory: PathBuf| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries(cache.join("v2/verity")).flat_map(entries).collect();
    files.sort();
    files
}

#[test]
fn a_sealed_image_from_the_cache_is_hashed_only_where_the_cache_has_no_hashes() {
    let mut random = Seeded::new(13);
    let contents = [10, 5000, 70_000, 270_000, 270_001, 1_200_000, 1_300_000].map(|length| random.noise(length));
    let cache = tempfile::tempdir().unwrap();
    let settings = ImageSettings::new(Compression::Lz4, None, Some(131_072), None).unwrap();
    let mut known = HashSet::new();
    for round in 0..6 {
        // Store paths share files, so that parts of them are left out. Some are the same as in an earlier round.
        let paths = (0..4).map(|_| {
            let kind = random.below(12);
            let mut files = Seeded::new(kind);
            let files = (0..1 + files.below(4))
                .map(|number| (format!("file-{number}"), Item::file(contents[files.index(contents.len())].clone())));
            (format!("path-{kind}"), Item::directory(files.collect::<Vec<_>>()))
        });
        let paths: BTreeMap<_, _> = paths.collect();
        let is_known = paths.keys().all(|name| known.contains(name));
        known.extend(paths.keys().cloned());
        let store = Store::new(paths.iter().map(|(name, item)| (name.as_str(), item.clone())));
        let squashfs = ImagePlan { verity: true, ..hashed_plan(store.path(), settings) };
        let erofs = ImagePlan { format: ImageFormat::Erofs(Profile::Disk), ..squashfs.clone() };
        for plan in [squashfs, erofs] {
            let round = format!("round {round}, {:?}", plan.format);
            let (reference, report) = image_of(&plan, &Way::plain(2));
            let (data, hashed) = sealed_bytes(&report);
            assert_eq!(hashed, data, "{round}: there is no cache");
            let (image, report) = image_of(&plan, &Way::cached(cache.path()));
            assert_same(&reference, &image, &round);
            if known.len() == paths.len() {
                assert_eq!(sealed_bytes(&report), (data, data), "{round}: nothing is in the cache");
            }
            let (image, report) = image_of(&plan, &Way::cached(cache.path()));
            assert_same(&reference, &image, &format!("{round}, from the cache, known: {is_known}"));
            // The tables, small store paths, and what begins elsewhere in a block because a file before it is left out.
            let (_, hashed) = sealed_bytes(&report);
            assert!(hashed < data / 2 || data < 600_000, "{round}: {hashed} of {data} bytes");
        }
    }
    assert_eq!(maintenance::fsck(cache.path()).unwrap().damaged, Vec::<PathBuf>::new());
    // Hashes of packs that are gone are removed.
    assert!(hashes_files(cache.path()).len() > 3);
    fs::remove_dir_all(cache.path().join("v2/packs")).unwrap();
    maintenance::gc(cache.path(), u64::MAX, GcMode::Remove).unwrap();
    assert_eq!(fs::read_dir(cache.path().join("v2/verity")).unwrap().count(), 0);
    let of_files = || fs::read_dir(cache.path().join("v2/verity-files")).map_or(0, Iterator::count);
    assert!(of_files() > 3);
    maintenance::gc(cache.path(), 0, GcMode::Remove).unwrap();
    assert_eq!(of_files(), 0);
}

/// A sealed EROFS image has the blocks of the store, so hashes must not belong to other content.
#[test]
fn hashes_of_files_are_not_used_after_a_file_was_repaired_or_without_a_nar_hash() {
    let store = Store::new([("one", Item::directory([("file", Item::file(Seeded::new(1).noise(400_000)))]))]);
    let plan = hashed_plan(store.path(), ImageSettings::default());
    let plan = ImagePlan { verity: true, format: ImageFormat::Erofs(Profile::Disk), ..plan };
    let cache = tempfile::tempdir().unwrap();
    let hashed = |plan: &ImagePlan| {
        let (image, report) = image_of(plan, &Way::cached(cache.path()));
        assert_same(&image_of(plan, &Way::plain(1)).0, &image, "with a cache");
        let (data, hashed) = sealed_bytes(&report);
        hashed == data
    };
    assert!(hashed(&plan) && !hashed(&plan));
    let file = store.path().join(plan.paths[0].path.base_name()).join("file");
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[5000] ^= 1;
    // As nix-store --repair-path does it: another file with the same length and time.
    fs::remove_file(&file).unwrap();
    fs::write(&file, bytes).unwrap();
    fs::File::open(&file).unwrap().set_modified(time).unwrap();
    assert!(hashed(&plan), "the file was replaced after it was hashed");
    let mut unknown = plan;
    unknown.paths[0].nar_hash = None;
    assert!(hashed(&unknown) && hashed(&unknown), "nothing says what the content is");
}

#[test]
fn damaged_hashes_of_blocks_are_computed_again_and_forged_ones_are_found() {
    type Damage = fn(&Path);
    let store = Store::new([("one", Item::file(Seeded::new(1).noise(1_000_000))), ("two", Item::file("small"))]);
    let plan = ImagePlan { verity: true, ..hashed_plan(store.path(), ImageSettings::default()) };
    let (reference, report) = image_of(&plan, &Way::plain(2));
    let (data, _) = sealed_bytes(&report);
    let directory = tempfile::tempdir().unwrap();
    let way = Way::cached(directory.path());
    image_of(&plan, &way);
    let hashed = |what: &str, way: &Way| {
        let (image, report) = image_of(&plan, way);
        assert_same(&reference, &image, what);
        sealed_bytes(&report).1
    };
    let few = hashed("from the cache", &way);
    assert!(few < data / 4, "{few} of {data} bytes");
    let [file] = &hashes_files(directory.path())[..] else { panic!("only one store path is large") };
    let damages: [(&str, Damage); 6] = [
        ("empty", |file| fs::write(file, "").unwrap()),
        ("cut", |file| fs::File::options().write(true).open(file).unwrap().set_len(64).unwrap()),
        ("flipped", |file| {
            let mut bytes = fs::read(file).unwrap();
            bytes[40] ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("missing", |file| fs::remove_file(file).unwrap()),
        ("a directory", |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
        ("a link", |file| {
            fs::rename(file, file.with_file_name("other")).unwrap();
            symlink("other", file).unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage(file);
        assert_eq!(hashed(what, &way), data, "{what}");
        assert_eq!(hashed(what, &way), few, "{what}: they were replaced");
    }

    let path = plan.paths.iter().find(|planned| planned.path.name() == "one").unwrap();
    let (cache, settings) = (Cache::open(directory.path()).unwrap(), ImageSettings::default());
    let forge = || {
        let pack = cache.find_pack(path, &settings).unwrap().unwrap();
        let pack = PackOpener::new(&settings, OpenFiles::new(1)).open(pack, path).unwrap();
        let known = cache.find_block_hashes(path, BlocksOf::Pack(&settings), pack.identity()).unwrap();
        let mut forged = BlockHashes::unknown(pack.identity());
        for (number, hash) in known.known() {
            let number = usize::try_from(number).unwrap();
            forged.add(number..number + 1, if number == 7 { &[1; 32] } else { hash });
        }
        cache.keep_block_hashes(path, BlocksOf::Pack(&settings), (pack.identity(), &forged)).unwrap();
    };
    // As documented: anyone who can write to the cache can forge them. The kernel then refuses to read the block.
    forge();
    let (image, _) = image_of(&plan, &way);
    let data_bytes = usize::try_from(data).unwrap();
    assert_same(&reference[..data_bytes], &image[..data_bytes], "the data");
    assert!(reference != image, "the tree");
    let verifying = Way { trust: CacheTrust::VerifyAgainstStore, ..Way::cached(directory.path()) };
    assert_eq!(hashed("verified", &verifying), data);
    assert_eq!(hashed("after it was verified", &way), few);
    forge();
    assert_eq!(maintenance::fsck(directory.path()).unwrap().damaged, std::slice::from_ref(file));
    assert_eq!(hashed("after fsck", &way), data);
}
