//! Checks of the pages that need neither the programs nor the fixtures. scripts/manual.sh does the others.

use manual::pages::{all, root};
use manual::{links, messages};

#[test]
fn every_link_and_every_named_file_and_option_exists() {
    let problems = links::check(&root(), &all(&root()).unwrap());
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn every_quoted_message_is_in_the_sources() {
    let (pages, sources) = (all(&root()).unwrap(), messages::sources(&root()).unwrap());
    let quoting = pages.iter().filter(|page| page.text.contains("\n```message\n")).count();
    let problems: Vec<_> = pages.iter().flat_map(|page| messages::check(page, &sources)).collect();
    assert!(problems.is_empty() && quoting > 0, "{problems:#?}");
}
