//! Refuses zero bytes in all text of a spec: a zero byte would end an argument, a path or an environment variable
//! early, so the machine would fail only at its start.

use super::findings::Findings;
use serde_json::Value;

pub(super) fn check(document: &Value, findings: &mut Findings) {
    let mut found = Vec::new();
    search(document, "", &mut found);
    for option in found {
        // Skipped if another rule has already reported a problem with this option.
        if !findings.problems.iter().any(|problem| problem.option == option) {
            findings.problem(option, "contains a zero byte, which cannot be passed to a program");
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
