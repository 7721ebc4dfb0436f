//! The constraints that place a machine on a host for the time of a move.

use super::cib::PREFIX;
use super::xml::Element;

const INFINITY: &str = "INFINITY";
const NEVER: &str = "-INFINITY";

/// Returns the constraint that makes a machine run on a host until a time in RFC 3339. Its identifier is one of ours.
pub(super) fn preference(machine: &str, node: &str, end: &str) -> Element {
    let id = format!("{PREFIX}move__{machine}");
    let element = |name: &str, part: &str, attributes: [(&str, &str); 3]| {
        let mut element = Element::new(name, [("id", &format!("{id}__{part}"))]);
        attributes.iter().filter(|(_, value)| !value.is_empty()).for_each(|(name, value)| element.set(name, value));
        element
    };
    let host = element("expression", "host", [("attribute", "#uname"), ("operation", "eq"), ("value", node)]);
    let time = element("date_expression", "time", [("operation", "lt"), ("end", end), ("", "")]);
    let rule = element("rule", "rule", [("score", INFINITY), ("boolean-op", "and"), ("", "")]).with([host, time]);
    Element::new("rsc_location", [("id", &id), ("rsc", machine)]).with([rule])
}

/// Returns the constraint, set by another program or user, that keeps a machine away from a host: one that excludes this host, or one that
/// requires another one. It is a single host in constraints of `crm_resource`.
pub(super) fn obstacle(constraints: &Element, machine: &str, node: &str) -> Option<String> {
    let of_machine = constraints.all("rsc_location").filter(|location| location.attribute("rsc") == Some(machine));
    of_machine
        .filter(|location| is_against(location, node))
        .find_map(|location| location.attribute("id").filter(|id| !id.starts_with(PREFIX)).map(str::to_owned))
}

fn is_against(location: &Element, node: &str) -> bool {
    let direct = location.attribute("node").zip(location.attribute("score"));
    let of_rule = |rule: &Element| {
        let host = rule
            .all("expression")
            .find(|one| one.attribute("attribute") == Some("#uname") && one.attribute("operation") == Some("eq"));
        host.and_then(|host| host.attribute("value"))
            .zip(rule.attribute("score"))
            .is_some_and(|(host, score)| excludes(host, score, node))
    };
    direct.is_some_and(|(host, score)| excludes(host, score, node)) || location.all("rule").any(of_rule)
}

fn excludes(host: &str, score: &str, node: &str) -> bool {
    (score == NEVER && host == node) || (score.trim_start_matches('+') == INFINITY && host != node)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;

    #[test]
    fn only_constraints_of_others_that_exclude_the_host_are_obstacles() {
        // What `crm_resource --move` with and without a lifetime and `--ban` write, and what the generator does.
        let constraints = |text: &str| Element::parse(&format!("<constraints>{text}</constraints>")).unwrap();
        let moved = r#"<rsc_location id="cli-prefer-web" rsc="web" role="Started" node="n1" score="INFINITY"/>"#;
        let for_an_hour = r##"<rsc_location id="cli-prefer-web" rsc="web"><rule id="r" score="INFINITY" boolean-op="and">
            <expression id="e" attribute="#uname" operation="eq" value="n1"/>
            <date_expression id="d" operation="lt" end="2026-11-29 16:52:43Z"/></rule></rsc_location>"##;
        let banned = r#"<rsc_location id="cli-ban-web-on-n2" rsc="web" role="Started" node="n2" score="-INFINITY"/>"#;
        let preferred = r#"<rsc_location id="like" rsc="web" node="n1" score="100"/>"#;
        let other = r#"<rsc_location id="other" rsc="db" node="n2" score="-INFINITY"/>"#;
        let own = preference("web", "n1", "2026-11-29T16:52:43Z").to_text().unwrap();
        for (text, on_n1, on_n2) in [
            (moved, None, Some("cli-prefer-web")),
            (for_an_hour, None, Some("cli-prefer-web")),
            (banned, None, Some("cli-ban-web-on-n2")),
            (preferred, None, None),
            (other, None, None),
            (&own, None, None),
        ] {
            assert_eq!(obstacle(&constraints(text), "web", "n1").as_deref(), on_n1, "{text}");
            assert_eq!(obstacle(&constraints(text), "web", "n2").as_deref(), on_n2, "{text}");
        }
    }
}
