//! The sections of a program's manual page that its parser of arguments does not generate, in roff: man(7).

/// The text of the sections EXIT STATUS, ENVIRONMENT, FILES and EXAMPLES. An entry is a term, for example the name of a
/// variable, and what it means. What both programs have in common is added to it.
#[derive(Clone, Copy, Debug)]
pub struct Sections<'a> {
    /// When the exit status is 1.
    pub failure: &'a str,
    /// The environment variables of this program.
    pub environment: &'a [(&'a str, &'a str)],
    /// The files and directories that it uses.
    pub files: &'a [(&'a str, &'a str)],
    /// Commands, and what they do.
    pub examples: &'a [(&'a str, &'a str)],
}

impl Sections<'_> {
    /// Returns the sections as roff, to be appended to the page.
    pub fn to_roff(&self) -> String {
        let statuses = [
            ("0", "Success."),
            ("1", self.failure),
            ("2", "The input or the arguments are invalid."),
            ("130", "A signal interrupted the command."),
        ];
        let mut text = section("EXIT STATUS", &statuses);
        text.push_str(".PP\n");
        let json = "With --json, a failed command that has no report of its own prints {\"version\": 1, \"error\": {...}} \
                    on stdout.";
        text.push_str(&line(json));
        let colours = [("NO_COLOR", "If it is not empty, the output has no colours.")];
        text.push_str(&section("ENVIRONMENT", &[self.environment, &colours].concat()));
        text.push_str(&section("FILES", self.files));
        text.push_str(&section("EXAMPLES", self.examples));
        text
    }
}

fn section(title: &str, entries: &[(&str, &str)]) -> String {
    let mut text = format!(".SH \"{title}\"\n");
    for (term, meaning) in entries {
        text.push_str(".TP\n");
        text.push_str(&line(term));
        text.push_str(&line(meaning));
    }
    text
}

/// Returns a line of text in which nothing is a request or an escape, and dashes can be copied to a command line.
fn line(text: &str) -> String {
    let guard = if text.starts_with(['.', '\'']) { "\\&" } else { "" };
    format!("{guard}{}\n", text.replace('\\', "\\e").replace('-', "\\-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_printed_as_it_is_written() {
        assert_eq!(line("microvm-image build -o a\\b"), "microvm\\-image build \\-o a\\eb\n");
        assert_eq!(line(".cache"), "\\&.cache\n");
        let sections = Sections {
            failure: "The work failed.",
            environment: &[("HOME", "The home directory.")],
            files: &[("'odd", "A file.")],
            examples: &[],
        };
        let roff = sections.to_roff();
        assert!(roff.starts_with(".SH \"EXIT STATUS\"\n.TP\n0\nSuccess.\n.TP\n1\nThe work failed.\n"), "{roff}");
        assert!(roff.contains(".SH \"ENVIRONMENT\"\n.TP\nHOME\nThe home directory.\n.TP\nNO_COLOR\n"), "{roff}");
        assert!(roff.contains(".TP\n\\&'odd\nA file.\n"), "{roff}");
    }
}
