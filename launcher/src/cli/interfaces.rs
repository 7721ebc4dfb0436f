//! `microvm tap` and `microvm macvtap`: a machine's network interfaces on the host.

use super::machine::{failed, launch_of, watch_signals};
use super::spec_file::{SpecArguments, read};
use launcher::launch::Needs;
use launcher::network::{InterfaceState, NetworkError, macvtap, owner_id, tap};
use launcher::state::RuntimeDirectory;
use program::failure::Failure;
use program::output::{message, print};

/// Create or remove a machine's tap interfaces
#[derive(clap::Args)]
pub(crate) struct TapArguments {
    #[command(subcommand)]
    direction: Direction,
}

/// Create or remove a machine's macvtap interfaces
#[derive(clap::Args)]
pub(crate) struct MacvtapArguments {
    #[command(subcommand)]
    direction: Direction,
}

#[derive(clap::Subcommand)]
enum Direction {
    /// Create missing interfaces
    Up(Target),
    /// Remove the interfaces
    Down(Target),
}

#[derive(clap::Args)]
struct Target {
    #[command(flatten)]
    spec: SpecArguments,
    /// The user who may open the interfaces [default: the spec's `user`, or the current user]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
}

pub(crate) fn tap(arguments: &TapArguments) -> Result<(), Failure> {
    run_task(&arguments.direction, Kind::Tap)
}

pub(crate) fn macvtap(arguments: &MacvtapArguments) -> Result<(), Failure> {
    run_task(&arguments.direction, Kind::Macvtap)
}

#[derive(Clone, Copy)]
enum Kind {
    Tap,
    Macvtap,
}

fn run_task(direction: &Direction, kind: Kind) -> Result<(), Failure> {
    let (Direction::Up(target) | Direction::Down(target)) = direction;
    let overrides = &target.spec.overrides;
    let spec = read(&target.spec.spec, overrides)?;
    let interruption = watch_signals()?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let needs = launch_of(&spec, overrides, &runtime, &interruption)?.needs;
    let outcomes = match (direction, kind) {
        (Direction::Up(_), Kind::Tap) => taps_up(&needs, target),
        (Direction::Up(_), Kind::Macvtap) => macvtaps_up(&needs, target),
        (Direction::Down(_), Kind::Tap) => {
            needs.taps.iter().map(|need| (need.name.clone(), tap::remove(need).map(|()| "removed"))).collect()
        }
        (Direction::Down(_), Kind::Macvtap) => {
            needs.macvtaps.iter().map(|need| (need.name.clone(), macvtap::remove(need).map(|()| "removed"))).collect()
        }
    };
    report(outcomes)
}

type Outcomes = Vec<(String, Result<&'static str, NetworkError>)>;

fn taps_up(needs: &Needs, target: &Target) -> Outcomes {
    let up = |need: &launcher::launch::TapNeed| {
        let owner = owner_id(target.owner.as_deref().or(need.owner.as_deref()))?;
        tap::make_ready(need, owner).map(state_name)
    };
    needs.taps.iter().map(|need| (need.name.clone(), up(need))).collect()
}

fn macvtaps_up(needs: &Needs, target: &Target) -> Outcomes {
    let up = |need: &launcher::launch::MacvtapNeed| {
        let owner = owner_id(target.owner.as_deref().or(need.owner.as_deref()))?;
        macvtap::make_ready(need, owner).map(state_name)
    };
    needs.macvtaps.iter().map(|need| (need.name.clone(), up(need))).collect()
}

fn state_name(state: InterfaceState) -> &'static str {
    match state {
        InterfaceState::Present => "already exists",
        InterfaceState::Created => "created",
    }
}

/// Prints the names of the interfaces on stdout, and reports all failures, not only the first.
fn report(outcomes: Outcomes) -> Result<(), Failure> {
    let mut problems = Vec::new();
    for (name, outcome) in outcomes {
        match outcome {
            Ok(word) => {
                message(&format!("{name}: {word}"));
                print(format!("{name}\n"))?;
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems(problems)) }
}
