//! Why a machine cannot run on a hypervisor, and on which it could.

use crate::spec::Hypervisor;

/// One reason why a machine cannot run on a hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{machine}: {option}: {hypervisor} {reason}{}", alternatives(.able))]
pub struct Refusal {
    /// The machine.
    pub machine: String,
    /// The option, as in `shares[0].proto`.
    pub option: String,
    /// The hypervisor that refuses.
    pub hypervisor: Hypervisor,
    /// Why; it goes on after the hypervisor's name.
    pub reason: String,
    /// The hypervisors that do not refuse what the option belongs to, such as the share.
    pub able: Vec<Hypervisor>,
}

impl Refusal {
    /// What the option belongs to: the share, the volume, the balloon. A hypervisor that can give another option of it
    /// but not this one is no way out.
    pub fn subject(&self) -> &str {
        match self.option.split('.').next().unwrap_or_default() {
            "hotpluggedMem" => "hotplugMem",
            "initialBalloonMem" | "deflateOnOOM" => "balloon",
            "vmlinux" => "kernel",
            subject => subject,
        }
    }
}

/// Every reason why a machine cannot run on a hypervisor; at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Refusals {
    /// The reasons.
    pub refusals: Vec<Refusal>,
    /// The hypervisors on which the machine could run as it is.
    pub runs_on: Vec<Hypervisor>,
}

impl Refusals {
    /// What the user can do, in one line.
    pub fn hint(&self) -> String {
        if self.runs_on.is_empty() {
            "no hypervisor can run this machine as it is".to_owned()
        } else {
            format!("this machine can run as it is on {}", names(&self.runs_on))
        }
    }
}

fn alternatives(able: &[Hypervisor]) -> String {
    if able.is_empty() { "; no other hypervisor can".to_owned() } else { format!("; {} can", names(able)) }
}

/// `qemu`, `qemu and crosvm`, `qemu, crosvm and kvmtool`.
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
    fn a_refusal_names_machine_option_hypervisor_reason_and_who_can() {
        let refusal = Refusal {
            machine: "web".to_owned(),
            option: "shares[0].proto".to_owned(),
            hypervisor: Hypervisor::Firecracker,
            reason: "has no shares at all".to_owned(),
            able: vec![Hypervisor::Qemu, Hypervisor::Crosvm, Hypervisor::Kvmtool],
        };
        let expected = "web: shares[0].proto: firecracker has no shares at all; qemu, crosvm and kvmtool can";
        assert_eq!(refusal.to_string(), expected);
        assert_eq!(refusal.subject(), "shares[0]");
        assert!(Refusal { able: vec![], ..refusal }.to_string().ends_with("; no other hypervisor can"));
    }
}
