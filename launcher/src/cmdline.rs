//! The kernel command line.

/// What x86 kernels take: `COMMAND_LINE_SIZE` in arch/x86/include/asm/setup.h, less the final NUL. Longer ones are cut
/// off without a word by some hypervisors and by the kernel.
pub const MOST_BYTES: usize = 2047;

/// The parameters of a kernel, in their order.
#[derive(Clone, Debug, Default)]
pub struct KernelCommandLine {
    parameters: Vec<String>,
}

/// A kernel command line that would be cut off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel command line has {bytes} bytes with what the hypervisor adds, but a kernel takes at most {MOST_BYTES}"
)]
pub struct CommandLineTooLong {
    /// How long it would be.
    pub bytes: usize,
}

impl KernelCommandLine {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter; an empty one is left out.
    pub fn push(&mut self, parameter: impl Into<String>) {
        let parameter = parameter.into();
        if !parameter.trim().is_empty() {
            self.parameters.push(parameter);
        }
    }

    /// Whether there is a parameter of that name, such as `root`.
    pub fn has(&self, name: &str) -> bool {
        let words = self.parameters.iter().flat_map(|parameter| parameter.split_whitespace());
        words.into_iter().any(|word| word.split_once('=').map_or(word, |(before, _)| before) == name)
    }

    /// The command line.
    ///
    /// # Errors
    /// If it is too long together with the bytes that the hypervisor adds.
    pub fn finish(self, added_bytes: usize) -> Result<String, CommandLineTooLong> {
        let line = self.parameters.join(" ");
        let bytes = line.len() + added_bytes;
        if bytes > MOST_BYTES { Err(CommandLineTooLong { bytes }) } else { Ok(line) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_keep_their_order_and_empty_ones_vanish() {
        let mut line = KernelCommandLine::new();
        for parameter in ["console=ttyS0", "", " ", "root=fstab loglevel=4"] {
            line.push(parameter);
        }
        assert!(line.has("root") && line.has("loglevel") && !line.has("roo"));
        assert_eq!(line.finish(0).expect("short"), "console=ttyS0 root=fstab loglevel=4");
    }

    #[test]
    fn what_would_be_cut_off_is_refused() {
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
