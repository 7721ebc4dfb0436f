//! `microvm schema`, `capabilities`, `completions`, `man`: the program's reference documentation.

mod completions;

use clap::CommandFactory;
use clap_complete::Shell;
use launcher::capability::{Feature, Support, summary_table};
use launcher::cluster::spec::ClusterSpec;
use launcher::hypervisor::{capability_table, support};
use launcher::imperative::Layout;
use launcher::reference::{cluster_spec_reference, machine_spec_reference};
use launcher::spec::Hypervisor;
use launcher::spec::schema::{machine_spec_schema, schema_of};
use launcher::state::RuntimeDirectory;
use program::failure::Failure;
use program::manual::Sections;
use program::output::print;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// Print the JSON Schema of the machine spec, or of a cluster
#[derive(clap::Args)]
pub(crate) struct SchemaArguments {
    /// Print the schema of `cluster.json` instead
    #[arg(long)]
    cluster: bool,
    /// Print a reference in Markdown instead
    #[arg(long)]
    markdown: bool,
}

pub(crate) fn schema(arguments: &SchemaArguments) -> Result<(), Failure> {
    match (arguments.cluster, arguments.markdown) {
        (false, true) => print(machine_spec_reference()),
        (true, true) => print(cluster_spec_reference()),
        (false, false) => print(format!("{:#}\n", machine_spec_schema())),
        (true, false) => print(format!("{:#}\n", schema_of::<ClusterSpec>())),
    }
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
    print(completions::completions(arguments.shell))
}

/// Print the names of the machines that this user can see, one per line, for completions
#[derive(clap::Args)]
#[command(name = completions::MACHINE_NAMES)]
pub(crate) struct MachineNamesArguments {}

pub(crate) fn machine_names() -> Result<(), Failure> {
    let mut names: Vec<String> = Layout::of_environment()
        .all()
        .unwrap_or_default()
        .into_iter()
        .map(|machine| machine.name.to_string())
        .chain(RuntimeDirectory::locate().and_then(|runtime| runtime.machine_names()).unwrap_or_default())
        .collect();
    names.sort();
    names.dedup();
    print(names.into_iter().map(|name| name + "\n").collect::<String>())
}

/// The sections of the manual page that clap does not generate.
const SECTIONS: Sections<'_> = Sections {
    failure: "The work failed although the input is valid.",
    environment: &[
        ("MICROVM_NAME", "The machine's name, instead of the spec's."),
        (
            "MICROVM_STATE_DIR",
            "The directory that contains the state directories of this host's machines; /var/lib/microvms by default.",
        ),
        (
            "MICROVM_GCROOTS_DIR",
            "The directory of their garbage collection roots; /nix/var/nix/gcroots/microvm by default.",
        ),
        ("MICROVM_IMAGE", "The program microvm-image, if it is not in PATH."),
        (
            "MICROVM_RUNTIME_DIR",
            "The directory in which running machines are recorded. By default it is /run/microvm for root, and \
             $XDG_RUNTIME_DIR/microvm for other users.",
        ),
    ],
    files: &[
        (
            "/var/lib/microvms/NAME",
            "The state directory of a machine: its volumes, and the links current and booted to its runners.",
        ),
        ("/nix/var/nix/gcroots/microvm", "Links that protect the runners of the machines from garbage collection."),
    ],
    examples: &[
        ("microvm check machine.json", "Reports all problems of a machine spec, and which hypervisors can run it."),
        ("microvm run ./machine.json", "Runs a machine in the foreground."),
        ("microvm create web --flake github:me/machines", "Creates a machine of this host from a flake."),
        (
            "microvm update --all --restart",
            "Rebuilds all machines that have a flake, and restarts those that run an older system.",
        ),
    ],
};

/// Print the manual page
#[derive(clap::Args)]
pub(crate) struct ManArguments {
    /// Command whose page is printed [default: the whole program]
    command: Option<String>,
    /// Directory to write one page per command to: microvm.1, microvm-run.1 and so on [default: print the page]
    #[arg(short, long, value_name = "DIR", conflicts_with = "command")]
    output: Option<PathBuf>,
}

pub(crate) fn man(arguments: &ManArguments) -> Result<(), Failure> {
    let mut program = super::Arguments::command();
    if let Some(directory) = &arguments.output {
        let page = directory.join("microvm.1");
        let written = clap_mangen::generate_to(program, directory)
            .and_then(|()| File::options().append(true).open(page)?.write_all(SECTIONS.to_roff().as_bytes()));
        return written.map_err(|error| {
            Failure::bad_input(&error)
                .with_context(&format!("cannot write the manual pages to {}", directory.display()))
        });
    }
    program.build();
    let page = match &arguments.command {
        None => program,
        Some(name) => match program.find_subcommand(name) {
            Some(command) => command.clone(),
            None => return Err(Failure::usage(format!("there is no command `{name}`"))),
        },
    };
    let is_program = arguments.command.is_none();
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).map_err(|error| Failure::failed(&error))?;
    if is_program {
        text.extend_from_slice(SECTIONS.to_roff().as_bytes());
    }
    print(text)
}
