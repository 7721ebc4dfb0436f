//! Completions for shells. clap generates them from the command line; for bash, fish and zsh, the names of the host's
//! machines are added, which the shell asks this program for.

use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::Shell;
use std::fmt::Write;

/// The name of the hidden command that prints the names of the machines.
pub(super) const MACHINE_NAMES: &str = "machine-names";

/// The positional arguments that are names of machines.
const MACHINE_ARGUMENTS: [&str; 4] = ["name", "names", "machine", "machines"];

/// Returns the program with the commands that are offered. Hidden commands are internal.
fn offered_commands() -> Command {
    let program = crate::cli::Arguments::command();
    let offered = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("microvm").version(env!("CARGO_PKG_VERSION")).subcommands(offered)
}

/// Returns the completions for a shell.
pub(super) fn completions(shell: Shell) -> String {
    let mut offered = offered_commands();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut offered, "microvm", &mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    match shell {
        Shell::Bash => text + &for_bash(&offered),
        Shell::Fish => text + &for_fish(&offered),
        Shell::Zsh => for_zsh(&text, &offered),
        _ => text,
    }
}

/// Returns the commands that take names of existing machines, each with the command that it is part of, if there is one.
fn commands_on_machines(program: &Command) -> Vec<(Option<&str>, &Command)> {
    // The machine of `create` does not exist yet, and the machines of a cluster need not be on this host.
    let commands = program.get_subcommands().filter(|command| !["create", "cluster"].contains(&command.get_name()));
    let with_parts = commands.flat_map(|command| {
        let parts = command.get_subcommands().map(|part| (Some(command.get_name()), part));
        std::iter::once((None, command)).chain(parts)
    });
    with_parts.filter(|(_, command)| machine_argument(command).is_some()).collect()
}

fn machine_argument(command: &Command) -> Option<&Arg> {
    command.get_positionals().find(|argument| MACHINE_ARGUMENTS.contains(&argument.get_id().as_str()))
}

/// The options of a command that take a value, as a pattern of bash.
fn options_with_values(command: &Command) -> String {
    let options = command.get_opts().filter(|option| matches!(option.get_action(), ArgAction::Set | ArgAction::Append));
    let words = options.flat_map(|option| {
        let long = option.get_long().map(|long| format!("--{long}"));
        long.into_iter().chain(option.get_short().map(|short| format!("-{short}")))
    });
    words.collect::<Vec<_>>().join("|")
}

fn for_bash(program: &Command) -> String {
    let mut cases = String::new();
    for (group, command) in commands_on_machines(program) {
        let name = command.get_name();
        let options = options_with_values(command);
        // The arguments after the machine of such a command are volumes and files.
        let pattern = group.map_or_else(|| format!("{name}\\ *"), |group| format!("{group}\\ {name}"));
        let condition = if group.is_some() { "[[ $COMP_CWORD -eq 3 ]] || return;" } else { "" };
        // Writing to a string does not fail.
        let _ = match options.is_empty() {
            true => writeln!(cases, "        {pattern}) {condition} ;;"),
            false => writeln!(cases, "        {pattern}) {condition} case $3 in {options}) return ;; esac ;;"),
        };
    }
    format!(
        r#"
_microvm_with_machines() {{
    _microvm "$@"
    [[ $2 == -* || $COMP_CWORD -lt 2 ]] && return
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}        *) return ;;
    esac
    COMPREPLY=( $(compgen -W "$("$1" {MACHINE_NAMES} 2>/dev/null)" -- "$2") )
}}
complete -F _microvm_with_machines -o bashdefault -o default microvm
"#
    )
}

fn for_fish(program: &Command) -> String {
    let line = |(group, command): (Option<&str>, &Command)| {
        let name = command.get_name();
        let given =
            group.map_or_else(|| name.to_owned(), |group| format!("{group}; and __fish_seen_subcommand_from {name}"));
        format!(
            "complete -c microvm -n \"__fish_microvm_using_subcommand {given}\" -a \"(command microvm {MACHINE_NAMES} 2>/dev/null)\"\n"
        )
    };
    commands_on_machines(program).into_iter().map(line).collect()
}

/// Replaces the completion of files by one of machines and files, in the lines of the arguments that are machines.
fn for_zsh(text: &str, program: &Command) -> String {
    let names: Vec<_> = commands_on_machines(program).into_iter().map(|(_, command)| command.get_name()).collect();
    let mut is_on_machines = false;
    let mut completed = String::new();
    for line in text.lines() {
        if let Some(name) = line.trim_start().strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
            is_on_machines = names.contains(&name);
        }
        let argument = line.trim_start_matches(['\'', '*', ':']).split_once(" -- ").map(|(argument, _)| argument);
        let is_machine = is_on_machines && argument.is_some_and(|argument| MACHINE_ARGUMENTS.contains(&argument));
        match line.strip_suffix(":_default' \\").filter(|_| is_machine) {
            Some(start) => completed.push_str(&format!("{start}:_microvm_machines' \\")),
            None => completed.push_str(line),
        }
        completed.push('\n');
        if line.starts_with("autoload ") {
            completed.push_str(&format!(
                "\n_microvm_machines() {{\n    local -a machines\n    \
                 machines=(${{(f)\"$(command microvm {MACHINE_NAMES} 2>/dev/null)\"}})\n    \
                 compadd -a machines\n    _files\n}}\n"
            ));
        }
    }
    completed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zsh_and_fish_ask_for_the_machines_where_a_command_takes_existing_ones() {
        let zsh = completions(Shell::Zsh);
        let machines = |text: &str| text.lines().filter(|line| line.contains(":_microvm_machines' \\")).count();
        let names: Vec<_> = commands_on_machines(&offered_commands())
            .into_iter()
            .map(|(_, command)| command.get_name().to_owned())
            .collect();
        assert!(
            ["start", "stop", "update", "status", "ssh", "delete", "suspend", "resume", "backup", "grow"]
                .iter()
                .all(|name| names.contains(&(*name).to_owned())),
            "{names:?}"
        );
        assert!(!names.contains(&"create".to_owned()));
        assert_eq!(machines(&zsh), names.len(), "{zsh}");
        let fish = completions(Shell::Fish);
        assert_eq!(fish.matches(MACHINE_NAMES).count(), names.len());
        for shell in [Shell::Bash, Shell::Elvish, Shell::PowerShell] {
            assert!(!completions(shell).contains("serve-view"), "internal commands are hidden");
        }
    }
}
