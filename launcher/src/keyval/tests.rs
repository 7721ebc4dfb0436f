//! Property tests: parsing an option string by the hypervisor's own rules gives back the original values.

use super::*;
use proptest::prelude::*;

/// qemu's `opts_do_parse`: values end at a comma that is not doubled.
fn read_qemu(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let part = parts.last_mut().expect("at least one part");
        match character {
            ',' if characters.peek() == Some(&',') => {
                characters.next();
                part.push(',');
            }
            ',' => parts.push(String::new()),
            other => part.push(other),
        }
    }
    parts
}

/// How a version of cloud-hypervisor treats brackets inside quotes, and when it trims.
#[derive(Clone, Copy)]
enum Generation {
    /// Up to about v45: brackets count everywhere, and values are trimmed after the quotes are removed.
    Old,
    /// v54: nothing inside quotes is special.
    New,
}

/// cloud-hypervisor's `split_commas`, then `parse` and `get`; `None` is its error.
fn read_cloud_hypervisor(text: &str, generation: Generation) -> Option<Vec<String>> {
    let (mut parts, mut part, mut open, mut quoted) = (Vec::new(), String::new(), 0_i32, false);
    for character in text.trim().chars() {
        let hidden = quoted && matches!(generation, Generation::New);
        match character {
            '"' => {
                quoted = !quoted;
                continue;
            }
            '[' if !hidden => open += 1,
            ']' if !hidden => open -= 1,
            ',' if open == 0 && !quoted => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        if open < 0 {
            return None;
        }
        part.push(character);
    }
    parts.push(part);
    let trimmed = |part: String| part.split_once('=').map(|(key, value)| format!("{key}={}", value.trim()));
    (open == 0 && !quoted).then(|| parts.into_iter().map(|part| trimmed(part.clone()).unwrap_or(part)).collect())
}

/// crosvm's `any_string` after `key=`, repeated; `None` is its error.
fn read_crosvm(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => read_crosvm_quoted(quoted)?,
            None => {
                let end = after.find([',', '"', '\'', '[', ']']).unwrap_or(after.len());
                (end > 0).then(|| (after[..end].to_owned(), &after[end..]))?
            }
        };
        parts.push(format!("{key}={value}"));
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None if after.is_empty() => return Some(parts),
            None => return None,
        }
    }
}

fn read_crosvm_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => {
                value.push(characters.next().map(|(_, escaped)| escaped).filter(|escaped| "\"\\".contains(*escaped))?)
            }
            other => value.push(other),
        }
    }
    None
}

/// kvmtool splits at commas.
fn read_kvmtool(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn written(dialect: Dialect, values: &[String]) -> Result<String, UnescapableValue> {
    let options = Options::new(dialect);
    values
        .iter()
        .enumerate()
        .fold(options, |options, (index, value)| options.pair(&format!("k{index}"), value))
        .finish()
}

fn keyed(values: &[String]) -> Vec<String> {
    values.iter().enumerate().map(|(index, value)| format!("k{index}={value}")).collect()
}

/// Generates values from characters that the hypervisors treat as special, and arbitrary values.
fn values() -> impl Strategy<Value = Vec<String>> {
    let special = proptest::string::string_regex("[,=\"'\\[\\]\\\\ a/.\u{e4}-]{0,12}").expect("a regex");
    proptest::collection::vec(prop_oneof![special, any::<String>()], 1..4)
}

proptest! {
    #[test]
    fn qemu_parses_the_original_values(values in values()) {
        let text = written(Dialect::Qemu, &values).expect("everything can be written");
        prop_assert_eq!(read_qemu(&text), keyed(&values));
    }

    #[test]
    fn cloud_hypervisor_parses_the_original_values_or_they_are_refused(values in values()) {
        if let Ok(text) = written(Dialect::CloudHypervisor, &values) {
            prop_assert_eq!(read_cloud_hypervisor(&text, Generation::New), Some(keyed(&values)));
            prop_assert_eq!(read_cloud_hypervisor(&text, Generation::Old), Some(keyed(&values)));
        }
    }

    #[test]
    fn crosvm_parses_the_original_values(values in values()) {
        let text = written(Dialect::Crosvm, &values).expect("everything can be written");
        prop_assert_eq!(read_crosvm(&text), Some(keyed(&values)));
    }

    #[test]
    fn kvmtool_parses_the_original_values_or_they_are_refused(values in values()) {
        if let Ok(text) = written(Dialect::Kvmtool, &values) {
            prop_assert_eq!(read_kvmtool(&text), keyed(&values));
        }
    }
}

#[test]
fn a_comma_in_a_path_does_not_add_an_option() {
    let values = ["a,readonly=on".to_owned()];
    assert_eq!(written(Dialect::Qemu, &values).expect("writable"), "k0=a,,readonly=on");
    assert_eq!(written(Dialect::CloudHypervisor, &values).expect("writable"), "k0=\"a,readonly=on\"");
    assert_eq!(written(Dialect::Crosvm, &values).expect("writable"), "k0=\"a,readonly=on\"");
    let refused = written(Dialect::Kvmtool, &values).expect_err("not writable");
    assert!(refused.to_string().starts_with("cannot be given `a,readonly=on`: a comma"), "{refused}");
}

#[test]
fn ordinary_values_are_not_quoted() {
    for dialect in [Dialect::Qemu, Dialect::CloudHypervisor, Dialect::Crosvm, Dialect::Kvmtool] {
        let options = Options::new(dialect).word("tap").pair("id", 3).pair_if("mac", None::<&str>);
        assert_eq!(options.value("/nix/store/x-y_1.2/z").finish().expect("writable"), "tap,id=3,/nix/store/x-y_1.2/z");
    }
}

#[test]
fn values_that_cloud_hypervisor_cannot_parse_are_refused() {
    for value in ["", "a\"b", " a", "a ", "[", "][", "a]"] {
        assert!(written(Dialect::CloudHypervisor, &[value.to_owned()]).is_err(), "{value:?}");
    }
    assert_eq!(written(Dialect::CloudHypervisor, &["disk[1].img".to_owned()]).expect("writable"), "k0=\"disk[1].img\"");
}
