//! The kernel command line.

/// The most bytes that x86 kernels support: `COMMAND_LINE_SIZE` in arch/x86/include/asm/setup.h without the final NUL.
/// Some hypervisors and the kernel silently truncate a longer one.
pub const MAX_BYTES: usize = 2047;

/// The parameters of a kernel, in order.
#[derive(Clone, Debug, Default)]
pub struct KernelCommandLine {
    parameters: Vec<String>,
}

/// A kernel command line that would be truncated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel command line has {bytes} bytes with what the hypervisor adds, but the kernel supports at most \
     {MAX_BYTES}"
)]
pub struct CommandLineTooLong {
    /// Its length with the bytes that the hypervisor adds.
    pub bytes: usize,
}

impl KernelCommandLine {
    /// Creates an empty command line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter. Ignores an empty one.
    pub fn push(&mut self, parameter: impl Into<String>) {
        let parameter = parameter.into();
        if !parameter.trim().is_empty() {
            self.parameters.push(parameter);
        }
    }

    /// Whether there is a parameter with that name, such as `root`.
    pub fn has(&self, name: &str) -> bool {
        let words = self.parameters.iter().flat_map(|parameter| parameter.split_whitespace());
        words.into_iter().any(|word| word.split_once('=').map_or(word, |(before, _)| before) == name)
    }

    /// Returns the command line.
    ///
    /// # Errors
    /// Fails if it is too long together with the bytes that the hypervisor adds.
    pub fn finish(self, added_bytes: usize) -> Result<String, CommandLineTooLong> {
        let line = self.parameters.join(" ");
        let bytes = line.len() + added_bytes;
        if bytes > MAX_BYTES { Err(CommandLineTooLong { bytes }) } else { Ok(line) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_keep_their_order_and_empty_ones_are_ignored() {
        let mut line = KernelCommandLine::new();
        for parameter in ["console=ttyS0", "", " ", "root=fstab loglevel=4"] {
            line.push(parameter);
        }
        assert!(line.has("root") && line.has("loglevel") && !line.has("roo"));
        assert_eq!(line.finish(0).expect("short"), "console=ttyS0 root=fstab loglevel=4");
    }

    #[test]
    fn a_command_line_that_would_be_truncated_is_refused() {
        let line_of = |bytes: usize| {
            let mut line = KernelCommandLine::new();
            line.push("x".repeat(bytes));
            line
        };
        assert!(line_of(2047).finish(0).is_ok());
        assert_eq!(line_of(2048).finish(0), Err(CommandLineTooLong { bytes: 2048 }));
        assert_eq!(line_of(2040).finish(8), Err(CommandLineTooLong { bytes: 2048 }));
    }
}
