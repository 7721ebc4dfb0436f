//! The parameters of a machine in the configuration of the cluster. What another node sends is compared with them, because
//! the key with which it connects must not start every runner of this node.

use super::exit_code::AgentError;
use super::parameters::{AGENT, NAME, Parameters};
use crate::cluster::engine::run_for_xml;
use crate::cluster::xml::Element;
use std::collections::BTreeMap;

/// Returns the parameters of a machine in the cluster of this node.
///
/// # Errors
/// Returns [`AgentError::Refused`] if the node cannot ask its cluster, or if the cluster has no such machine.
pub(super) fn parameters_in_cluster(machine: &str) -> Result<Parameters, AgentError> {
    let resources = run_for_xml("cibadmin", &["--query", "--scope=resources"], None)
        .map_err(|error| AgentError::Refused(format!("this node cannot ask its cluster: {error}")))?;
    let values = values_of(&resources, machine)
        .ok_or_else(|| AgentError::Refused(format!("the cluster has no machine {machine}")))?;
    Parameters::parse(|name| values.get(name).map(|value| (*value).to_owned())).map_err(AgentError::Parameters)
}

/// Returns the parameters of the resource of our agent that has this machine as its name.
fn values_of<'a>(resources: &'a Element, machine: &str) -> Option<BTreeMap<&'a str, &'a str>> {
    let mut found = None;
    resources.walk(&mut |resource| {
        let agent = ["class", "provider", "type"].map(|name| resource.attribute(name).unwrap_or_default());
        if resource.name == "primitive" && agent == AGENT {
            let pairs = resource.all("instance_attributes").flat_map(|set| set.all("nvpair"));
            let values: BTreeMap<_, _> =
                pairs.filter_map(|pair| pair.attribute("name").zip(pair.attribute("value"))).collect();
            if values.get(NAME) == Some(&machine) {
                found = Some(values);
            }
        }
    });
    found
}
