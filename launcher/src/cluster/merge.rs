//! Replaces our part of a running cluster's configuration, and keeps everything else: resources and constraints of the
//! user, hosts in standby, other properties.

use super::cib::{PREFIX, PROPERTY_SET};
use super::xml::Element;

/// Returns the running configuration with our part replaced by that of `generated`; both are elements `configuration`.
/// Machines and devices that are no longer in the cluster are removed, with their constraints.
#[must_use]
pub fn merged(mut running: Element, generated: &Element) -> Element {
    let empty = Element::default();
    let section = |name: &str| generated.find(&[name]).unwrap_or(&empty).children.clone();

    let properties = running.child_mut("crm_config");
    properties.children.retain(|set| set.attribute("id") != Some(PROPERTY_SET));
    let ours = section("crm_config");
    remove_overridden(properties, &ours);
    properties.children.splice(0..0, ours);

    merge_nodes(running.child_mut("nodes"), section("nodes"));

    let resources = running.child_mut("resources");
    let removed: Vec<Element> = take(&mut resources.children, is_our_resource);
    resources.children.extend(with_kept_meta(section("resources"), &removed));
    let ids: Vec<&str> = resources.children.iter().filter_map(|resource| resource.attribute("id")).collect();
    let gone: Vec<String> = removed
        .iter()
        .filter_map(|old| old.attribute("id"))
        .filter(|id| !ids.contains(id))
        .map(str::to_owned)
        .collect();

    let constraints = running.child_mut("constraints");
    let refers_to_gone = |constraint: &Element| {
        let names = ["rsc", "with-rsc", "first", "then"].map(|name| constraint.attribute(name));
        names.into_iter().flatten().any(|name| gone.iter().any(|gone| gone == name))
    };
    constraints.children.retain(|constraint| !has_our_id(constraint) && !refers_to_gone(constraint));
    constraints.children.extend(section("constraints"));
    running
}

fn has_our_id(element: &Element) -> bool {
    element.attribute("id").is_some_and(|id| id.starts_with(PREFIX))
}

fn is_our_resource(resource: &Element) -> bool {
    // The id of a machine is its name; a machine that somebody has added by hand has other parameters.
    has_our_id(resource) || resource.find(&["instance_attributes"]).is_some_and(has_our_id)
}

/// Removes the elements for which the condition holds, and returns them.
fn take(elements: &mut Vec<Element>, condition: fn(&Element) -> bool) -> Vec<Element> {
    let (taken, kept) = std::mem::take(elements).into_iter().partition(condition);
    *elements = kept;
    taken
}

/// Removes values of our properties from other sets: of two values, Pacemaker uses one of them.
fn remove_overridden(properties: &mut Element, ours: &[Element]) {
    let names: Vec<&str> =
        ours.iter().flat_map(|set| set.all("nvpair")).filter_map(|pair| pair.attribute("name")).collect();
    for set in &mut properties.children {
        set.children.retain(|pair| pair.attribute("name").is_none_or(|name| !names.contains(&name)));
    }
}

/// Replaces the capacities of the hosts, and keeps whether they are in standby.
fn merge_nodes(nodes: &mut Element, ours: Vec<Element>) {
    for node in ours {
        let known = nodes.children.iter_mut().find(|known| known.attribute("uname") == node.attribute("uname"));
        match known {
            Some(known) => {
                known.children.retain(|child| child.name != "utilization");
                known.children.extend(node.children);
            }
            None => nodes.children.push(node),
        }
    }
}

/// Keeps the meta attributes that the user has set on a machine or device, such as `is-managed`.
fn with_kept_meta(resources: Vec<Element>, removed: &[Element]) -> Vec<Element> {
    let with_meta = |mut resource: Element| {
        let old = removed.iter().find(|old| old.attribute("id") == resource.attribute("id"));
        let own: Vec<String> = resource
            .all("meta_attributes")
            .flat_map(|set| set.children.iter())
            .filter_map(|pair| pair.attribute("name").map(str::to_owned))
            .collect();
        // The identifiers that Pacemaker's tools derive from ours have no `__` before the name.
        let is_users = |pair: &Element| {
            let (id, name) = (pair.attribute("id").unwrap_or_default(), pair.attribute("name").unwrap_or_default());
            let is_ours = id.starts_with(PREFIX) && id.ends_with(&format!("__{name}"));
            !is_ours && !own.iter().any(|known| known == name)
        };
        for set in old.into_iter().flat_map(|old| old.all("meta_attributes")) {
            let kept: Vec<Element> = set.children.iter().filter(|pair| is_users(pair)).cloned().collect();
            match resource.children.iter_mut().find(|child| child.name == "meta_attributes") {
                _ if kept.is_empty() => {}
                Some(own) => own.children.extend(kept),
                // Pacemaker refuses a set without an identifier.
                None => {
                    let id = set.attribute("id").unwrap_or_default();
                    resource.children.push(Element::new("meta_attributes", [("id", id)]).with(kept));
                }
            }
        }
        resource
    };
    resources.into_iter().map(with_meta).collect()
}
