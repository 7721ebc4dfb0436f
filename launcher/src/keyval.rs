//! The option strings of the hypervisors, `key=value,key=value`. Each hypervisor has its own rules for values that
//! contain a comma. All option strings are built by this module.

mod cloud_hypervisor;
mod crosvm;
mod kvmtool;
mod qemu;

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
            Self::Qemu => Ok(qemu::escape(value)),
            Self::CloudHypervisor => cloud_hypervisor::escape(value),
            Self::Crosvm => crosvm::escape(value),
            Self::Kvmtool => kvmtool::escape(value),
        }
    }

    fn escape_in_list(self, value: &str) -> Result<String, &'static str> {
        match self {
            Self::CloudHypervisor => cloud_hypervisor::escape_in_list(value),
            Self::Qemu | Self::Crosvm | Self::Kvmtool => self.escape(value),
        }
    }
}

/// A value that cannot be written in a hypervisor's option string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be given `{value}`: {reason}")]
pub struct Unwritable {
    /// The value.
    pub value: String,
    /// The reason, which continues a sentence about the hypervisor.
    pub reason: &'static str,
}

/// An option string that is being built.
#[derive(Clone, Debug)]
pub struct Options {
    dialect: Dialect,
    parts: Vec<String>,
    unwritable: Option<Unwritable>,
}

impl Options {
    /// Creates an empty option string.
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, parts: Vec::new(), unwritable: None }
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
                Err(reason) => self.record_unwritable(value, reason),
            }
        }
        self.word(format!("{key}=[{}]", written.join(",")))
    }

    /// Returns the option string.
    ///
    /// # Errors
    /// Returns the first value that cannot be written.
    pub fn finish(self) -> Result<String, Unwritable> {
        match self.unwritable {
            Some(unwritable) => Err(unwritable),
            None => Ok(self.parts.join(",")),
        }
    }

    fn part(mut self, prefix: &str, value: &str) -> Self {
        match self.dialect.escape(value) {
            Ok(escaped) => self.parts.push(format!("{prefix}{escaped}")),
            Err(reason) => self.record_unwritable(value, reason),
        }
        self
    }

    fn record_unwritable(&mut self, value: &str, reason: &'static str) {
        self.unwritable.get_or_insert_with(|| Unwritable { value: value.to_owned(), reason });
    }
}

#[cfg(test)]
mod tests;
