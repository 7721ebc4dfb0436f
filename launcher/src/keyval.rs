//! The option strings of the hypervisors, `key=value,key=value`. Each hypervisor has its own rules for values that
//! contain a comma. All option strings are built by this module.

/// The hypervisor whose rules apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// qemu: a comma is doubled.
    Qemu,
    /// cloud-hypervisor: a value may be in double quotes, and cannot contain a double quote.
    CloudHypervisor,
    /// crosvm: a value may be in double quotes, in which a backslash escapes.
    Crosvm,
    /// kvmtool: there is no escaping.
    Kvmtool,
}

impl Dialect {
    fn escape(self, value: &str) -> Result<String, &'static str> {
        match self {
            Self::Qemu => Ok(escape_for_qemu(value)),
            Self::CloudHypervisor => escape_for_cloud_hypervisor(value),
            Self::Crosvm => escape_for_crosvm(value),
            Self::Kvmtool => escape_for_kvmtool(value),
        }
    }

    fn escape_in_list(self, value: &str) -> Result<String, &'static str> {
        match self {
            Self::CloudHypervisor => escape_in_list_for_cloud_hypervisor(value),
            Self::Qemu | Self::Crosvm | Self::Kvmtool => self.escape(value),
        }
    }
}

/// A value that cannot be written in a hypervisor's option string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be given `{value}`: {reason}")]
pub struct UnescapableValue {
    /// The value, not escaped.
    pub value: String,
    /// The reason, which continues a sentence about the hypervisor.
    pub reason: &'static str,
}

/// An option string that is being built.
#[derive(Clone, Debug)]
pub struct Options {
    dialect: Dialect,
    parts: Vec<String>,
    unescapable: Option<UnescapableValue>,
}

impl Options {
    /// Creates an empty option string.
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, parts: Vec::new(), unescapable: None }
    }

    /// Adds a word without a value: a device name or a flag.
    #[must_use]
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.parts.push(word.into());
        self
    }

    /// Adds a word without a value, if there is one.
    #[must_use]
    pub fn word_if(self, word: Option<&str>) -> Self {
        match word {
            Some(word) => self.word(word),
            None => self,
        }
    }

    /// Adds a value without a key.
    #[must_use]
    pub fn value(self, value: &str) -> Self {
        self.part("", value)
    }

    /// Adds `key=value`.
    #[must_use]
    pub fn pair(self, key: &str, value: impl ToString) -> Self {
        self.part(&format!("{key}="), &value.to_string())
    }

    /// Adds `key=value` if there is a value.
    #[must_use]
    pub fn pair_if(self, key: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.pair(key, value),
            None => self,
        }
    }

    /// Adds `key=[value,value]`.
    #[must_use]
    pub fn list(mut self, key: &str, values: &[String]) -> Self {
        let mut written = Vec::new();
        for value in values {
            match self.dialect.escape_in_list(value) {
                Ok(value) => written.push(value),
                Err(reason) => self.record_unescapable(value, reason),
            }
        }
        self.word(format!("{key}=[{}]", written.join(",")))
    }

    /// Returns the option string.
    ///
    /// # Errors
    /// Returns the first value that cannot be written.
    pub fn finish(self) -> Result<String, UnescapableValue> {
        match self.unescapable {
            Some(unescapable) => Err(unescapable),
            None => Ok(self.parts.join(",")),
        }
    }

    fn part(mut self, prefix: &str, value: &str) -> Self {
        match self.dialect.escape(value) {
            Ok(escaped) => self.parts.push(format!("{prefix}{escaped}")),
            Err(reason) => self.record_unescapable(value, reason),
        }
        self
    }

    fn record_unescapable(&mut self, value: &str, reason: &'static str) {
        self.unescapable.get_or_insert_with(|| UnescapableValue { value: value.to_owned(), reason });
    }
}

/// qemu: util/qemu-option.c (`get_opt_value`) and util/keyval.c read a doubled comma as one comma of the value.
fn escape_for_qemu(value: &str) -> String {
    value.replace(',', ",,")
}

/// cloud-hypervisor: option_parser/src/lib.rs. Commas inside double quotes and brackets do not separate. The quotes are
/// removed; only recent versions support a doubled quote. Older versions also count brackets inside quotes, and trim
/// the value after removing the quotes, so the values that are written here avoid both.
fn escape_for_cloud_hypervisor(value: &str) -> Result<String, &'static str> {
    if value.is_empty() {
        return Err("it treats an empty value as a missing one");
    }
    if value.contains('"') {
        return Err("a double quote cannot be written in its options");
    }
    if value.trim() != value {
        return Err("it removes blanks at the ends of a value");
    }
    if !has_matching_brackets(value) {
        return Err("unbalanced brackets cannot be written in its options");
    }
    let plain = !value.contains([',', '[', ']']);
    Ok(if plain { value.to_owned() } else { format!("\"{value}\"") })
}

fn escape_in_list_for_cloud_hypervisor(value: &str) -> Result<String, &'static str> {
    if value.is_empty() || value.trim() != value || value.contains([',', '"', '[', ']']) {
        return Err("an element of its lists cannot be empty, have blanks at its ends, commas, quotes or brackets");
    }
    Ok(value.to_owned())
}

fn has_matching_brackets(value: &str) -> bool {
    let mut open = 0_u32;
    for character in value.chars() {
        match character {
            '[' => open += 1,
            ']' if open == 0 => return false,
            ']' => open -= 1,
            _ => {}
        }
    }
    open == 0
}

/// crosvm: serde_keyvalue/src/key_values.rs. A value may be in double quotes, in which `\` escapes `"` and `\`.
fn escape_for_crosvm(value: &str) -> Result<String, &'static str> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@%~".contains(character);
    if !value.is_empty() && value.chars().all(plain) {
        return Ok(value.to_owned());
    }
    Ok(format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// kvmtool: disk/core.c (`disk_img_name_parser`) and builtin-run.c (`virtio_9p_rootdir_parser`) split at commas and
/// support no escaping. virtio/net.c (`netdev_parser`) also splits at equals signs, but none of its values can contain
/// one.
fn escape_for_kvmtool(value: &str) -> Result<String, &'static str> {
    if value.is_empty() {
        return Err("it skips empty values");
    }
    if value.contains(',') {
        return Err("a comma cannot be written in its options");
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests;
