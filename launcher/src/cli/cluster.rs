//! `microvm cluster`: checks a cluster, configures it, and shows and changes what it does.

mod configure;
mod operate;
mod status;

use clap::Subcommand;
use launcher::cluster::CheckedCluster;
use launcher::cluster::operations::OperationError;
use launcher::cluster::runners::check_with_runners;
use launcher::cluster::spec::ClusterSpec;
use launcher::spec::parse::parse_document;
use program::failure::Failure;
use std::path::Path;

/// Run machines on several hosts, with Pacemaker and Corosync
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Subcommand)]
enum ClusterCommand {
    Check(configure::CheckArguments),
    Generate(configure::GenerateArguments),
    Apply(configure::ApplyArguments),
    Status(status::Arguments),
    Push(operate::PushArguments),
    Update(operate::UpdateArguments),
    Move(operate::MoveArguments),
    Drain(operate::DrainArguments),
    Undrain(operate::UndrainArguments),
    Manage(operate::ManageArguments),
    Unmanage(operate::UnmanageArguments),
    AckFence(operate::AckFenceArguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        ClusterCommand::Check(arguments) => configure::check(arguments),
        ClusterCommand::Generate(arguments) => configure::generate(arguments),
        ClusterCommand::Apply(arguments) => configure::apply(arguments),
        ClusterCommand::Status(arguments) => status::run(arguments),
        ClusterCommand::Push(arguments) => operate::push(arguments),
        ClusterCommand::Update(arguments) => operate::update(arguments),
        ClusterCommand::Move(arguments) => operate::move_machine(arguments),
        ClusterCommand::Drain(arguments) => operate::drain(arguments),
        ClusterCommand::Undrain(arguments) => operate::undrain(arguments),
        ClusterCommand::Manage(arguments) => operate::manage(arguments),
        ClusterCommand::Unmanage(arguments) => operate::unmanage(arguments),
        ClusterCommand::AckFence(arguments) => operate::ack_fence(arguments),
    }
}

/// Reads and checks `cluster.json`, with the specs of the runners that it names.
fn read_checked(path: &Path) -> Result<CheckedCluster, Failure> {
    let text = super::spec_file::read_document("cluster spec", path)?;
    let cluster: ClusterSpec = parse_document(&text).map_err(|errors| {
        Failure::input_problems(errors.iter().map(|error| format!("{}: {error}", path.display())).collect())
    })?;
    check_with_runners(&cluster)
        .map_err(|problems| Failure::input_problems(problems.iter().map(ToString::to_string).collect()))
}

fn failure(error: &OperationError) -> Failure {
    let failure = match error {
        OperationError::OnHosts(problems) => return Failure::problems(problems.clone()),
        error if error.is_bad_input() => Failure::usage(error.to_string()),
        error => Failure::failed(error),
    };
    match error {
        OperationError::Engine(error) => failure.with_optional_hint(engine_hint(error).map(str::to_owned)),
        OperationError::Constrained { constraint, .. } => failure.with_hint(format!(
            "remove it, if it is no longer needed, with: cibadmin --delete --xpath \"//rsc_location[@id='{constraint}']\""
        )),
        OperationError::NoRunner { .. } => failure.with_hint("pass the runner that `nix build` has built, such as ./result"),
        OperationError::Contended => failure.with_hint("run the command again"),
        _ => failure,
    }
}

/// Returns what to do about an error of the cluster's tools.
fn engine_hint(error: &launcher::cluster::engine::EngineError) -> Option<&'static str> {
    use launcher::cluster::engine::EngineError;
    match error {
        EngineError::NotRunning(_) => {
            Some("run this on a host of the cluster; start it with: systemctl start corosync pacemaker")
        }
        EngineError::NoPermission(_) => Some("run it as root"),
        EngineError::NoQuorum => Some("see which hosts are offline with: microvm cluster status"),
        EngineError::Timeout(_) => Some("see what the cluster does with: microvm cluster status"),
        _ => None,
    }
}
