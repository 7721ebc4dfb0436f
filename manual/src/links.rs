//! Checks that the targets of all links, all files and all NixOS options that pages name exist, and that the book
//! contains all pages.

use crate::error::Problem;
use crate::markdown::{anchors, prose, targets, without_code};
use crate::pages::Page;
use std::path::{Component, Path, PathBuf};

/// Directories of the work tree: a code span that starts with one names a file or directory in it.
const DIRECTORIES: [&str; 13] = [
    "benches",
    "docs",
    "examples",
    "fixtures",
    "fuzz",
    "imagebuilder",
    "launcher",
    "lib",
    "manual",
    "nixos-modules",
    "scripts",
    "templates",
    "tests",
];

/// The page with all options, each with a heading.
const OPTIONS: &str = "docs/options.md";

/// Returns the problems with links, in the order of the pages.
#[must_use]
pub fn check(root: &Path, pages: &[Page]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let options = pages.iter().find(|page| page.path == Path::new(OPTIONS)).map_or("", |page| page.text.as_str());
    for page in pages {
        for (index, line) in prose(&page.text) {
            let problem = |text| Problem { page: page.path.clone(), line: index + 1, text };
            problems.extend(targets(line).iter().filter_map(|target| broken(root, pages, page, target)).map(problem));
            let (_, spans) = without_code(line);
            let missing = spans.iter().filter(|span| names_file(span) && !root.join(span).exists());
            problems.extend(missing.map(|span| format!("there is no `{span}`")).map(problem));
            let unknown =
                spans.iter().filter_map(|span| named_option(span)).filter(|option| !is_option(options, option));
            problems.extend(unknown.map(|option| format!("there is no option `{option}`")).map(problem));
        }
    }
    problems.extend(not_in_summary(pages));
    problems
}

/// Returns why a link is broken.
fn broken(root: &Path, pages: &[Page], page: &Page, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let full = if path.is_empty() { page.path.clone() } else { relative_to(&page.path, path) };
    if !root.join(&full).exists() {
        return Some(format!("the link `{target}` leads to {}, which does not exist", full.display()));
    }
    if page.is_in_book() && !full.starts_with("docs") {
        return Some(format!("the link `{target}` leads out of the book: name the file in backticks"));
    }
    let anchor = anchor?;
    let text = &pages.iter().find(|page| page.path == full)?.text;
    let is_there = anchors(text).iter().any(|found| found == anchor) || text.contains(&format!("id=\"{anchor}\""));
    (!is_there).then(|| format!("the link `{target}` names a heading that does not exist in {}", full.display()))
}

/// Returns the path of a link, relative to its page, without `..`.
fn relative_to(page: &Path, target: &str) -> PathBuf {
    let mut path = page.parent().map_or_else(PathBuf::new, Path::to_owned);
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// Whether a code span names a file of the project. A component such as `NAME` or `GROUP.nix` is a placeholder.
fn names_file(span: &str) -> bool {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
    let Some((first, rest)) = span.split_once('/') else { return false };
    let is_placeholder = |component: &str| ["NAME", "GROUP"].contains(&component.split('.').next().unwrap_or_default());
    DIRECTORIES.contains(&first)
        && span.chars().all(plain)
        && rest.chars().any(|character| character.is_lowercase())
        && !rest.split('/').any(is_placeholder)
}

/// Returns the option that a code span such as `microvm.vms.NAME.flake` or `microvm.mem = 512` names.
fn named_option(span: &str) -> Option<String> {
    let name = span.split(" = ").next().unwrap_or_default().replace(".NAME", ".<name>");
    let plain = |character: char| character.is_ascii_alphanumeric() || ".*<>-".contains(character);
    let is_option = name.starts_with("microvm.") && name != "microvm.nix" && name.chars().all(plain);
    is_option.then_some(name)
}

/// Returns whether the option exists, or options below it.
fn is_option(options: &str, name: &str) -> bool {
    let name = name.trim_end_matches(".*");
    options.contains(&format!("### `{name}`")) || options.contains(&format!("### `{name}."))
}

fn not_in_summary(pages: &[Page]) -> Vec<Problem> {
    let name = Path::new("docs/SUMMARY.md");
    let listed: Vec<_> = pages.iter().filter(|page| page.path == name).flat_map(|page| targets(&page.text)).collect();
    let is_listed = |page: &Page| listed.iter().any(|target| relative_to(name, target) == page.path);
    let missing = pages.iter().filter(|page| page.is_in_book() && page.path != name && !is_listed(page));
    let text = "docs/SUMMARY.md does not list this page".to_owned();
    missing.map(|page| Problem { page: page.path.clone(), line: 1, text: text.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(path: &str, text: &str) -> Page {
        Page { path: path.into(), text: text.to_owned() }
    }

    fn found(pages: &[Page]) -> Vec<String> {
        check(&crate::pages::root(), pages).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn valid_links_are_accepted() {
        let pages = [
            page(
                "README.md",
                "# One\n[a](docs/cache.md#what) [b](#one) [c](https://example.org/x#y) `scripts/test.sh` `scripts/NAME.sh`",
            ),
            page("docs/SUMMARY.md", "[x](cache.md)\n"),
            page("docs/cache.md", "# What\n"),
        ];
        assert_eq!(found(&pages), [""; 0]);
    }

    #[test]
    fn an_unknown_option_is_reported() {
        let pages = [
            page("docs/SUMMARY.md", "[x](options.md)\n"),
            page(OPTIONS, "### `microvm.vms.<name>.flake`\n"),
            page("README.md", "`microvm.vms.NAME.flake = self` `microvm.vms` microvm.x `microvm.nix` `microvm.flake`"),
        ];
        assert_eq!(found(&pages), ["README.md:1: there is no option `microvm.flake`"]);
    }

    #[test]
    fn all_bad_links_are_reported() {
        let pages = [
            page("README.md", "[a](docs/nowhere.md) [b](#two)\n\n`scripts/nothing.sh`"),
            page("docs/SUMMARY.md", ""),
            page("docs/cache.md", "[out](../README.md) [c](defaults.md#nothing)"),
            page("docs/defaults.md", ""),
        ];
        let problems = found(&pages);
        for (problem, part) in problems.iter().zip([
            "README.md:1: the link `docs/nowhere.md`",
            "README.md:1: the link `#two`",
            "README.md:3: there is no `scripts/nothing.sh`",
            "docs/cache.md:1: the link `../README.md` leads out of the book",
            "docs/cache.md:1: the link `defaults.md#nothing` names a heading",
            "docs/cache.md:1: docs/SUMMARY.md does not list",
            "docs/defaults.md:1: docs/SUMMARY.md does not list",
        ]) {
            assert!(problem.contains(part), "{problem} is not about {part}");
        }
        assert_eq!(problems.len(), 7, "{problems:#?}");
    }
}
