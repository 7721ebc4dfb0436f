//! The references of the machine spec and of `cluster.json` in Markdown, generated from their schemas. Tests compare
//! them with docs/machine-spec.md and docs/cluster-spec.md.

use crate::cluster::spec::{CLUSTER_VERSION, ClusterSpec};
use crate::spec::SPEC_VERSION;
use crate::spec::schema::{machine_spec_schema, schema_of};
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// Returns the reference of the machine spec as one Markdown page.
pub fn machine_spec_reference() -> String {
    let head = format!(
        "# The machine spec\n\n\
         A machine is one JSON document, version {SPEC_VERSION}. `microvm schema` prints its JSON Schema; this page is generated from it\n\
         by `microvm schema --markdown`. Every object refuses fields that are not listed here.\n\
         Relative paths are resolved against the machine's state directory.\n"
    );
    reference(head, "Machine", &machine_spec_schema())
}

/// Returns the reference of `cluster.json` as one Markdown page.
pub fn cluster_spec_reference() -> String {
    let head = format!(
        "# The cluster spec\n\n\
         A cluster is one JSON document, version {CLUSTER_VERSION}, usually named `cluster.json`. `microvm schema --cluster` prints its JSON\n\
         Schema; this page is generated from it by `microvm schema --cluster --markdown`. Every object refuses fields that are not\n\
         listed here.\n"
    );
    reference(head, "Cluster", &schema_of::<ClusterSpec>())
}

fn reference(mut text: String, name: &str, schema: &Value) -> String {
    let empty = Map::new();
    let definitions = schema.get("$defs").and_then(Value::as_object).unwrap_or(&empty);
    write_object(&mut text, name, schema);
    for (name, definition) in definitions {
        write_object(&mut text, name, definition);
        write_values(&mut text, name, definition);
    }
    text
}

fn write_object(text: &mut String, name: &str, schema: &Value) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let required: Vec<_> = schema.get("required").and_then(Value::as_array).into_iter().flatten().collect();
    write_heading(text, name, schema);
    text.push_str("| field | type | default | meaning |\n|---|---|---|---|\n");
    for (field, property) in properties {
        let is_required = required.iter().any(|name| name.as_str() == Some(field));
        let default = match property.get("default") {
            _ if is_required => "required".to_owned(),
            Some(value) => format!("`{}`", brief(value)),
            None => "`null`".to_owned(),
        };
        let _ = writeln!(text, "| `{field}` | {} | {default} | {} |", type_of(property), description(property));
    }
}

fn write_values(text: &mut String, name: &str, schema: &Value) {
    let Some(branches) = schema.get("oneOf").and_then(Value::as_array) else { return };
    write_heading(text, name, schema);
    text.push_str("| value | meaning |\n|---|---|\n");
    for branch in branches {
        let word = branch.get("const").and_then(Value::as_str).unwrap_or_default();
        let _ = writeln!(text, "| `\"{word}\"` | {} |", description(branch));
    }
}

fn write_heading(text: &mut String, name: &str, schema: &Value) {
    let _ = write!(text, "\n## {name}\n\n{}\n\n", description(schema));
}

/// Returns a default value as JSON; a section with defaults of its own is shortened to `{}`.
fn brief(value: &Value) -> String {
    match value {
        Value::Object(fields) if !fields.is_empty() => "{}".to_owned(),
        other => other.to_string(),
    }
}

fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_ascii_lowercase());
    }
    if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
        return branches.iter().map(type_of).collect::<Vec<_>>().join(" or ");
    }
    let names = match schema.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => return "anything".to_owned(),
    };
    let words = names.into_iter().map(|name| match name {
        "array" => format!("list of {}", schema.get("items").map_or_else(|| "anything".to_owned(), type_of)),
        "object" => match schema.get("additionalProperties") {
            Some(values @ Value::Object(_)) => format!("object of {}", type_of(values)),
            _ => "object".to_owned(),
        },
        "integer" => "whole number".to_owned(),
        other => other.to_owned(),
    });
    words.collect::<Vec<_>>().join(" or ")
}
