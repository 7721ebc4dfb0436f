//! Checks of all commands and options: each one is explained, with its default and its unit.

use super::Cli;
use clap::{Arg, Command, CommandFactory};

/// Calls `look` with the name of every command, such as `cache gc`, and its definition.
fn each_command(look: &mut impl FnMut(&str, &Command)) {
    fn walk(words: &str, command: &Command, look: &mut impl FnMut(&str, &Command)) {
        look(words, command);
        for part in command.get_subcommands() {
            walk(&format!("{words} {}", part.get_name()), part, look);
        }
    }
    let mut whole = Cli::command();
    whole.build();
    walk("microvm-image", &whole, look);
}

fn shown_as(argument: &Arg) -> String {
    match argument.get_long() {
        Some(long) => format!("--{long}"),
        None => format!("<{}>", argument.get_id()),
    }
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_and_option_is_explained() {
    let mut explained = 0;
    each_command(&mut |words, command| {
        assert!(command.get_about().is_some(), "{words} is not explained");
        let help = command.clone().render_long_help().to_string();
        for argument in
            command.get_arguments().filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
        {
            let shown = shown_as(argument);
            let text = argument.get_help().unwrap_or_else(|| panic!("{words} {shown} is not explained"));
            assert!(text.to_string().len() > 10, "{words} {shown}: {text}");
            assert!(help.contains(shown.trim_matches(['<', '>'])) || argument.is_positional(), "{words} {shown}");
            explained += 1;
        }
    });
    assert!(explained > 40, "only {explained} options were found");
}

#[test]
fn every_option_with_a_value_says_its_default() {
    // Options that are required, that have no effect if they are omitted, or that can be given several times.
    let without_default = [
        "--closure-info",
        "--graph",
        "--paths-from",
        "--plan",
        "--machine",
        "--size",
        "--fs",
        "--dir",
        "--mkfs-arg",
        "--max-size",
    ];
    each_command(&mut |words, command| {
        for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
            let shown = shown_as(argument);
            let text = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let says = text.contains("[default: ") || !argument.get_default_values().is_empty();
            let needs_none =
                argument.is_positional() || argument.is_required_set() || without_default.contains(&shown.as_str());
            assert!(says || needs_none, "{words} {shown} does not say its default: {text}");
        }
    });
}

#[test]
fn sizes_say_their_unit() {
    each_command(&mut |words, command| {
        for argument in command.get_arguments() {
            let takes_a_size = argument.get_value_names().unwrap_or_default().iter().any(|name| name == "SIZE");
            if takes_a_size {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                let long = argument.get_long_help().map(ToString::to_string).unwrap_or_default();
                let text = format!("{help} {long}");
                assert!(
                    text.contains("K") || text.contains("M"),
                    "{words} {} does not say its unit: {text}",
                    shown_as(argument)
                );
            }
        }
    });
}
