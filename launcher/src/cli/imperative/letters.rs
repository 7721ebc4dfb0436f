//! The command line of microvm.nix, which uses letters: `-f FLAKE -c NAME`, `-Ru NAME...`, `-l`, `-r NAME`, `-s NAME`.

use std::collections::VecDeque;

/// The command that the letters select.
#[derive(Default)]
struct ParsedFlags {
    verb: Option<&'static str>,
    names: Vec<String>,
    /// Options of the command, in their long form.
    options: Vec<String>,
    rest: Vec<String>,
}

/// Translates the letters into a command. `None` if the arguments already are a command, or are not valid letters.
pub(in crate::cli) fn expand_letters(arguments: &[String]) -> Option<Vec<String>> {
    let is_letters = |argument: &String| argument.starts_with('-') && !argument.starts_with("--");
    let first = arguments.first().filter(|argument| is_letters(argument))?;
    if !first.chars().skip(1).any(|letter| "culrRsf".contains(letter)) {
        return None;
    }
    let flags = read(arguments.iter().cloned().collect())?;
    let verb = flags.verb?;
    let mut words = vec![verb.to_owned()];
    if flags.names.iter().any(|name| name.starts_with('-')) {
        // Not a valid machine name. The command must report that, instead of parsing the name as an option.
        words.extend(flags.options.into_iter().chain(["--".to_owned()]).chain(flags.names));
    } else {
        words.extend(flags.names.into_iter().chain(flags.options));
    }
    if !flags.rest.is_empty() {
        words.push("--".to_owned());
        words.extend(flags.rest);
    }
    Some(words)
}

fn read(mut arguments: VecDeque<String>) -> Option<ParsedFlags> {
    let mut flags = ParsedFlags::default();
    while let Some(argument) = arguments.pop_front() {
        let Some(letters) =
            argument.strip_prefix('-').filter(|letters| !letters.is_empty() && flags.verb != Some("ssh"))
        else {
            match flags.verb {
                Some("ssh") if argument == "--" => {}
                Some("ssh") => flags.rest.push(argument),
                _ => flags.names.push(argument),
            }
            continue;
        };
        if letters.starts_with('-') {
            flags.options.push(argument);
            continue;
        }
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            let verb = match letter {
                'R' => {
                    flags.options.push("--restart".to_owned());
                    continue;
                }
                'f' => {
                    flags.options.push("--flake".to_owned());
                    flags.options.extend(value(&mut letters, &mut arguments));
                    continue;
                }
                'l' => "list",
                'u' => "update",
                'c' => "create",
                'r' => "run",
                's' => "ssh",
                _ => return None,
            };
            if flags.verb.replace(verb).is_some() {
                return None;
            }
            if matches!(letter, 'c' | 'r' | 's') {
                flags.names.extend(value(&mut letters, &mut arguments));
            }
        }
    }
    Some(flags)
}

/// Returns a letter's value: the rest of its word, or the next word.
fn value(letters: &mut std::str::Chars<'_>, arguments: &mut VecDeque<String>) -> Option<String> {
    let rest: String = letters.by_ref().collect();
    if rest.is_empty() { arguments.pop_front() } else { Some(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_translated_as_in_microvm_nix() {
        let words = |line: &str| {
            let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            expand_letters(&arguments).map(|words| words.join(" "))
        };
        for (letters, expected) in [
            ("-c web", "create web"),
            ("-f git+https://a -c web", "create web --flake git+https://a"),
            ("-c web -f /srv", "create web --flake /srv"),
            ("-u web db", "update web db"),
            ("-Ru web", "update web --restart"),
            ("-u web -R", "update web --restart"),
            ("-l", "list"),
            ("-r web", "run web"),
            ("-s web", "ssh web"),
            ("-s web -- -v uname -a", "ssh web -- -v uname -a"),
            ("-l --json", "list --json"),
            // The command itself reports missing and invalid arguments.
            ("-c", "create"),
            ("-c web -f", "create web --flake"),
            ("-c -x -f a", "create --flake a -- -x"),
        ] {
            assert_eq!(words(letters).as_deref(), Some(expected), "{letters}");
        }
        for other in ["list", "--help", "-h", "-V", "-l -u", "-cx -r y", "-x"] {
            assert_eq!(words(other), None, "{other}");
        }
    }
}
