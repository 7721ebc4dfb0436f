//! The options that say where a closure comes from.

use super::failure::Failure;
use super::settings::SettingsArgs;
use clap::Args;
use imagebuilder::closure::{self, Closure, ClosureSource, ListInput, StoreLocation};
use imagebuilder::plan::ImagePlan;
use imagebuilder::plan_file;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where the closure comes from: exactly one of the ways.
#[derive(Debug, Args)]
#[command(next_help_heading = "Closure (exactly one source)")]
pub(crate) struct SourceArgs {
    /// Store paths, or links to them such as ./result: their closure is asked of the Nix store
    #[arg(value_name = "STORE_PATH", help_heading = None)]
    store_paths: Vec<PathBuf>,
    /// Output of Nixpkgs' closureInfo: a directory with the files registration and store-paths
    #[arg(long, value_name = "DIR")]
    closure_info: Option<PathBuf>,
    /// The .attrs.json that Nix writes for a derivation with exportReferencesGraph and structured attributes
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// Name of the graph in --graph FILE [default: the only one there is]
    #[arg(long, value_name = "NAME", requires = "graph")]
    graph_key: Option<String>,
    /// List of store paths, one a line, taken as complete; - reads stdin
    ///
    /// A list has no hashes: a build with a cache reads all files to find out what changed.
    #[arg(long, value_name = "FILE|-")]
    paths_from: Option<PathBuf>,
    /// Plan that `microvm-image plan` wrote; it settles the image's options too
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Nix store to ask for the closure of STORE_PATHs: a URL, or the root of a chroot store, whose files lie at
    /// DIR/nix/store [default: the store that nix-store takes by itself]
    #[arg(long, value_name = "URL|DIR", requires = "store_paths")]
    store: Option<OsString>,
    /// Directory where the store paths physically lie [default: the one they are given with, or /nix/store]
    ///
    /// The image holds base names only, so any directory of entries named like store paths will do.
    #[arg(long, value_name = "DIR")]
    store_dir: Option<PathBuf>,
}

/// The source that was chosen.
enum Chosen {
    Closure(ClosureSource),
    Plan(PathBuf),
}

impl SourceArgs {
    /// The closure, when a source was given.
    pub(crate) fn closure(&self) -> Result<Option<Closure>, Failure> {
        match self.chosen()? {
            None => Ok(None),
            Some(Chosen::Closure(source)) => Ok(Some(closure::read(&source, self.store_dir()?.as_deref())?)),
            Some(Chosen::Plan(file)) => {
                let ImagePlan { store_dir, paths, .. } = self.read_plan(&file)?;
                Ok(Some(Closure { store_dir, paths }))
            }
        }
    }

    /// The plan of an image of the closure with the settings.
    pub(crate) fn plan(&self, settings: &SettingsArgs) -> Result<ImagePlan, Failure> {
        match self.chosen()? {
            None => Err(Failure::usage("no closure was given")
                .with_hint("name store paths, or give one of --closure-info, --graph, --paths-from and --plan")),
            Some(Chosen::Closure(source)) => {
                let settings = settings.settings()?;
                Ok(ImagePlan::new(closure::read(&source, self.store_dir()?.as_deref())?, settings))
            }
            Some(Chosen::Plan(file)) => match settings.first_given() {
                None => self.read_plan(&file),
                Some(option) => Err(Failure::usage(format!("--plan and {option} were given, but a plan settles it"))
                    .with_hint("make another plan from the same closure: microvm-image plan")),
            },
        }
    }

    fn read_plan(&self, file: &std::path::Path) -> Result<ImagePlan, Failure> {
        let mut plan = plan_file::read(file)?;
        if let Some(store_dir) = self.store_dir()? {
            plan.store_dir = store_dir;
        }
        Ok(plan)
    }

    /// A plan must not depend on the current directory, so the directory is made absolute.
    fn store_dir(&self) -> Result<Option<PathBuf>, Failure> {
        let absolute = self.store_dir.as_ref().map(std::path::absolute).transpose();
        absolute.map_err(|error| Failure::bad_input(&error).with_context("cannot make --store-dir absolute"))
    }

    /// The one source that was given. Two of them are never mixed.
    fn chosen(&self) -> Result<Option<Chosen>, Failure> {
        let store_paths = (!self.store_paths.is_empty()).then(|| ClosureSource::StorePaths {
            arguments: self.store_paths.clone(),
            store: self.store.as_deref().map(StoreLocation::parse),
        });
        let graph = self.graph.clone().map(|file| ClosureSource::Graph { file, key: self.graph_key.clone() });
        let list = self.paths_from.clone().map(|file| {
            ClosureSource::PathList(if file.as_os_str() == "-" { ListInput::Stdin } else { ListInput::File(file) })
        });
        let mut given = [
            ("STORE_PATH", store_paths.map(Chosen::Closure)),
            ("--closure-info", self.closure_info.clone().map(ClosureSource::ClosureInfo).map(Chosen::Closure)),
            ("--graph", graph.map(Chosen::Closure)),
            ("--paths-from", list.map(Chosen::Closure)),
            ("--plan", self.plan.clone().map(Chosen::Plan)),
        ]
        .into_iter()
        .filter_map(|(name, chosen)| Some((name, chosen?)));
        let first = given.next();
        let others: Vec<&str> = given.map(|(name, _)| name).collect();
        match first {
            Some((name, _)) if !others.is_empty() => Err(Failure::usage(format!(
                "the closure comes from exactly one source, but {name} and {} were given",
                others.join(" and ")
            ))),
            first => Ok(first.map(|(_, chosen)| chosen)),
        }
    }
}
