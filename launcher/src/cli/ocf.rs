//! `microvm ocf`: the resource agent that Pacemaker runs. Its messages and exit codes are those of the resource agent
//! API.

use launcher::ocf::parameters::Parameters;
use launcher::ocf::{Agent, AgentError, ExitCode, Operation, Streams, meta_data};
use program::escape::lines;
use program::failure::Failure;
use program::output::{message, print};
use std::io;
use std::os::fd::AsFd;

/// Start, stop, monitor or migrate a machine as the resource agent of a Pacemaker cluster
///
/// Pacemaker runs it as ocf:microvm:MicroVM, and passes the machine's parameters in the environment. `meta-data`
/// describes them. The exit codes are those of the resource agent API: 0 success, 1 failure, 2 to 6 wrong parameters or
/// a node that cannot run the machine, 7 not running.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// start, stop, monitor, migrate_to, migrate_from, validate-all or meta-data; or `receive`, which the source of a
    /// live migration runs on the target [default: $__OCF_ACTION]
    action: Option<String>,
    /// Ignored: ssh with a forced command appends what the other node has requested
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

const ACTIONS: &str = "start, stop, monitor, migrate_to, migrate_from, validate-all, meta-data or receive";

/// Runs the action and returns the exit code. Only a failure to print is left to the caller.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let action = arguments.action.clone().or_else(|| std::env::var("__OCF_ACTION").ok()).unwrap_or_default();
    if action == "meta-data" {
        return print(meta_data());
    }
    match perform(&action) {
        Ok(()) => Ok(()),
        Err(error) => {
            let code = error.exit_code();
            // Not running is an answer of the monitor, not a failure.
            if code == ExitCode::NotRunning {
                message(&error.to_string());
            } else {
                // Pacemaker shows the rest of this line as the reason of the failure.
                message(&format!("ocf-exit-reason:{}", lines(&error.to_string()).replace('\n', "; ")));
            }
            Err(Failure::problems(Vec::new()).with_code(code as u8))
        }
    }
}

fn perform(action: &str) -> Result<(), AgentError> {
    let operation = Operation::parse(|name| std::env::var(name).ok());
    if action == "receive" {
        let failed = |source| AgentError::System { action: "reading the offer", source };
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        let create = |parameters| Agent::new(parameters, operation, &message);
        return Agent::receive(Streams { input, output }, create);
    }
    let known = ["start", "stop", "monitor", "status", "migrate_to", "migrate_from", "validate-all"];
    if !known.contains(&action) {
        let problem = if action.is_empty() {
            "the action is missing".to_owned()
        } else {
            format!("there is no action `{action}`")
        };
        return Err(AgentError::Unimplemented(format!("{problem}; use {ACTIONS}")));
    }
    let parameters = Parameters::parse(|name| std::env::var(format!("OCF_RESKEY_{name}")).ok());
    let agent = Agent::new(parameters.map_err(AgentError::Parameters)?, operation, &message)?;
    match action {
        "start" => agent.start(),
        "stop" => agent.stop(),
        "migrate_to" => agent.migrate_to(),
        "migrate_from" => agent.migrate_from(),
        "validate-all" => agent.validate(),
        _ => agent.monitor(),
    }
}
