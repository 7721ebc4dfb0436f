//! Parses a [`MachineSpec`], or another document of this kind, from JSON and reports all problems at once.

use super::schema::{Mismatch, mismatches, schema_of};
use super::{MachineSpec, SPEC_VERSION};
use program::escape::one_line;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A document with a version, of which all objects refuse unknown fields.
pub trait Document: DeserializeOwned + JsonSchema {
    /// What it describes, as in "the machine".
    const SUBJECT: &'static str;
    /// The version that this program reads.
    const VERSION: u32;

    /// Returns the version of this document.
    fn version(&self) -> u32;
}

impl Document for MachineSpec {
    const SUBJECT: &'static str = "machine";
    const VERSION: u32 = SPEC_VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

/// A reason why a text is not the expected document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text is not JSON.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The parser's message.
        message: String,
    },
    /// The document has a version that this program does not support.
    #[error(
        "version: this program reads {subject} specs of version {supported}, but this one has {found}; build the {subject} and the launcher from the same release"
    )]
    Version {
        /// What the document describes.
        subject: &'static str,
        /// The version that this program supports.
        supported: u32,
        /// The version in the document.
        found: u64,
    },
    /// A field or type does not match the schema.
    #[error("{}", one_line(&.0.to_string()))]
    Mismatch(Mismatch),
}

/// Reads a machine spec.
///
/// # Errors
/// All [`ParseError`]s of the text, at least one.
pub fn parse(text: &str) -> Result<MachineSpec, Vec<ParseError>> {
    parse_document(text)
}

/// Reads a document.
///
/// # Errors
/// All [`ParseError`]s of the text, at least one.
pub fn parse_document<Spec: Document>(text: &str) -> Result<Spec, Vec<ParseError>> {
    let supported = Spec::VERSION;
    let read = serde_json::from_str::<Spec>(text);
    if let Ok(spec) = &read
        && spec.version() == supported
    {
        return read.map_err(syntax);
    }
    let document: Value = serde_json::from_str(text).map_err(syntax)?;
    if let Some(found) = document.get("version").and_then(Value::as_u64).filter(|found| *found != u64::from(supported))
    {
        return Err(vec![ParseError::Version { subject: Spec::SUBJECT, supported, found }]);
    }
    let mismatches = mismatches(&document, &schema_of::<Spec>());
    if !mismatches.is_empty() {
        return Err(mismatches.into_iter().map(ParseError::Mismatch).collect());
    }
    // Only serde finds fields that are given twice.
    read.map_err(syntax)
}

fn syntax(error: serde_json::Error) -> Vec<ParseError> {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let place = format!(" at line {line} column {column}");
    let message = match message.strip_suffix(&place).unwrap_or(&message) {
        "EOF while parsing a value" if column == 0 => "the document is empty or incomplete".to_owned(),
        message => message.to_owned(),
    };
    vec![ParseError::Syntax { line, column, message }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Hypervisor;

    fn messages(text: &str) -> Vec<String> {
        parse(text).expect_err("not a spec").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_smallest_spec_has_the_documented_defaults() {
        let spec = parse(r#"{"version":1,"name":"web","kernel":"/k/bzImage"}"#).expect("a spec");
        assert_eq!((spec.vcpu, spec.mem_mib, spec.rng, spec.deflate_on_oom), (1, 512, true, true));
        assert!(spec.qemu.serial_console);
        assert_eq!(spec.hypervisor.as_str(), "qemu");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let spec = parse(r#"{"version":1,"name":"web","kernel":"/k/bzImage","vsock":{"cid":3}}"#).expect("a spec");
        let text = serde_json::to_string(&spec).expect("serialisable");
        assert_eq!(parse(&text).expect("a spec"), spec);
    }

    #[test]
    fn malformed_json_names_line_and_column() {
        assert_eq!(messages("{\n  \"version\": 1,\n  \"name\" \"web\"\n}"), ["line 3, column 10: expected `:`"]);
        assert_eq!(messages(""), ["line 1, column 0: the document is empty or incomplete"]);
    }

    fn hypervisors() -> String {
        Hypervisor::ALL.map(Hypervisor::as_str).join(", ")
    }

    #[test]
    fn every_mismatch_is_named_at_once() {
        let text = r#"{"version":1,"name":"web","vpcu":2,"mem":"512","hypervisor":"fircracker",
            "volumes":[{"imgae":"a.img"}],"qemu":{"extraArgs":"-s"}}"#;
        assert_eq!(
            messages(text),
            [
                &format!("hypervisor: must be one of {}; did you mean `firecracker`?", hypervisors()),
                "mem: must be a whole number, but is the string \"512\"",
                "qemu.extraArgs: must be a list, but is the string \"-s\"",
                "volumes[0].imgae: unknown field; did you mean `image`?",
                "volumes[0].image: required field is missing",
                "vpcu: unknown field; did you mean `vcpu`?",
                "kernel: required field is missing",
            ]
        );
    }

    #[test]
    fn a_hypervisor_of_microvm_nix_that_is_not_supported_is_refused_with_those_that_are() {
        for name in ["alioth", "stratovirt", "vfkit", "QEMU"] {
            let text = format!(r#"{{"version":1,"name":"web","kernel":"/k","hypervisor":"{name}"}}"#);
            let expected = format!("hypervisor: must be one of {}", hypervisors());
            assert!(messages(&text)[0].starts_with(&expected), "{name}: {:?}", messages(&text));
        }
    }

    #[test]
    fn a_number_out_of_range_names_the_range() {
        let text = r#"{"version":1,"name":"web","kernel":"/k","vcpu":4294967296,"mem":-1,"vsock":{"cid":-3}}"#;
        assert_eq!(
            messages(text),
            [
                "mem: must be from 0 to 18446744073709551615, but is -1",
                "vcpu: must be from 0 to 4294967295, but is 4294967296",
                "vsock.cid: must be from 0 to 4294967295, but is -3",
            ]
        );
    }

    #[test]
    fn a_doubled_field_names_its_line() {
        let text = "{\"version\":1,\"name\":\"web\",\"kernel\":\"/k\",\n\"vcpu\":1,\"vcpu\":2}";
        assert!(messages(text)[0].starts_with("line 2, column"), "{:?}", messages(text));
    }

    #[test]
    fn another_version_is_named_before_its_unknown_fields() {
        assert!(messages(r#"{"version":2,"nmae":"web"}"#)[0].contains("but this one has 2"));
    }
}
