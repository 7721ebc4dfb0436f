//! The description of the resource agent, as XML: `ra-api-1.dtd`.

use super::parameters::{AGENT, ContentType, PARAMETERS, Parameter};
use std::fmt::Write;

/// An action of the agent, with the timeout and interval that it suggests.
struct Action {
    name: &'static str,
    timeout: &'static str,
    interval: Option<&'static str>,
    depth: Option<u32>,
}

const fn action(name: &'static str, timeout: &'static str) -> Action {
    Action { name, timeout, interval: None, depth: None }
}

/// A start waits for the hypervisor and not for the guest, but the node may have to copy the runner or build the store
/// disk first, and a busy node must not be taken for a broken one.
const ACTIONS: [Action; 8] = [
    action("start", "180s"),
    action("stop", "120s"),
    Action { interval: Some("10s"), depth: Some(0), ..action("monitor", "30s") },
    Action { interval: Some("30s"), depth: Some(10), ..action("monitor", "30s") },
    action("migrate_to", "300s"),
    action("migrate_from", "180s"),
    action("validate-all", "20s"),
    action("meta-data", "5s"),
];

const DESCRIPTION: &str =
    "Runs a microVM from its runner. A node that does not have the runner copies it from a binary \
                           cache. If the node has the unit microvm@.service, the machine runs as that service.

A machine is started when its hypervisor runs. A monitor with OCF_CHECK_LEVEL=10 also requires that the guest has \
                           reported that it has booted, if it does so, within five minutes of the start.

It is stopped when its processes have ended and its volumes are unlocked.";

/// Returns the XML document.
pub fn meta_data() -> String {
    let [_, _, name] = AGENT;
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!(
        "<?xml version=\"1.0\"?>\n<!DOCTYPE resource-agent SYSTEM \"ra-api-1.dtd\">\n\
         <resource-agent name=\"{name}\" version=\"{version}\">\n<version>1.1</version>\n\
         <longdesc lang=\"en\">\n{}\n</longdesc>\n<shortdesc lang=\"en\">Runs a microVM</shortdesc>\n<parameters>\n",
        escaped(DESCRIPTION)
    );
    for parameter in &PARAMETERS {
        describe(parameter, &mut text);
    }
    text.push_str("</parameters>\n<actions>\n");
    for action in &ACTIONS {
        let interval = action.interval.map(|interval| format!(" interval=\"{interval}\"")).unwrap_or_default();
        let depth = action.depth.map(|depth| format!(" depth=\"{depth}\"")).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(text, "<action name=\"{}\" timeout=\"{}\"{interval}{depth}/>", action.name, action.timeout);
    }
    text.push_str("</actions>\n</resource-agent>\n");
    text
}

fn describe(parameter: &Parameter, text: &mut String) {
    let number = u8::from;
    let content = match parameter.content {
        ContentType::String | ContentType::Mode => "string",
        ContentType::Seconds => "integer",
    };
    let default = parameter.default.map(|default| format!(" default=\"{}\"", escaped(default))).unwrap_or_default();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "<parameter name=\"{}\" unique=\"{}\" required=\"{}\">\n<longdesc lang=\"en\">{}</longdesc>\n\
         <shortdesc lang=\"en\">{}</shortdesc>\n<content type=\"{content}\"{default}/>\n</parameter>",
        parameter.name,
        number(parameter.is_unique),
        number(parameter.is_required),
        escaped(parameter.description),
        escaped(parameter.summary),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
