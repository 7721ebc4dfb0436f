//! The graph that Nix writes to `.attrs.json` for a derivation with `exportReferencesGraph` and structured attributes.
//!
//! The file is an object of all attributes. The attribute `exportReferencesGraph` lists the names of the graphs. The
//! attribute with such a name is an array with one object per store path: `path`, `narHash`, `narSize`, `references`,
//! and others that are not used here and differ between versions of Nix.

use super::check::{ClosureProblem, ClosureRecord, Position};
use crate::nar_hash;
use crate::store_path::{LocatedStorePath, StorePath};
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// The graph cannot be read from a JSON document.
#[derive(Debug, Error)]
pub enum GraphError {
    /// Not JSON.
    #[error("it is not JSON")]
    Json(#[from] serde_json::Error),
    /// The older text form, which has no hashes.
    #[error("it is a graph in the older text form, which has no hashes")]
    TextForm,
    /// Neither an object nor an array.
    #[error("it is {found}, not an object as in `.attrs.json`")]
    NotAnObject {
        /// The type of the document.
        found: &'static str,
    },
    /// Nothing in it looks like a graph.
    #[error("it contains no graph: the attribute `exportReferencesGraph` names none")]
    NoGraph,
    /// More than one graph, and none was chosen.
    #[error("it contains {} graphs: {}", .keys.len(), .keys.join(", "))]
    SeveralGraphs {
        /// Their names.
        keys: Vec<String>,
    },
    /// The chosen graph does not exist.
    #[error("it contains no graph named {key:?}, {}", if .keys.is_empty() { "and no other".to_owned() } else { format!("only {}", .keys.join(", ")) })]
    NoSuchGraph {
        /// The requested name.
        key: String,
        /// The names of all graphs.
        keys: Vec<String>,
    },
    /// The graph does not have the form that Nix writes.
    #[error("the graph {key:?} is not an array of objects with `path`, `narHash`, `narSize` and `references`")]
    Form {
        /// The graph's name; empty if the document itself is the graph.
        key: String,
        /// The error of the parser.
        source: serde_json::Error,
    },
}

/// One entry of the graph. Unknown fields are ignored, because new versions of Nix add some.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    path: String,
    nar_hash: Option<String>,
    nar_size: Option<u64>,
    #[serde(default)]
    references: Vec<String>,
}

/// Reads the graph `key` of the document, or its only graph. A document that is an array is the graph itself.
/// Wrong entries are returned as problems.
///
/// # Errors
/// The document has no such graph, or has several and `key` is `None`.
pub(super) fn parse(text: &str, key: Option<&str>) -> Result<(Vec<ClosureRecord>, Vec<ClosureProblem>), GraphError> {
    if text.trim_start().starts_with('/') {
        return Err(GraphError::TextForm);
    }
    let (key, graph) = match serde_json::from_str(text)? {
        Value::Object(attributes) => choose(attributes, key)?,
        graph @ Value::Array(_) if key.is_none() => (String::new(), graph),
        other => return Err(GraphError::NotAnObject { found: kind(&other) }),
    };
    let entries: Vec<Entry> = serde_json::from_value(graph).map_err(|source| GraphError::Form { key, source })?;
    let (mut records, mut problems) = (Vec::with_capacity(entries.len()), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        records.extend(record(Position::Entry(index + 1), entry, &mut problems));
    }
    Ok((records, problems))
}

/// Removes the requested graph, or the only one, from the attributes and returns it.
fn choose(mut attributes: Map<String, Value>, key: Option<&str>) -> Result<(String, Value), GraphError> {
    let mut keys: Vec<String> = match attributes.get("exportReferencesGraph") {
        Some(Value::Object(graphs)) => graphs.keys().cloned().collect(),
        // A graph that was cut out of its `.attrs.json` has no declaration, but its form identifies it.
        _ => attributes.iter().filter(|(_, value)| looks_like_a_graph(value)).map(|(key, _)| key.clone()).collect(),
    };
    keys.retain(|key| attributes.contains_key(key));
    let chosen = match (key, keys.as_slice()) {
        (Some(key), keys) if keys.iter().any(|known| known == key) => key.to_owned(),
        (Some(key), _) => return Err(GraphError::NoSuchGraph { key: key.to_owned(), keys }),
        (None, [only]) => only.clone(),
        (None, []) => return Err(GraphError::NoGraph),
        (None, _) => return Err(GraphError::SeveralGraphs { keys }),
    };
    let graph = attributes.remove(&chosen).unwrap_or(Value::Null);
    Ok((chosen, graph))
}

fn looks_like_a_graph(value: &Value) -> bool {
    value.as_array().is_some_and(|entries| {
        !entries.is_empty() && entries.iter().all(|entry| entry.get("path").is_some() && entry.get("narHash").is_some())
    })
}

fn record(position: Position, entry: Entry, problems: &mut Vec<ClosureProblem>) -> Option<ClosureRecord> {
    let known_problems = problems.len();
    let mut located = |text: &str| {
        LocatedStorePath::parse(text)
            .map_err(|error| problems.push(ClosureProblem::NotAStorePath { position, error }))
            .ok()
    };
    let path = located(&entry.path);
    let references: Vec<StorePath> =
        entry.references.iter().filter_map(|text| located(text)).map(|located| located.path).collect();
    let nar_hash = entry.nar_hash.and_then(|text| {
        nar_hash::parse(&text)
            .map_err(|_| problems.push(ClosureProblem::Malformed { position, text, expected: "a NAR hash" }))
            .ok()
    });
    let is_valid = problems.len() == known_problems;
    path.filter(|_| is_valid).map(|located| ClosureRecord {
        position,
        located,
        nar_hash,
        nar_size_bytes: entry.nar_size,
        references,
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The output of Nix 2.26 for a derivation with one graph; all other attributes except `builder` are removed.
    const ATTRS: &str = r#"{"builder":"/bin/sh",
"closure":[
{"closureSize":288,"narHash":"sha256:0b31ifi74fghg3sv6m2d9bgphkcg268fig4kvqf6kcwgqb18140c","narSize":168,
 "path":"/nix/store/8cj96c53yr12pyhmdp42winkcqyydskk-b",
 "references":["/nix/store/ww5ixrr91z8mx6fzy97kwzl5lv5slwdr-a"],"valid":true},
{"closureSize":120,"narHash":"sha256:1z63q11s9hppsav4x9kh767bqr7ypmw7ncg3wjncgs4lijvx8li2","narSize":120,
 "path":"/nix/store/ww5ixrr91z8mx6fzy97kwzl5lv5slwdr-a","references":[],"valid":true}],
"exportReferencesGraph":{"closure":["/nix/store/8cj96c53yr12pyhmdp42winkcqyydskk-b"]}}"#;

    fn message(text: &str, key: Option<&str>) -> String {
        parse(text, key).unwrap_err().to_string()
    }

    #[test]
    fn the_only_graph_is_found() {
        let (records, problems) = parse(ATTRS, None).unwrap();
        assert_eq!(problems, []);
        assert_eq!(parse(ATTRS, Some("closure")).unwrap().0, records);
        let [b, a] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!((b.nar_size_bytes, a.nar_size_bytes), (Some(168), Some(120)));
        assert_eq!(b.references, std::slice::from_ref(&a.located.path));
        assert_eq!(b.position, Position::Entry(1));
        assert!(a.nar_hash.is_some());
    }

    #[test]
    fn a_graph_without_the_other_attributes_is_accepted() {
        let attributes: Value = serde_json::from_str(ATTRS).unwrap();
        let whole = parse(ATTRS, None).unwrap();
        assert_eq!(parse(&attributes["closure"].to_string(), None).unwrap(), whole);
        let object = serde_json::json!({"name": "x", "list": [1], "graph": attributes["closure"]});
        assert_eq!(parse(&object.to_string(), None).unwrap(), whole);
    }

    #[test]
    fn a_document_with_several_graphs_requires_a_name() {
        let mut attributes: Value = serde_json::from_str(ATTRS).unwrap();
        attributes["exportReferencesGraph"]["other"] = serde_json::json!([]);
        attributes["other"] = serde_json::json!([]);
        let text = attributes.to_string();
        assert_eq!(message(&text, None), "it contains 2 graphs: closure, other");
        assert_eq!(message(&text, Some("third")), "it contains no graph named \"third\", only closure, other");
        assert_eq!(parse(&text, Some("closure")).unwrap().0.len(), 2);
        assert_eq!(parse(&text, Some("other")).unwrap().0, []);
    }

    #[test]
    fn documents_without_a_graph_are_refused() {
        assert_eq!(message("", None), "it is not JSON");
        assert_eq!(message("3", None), "it is a number, not an object as in `.attrs.json`");
        assert_eq!(message("{}", None), "it contains no graph: the attribute `exportReferencesGraph` names none");
        assert_eq!(message("{}", Some("x")), "it contains no graph named \"x\", and no other");
        assert_eq!(
            message("/nix/store/8cj96c53yr12pyhmdp42winkcqyydskk-b\n\n0\n", None),
            "it is a graph in the older text form, which has no hashes"
        );
        assert_eq!(
            message(r#"{"exportReferencesGraph":{"g":[]},"g":[7]}"#, None),
            "the graph \"g\" is not an array of objects with `path`, `narHash`, `narSize` and `references`"
        );
    }

    #[test]
    fn all_wrong_entries_are_reported() {
        let text = ATTRS.replace("sha256:0b3", "sha256:eb3").replacen("-a\",\"references\"", "\",\"references\"", 1);
        let (records, problems) = parse(&text, None).unwrap();
        assert_eq!(records, []);
        let messages: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "entry 1: \"sha256:eb31ifi74fghg3sv6m2d9bgphkcg268fig4kvqf6kcwgqb18140c\" is not a NAR hash",
                "entry 2: \"/nix/store/ww5ixrr91z8mx6fzy97kwzl5lv5slwdr\" is not a store path: no dash follows the hash",
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_accepted_or_refused(text in ".*", cut in 0..ATTRS.len(), byte: char) {
            let _ = parse(&text, None);
            let _ = parse(&format!("{}{byte}{}", &ATTRS[..cut], &ATTRS[cut..]), None);
        }
    }
}
