//! JSON Schemas of the machine spec and of similar documents, generated from their types, and a check against them that
//! reports all problems.
//!
//! serde stops at the first unknown field. The check continues, so that a user can fix three misspelt options at once.
//! A document that passes is then read by serde, which can still refuse it.

use crate::spec::MachineSpec;
use program::spelling::nearest;
use schemars::JsonSchema;
use serde_json::{Map, Value};
use std::fmt;

/// Returns the schema of [`MachineSpec`] as a JSON document.
pub fn machine_spec_schema() -> Value {
    schema_of::<MachineSpec>()
}

/// Returns the schema of a type as a JSON document.
pub fn schema_of<Spec: JsonSchema>() -> Value {
    schemars::schema_for!(Spec).to_value()
}

/// A place where a document does not match the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The place, such as `volumes[1].image`; empty for the document itself.
    pub place: String,
    /// The problem.
    pub kind: MismatchKind,
}

/// How a document does not match the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MismatchKind {
    /// An unknown field; with the nearest known one.
    UnknownField(Option<String>),
    /// A required field is missing.
    MissingField,
    /// A value of the wrong type: what is expected, and what was found.
    WrongType(String, String),
    /// A whole number out of range: the smallest and largest allowed value, and the one found.
    OutOfRange(i128, i128, String),
    /// A string that is not one of the allowed values; with the nearest of them.
    UnknownValue(Vec<String>, Option<String>),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.place.is_empty() { "the document" } else { &self.place };
        match &self.kind {
            MismatchKind::UnknownField(Some(known)) => {
                write!(formatter, "{place}: unknown field; did you mean `{known}`?")
            }
            MismatchKind::UnknownField(None) => write!(formatter, "{place}: unknown field"),
            MismatchKind::MissingField => write!(formatter, "{place}: required field is missing"),
            MismatchKind::WrongType(wanted, found) => write!(formatter, "{place}: must be {wanted}, but is {found}"),
            MismatchKind::OutOfRange(least, largest, found) => {
                write!(formatter, "{place}: must be from {least} to {largest}, but is {found}")
            }
            MismatchKind::UnknownValue(words, known) => {
                write!(formatter, "{place}: must be one of {}", words.join(", "))?;
                known.as_ref().map_or(Ok(()), |known| write!(formatter, "; did you mean `{known}`?"))
            }
        }
    }
}

/// Returns every place where the document does not match the schema, in document order.
pub fn mismatches(document: &Value, root: &Value) -> Vec<Mismatch> {
    let mut walk = Walk { definitions: root.get("$defs").and_then(Value::as_object), mismatches: Vec::new() };
    walk.visit("", document, root);
    walk.mismatches
}

struct Walk<'schema> {
    definitions: Option<&'schema Map<String, Value>>,
    mismatches: Vec<Mismatch>,
}

impl<'schema> Walk<'schema> {
    fn visit(&mut self, place: &str, value: &Value, schema: &'schema Value) {
        let schema = self.resolve(schema);
        if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
            // The generator writes an optional type as "this type, or null".
            let branch = branches.iter().find(|branch| allows_null(branch) == value.is_null());
            return branch.map_or((), |branch| self.visit(place, value, branch));
        }
        if let Some(words) = enum_values(schema) {
            return self.visit_enum(place, value, words);
        }
        let types = types_of(schema);
        if !types.is_empty() && !types.iter().any(|name| has_type(value, name)) {
            let wanted = types.iter().map(|name| expected_type(name)).collect::<Vec<_>>().join(" or ");
            return self.report(place, MismatchKind::WrongType(wanted, found_type(value)));
        }
        match value {
            Value::Object(fields) => self.visit_fields(place, fields, schema),
            Value::Array(items) => {
                if let Some(schema) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.visit(&format!("{place}[{index}]"), item, schema);
                    }
                }
            }
            Value::Number(number) => {
                if let (Some((least, largest)), Some(found)) = (range_of(schema), number.as_i128())
                    && !(least..=largest).contains(&found)
                {
                    self.report(place, MismatchKind::OutOfRange(least, largest, found.to_string()));
                }
            }
            _ => {}
        }
    }

    fn visit_fields(&mut self, place: &str, fields: &Map<String, Value>, schema: &'schema Value) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties");
        for (name, value) in fields {
            let place = below(place, name);
            match (properties.and_then(|properties| properties.get(name)), others) {
                (Some(schema), _) => self.visit(&place, value, schema),
                (None, Some(Value::Bool(false))) => {
                    let known = properties.into_iter().flat_map(|properties| properties.keys());
                    let kind = MismatchKind::UnknownField(nearest(name, known.map(String::as_str)).map(str::to_owned));
                    self.report(&place, kind);
                }
                (None, Some(schema)) => self.visit(&place, value, schema),
                (None, None) => {}
            }
        }
        let required = schema.get("required").and_then(Value::as_array);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                self.report(&below(place, name), MismatchKind::MissingField);
            }
        }
    }

    fn visit_enum(&mut self, place: &str, value: &Value, words: Vec<String>) {
        match value.as_str() {
            Some(word) if words.iter().any(|known| known == word) => {}
            Some(word) => {
                let known = nearest(word, words.iter().map(String::as_str)).map(str::to_owned);
                self.report(place, MismatchKind::UnknownValue(words, known));
            }
            None => self.report(place, MismatchKind::UnknownValue(words, None)),
        }
    }

    fn resolve(&self, schema: &'schema Value) -> &'schema Value {
        schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| reference.strip_prefix("#/$defs/"))
            .and_then(|name| self.definitions?.get(name))
            .unwrap_or(schema)
    }

    fn report(&mut self, place: &str, kind: MismatchKind) {
        self.mismatches.push(Mismatch { place: place.to_owned(), kind });
    }
}

fn below(place: &str, name: &str) -> String {
    if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") }
}

fn allows_null(schema: &Value) -> bool {
    types_of(schema).contains(&"null")
}

fn types_of(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Returns the values of an enumeration. The generator writes them as `enum` or, with descriptions, as `oneOf`.
fn enum_values(schema: &Value) -> Option<Vec<String>> {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return words.iter().map(word).collect();
    }
    let branches = schema.get("oneOf").and_then(Value::as_array)?;
    branches.iter().map(|branch| branch.get("const").and_then(word)).collect()
}

/// Returns the range of a whole number. The generator writes the type as `format`, and adds limits for narrow types.
fn range_of(schema: &Value) -> Option<(i128, i128)> {
    let (least, largest) = match schema.get("format").and_then(Value::as_str)? {
        "uint8" => (0, i128::from(u8::MAX)),
        "uint16" => (0, i128::from(u16::MAX)),
        "uint32" => (0, i128::from(u32::MAX)),
        "uint64" => (0, i128::from(u64::MAX)),
        _ => return None,
    };
    let limit = |name: &str| schema.get(name).and_then(Value::as_number).and_then(serde_json::Number::as_i128);
    Some((limit("minimum").unwrap_or(least), limit("maximum").unwrap_or(largest)))
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

fn expected_type(name: &str) -> String {
    match name {
        "null" => "null",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "a string",
        "array" => "a list",
        "object" => "an object",
        other => other,
    }
    .to_owned()
}

fn found_type(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("{value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the string {value:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
