//! Network interfaces and forwarded ports, as written in the spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// How the interface is connected.
    #[serde(rename = "type")]
    pub interface_type: InterfaceType,
    /// The interface's name. For `tap` and `macvtap` it is the name of the host's interface, at most 15 bytes.
    pub id: String,
    /// The guest's MAC address.
    pub mac: String,
    /// The bridge, for an interface of type `bridge`.
    #[serde(default)]
    pub bridge: Option<String>,
    /// The host's link, for an interface of type `macvtap`.
    #[serde(default)]
    pub macvtap: Option<Macvtap>,
    /// Settings of an interface of type `tap`.
    #[serde(default)]
    pub tap: Tap,
}

/// How an interface is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceType {
    /// User-mode networking: an unprivileged process on the host opens the connections.
    User,
    /// A tap interface of the host.
    Tap,
    /// A macvtap interface of the host.
    Macvtap,
    /// A tap interface that qemu's bridge helper creates and adds to a bridge.
    Bridge,
}

impl InterfaceType {
    /// Returns the value as written in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Tap => "tap",
            Self::Macvtap => "macvtap",
            Self::Bridge => "bridge",
        }
    }
}

/// The host's link of a macvtap interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Macvtap {
    /// The host's network interface.
    pub link: String,
    /// Which endpoints of the link can reach each other.
    pub mode: MacvtapMode,
}

/// Which endpoints of a macvtap link can reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MacvtapMode {
    /// None: the guests on the link are isolated from each other.
    Private,
    /// All, through the external switch.
    Vepa,
    /// All, directly.
    Bridge,
    /// A single guest uses the whole link.
    Passthru,
    /// Only listed source addresses.
    Source,
}

impl MacvtapMode {
    /// Returns the value as written in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Bridge => "bridge",
            Self::Passthru => "passthru",
            Self::Source => "source",
        }
    }
}

/// Settings of a tap interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tap {
    /// Whether the kernel moves the packets, with vhost-net.
    #[serde(default)]
    pub vhost: bool,
}

/// A port forwarded between host and guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForwardPort {
    /// The side that opens the connections.
    #[serde(default)]
    pub from: ForwardFrom,
    /// The protocol.
    #[serde(default)]
    pub proto: Protocol,
    /// The host's end.
    pub host: PortEnd,
    /// The guest's end.
    pub guest: PortEnd,
}

/// The side that opens forwarded connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardFrom {
    /// A port of the host is forwarded to the guest.
    #[default]
    Host,
    /// A port of the guest is forwarded to the host.
    Guest,
}

/// The protocol of a forwarded port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Returns the value as written in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One end of a forwarded port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortEnd {
    /// An IPv4 address; an empty string means any.
    #[serde(default)]
    pub address: String,
    /// The port.
    pub port: u16,
}
