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
/// requires another one. It is a single host in constraints of `crm_resource`. Constraints that have expired are ignored: `crm_resource` leaves
/// them in the configuration. `has_passed` says whether a time in a constraint has passed.
pub(super) fn obstacle(
    constraints: &Element,
    (machine, node): (&str, &str),
    has_passed: impl Fn(&str) -> bool,
) -> Option<String> {
    let of_machine = constraints.all("rsc_location").filter(|location| location.attribute("rsc") == Some(machine));
    of_machine
        .filter(|location| is_against(location, node, &has_passed))
        .find_map(|location| location.attribute("id").filter(|id| !id.starts_with(PREFIX)).map(str::to_owned))
}

fn is_against(location: &Element, node: &str, has_passed: &impl Fn(&str) -> bool) -> bool {
    let direct = location.attribute("node").zip(location.attribute("score"));
    let of_rule = |rule: &Element| {
        let host = rule
            .all("expression")
            .find(|one| one.attribute("attribute") == Some("#uname") && one.attribute("operation") == Some("eq"));
        host.and_then(|host| host.attribute("value"))
            .zip(rule.attribute("score"))
            .is_some_and(|(host, score)| excludes(host, score, node))
    };
    let mut rules = location.all("rule").filter(|rule| !has_expired(rule, has_passed));
    direct.is_some_and(|(host, score)| excludes(host, score, node)) || rules.any(of_rule)
}

/// Whether a rule can never apply again, because a time until which it applies has passed.
fn has_expired(rule: &Element, has_passed: &impl Fn(&str) -> bool) -> bool {
    let is_over = |time: &Element| {
        matches!(time.attribute("operation"), Some("lt" | "in_range")) && time.attribute("end").is_some_and(has_passed)
    };
    rule.attribute("boolean-op") != Some("or") && rule.all("date_expression").any(is_over)
}

fn excludes(host: &str, score: &str, node: &str) -> bool {
    (score == NEVER && host == node) || (score.trim_start_matches('+') == INFINITY && host != node)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use crate::cluster::date::has_passed;

    #[test]
    fn only_constraints_of_others_that_exclude_the_host_and_have_not_expired_are_obstacles() {
        // What `crm_resource --move` with and without a lifetime and `--ban` write, and what the generator does.
        let constraints = |text: &str| Element::parse(&format!("<constraints>{text}</constraints>")).unwrap();
        let moved = r#"<rsc_location id="cli-prefer-web" rsc="web" role="Started" node="n1" score="INFINITY"/>"#;
        let until = |end: &str| {
            format!(
                r##"<rsc_location id="cli-prefer-web" rsc="web"><rule id="r" score="INFINITY" boolean-op="and">
                <expression id="e" attribute="#uname" operation="eq" value="n1"/>
                <date_expression id="d" operation="lt" end="{end}"/></rule></rsc_location>"##
            )
        };
        let now = humantime::parse_rfc3339("2026-11-29T16:00:00Z").unwrap();
        let is_past = |end: &str| has_passed(end, now);
        let banned = r#"<rsc_location id="cli-ban-web-on-n2" rsc="web" role="Started" node="n2" score="-INFINITY"/>"#;
        let preferred = r#"<rsc_location id="like" rsc="web" node="n1" score="100"/>"#;
        let other = r#"<rsc_location id="other" rsc="db" node="n2" score="-INFINITY"/>"#;
        let own = preference("web", "n1", "2026-11-29T16:52:43Z").to_text().unwrap();
        for (text, on_n1, on_n2) in [
            (moved, None, Some("cli-prefer-web")),
            (&until("2026-11-29 16:00:01Z"), None, Some("cli-prefer-web")),
            (&until("2026-11-29 17:00:01 +01:00"), None, Some("cli-prefer-web")),
            (&until("2026-11-29 12:30:01 -03:30"), None, Some("cli-prefer-web")),
            (&until("2026-11-29T16:00:00Z"), None, None),
            (&until("2026-11-29 16:59:59 +01:00"), None, None),
            (&until("2026-11-29 12:29:59 -03:30"), None, None),
            (&until("2026-11-29 12:29:59Z").replace("\"and\"", "\"or\""), None, Some("cli-prefer-web")),
            // Times that are not read: without a time zone, and of another calendar.
            (&until("2026-11-28 16:00:00"), None, Some("cli-prefer-web")),
            (&until("2026-W01-1 16:00:00Z"), None, Some("cli-prefer-web")),
            (banned, None, Some("cli-ban-web-on-n2")),
            (preferred, None, None),
            (other, None, None),
            (&own, None, None),
        ] {
            assert_eq!(obstacle(&constraints(text), ("web", "n1"), is_past).as_deref(), on_n1, "{text}");
            assert_eq!(obstacle(&constraints(text), ("web", "n2"), is_past).as_deref(), on_n2, "{text}");
        }
    }
}
