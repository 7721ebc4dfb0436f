//! The version that both programs print.

use std::sync::OnceLock;

/// Returns the version, followed by the commit that the program was built from if `$MICROVM_COMMIT` named it at compile
/// time: `0.2.0 (3f5c2a1)`.
pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| with_commit(env!("CARGO_PKG_VERSION"), option_env!("MICROVM_COMMIT")))
}

fn with_commit(version: &str, commit: Option<&str>) -> String {
    match commit.filter(|commit| !commit.is_empty()) {
        Some(commit) => format!("{version} ({commit})"),
        None => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_the_commit_if_it_is_known() {
        assert_eq!(with_commit("0.2.0", Some("3f5c2a1")), "0.2.0 (3f5c2a1)");
        assert_eq!(with_commit("0.2.0", Some("")), "0.2.0");
        assert_eq!(with_commit("0.2.0", None), "0.2.0");
        assert!(version().starts_with(env!("CARGO_PKG_VERSION")));
    }
}
