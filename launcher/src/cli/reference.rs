//! `microvm schema`, `capabilities`, `completions`, `man`: the program's reference documentation.

use clap::CommandFactory;
use clap_complete::Shell;
use launcher::capability::{Feature, Support, summary_table};
use launcher::hypervisor::{capability_table, support};
use launcher::spec::{Hypervisor, schema::machine_spec_schema};
use program::failure::Failure;
use program::output::print;
use serde_json::{Map, Value, json};

/// Print the JSON Schema of the machine spec
#[derive(clap::Args)]
pub(crate) struct SchemaArguments {
    /// Print a reference in Markdown instead
    #[arg(long)]
    markdown: bool,
}

pub(crate) fn schema(arguments: &SchemaArguments) -> Result<(), Failure> {
    if arguments.markdown {
        return print(launcher::reference::machine_spec_reference());
    }
    print(format!("{:#}\n", machine_spec_schema()))
}

/// Print what each hypervisor supports, as a Markdown table
#[derive(clap::Args)]
pub(crate) struct CapabilitiesArguments {
    /// Print JSON: for each feature and hypervisor, whether it is supported, and the note or reason
    #[arg(long)]
    json: bool,
    /// Print the most important features only, as yes, no or partly
    #[arg(long, conflicts_with = "json")]
    summary: bool,
}

pub(crate) fn capabilities(arguments: &CapabilitiesArguments) -> Result<(), Failure> {
    if arguments.summary {
        return print(summary_table(support));
    }
    if !arguments.json {
        return print(capability_table());
    }
    let features = Feature::ALL.into_iter().map(|feature| {
        let cells = Hypervisor::ALL.map(|hypervisor| {
            let (supported, note) = match support(hypervisor, feature) {
                Support::Yes => (true, None),
                Support::With(note) | Support::Partly(note) => (true, Some(note)),
                Support::No(reason) => (false, Some(reason)),
            };
            (hypervisor.to_string(), json!({"supported": supported, "note": note}))
        });
        let cells: Map<String, Value> = cells.into_iter().collect();
        json!({"feature": feature.row(), "option": feature.option(), "hypervisors": cells})
    });
    print(format!("{:#}\n", Value::Array(features.collect())))
}

/// Print completions for a shell
#[derive(clap::Args)]
pub(crate) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Arguments::command(), "microvm", &mut text);
    print(text)
}

/// Print the manual page
#[derive(clap::Args)]
pub(crate) struct ManArguments {
    /// The command whose page to print; without it, the page of the whole program
    command: Option<String>,
}

pub(crate) fn man(arguments: &ManArguments) -> Result<(), Failure> {
    let mut program = super::Arguments::command();
    program.build();
    let page = match &arguments.command {
        None => program,
        Some(name) => match program.find_subcommand(name) {
            Some(command) => command.clone(),
            None => return Err(Failure::usage(format!("there is no command `{name}`"))),
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).map_err(|error| Failure::failed(&error))?;
    print(text)
}
