//! The options that select the source of a closure.

use super::failure::Failure;
use super::settings::SettingsArgs;
use clap::Args;
use imagebuilder::build::sidecar_path;
use imagebuilder::closure::{self, Closure, ClosureSource, ListInput, StoreLocation};
use imagebuilder::plan::ImagePlan;
use imagebuilder::plan_file;
use imagebuilder::settings::ImageFormat;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The source of the closure: exactly one of these options.
#[derive(Debug, Args)]
#[command(next_help_heading = "Closure (exactly one source)")]
pub(crate) struct SourceArgs {
    /// Store paths, or links to them such as ./result; the Nix store provides their closure
    #[arg(value_name = "STORE_PATH", help_heading = None)]
    store_paths: Vec<PathBuf>,
    /// Output of Nixpkgs' closureInfo, a directory with the files registration and store-paths
    #[arg(long, value_name = "DIR")]
    closure_info: Option<PathBuf>,
    /// The .attrs.json that Nix writes for a derivation with exportReferencesGraph and structured attributes
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// Name of the graph in --graph FILE [default: the only graph]
    #[arg(long, value_name = "NAME", requires = "graph")]
    graph_key: Option<String>,
    /// List of the store paths of a closure, one per line; - reads stdin
    ///
    /// A list has no hashes, so a build with a cache reads all files to find out what changed.
    #[arg(long, value_name = "FILE|-")]
    paths_from: Option<PathBuf>,
    /// Plan written by `microvm-image plan`; it includes the settings of the image
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Nix store that provides the closure of STORE_PATHs: a URL, or the root of a chroot store with its files in
    /// DIR/nix/store [default: the default store of nix-store]
    #[arg(long, value_name = "URL|DIR")]
    store: Option<OsString>,
    /// Directory that contains the files of the store paths [default: the directory in their names, or /nix/store]
    ///
    /// The image contains only base names, so you can use any directory with entries named like store paths.
    #[arg(long, value_name = "DIR")]
    store_dir: Option<PathBuf>,
}

/// What a command writes to its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    Image,
    Plan,
}

/// A name in a directory, however its path is spelt. A new file replaces exactly the entry of its name.
#[derive(PartialEq, Eq)]
struct Entry {
    /// Device and inode of the directory.
    directory: (u64, u64),
    name: OsString,
}

impl Entry {
    /// Returns `None` if there is no such directory, or the path has no name.
    fn of(path: PathBuf) -> Option<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = fs::metadata(parent).ok()?;
        Some(Self { directory: (directory.dev(), directory.ino()), name: path.file_name()?.to_owned() })
    }
}

/// The selected source.
enum SelectedSource {
    Closure(ClosureSource),
    Plan(PathBuf),
}

impl SourceArgs {
    /// Reads the closure; `None` if no source was given.
    pub(crate) fn closure(&self) -> Result<Option<Closure>, Failure> {
        match self.selected()? {
            None => Ok(None),
            Some(SelectedSource::Closure(source)) => Ok(Some(closure::read(&source, self.store_dir()?.as_deref())?)),
            Some(SelectedSource::Plan(file)) => {
                let ImagePlan { store_dir, paths, .. } = self.read_plan(&file)?;
                Ok(Some(Closure { store_dir, paths }))
            }
        }
    }

    /// Reads the closure of a disk without an image; `None` if no source was given. The disk is an erofs without a hash tree,
    /// and a guest that expects what another plan says could not mount it.
    pub(crate) fn served_closure(&self) -> Result<Option<Closure>, Failure> {
        let Some(SelectedSource::Plan(file)) = self.selected()? else { return self.closure() };
        let plan = self.read_plan(&file)?;
        let (other, nixos) = match (plan.format, plan.verity) {
            (ImageFormat::Squashfs(_), false) => ("a squashfs", "microvm.storeDiskType = \"erofs\""),
            (ImageFormat::Squashfs(_), true) => {
                ("a sealed squashfs", "microvm.storeDiskType = \"erofs\" and microvm.storeDiskVerity = false")
            }
            (ImageFormat::Erofs(_), true) => ("a sealed erofs", "microvm.storeDiskVerity = false"),
            (ImageFormat::Erofs(_), false) => {
                return Ok(Some(Closure { store_dir: plan.store_dir, paths: plan.paths }));
            }
        };
        let problem = format!(
            "{} is the plan of {other}, but a disk without an image is an erofs that is not sealed",
            file.display()
        );
        Err(Failure::usage(problem).with_hint(format!(
            "make a plan with `microvm-image plan --format erofs` and without --verity; with NixOS, set {nixos}"
        )))
    }

    /// Returns the plan of an image of the closure with these settings.
    pub(crate) fn plan(&self, settings: &SettingsArgs) -> Result<ImagePlan, Failure> {
        match self.selected()? {
            None => Err(Failure::no_closure()),
            Some(SelectedSource::Closure(source)) => {
                let (format, verity) = (settings.format()?, settings.verity()?);
                let closure = closure::read(&source, self.store_dir()?.as_deref())?;
                Ok(ImagePlan { verity, ..ImagePlan::new(closure, format) })
            }
            Some(SelectedSource::Plan(file)) => match settings.first_given() {
                None => self.read_plan(&file),
                Some(option) => {
                    Err(Failure::usage(format!("--plan and {option} were given, but the plan already determines it"))
                        .with_hint("make another plan from the same closure: microvm-image plan"))
                }
            },
        }
    }

    /// Refuses an output, or its seal, that would replace an input: the closure's, or `machine`. A plan may replace itself.
    pub(crate) fn refuse_as_output(
        &self,
        output: &Path,
        replaced: Replaced,
        machine: Option<&Path>,
    ) -> Result<(), Failure> {
        let plan = self.plan.clone().filter(|_| replaced == Replaced::Image);
        let list = self.paths_from.clone().map(|list| if list == Path::new("-") { "/dev/stdin".into() } else { list });
        let mut inputs = vec![("--graph", self.graph.clone()), ("--paths-from", list), ("--plan", plan)];
        inputs.push(("--machine", machine.map(Path::to_owned)));
        for name in closure::CLOSURE_INFO_FILES {
            inputs.push(("--closure-info", self.closure_info.as_ref().map(|directory| directory.join(name))));
        }
        let seal = (replaced == Replaced::Image).then(|| sidecar_path(output));
        let outputs: Vec<Entry> = [Some(output.to_owned()), seal].into_iter().flatten().filter_map(Entry::of).collect();
        for (option, input) in inputs.into_iter().filter_map(|(option, input)| Some((option, input?))) {
            // Replacing a link hides its target, and replacing the target changes what the link leads to.
            let target = fs::canonicalize(&input).ok().and_then(Entry::of);
            let is_replaced = Entry::of(input.clone()).is_some_and(|entry| outputs.contains(&entry))
                || target.is_some_and(|entry| outputs.contains(&entry));
            if is_replaced {
                let problem = format!("--output would replace the file of {option}, {}", input.display());
                return Err(Failure::usage(problem).with_hint("choose another output"));
            }
        }
        Ok(())
    }

    fn read_plan(&self, file: &Path) -> Result<ImagePlan, Failure> {
        let mut plan = plan_file::read(file)?;
        if let Some(store_dir) = self.store_dir()? {
            plan.store_dir = store_dir;
        }
        Ok(plan)
    }

    /// Makes the directory absolute, because a plan must not depend on the current directory.
    fn store_dir(&self) -> Result<Option<PathBuf>, Failure> {
        let absolute = self.store_dir.as_ref().map(std::path::absolute).transpose();
        absolute.map_err(|error| Failure::bad_input(&error).with_context("cannot make --store-dir absolute"))
    }

    /// Returns the source that was given. Two sources are an error.
    fn selected(&self) -> Result<Option<SelectedSource>, Failure> {
        let store_paths = (!self.store_paths.is_empty()).then(|| ClosureSource::StorePaths {
            arguments: self.store_paths.clone(),
            store: self.store.as_deref().map(StoreLocation::parse),
        });
        let graph = self.graph.clone().map(|file| ClosureSource::Graph { file, key: self.graph_key.clone() });
        let list = self.paths_from.clone().map(|file| {
            ClosureSource::PathList(if file.as_os_str() == "-" { ListInput::Stdin } else { ListInput::File(file) })
        });
        let mut given = [
            ("STORE_PATH", store_paths.map(SelectedSource::Closure)),
            ("--closure-info", self.closure_info.clone().map(ClosureSource::ClosureInfo).map(SelectedSource::Closure)),
            ("--graph", graph.map(SelectedSource::Closure)),
            ("--paths-from", list.map(SelectedSource::Closure)),
            ("--plan", self.plan.clone().map(SelectedSource::Plan)),
        ]
        .into_iter()
        .filter_map(|(name, selected)| Some((name, selected?)));
        let first = given.next();
        if let (Some(_), true) = (&self.store, self.store_paths.is_empty()) {
            let with = first.map_or(String::new(), |(name, _)| format!(", and not with {name}"));
            return Err(Failure::usage(format!("--store can only be used with STORE_PATHs{with}"))
                .with_hint("use --store-dir DIR to specify the directory that contains the files of the store paths"));
        }
        let others: Vec<&str> = given.map(|(name, _)| name).collect();
        match first {
            Some((name, _)) if !others.is_empty() => Err(Failure::usage(format!(
                "the closure comes from exactly one source, but {name} and {} were given",
                others.join(" and ")
            ))),
            first => Ok(first.map(|(_, selected)| selected)),
        }
    }
}
