//! When a machine uses a feature that not every hypervisor supports. The conditions are data, because the NixOS modules
//! evaluate them too, from `capabilities.json`.

use super::Feature;
use serde_json::{Value, json};

/// An option of a machine that uses a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The feature that it uses.
    pub feature: Feature,
    /// The option, as in `volumes[0].serial`.
    pub option: String,
}

/// When a machine uses a feature: all tests are true, for the machine or for an element of one of its lists.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// The feature.
    pub feature: Feature,
    /// The list of the machine spec whose elements are tested one by one; empty to test the machine itself.
    pub each: &'static str,
    /// The option that messages name, relative to the element; empty to name the element.
    pub option: &'static str,
    /// The tests.
    pub tests: &'static [Test],
}

/// A test of one value of the machine spec.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// The field, relative to the element, as in `tap.vhost`. A missing field has the value null.
    pub field: &'static str,
    /// The value that makes the test true.
    pub expected: Expected,
}

/// What the value of a field must be.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// This value.
    Is(Constant),
    /// Any other value.
    IsNot(Constant),
}

/// A value of a field.
#[derive(Clone, Copy, Debug)]
pub enum Constant {
    /// `null`.
    Null,
    /// An object without fields.
    NoFields,
    /// True or false.
    Bool(bool),
    /// A number.
    Number(u64),
    /// A string.
    Text(&'static str),
}

impl Constant {
    fn to_json(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::NoFields => json!({}),
            Self::Bool(value) => json!(value),
            Self::Number(value) => json!(value),
            Self::Text(value) => json!(value),
        }
    }
}

impl Test {
    fn is_true(&self, element: &Value) -> bool {
        let null = Value::Null;
        let value = self.field.split('.').fold(element, |value, name| value.get(name).unwrap_or(&null));
        match self.expected {
            Expected::Is(constant) => *value == constant.to_json(),
            Expected::IsNot(constant) => *value != constant.to_json(),
        }
    }

    fn to_json(self) -> Value {
        match self.expected {
            Expected::Is(constant) => json!({"field": self.field, "is": constant.to_json()}),
            Expected::IsNot(constant) => json!({"field": self.field, "isNot": constant.to_json()}),
        }
    }
}

impl Condition {
    /// Returns the option with `*` for the number of the element, as in `volumes.*.serial`.
    pub fn pattern(&self) -> String {
        match (self.each, self.option) {
            ("", option) => option.to_owned(),
            (each, "") => format!("{each}.*"),
            (each, option) => format!("{each}.*.{option}"),
        }
    }

    /// Returns the condition for `capabilities.json`.
    pub fn to_json(&self) -> Value {
        let tests: Vec<_> = self.tests.iter().map(|test| test.to_json()).collect();
        json!({"each": self.each, "option": self.option, "tests": tests})
    }

    fn uses(&self, machine: &Value) -> Vec<Use> {
        let named = |option: String| Use { feature: self.feature, option };
        let is_met = |element: &Value| self.tests.iter().all(|test| test.is_true(element));
        if self.each.is_empty() {
            return is_met(machine).then(|| named(self.option.to_owned())).into_iter().collect();
        }
        let elements = machine.get(self.each).and_then(Value::as_array).into_iter().flatten().enumerate();
        let dot = if self.option.is_empty() { "" } else { "." };
        elements
            .filter(|(_, element)| is_met(element))
            .map(|(index, _)| named(format!("{}[{index}]{dot}{}", self.each, self.option)))
            .collect()
    }
}

/// Returns all options of a machine that use features which not every hypervisor supports. `machine` is the machine spec
/// as a JSON document, with all fields.
pub fn uses(machine: &Value) -> Vec<Use> {
    CONDITIONS.iter().flat_map(|condition| condition.uses(machine)).collect()
}

/// Returns the conditions under which a machine uses the feature. There is none for a feature that every machine uses, or
/// that depends on the host.
pub fn conditions(feature: Feature) -> impl Iterator<Item = &'static Condition> {
    CONDITIONS.iter().filter(move |condition| condition.feature == feature)
}

const fn machine(feature: Feature, option: &'static str, tests: &'static [Test]) -> Condition {
    Condition { feature, each: "", option, tests }
}

const fn each(list: &'static str, feature: Feature, option: &'static str, tests: &'static [Test]) -> Condition {
    Condition { feature, each: list, option, tests }
}

const fn is(field: &'static str, constant: Constant) -> Test {
    Test { field, expected: Expected::Is(constant) }
}

const fn is_not(field: &'static str, constant: Constant) -> Test {
    Test { field, expected: Expected::IsNot(constant) }
}

const TRUE: Constant = Constant::Bool(true);
const FALSE: Constant = Constant::Bool(false);
const NULL: Constant = Constant::Null;
const ZERO: Constant = Constant::Number(0);
const NINE_P: Test = is("proto", Constant::Text("9p"));

const fn text(value: &'static str) -> Constant {
    Constant::Text(value)
}

/// All conditions, in the order in which a machine's uses are reported.
const CONDITIONS: &[Condition] = &[
    machine(Feature::SealedStoreDisk, "storeDisk.verity", &[is("storeDisk.verity", TRUE)]),
    machine(Feature::LiveStoreDisk, "storeDisk.live", &[is("storeDisk.live", TRUE)]),
    machine(Feature::PmemStoreDisk, "storeDisk.transport", &[is("storeDisk.transport", text("pmem"))]),
    each("volumes", Feature::VolumeSerial, "serial", &[is_not("serial", NULL)]),
    // A disk that is served has its own serial number.
    machine(
        Feature::VolumeSerial,
        "storeDisk.serial",
        &[is_not("storeDisk.serial", NULL), is("storeDisk.live", FALSE)],
    ),
    each("volumes", Feature::VolumeDirect, "direct", &[is("direct", TRUE)]),
    machine(Feature::VolumeDirect, "storeDisk.direct", &[is("storeDisk.direct", TRUE)]),
    each("volumes", Feature::VolumeQcow2, "imageType", &[is("imageType", text("qcow2"))]),
    each("volumes", Feature::VolumeVhd, "imageType", &[is("imageType", text("vhd"))]),
    each("volumes", Feature::VolumeVhdx, "imageType", &[is("imageType", text("vhdx"))]),
    each("shares", Feature::NineP, "proto", &[NINE_P]),
    each("shares", Feature::NinePReadOnly, "readOnly", &[NINE_P, is("readOnly", TRUE)]),
    each("shares", Feature::NinePSecurityModel, "securityModel", &[NINE_P, is_not("securityModel", text("none"))]),
    each("shares", Feature::Virtiofs, "proto", &[is("proto", text("virtiofs"))]),
    each("interfaces", Feature::InterfaceUser, "type", &[is("type", text("user"))]),
    each("interfaces", Feature::InterfaceTap, "type", &[is("type", text("tap"))]),
    each("interfaces", Feature::InterfaceMacvtap, "type", &[is("type", text("macvtap"))]),
    each("interfaces", Feature::InterfaceBridge, "type", &[is("type", text("bridge"))]),
    each("interfaces", Feature::TapVhost, "tap.vhost", &[is("type", text("tap")), is("tap.vhost", TRUE)]),
    each("forwardPorts", Feature::ForwardFromHost, "", &[is("from", text("host"))]),
    each("forwardPorts", Feature::ForwardFromGuest, "", &[is("from", text("guest"))]),
    machine(Feature::Vsock, "vsock.cid", &[is_not("vsock.cid", NULL)]),
    machine(Feature::GuestNotification, "vsock.notify", &[is("vsock.notify", TRUE)]),
    machine(Feature::Balloon, "balloon", &[is("balloon", TRUE)]),
    machine(Feature::InitialBalloon, "initialBalloonMem", &[is_not("initialBalloonMem", ZERO)]),
    machine(Feature::HotplugMemory, "hotplugMem", &[is_not("hotplugMem", ZERO)]),
    machine(Feature::HugePages, "hugepageMem", &[is("hugepageMem", TRUE)]),
    each("devices", Feature::DevicePci, "", &[is("bus", text("pci"))]),
    each("devices", Feature::DeviceUsb, "", &[is("bus", text("usb"))]),
    machine(Feature::Credentials, "credentialFiles", &[is_not("credentialFiles", Constant::NoFields)]),
    machine(Feature::CpuModel, "cpu", &[is_not("cpu", NULL)]),
    machine(Feature::WithoutRng, "rng", &[is("rng", FALSE)]),
    machine(Feature::MachineId, "machineId", &[is_not("machineId", NULL)]),
    machine(Feature::Console, "consoleSocket", &[is_not("consoleSocket", NULL)]),
    machine(Feature::Graphics, "graphics.enable", &[is("graphics.enable", TRUE)]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse::parse;

    /// A machine with a store disk and an element in each list that a condition tests.
    const MACHINE: &str = r#"{
        "version": 1, "name": "web", "kernel": "/srv/vmlinux",
        "storeDisk": {"image": "store.squashfs", "serial": "store"},
        "volumes": [{"image": "var.img", "mountPoint": "/var"}],
        "shares": [{"tag": "a", "source": "/srv/a", "mountPoint": "/a"}],
        "interfaces": [{"type": "user", "id": "a", "mac": "02:00:00:00:00:01"}],
        "forwardPorts": [{"from": "host", "host": {"port": 8080}, "guest": {"port": 80}}],
        "devices": [{"bus": "pci", "path": "0000:01:00.0"}]
    }"#;

    #[test]
    fn every_condition_tests_fields_that_exist() {
        let document = serde_json::to_value(parse(MACHINE).unwrap()).unwrap();
        for condition in CONDITIONS {
            let list = if condition.each.is_empty() { String::new() } else { format!("/{}/0", condition.each) };
            for field in condition.tests.iter().map(|test| test.field).chain([condition.option]) {
                let pointer =
                    if field.is_empty() { list.clone() } else { format!("{list}/{}", field.replace('.', "/")) };
                assert!(document.pointer(&pointer).is_some(), "{:?} has no {pointer}", condition.feature);
            }
        }
    }

    #[test]
    fn only_elements_that_meet_all_tests_use_a_feature() {
        let mut machine = serde_json::to_value(parse(MACHINE).unwrap()).unwrap();
        let used = |machine: &Value| -> Vec<String> {
            uses(machine).into_iter().map(|used| format!("{:?} {}", used.feature, used.option)).collect()
        };
        let plain = ["VolumeSerial storeDisk.serial", "NineP shares[0].proto", "InterfaceUser interfaces[0].type"];
        assert_eq!(used(&machine), [&plain[..], &["ForwardFromHost forwardPorts[0]", "DevicePci devices[0]"]].concat());
        machine["storeDisk"]["live"] = json!(true);
        machine["shares"][0]["readOnly"] = json!(true);
        let changed = used(&machine);
        assert!(changed.contains(&"LiveStoreDisk storeDisk.live".to_owned()), "{changed:?}");
        assert!(changed.contains(&"NinePReadOnly shares[0].readOnly".to_owned()), "{changed:?}");
        assert!(!changed.iter().any(|used| used.starts_with("VolumeSerial")), "{changed:?}");
        machine["shares"][0]["proto"] = json!("virtiofs");
        assert!(!used(&machine).iter().any(|used| used.starts_with("NineP")), "a read-only virtiofs share is not 9p");
        assert_eq!(Feature::VolumeSerial.option(), "volumes.*.serial");
        assert_eq!(Feature::ForwardFromHost.option(), "forwardPorts.*");
    }
}
