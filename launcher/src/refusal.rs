//! Why a hypervisor cannot run a machine, and which hypervisors can.

use crate::spec::Hypervisor;

/// One reason why a hypervisor cannot run a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{machine}: {option}: {hypervisor} {reason}{}", alternatives(.supported_by))]
pub struct Refusal {
    /// The machine.
    pub machine: String,
    /// The option, as in `shares[0].proto`.
    pub option: String,
    /// The hypervisor that refuses.
    pub hypervisor: Hypervisor,
    /// The reason, which continues a sentence that starts with the hypervisor's name.
    pub reason: String,
    /// The hypervisors that do not refuse the same subject, such as the share.
    pub supported_by: Vec<Hypervisor>,
}

impl Refusal {
    /// Returns the part of the machine that the option belongs to: the share, the volume, the balloon. A hypervisor
    /// that supports another option of it but not this one is not an alternative.
    pub fn subject(&self) -> &str {
        match self.option.split('.').next().unwrap_or_default() {
            "hotpluggedMem" => "hotplugMem",
            "initialBalloonMem" | "deflateOnOOM" => "balloon",
            "vmlinux" => "kernel",
            subject => subject,
        }
    }
}

/// All reasons why a hypervisor cannot run a machine; at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Refusals {
    /// One entry for each option that is refused; not empty.
    pub refusals: Vec<Refusal>,
    /// The hypervisors that can run the machine unchanged.
    pub runs_on: Vec<Hypervisor>,
}

impl Refusals {
    /// Returns a hint to the user, in one line.
    pub fn hint(&self) -> String {
        if self.runs_on.is_empty() {
            "no hypervisor can run this machine as it is".to_owned()
        } else {
            format!("this machine can run as it is on {}", names(&self.runs_on))
        }
    }
}

fn alternatives(supported_by: &[Hypervisor]) -> String {
    if supported_by.is_empty() {
        "; no other hypervisor supports it".to_owned()
    } else {
        format!("; supported by {}", names(supported_by))
    }
}

/// Returns the names in a sentence: `qemu`, `qemu and crosvm`, `qemu, crosvm and kvmtool`.
pub fn names(hypervisors: &[Hypervisor]) -> String {
    match hypervisors {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(ToString::to_string).collect();
            format!("{} and {last}", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_machine_option_hypervisor_reason_and_alternatives() {
        let refusal = Refusal {
            machine: "web".to_owned(),
            option: "shares[0].proto".to_owned(),
            hypervisor: Hypervisor::Firecracker,
            reason: "has no shares at all".to_owned(),
            supported_by: vec![Hypervisor::Qemu, Hypervisor::Crosvm, Hypervisor::Kvmtool],
        };
        let expected = "web: shares[0].proto: firecracker has no shares at all; supported by qemu, crosvm and kvmtool";
        assert_eq!(refusal.to_string(), expected);
        assert_eq!(refusal.subject(), "shares[0]");
        assert!(Refusal { supported_by: vec![], ..refusal }.to_string().ends_with("; no other hypervisor supports it"));
    }
}
