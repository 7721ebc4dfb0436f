//! No text of a spec has a zero byte: it would end an argument, a path or a variable of the environment before its end, and
//! so fail only when the machine starts.

use super::findings::Findings;
use crate::spec::MachineSpec;
use serde_json::Value;

pub(super) fn check(spec: &MachineSpec, findings: &mut Findings) {
    // A spec came from JSON and can go there again; were that ever to fail, nothing is hidden by it.
    let Ok(document) = serde_json::to_value(spec) else { return };
    let mut found = Vec::new();
    search(&document, "", &mut found);
    for option in found {
        // If a rule of its own forbids more, that has been reported.
        if !findings.problems.iter().any(|problem| problem.option == option) {
            findings.problem(option, "has a zero byte, which no argument of a program can have");
        }
    }
}

fn search(value: &Value, option: &str, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.contains('\0') => found.push(option.to_owned()),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| search(item, &format!("{option}[{index}]"), found));
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let dot = if option.is_empty() { "" } else { "." };
                if name.contains('\0') {
                    found.push(option.to_owned());
                }
                search(field, &format!("{option}{dot}{name}"), found);
            }
        }
        _ => {}
    }
}
