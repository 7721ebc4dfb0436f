//! Invariant: a message of a client to the cache service is refused, or is a request for one store path with a NAR
//! hash, which is unchanged when it is written and read again. The answers of the service and of Nix's daemon are read
//! from the same bytes.

#![no_main]

use fuzz::planned_path;
use imagebuilder::cache_service::nix_daemon::read_answer;
use imagebuilder::cache_service::protocol::{Answer, MAX_MESSAGE_BYTES, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = read_answer(bytes, &planned_path().path).map_err(|error| error.to_string());
    if let Ok(answer) = Answer::parse(bytes) {
        let message = answer.message().expect("a message");
        assert_eq!(Answer::parse(&message).expect("the same answer"), answer);
    }
    match Request::parse(bytes) {
        Ok(request) => {
            assert!(bytes.len() <= MAX_MESSAGE_BYTES && request.store_path.nar_hash.is_some());
            let name = request.store_path.path.base_name();
            assert!(!name.contains('/') && name.len() > 33);
            let message = request.message().expect("a message");
            assert_eq!(Request::parse(&message).expect("the same request"), request);
        }
        Err(error) => drop(error.to_string()),
    }
});
