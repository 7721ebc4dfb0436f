//! The command line, with one file per command. Results go to stdout, messages to stderr.

mod balloon;
mod check;
mod clean_up;
mod clone;
mod cluster;
mod console;
mod explain;
mod host_machine;
mod imperative;
mod install;
mod interfaces;
mod machine;
mod ocf;
mod reference;
mod run;
mod share_view;
mod spec_file;
mod status;
mod stop;
mod suspend;
mod suspend_failure;
mod virtiofsd;
mod volume;
mod volumes;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use launcher::ocf::parameters::AGENT;
use program::failure::{BAD_INPUT, Failure};
use program::output::{escaped_arguments, report, report_as_json, report_usage_as_json};
use program::version::version;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "microvm", version = version(), about = "Run and manage microVMs", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Arguments),
    Explain(explain::Arguments),
    Run(run::Arguments),
    Install(install::Arguments),
    Stop(stop::Arguments),
    Suspend(suspend::Arguments),
    Resume(suspend::ResumeArguments),
    Clone(clone::Arguments),
    Status(status::Arguments),
    Console(console::Arguments),
    Balloon(balloon::Arguments),
    Tap(interfaces::TapArguments),
    Macvtap(interfaces::MacvtapArguments),
    Ocf(ocf::Arguments),
    Virtiofsd(virtiofsd::Arguments),
    SharePath(share_view::Arguments),
    Volumes(volumes::Arguments),
    Volume(volume::Arguments),
    Cluster(cluster::Arguments),
    Schema(reference::SchemaArguments),
    Capabilities(reference::CapabilitiesArguments),
    Completions(reference::CompletionsArguments),
    Man(reference::ManArguments),
    #[command(hide = true)]
    MachineNames(reference::MachineNamesArguments),
    #[command(hide = true)]
    ServeView(share_view::ServeArguments),
    #[command(hide = true)]
    CleanUpAfter(clean_up::Arguments),
    #[command(flatten)]
    Host(imperative::HostCommand),
}

pub(crate) fn main() -> ExitCode {
    let given = with_ocf(std::env::args_os().collect());
    let letters: Option<Vec<String>> = given.iter().skip(1).map(|word| word.to_str().map(str::to_owned)).collect();
    let words = letters.and_then(|letters| imperative::expand_letters(&letters));
    let given = words.map_or(given, |words| ["microvm".to_owned()].into_iter().chain(words).map(Into::into).collect());
    let parsed = with_negative_numbers(Arguments::command()).try_get_matches_from(&given).and_then(|matches| {
        if wants_json(&matches) {
            report_as_json();
        }
        Arguments::from_arg_matches(&matches)
    });
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap quotes the arguments, which may contain control characters. Parsing again with escaped arguments
            // gives a safe message.
            let shown = escaped_arguments(given);
            let again = with_negative_numbers(Arguments::command()).try_get_matches_from(&shown);
            let error = again.and_then(|matches| Arguments::from_arg_matches(&matches)).err().unwrap_or(error);
            let code = if error.use_stderr() { BAD_INPUT } else { 0 };
            if error.use_stderr() {
                report_usage_as_json(&shown, &error.render().to_string());
            }
            // If this fails, there is nowhere left to report it.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run_command(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

/// Accepts `-1` as the value of the option before it. The option then says what would be valid, whereas clap would call it
/// an unknown option.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let args =
        command.mut_args(|arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg });
    args.mut_subcommands(with_negative_numbers)
}

/// Adds the command `ocf` if this program was started by the name of the resource agent, which is a link to it.
fn with_ocf(mut given: Vec<OsString>) -> Vec<OsString> {
    let [_, _, agent] = AGENT;
    if given.first().is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new(agent))) {
        given.insert(1, "ocf".into());
    }
    given
}

/// Whether the selected command has the option `--json`, and it was given.
fn wants_json(matches: &ArgMatches) -> bool {
    let inner = matches.subcommand().is_some_and(|(_, matches)| wants_json(matches));
    inner || matches!(matches.try_get_one("json"), Ok(Some(true)))
}

fn run_command(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Install(arguments) => install::run(&arguments),
        Command::Stop(arguments) => stop::run(&arguments),
        Command::Suspend(arguments) => suspend::run(&arguments),
        Command::Resume(arguments) => suspend::resume(&arguments),
        Command::Clone(arguments) => clone::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Console(arguments) => console::run(&arguments),
        Command::Balloon(arguments) => balloon::run(&arguments),
        Command::Tap(arguments) => interfaces::tap(&arguments),
        Command::Macvtap(arguments) => interfaces::macvtap(&arguments),
        Command::Ocf(arguments) => ocf::run(&arguments),
        Command::Virtiofsd(arguments) => virtiofsd::run(&arguments),
        Command::SharePath(arguments) => share_view::add(&arguments),
        Command::ServeView(arguments) => share_view::serve(&arguments),
        Command::Volumes(arguments) => volumes::run(&arguments),
        Command::Volume(arguments) => volume::run(&arguments),
        Command::Cluster(arguments) => cluster::run(&arguments),
        Command::Schema(arguments) => reference::schema(&arguments),
        Command::Capabilities(arguments) => reference::capabilities(&arguments),
        Command::Completions(arguments) => reference::completions(&arguments),
        Command::Man(arguments) => reference::man(&arguments),
        Command::MachineNames(_) => reference::machine_names(),
        Command::CleanUpAfter(arguments) => clean_up::run(&arguments),
        Command::Host(command) => imperative::run_command(&command),
    }
}
