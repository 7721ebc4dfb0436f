//! `microvm check`: every problem of one or more machines at once.

use super::machine::{facts_for, failed, watch_signals};
use super::spec_file::{Overrides, read_text};
use launcher::facts::HostFacts;
use launcher::host::{CheckTime, missing};
use launcher::hypervisor::{lower, runs_on};
use launcher::launch::Launch;
use launcher::own_files::own_files_in_use;
use launcher::refusal::names;
use launcher::run::{Lowered, refusals};
use launcher::spec::{Hypervisor, MachineSpec, parse::parse};
use launcher::state::RuntimeDirectory;
use launcher::validate::{CheckedSpec, check, check_across};
use launcher::volumes::same_files;
use program::failure::{BAD_INPUT, Failure};
use program::output::print;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Check machines for problems before they start
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine specs, JSON files; `-` is standard input
    #[arg(required = true)]
    specs: Vec<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// Also check this host: programs, files, /dev/kvm, network interfaces, sockets
    #[arg(long)]
    host: bool,
    /// Print machines, problems and warnings as JSON
    #[arg(long)]
    json: bool,
}

/// The results for all machines.
#[derive(Default)]
struct Report {
    machines: Vec<(String, Hypervisor, Vec<Hypervisor>)>,
    problems: Vec<Finding>,
    warnings: Vec<String>,
    hints: Vec<String>,
}

/// A problem, as a message and as fields.
struct Finding {
    text: String,
    parts: Value,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let assumed = HostFacts::assumed(arguments.overrides.state_directory()?);
    let (mut report, mut checked) = (Report::default(), Vec::new());
    for path in &arguments.specs {
        let Some((spec, machine)) = check_file(path, arguments, &mut report)? else { continue };
        if arguments.host {
            check_on_host(&spec, &machine, &arguments.overrides, &mut report)?;
        } else {
            check_on_assumed_host(&machine, &assumed, &mut report);
        }
        checked.push(machine);
    }
    for problem in check_across(&checked.iter().collect::<Vec<_>>()) {
        report.problems.push(Finding {
            text: problem.to_string(),
            parts: json!({"machine": problem.machine, "option": problem.option, "reason": problem.reason}),
        });
    }
    for problem in same_files(&checked.iter().collect::<Vec<_>>(), &assumed.state_directory) {
        report.problems.push(Finding {
            text: problem.to_string(),
            parts: json!({"machine": problem.machine, "option": problem.option, "reason": problem.reason}),
        });
    }
    if arguments.json { print_json(&report) } else { print_text(report) }
}

/// Returns the spec in a file, or adds its problems to the report.
fn check_file(
    path: &Path,
    arguments: &Arguments,
    report: &mut Report,
) -> Result<Option<(MachineSpec, CheckedSpec)>, Failure> {
    let text = read_text(path)?;
    let mut spec = match parse(&text) {
        Ok(spec) => spec,
        Err(errors) => {
            let file = path.display().to_string();
            report.problems.extend(errors.iter().map(|error| Finding {
                text: format!("{file}: {error}"),
                parts: json!({"file": file, "reason": error.to_string()}),
            }));
            return Ok(None);
        }
    };
    arguments.overrides.apply(&mut spec);
    // A single machine is checked under the name with which `run` would start it here.
    if arguments.host
        && arguments.specs.len() == 1
        && let Some(name) = arguments.overrides.name_on_host()?
    {
        spec.name = name;
    }
    match check(&spec) {
        Ok(checked) => Ok(Some((spec, checked))),
        Err(problems) => {
            report.problems.extend(problems.iter().map(|problem| Finding {
                text: problem.to_string(),
                parts: json!({"machine": problem.machine, "option": problem.option, "reason": problem.reason}),
            }));
            Ok(None)
        }
    }
}

/// Like [`check_on_hypervisor`], and compares the machine's files, as far as they are known without its runtime directory.
fn check_on_assumed_host(machine: &CheckedSpec, assumed: &HostFacts, report: &mut Report) {
    let Some(launch) = check_on_hypervisor(machine, assumed, report) else { return };
    report.problems.extend(own_files_in_use(&launch, None).into_iter().map(|error| Finding {
        text: format!("{}: {error}", launch.name),
        parts: json!({"machine": launch.name, "option": error.option, "reason": error.reason}),
    }));
}

/// Like [`check_on_hypervisor`], but with the facts of this host, and also reports what the host lacks and what `run` would
/// refuse.
fn check_on_host(
    spec: &MachineSpec,
    machine: &CheckedSpec,
    overrides: &Overrides,
    report: &mut Report,
) -> Result<(), Failure> {
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let facts = facts_for(spec, overrides, &runtime, &watch_signals()?)?;
    let Some(launch) = check_on_hypervisor(machine, &facts, report) else { return Ok(()) };
    let lowered = Lowered { spec: machine, document: spec, origin: None, facts: &facts, launch: &launch };
    for problem in missing(&launch, CheckTime::Check).into_iter().chain(refusals(&lowered, &runtime)) {
        report.problems.push(Finding {
            text: format!("{}: {problem}", launch.name),
            parts: json!({"machine": launch.name, "option": problem.option, "reason": problem.message}),
        });
    }
    Ok(())
}

fn check_on_hypervisor(spec: &CheckedSpec, facts: &HostFacts, report: &mut Report) -> Option<Launch> {
    match lower(spec, facts, spec.hypervisor) {
        Ok(launch) => {
            let mut others = runs_on(spec, facts);
            others.retain(|hypervisor| *hypervisor != spec.hypervisor);
            report.machines.push((spec.name.clone(), spec.hypervisor, others));
            report.warnings.extend_from_slice(&launch.warnings);
            Some(launch)
        }
        Err(refusals) => {
            report.hints.push(format!("{}: {}", spec.name, refusals.hint()));
            report.problems.extend(refusals.refusals.iter().map(|refusal| Finding {
                text: refusal.to_string(),
                parts: json!({
                    "machine": refusal.machine, "option": refusal.option, "hypervisor": refusal.hypervisor,
                    "reason": refusal.reason, "supportedBy": refusal.supported_by,
                }),
            }));
            None
        }
    }
}

fn print_json(report: &Report) -> Result<(), Failure> {
    let machines = report
        .machines
        .iter()
        .map(|(name, hypervisor, others)| json!({"name": name, "hypervisor": hypervisor, "others": others}));
    let problems = report.problems.iter().map(|problem| problem.parts.clone());
    let document = json!({
        "machines": machines.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
        "warnings": report.warnings,
    });
    print(format!("{document:#}\n"))?;
    // The problems are already printed.
    if report.problems.is_empty() { Ok(()) } else { Err(Failure::input_problems(Vec::new()).with_code(BAD_INPUT)) }
}

fn print_text(report: Report) -> Result<(), Failure> {
    program::output::warn(&report.warnings);
    if !report.problems.is_empty() {
        let hint = (!report.hints.is_empty()).then(|| report.hints.join("; "));
        return Err(Failure::input_problems(report.problems.into_iter().map(|problem| problem.text).collect())
            .with_optional_hint(hint));
    }
    let lines = report.machines.iter().map(|(name, hypervisor, others)| match others.as_slice() {
        [] => format!("{name}: runs on {hypervisor}\n"),
        others => format!("{name}: runs on {hypervisor}; also on {}\n", names(others)),
    });
    print(lines.collect::<String>())
}
