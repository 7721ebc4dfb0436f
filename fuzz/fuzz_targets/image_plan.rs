//! Invariant: for any bytes, an accepted plan is unchanged when it is written and read again.

#![no_main]

use imagebuilder::plan::ImagePlan;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match ImagePlan::from_json(text) {
        Ok(plan) => {
            assert!(!plan.paths.is_empty() && plan.store_dir.is_absolute());
            let written = plan.to_json().expect("a plan can be written");
            assert_eq!(ImagePlan::from_json(&written).expect("what was written can be read"), plan);
        }
        Err(error) => drop(error.to_string()),
    }
});
