//! Network interfaces and forwarded ports as the user writes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interface {
    /// How it reaches the outside.
    #[serde(rename = "type")]
    pub interface_type: InterfaceType,
    /// Its name; for `tap` and `macvtap` the name of the interface on the host, at most 15 bytes.
    pub id: String,
    /// The guest's MAC address.
    pub mac: String,
    /// The bridge that an interface of type `bridge` joins.
    #[serde(default)]
    pub bridge: Option<String>,
    /// What an interface of type `macvtap` hangs on.
    #[serde(default)]
    pub macvtap: Option<Macvtap>,
    /// Settings of an interface of type `tap`.
    #[serde(default)]
    pub tap: Tap,
}

/// How an interface reaches the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceType {
    /// Through sockets of an unprivileged process.
    User,
    /// A tap interface of the host.
    Tap,
    /// A macvtap interface of the host.
    Macvtap,
    /// A tap that qemu's helper makes and puts into a bridge.
    Bridge,
}

impl InterfaceType {
    /// The word in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Tap => "tap",
            Self::Macvtap => "macvtap",
            Self::Bridge => "bridge",
        }
    }
}

/// What a macvtap interface hangs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Macvtap {
    /// The host's interface.
    pub link: String,
    /// Who may talk with whom.
    pub mode: MacvtapMode,
}

/// Who may talk with whom over one macvtap link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MacvtapMode {
    /// Nobody on the link with each other.
    Private,
    /// Through the outside switch.
    Vepa,
    /// Directly.
    Bridge,
    /// One guest owns the link.
    Passthru,
    /// Only listed sources.
    Source,
}

impl MacvtapMode {
    /// The word in the machine spec.
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
    /// Whether the kernel's vhost-net moves the packets.
    #[serde(default)]
    pub vhost: bool,
}

/// A port forwarded between host and guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForwardPort {
    /// Where the connections come from.
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

/// Where forwarded connections come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardFrom {
    /// The host's port leads into the guest.
    #[default]
    Host,
    /// The guest's port leads to the host.
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
    /// The word in the machine spec.
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
    /// An IPv4 address; empty is any.
    #[serde(default)]
    pub address: String,
    /// The port.
    pub port: u16,
}
