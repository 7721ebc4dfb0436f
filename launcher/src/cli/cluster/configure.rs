//! `microvm cluster check`, `generate` and `apply`: from `cluster.json` to the configuration of a cluster.

use super::{failure, read_checked};
use clap::ValueEnum;
use launcher::cluster::CheckedCluster;
use launcher::cluster::cib::configuration;
use launcher::cluster::corosync::corosync_conf;
use launcher::cluster::operations::{Applied, ApplyOn, OperationError, apply as apply_cluster};
use launcher::cluster::simulation::{Event, Placement, problems, simulate};
use program::failure::{BAD_INPUT, Failure};
use program::input::{MAX_SECONDS, up_to};
use program::output::{message, print, warn};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often to ask whether the cluster has a coordinator.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Check a cluster, and simulate the failure of each host
///
/// Pacemaker's scheduler decides where the machines run if all hosts are up, if one of them fails, and if one is
/// drained. The cluster is refused if a machine would have no host. The command needs Pacemaker's tools and the
/// machines' runners, but no running cluster.
#[derive(clap::Args)]
pub(crate) struct CheckArguments {
    /// The cluster, a JSON file; `-` is standard input
    file: PathBuf,
    /// Print machines, problems and warnings as JSON
    #[arg(long)]
    json: bool,
}

/// Print the generated configuration of Pacemaker or Corosync
#[derive(clap::Args)]
pub(crate) struct GenerateArguments {
    /// The configuration to print
    what: Generated,
    /// The cluster, a JSON file; `-` is standard input
    file: PathBuf,
}

/// A generated configuration.
#[derive(Clone, Copy, ValueEnum)]
enum Generated {
    /// The configuration section of Pacemaker's CIB, in XML
    Cib,
    /// The file corosync.conf
    Corosync,
}

/// Configure the running cluster
///
/// The machines, fence devices, host capacities and constraints in the file replace those applied before.
/// Everything else in the configuration is kept. Nothing happens if this file was the last one applied.
#[derive(clap::Args)]
pub(crate) struct ApplyArguments {
    /// The cluster, a JSON file; `-` is standard input
    file: PathBuf,
    /// Do nothing unless this host is the cluster's coordinator, so that all hosts can run the command
    #[arg(long)]
    on_coordinator: bool,
    /// How long to wait, in seconds, until the hosts have elected a coordinator and have quorum
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = up_to::<MAX_SECONDS>)]
    wait: u64,
}

pub(crate) fn check(arguments: &CheckArguments) -> Result<(), Failure> {
    let cluster = read_checked(&arguments.file)?;
    let placements = simulated(&cluster)?;
    let problems = problems(&cluster, &placements);
    if arguments.json {
        return print_json(&cluster, &placements, &problems);
    }
    warn(&cluster.warnings);
    if !problems.is_empty() {
        return Err(unplaced(problems));
    }
    print(rows(&cluster, &placements).iter().map(Row::text).collect::<String>())
}

pub(crate) fn generate(arguments: &GenerateArguments) -> Result<(), Failure> {
    let cluster = read_checked(&arguments.file)?;
    match arguments.what {
        Generated::Corosync => print(corosync_conf(&cluster)),
        Generated::Cib => {
            let text = configuration(&cluster).and_then(|configuration| configuration.to_text());
            print(text.map_err(|error| Failure::failed(&error))?)
        }
    }
}

pub(crate) fn apply(arguments: &ApplyArguments) -> Result<(), Failure> {
    let cluster = read_checked(&arguments.file)?;
    warn(&cluster.warnings);
    let problems = problems(&cluster, &simulated(&cluster)?);
    if !problems.is_empty() {
        return Err(unplaced(problems));
    }
    let on = if arguments.on_coordinator { ApplyOn::Coordinator } else { ApplyOn::AnyHost };
    let deadline = Instant::now() + Duration::from_secs(arguments.wait);
    let applied = loop {
        match apply_cluster(&cluster, on) {
            Err(error) if is_starting(&error) && Instant::now() < deadline => sleep(POLL_INTERVAL),
            result => break result.map_err(|error| failure(&error))?,
        }
    };
    message(&match applied {
        Applied::Changed => format!("the cluster {} is configured", cluster.name),
        Applied::Unchanged => format!("the cluster {} already has this configuration", cluster.name),
        Applied::OnCoordinator => "another host is the coordinator and applies the configuration".to_owned(),
    });
    Ok(())
}

/// Whether the cluster may only need more time.
fn is_starting(error: &OperationError) -> bool {
    use launcher::cluster::engine::EngineError::{NoQuorum, NotRunning};
    matches!(error, OperationError::NoCoordinator | OperationError::Engine(NotRunning(_) | NoQuorum))
}

fn simulated(cluster: &CheckedCluster) -> Result<Vec<Placement>, Failure> {
    simulate(cluster).map_err(|error| Failure::failed(&error))
}

fn unplaced(problems: Vec<String>) -> Failure {
    let hint =
        "add memory, vCPUs or hosts, or remove `apartFrom`, so that every machine survives the failure of one host";
    Failure::input_problems(problems).with_hint(hint)
}

/// A machine, and the host of its first start.
struct Row<'cluster> {
    name: &'cluster str,
    host: Option<&'cluster str>,
    migrate: &'static str,
}

fn rows<'cluster>(cluster: &'cluster CheckedCluster, placements: &'cluster [Placement]) -> Vec<Row<'cluster>> {
    let first = placements.iter().find(|placement| placement.event == Event::FirstStart);
    let host = |name: &str| first?.hosts.get(name)?.as_deref();
    let row = |machine: &'cluster launcher::cluster::CheckedMachine| Row {
        name: &machine.name,
        host: host(&machine.name),
        migrate: machine.migrate.as_str(),
    };
    cluster.machines.iter().map(row).collect()
}

impl Row<'_> {
    fn text(&self) -> String {
        format!("{}: starts on {}, moves {}\n", self.name, self.host.unwrap_or("no host"), self.migrate)
    }

    fn json(&self) -> Value {
        json!({"name": self.name, "host": self.host, "migrate": self.migrate})
    }
}

fn print_json(cluster: &CheckedCluster, placements: &[Placement], problems: &[String]) -> Result<(), Failure> {
    let machines: Vec<Value> = rows(cluster, placements).iter().map(Row::json).collect();
    let document = json!({"machines": machines, "problems": problems, "warnings": cluster.warnings});
    print(format!("{document:#}\n"))?;
    // The problems are already printed.
    if problems.is_empty() { Ok(()) } else { Err(Failure::input_problems(Vec::new()).with_code(BAD_INPUT)) }
}
