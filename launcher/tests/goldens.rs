//! Every spec of fixtures/specs on every hypervisor: the launch, or the exact text of the refusal.
//!
//! `MICROVM_TEST_BLESS=1` rewrites the goldens; review the difference before you commit it.

#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by failing")]

use launcher::facts::HostFacts;
use launcher::hypervisor::lower;
use launcher::launch::Launch;
use launcher::own_files::own_files_in_use;
use launcher::path::HostPath;
use launcher::spec::{Hypervisor, parse::parse};
use launcher::validate::check;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "goldens/cluster.rs"]
mod cluster;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn spec_names() -> Vec<String> {
    let entries = fs::read_dir(fixtures().join("specs")).expect("fixtures/specs");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut names: Vec<_> =
        paths.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Returns the golden file's extension and content for the spec on the hypervisor.
fn outcome(name: &str, hypervisor: Hypervisor) -> (&'static str, String) {
    let text = fs::read_to_string(fixtures().join("specs").join(format!("{name}.json"))).expect("a spec");
    let spec = parse(&text).unwrap_or_else(|problems| panic!("{name}: {problems:#?}"));
    assert_eq!(spec.name, name, "a spec has the name of its file, so that every golden has a different name");
    let checked = check(&spec).unwrap_or_else(|problems| panic!("{name}: {problems:#?}"));
    let facts = HostFacts::assumed(HostPath::new(format!("/var/lib/microvms/{name}")));
    match lower(&checked, &facts, hypervisor) {
        Ok(launch) => {
            let text = serde_json::to_string_pretty(&launch).expect("JSON");
            let read: Launch = serde_json::from_str(&text).expect("a launch");
            assert_eq!(read, launch, "a launch survives a round trip through JSON");
            let twice: Vec<_> = own_files_in_use(&launch, None).iter().map(ToString::to_string).collect();
            assert!(twice.is_empty(), "{name} under {hypervisor}: {twice:?}");
            ("json", text + "\n")
        }
        Err(refusals) => ("refused", format!("{refusals}\n{}\n", refusals.hint())),
    }
}

#[test]
fn every_spec_equals_its_golden_on_every_hypervisor() {
    let updates = std::env::var_os("MICROVM_TEST_BLESS").is_some();
    let directory = fixtures().join("launches");
    let (mut expected_files, mut differences) = (BTreeSet::new(), Vec::new());
    for name in spec_names() {
        for hypervisor in Hypervisor::ALL {
            let (extension, content) = outcome(&name, hypervisor);
            let path = directory.join(&name).join(format!("{hypervisor}.{extension}"));
            expected_files.insert(path.clone());
            if fs::read_to_string(&path).is_ok_and(|golden| golden == content) {
                continue;
            }
            differences.push(format!("{}:\n{content}", path.display()));
            if updates {
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                fs::write(&path, content).expect("a golden");
            }
        }
    }
    let stale: Vec<_> = golden_files(&directory).into_iter().filter(|path| !expected_files.contains(path)).collect();
    if updates {
        stale.iter().for_each(|path| fs::remove_file(path).expect("a stale golden"));
        return;
    }
    assert!(differences.is_empty(), "differ from their goldens:\n{}", differences.join("\n"));
    assert!(stale.is_empty(), "goldens without a spec: {stale:?}");
}

fn golden_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(specs) = fs::read_dir(directory) else { return Vec::new() };
    let files = specs.flat_map(|entry| fs::read_dir(entry.expect("an entry").path()).expect("a directory of goldens"));
    files.map(|entry| entry.expect("an entry").path()).collect()
}
