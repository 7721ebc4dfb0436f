//! `benches build`: all comparisons over one or more stores.

use std::path::Path;
use std::process::Command;

use crate::cache_costs;
use crate::comparison::{ComparisonOutcome, Environment, read_closure};
use crate::comparisons;
use crate::error::{Error, file};
use crate::method::Method;
use crate::read::{self, Backing, ImageReadings};
use crate::reading;
use crate::results::{Results, StoreResults};
use crate::scale;
use crate::store_tree::StoreTree;
use crate::tool::{Cache, Programs, Source, Tool};
use crate::workspace;

/// Which readings to measure in addition to builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readings {
    /// Only builds.
    None,
    /// Loop mounts of the images built with each tool's defaults.
    LoopMount,
    /// Loop mounts, and reading in a guest.
    LoopMountAndGuest,
}

/// What to measure, and how often.
#[derive(Debug, Clone)]
pub struct Extent {
    /// How often each candidate runs.
    pub rounds: usize,
    /// Only comparisons whose title contains one of these texts; if there are none, all.
    pub only: Vec<String>,
    /// Readings in addition to builds.
    pub readings: Readings,
}

impl Extent {
    fn wants(&self, title: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| title.contains(part.as_str()))
    }
}

/// What [`quick`] measures on `server`.
const QUICK_SERVER: [&str; 6] = ["first build", "level 3", "rebuild", "image from the cache", "sequencer", "closures"];

/// Measures what matters most to a user in about ten minutes: first builds, images from the cache on three file
/// systems, one changed path of a small and a large closure, and many small store paths.
///
/// # Errors
/// When a program fails or a file can't be written.
pub fn quick(rounds: usize) -> Result<Results, Error> {
    comparisons_of_lists(&QUICK_SERVER, &["one path changed"], rounds)
}

/// Measures every value that the goals of the image builder name: what [`quick`] measures, the large closure at level
/// 3, the small one at level 9, large files, peak memory, and sandboxed builds of Nix. Large synthetic stores are made
/// in `place`.
///
/// # Errors
/// When a program fails or a file can't be written.
pub fn table(rounds: usize, place: &Path) -> Result<Results, Error> {
    let server = [&QUICK_SERVER[..], &["level 9"]].concat();
    let mut results = comparisons_of_lists(&server, &["one path changed", "level 3"], rounds)?;
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let large = scale::Extent {
        files: Vec::new(),
        megabytes: vec![4000],
        rounds,
        only: named(&["microvm-image", "gensquashfs"]),
    };
    // The peak memory is the same in every round.
    let many = scale::Extent {
        files: vec![1_000_000],
        megabytes: Vec::new(),
        rounds: 1,
        only: named(&["microvm-image", "microvm-image, filling a cache"]),
    };
    for extent in [large, many] {
        results.stores.append(&mut scale::run(&extent, place)?.stores);
    }
    let note = sandboxed(rounds)?;
    if let Some(server) = results.stores.first_mut() {
        server.notes.push(note);
    }
    Ok(results)
}

/// Runs comparisons of `server` and of `desktop`, and the one of many small store paths.
fn comparisons_of_lists(server: &[&str], desktop: &[&str], rounds: usize) -> Result<Results, Error> {
    let extent = |only: &[&str]| Extent {
        rounds,
        only: only.iter().map(|title| (*title).to_owned()).collect(),
        readings: Readings::None,
    };
    let mut results = run(&["server".to_owned()], &extent(server))?;
    results.stores.append(&mut run(&["desktop".to_owned()], &extent(desktop))?.stores);
    results.stores.push(cache_costs::small_paths(15_000, rounds, (&Programs::prepare()?, &workspace::fixtures()))?);
    Ok(results)
}

/// Measures sandboxed builds of Nix with `sandboxed.sh`, and returns its last line.
fn sandboxed(rounds: usize) -> Result<String, Error> {
    let script = workspace::root().join("benches/sandboxed.sh");
    let text = workspace::run(Command::new(&script).arg(rounds.to_string()))?;
    let medians = text.lines().find_map(|line| line.strip_prefix("median: "));
    let medians = medians.ok_or_else(|| Error::Unexpected(format!("{} printed no medians", script.display())))?;
    Ok(format!("sandboxed build by Nix after one store path changed: {medians}"))
}

/// Runs the benchmarks of `extent` on all stores.
///
/// # Errors
/// When a program fails or a file can't be written.
pub fn run(stores: &[String], extent: &Extent) -> Result<Results, Error> {
    let programs = Programs::prepare()?;
    let method = Method::now(&programs)?;
    let stores = stores.iter().map(|name| measure_store(name, extent, &programs)).collect::<Result<_, _>>()?;
    Ok(Results::of_stores(method, stores))
}

fn measure_store(name: &str, extent: &Extent, programs: &Programs) -> Result<StoreResults, Error> {
    let mut tree = StoreTree::open(name)?;
    let scratch =
        tempfile::tempdir_in(workspace::fixtures()).map_err(file("create a directory in", workspace::fixtures()))?;
    let nar_bytes = tree.nar_bytes()?;
    let files = reading::list(&tree.store()).map_err(file("list", tree.store()))?.len();
    let image = scratch.path().join("ours.squashfs");
    let own = Tool::Ours { packing: None, source: Source::ClosureInfo, cache: Cache::None };
    workspace::run(&mut own.command(programs, &tree, &image))?;

    let mut environment = Environment { tree: &mut tree, programs, scratch: scratch.path() };
    let mut all = vec![comparisons::defaults(), comparisons::filling(scratch.path())];
    all.extend(comparisons::LEVELS.map(comparisons::same_level));
    all.push(comparisons::from_disk());
    all.push(comparisons::rebuild(scratch.path(), &image));
    // It repeats a part of `rebuild`, so it runs only if it is asked for.
    if extent.only.iter().any(|part| part == "one path changed") {
        all.push(comparisons::one_path_changed(scratch.path(), &image));
    }
    let wanted = all.iter().filter(|comparison| extent.wants(&comparison.title));
    let mut comparisons = wanted
        .map(|comparison| environment.run(comparison, extent.rounds))
        .collect::<Result<Vec<ComparisonOutcome>, _>>()?;
    let mut notes = Vec::new();
    for kind in ["btrfs", "xfs"].into_iter().filter(|kind| extent.wants(&format!("image from the cache, {kind}"))) {
        let (outcome, note) = cache_costs::on_file_system(kind, (&mut tree, programs), &image, extent.rounds)?;
        comparisons.push(outcome);
        notes.push(note);
    }
    if extent.wants("sequencer") {
        notes.push(cache_costs::sequencer_share(&tree, programs, scratch.path())?);
    }
    // The other lists have too few paths.
    if extent.wants("closures") && name == "server" {
        notes.push(cache_costs::many_closures(&tree, programs, scratch.path())?);
    }
    let read_seconds = (0..extent.rounds).map(|_| read_closure(&tree)).collect::<Result<_, _>>()?;
    let (readings, guest_readings) = read_images(extent, programs, &tree, &scratch)?;
    let name = name.to_owned();
    Ok(StoreResults {
        name,
        growth: None,
        nar_bytes,
        files,
        read_seconds,
        comparisons,
        notes,
        readings,
        guest_readings,
    })
}

/// Reads the images of microvm.nix's two tools and of ours; ratios are relative to microvm.nix's squashfs.
fn read_images(
    extent: &Extent,
    programs: &Programs,
    tree: &StoreTree,
    scratch: &tempfile::TempDir,
) -> Result<(Vec<ImageReadings>, Vec<ImageReadings>), Error> {
    let (readings, rounds) = (extent.readings, extent.rounds);
    if readings == Readings::None {
        return Ok((Vec::new(), Vec::new()));
    }
    let tools = [
        ("gensquashfs", Tool::Gensquashfs(None)),
        ("microvm-image", Tool::Ours { packing: None, source: Source::ClosureInfo, cache: Cache::None }),
        ("mkfs.erofs", Tool::MkfsErofs),
    ];
    let images = tools
        .iter()
        .map(|(name, tool)| {
            let image = scratch.path().join(name);
            workspace::run(&mut tool.command(programs, tree, &image)).map(|_| image)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let named = |mut results: Vec<ImageReadings>| {
        for (result, (name, _)) in results.iter_mut().zip(&tools) {
            (*name).clone_into(&mut result.image);
        }
        results
    };
    let mounted = named(read::run(&images, read::Extent { rounds, every: 1 }, Backing::Memory)?);
    let guest = match readings {
        Readings::LoopMountAndGuest => named(crate::guest_read::run(&images, None, read::Extent { rounds, every: 4 })?),
        _ => Vec::new(),
    };
    Ok((mounted, guest))
}
