//! Invariant: for any bytes, a machine spec is refused with reasons, or becomes a command on every hypervisor that
//! supports it. The command has no zero bytes, equals the explained one for a shell, and is unchanged when it is
//! written and read again.

#![no_main]

use launcher::explain::{OtherHypervisors, explain};
use launcher::facts::HostFacts;
use launcher::hypervisor::lower;
use launcher::launch::Launch;
use launcher::spec::{Hypervisor, parse::parse};
use launcher::validate::{check, check_across};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let spec = match parse(text) {
        Ok(spec) => spec,
        Err(errors) => {
            assert!(!errors.is_empty() && errors.iter().all(|error| !error.to_string().is_empty()));
            return;
        }
    };
    let written = serde_json::to_string(&spec).expect("a spec can be written");
    assert_eq!(parse(&written).expect("what was written can be read"), spec);
    let checked = match check(&spec) {
        Ok(checked) => checked,
        Err(problems) => {
            assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.to_string().is_empty()));
            return;
        }
    };
    assert!(!checked.name.contains(['/', '\n', '\0']) && !checked.name.starts_with(['.', '-']));
    assert!(check_across(&[&checked, &checked]).iter().all(|problem| !problem.to_string().is_empty()));
    let facts = HostFacts::assumed("/var/lib/microvms/fuzz".into());
    for hypervisor in Hypervisor::ALL {
        match lower(&checked, &facts, hypervisor) {
            Ok(launch) => read_fields(&launch, &explain(&checked, &launch, &OtherHypervisors::new())),
            Err(refusals) => assert!(!refusals.refusals.is_empty() && !refusals.hint().is_empty()),
        }
    }
});

fn read_fields(launch: &Launch, explained: &str) {
    let words = launch.arguments.iter().chain(launch.environment.keys()).chain(launch.environment.values());
    assert!(words.chain([&launch.process_name]).all(|word| !word.contains('\0')));
    assert!(explained.contains("\nCommand:\n"));
    let written = serde_json::to_string(launch).expect("a launch can be written");
    assert_eq!(&serde_json::from_str::<Launch>(&written).expect("what was written can be read"), launch);
}
