//! Broken cache services: the client of a build always ends in time, with a pack, without one, or with an error that
//! says what happened. After an error that concerns more than one request, it sends no more requests.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod service;

use imagebuilder::cache_service::client::{CacheClient, ClientError, Timeouts};
use imagebuilder::cache_service::listener;
use imagebuilder::cache_service::protocol::{Answer, Reason, WantedFile};
use imagebuilder::settings::ImageSettings;
use rustix::net::{SendFlags, send};
use service::{ENCODER, LONG, Making, Running, base_name, broken, planned, say};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

const SHORT_TIMEOUTS: Timeouts = Timeouts { silence: Duration::from_millis(500), request: Duration::from_millis(1500) };

fn fetch(client: &CacheClient, number: usize) -> Result<Option<String>, ClientError> {
    let pack = client.fetch(WantedFile::Pack, &planned(number), &ImageSettings::default(), ENCODER)?;
    Ok(pack.map(|mut pack| {
        let mut content = String::new();
        pack.read_to_string(&mut content).unwrap();
        content
    }))
}

fn connect(path: &Path) -> CacheClient {
    CacheClient::connect_with(path, SHORT_TIMEOUTS).unwrap().unwrap()
}

/// Returns the error of the first request. The second request must return no error and no pack.
fn error_of(path: &Path) -> String {
    let client = connect(path);
    let error = fetch(&client, 0).unwrap_err();
    assert!(fetch(&client, 1).unwrap().is_none(), "a broken service is asked again");
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

fn open(path: &str) -> OwnedFd {
    File::open(path).unwrap().into()
}

#[test]
fn a_build_gets_the_packs_that_exist_and_continues_without_the_others() {
    let service = Running::new();
    service.nix.remove(&base_name(1));
    service.nix.add(&base_name(2), [8; 32], 120);
    let client = CacheClient::connect(&service.socket()).unwrap().unwrap();
    assert_eq!(fetch(&client, 0).unwrap(), Some(base_name(0)));
    assert_eq!(fetch(&client, 1).unwrap(), None);
    assert_eq!(fetch(&client, 2).unwrap(), None);
    // The errors concerned only those paths.
    assert_eq!(fetch(&client, 4).unwrap(), Some(base_name(4)));
    let without_hash = imagebuilder::plan::PlannedPath { nar_hash: None, ..planned(5) };
    assert!(client.fetch(WantedFile::Pack, &without_hash, &ImageSettings::default(), ENCODER).unwrap().is_none());
    // Packs of another encoder would change the image.
    assert!(client.fetch(WantedFile::Pack, &planned(5), &ImageSettings::default(), "other").is_err());
    assert!(fetch(&client, 6).unwrap().is_none());
}

#[test]
fn a_service_that_cannot_make_packs_is_not_asked_again() {
    let service = Running::new();
    service.packs.set(0, Making::Fails);
    let error = error_of(&service.socket());
    assert!(error.contains("refused the request: no space left"), "{error}");
    assert_eq!(service.packs.begun(), [base_name(0)]);
}

#[test]
fn threads_share_a_few_connections() {
    let service = Running::new();
    let client = CacheClient::connect(&service.socket()).unwrap().unwrap();
    thread::scope(|scope| {
        for first in 0..16 {
            let client = &client;
            scope.spawn(move || {
                for number in first..first + 20 {
                    assert_eq!(fetch(client, number).unwrap(), Some(base_name(number)));
                }
            });
        }
    });
}

#[test]
fn a_connection_that_the_service_has_closed_is_opened_again() {
    let service = Running::with(|limits| limits.silence = Duration::from_millis(200));
    let client = CacheClient::connect(&service.socket()).unwrap().unwrap();
    for number in 0..3 {
        assert_eq!(fetch(&client, number).unwrap(), Some(base_name(number)));
        thread::sleep(Duration::from_millis(700));
    }
}

#[test]
fn a_build_waits_for_a_service_that_works() {
    let service = Running::new();
    service.packs.set(0, Making::Takes);
    // Longer than the service is silent, but shorter than it works.
    let timeouts = Timeouts { silence: Duration::from_millis(3500), request: LONG };
    let client = CacheClient::connect_with(&service.socket(), timeouts).unwrap().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(5000));
            service.packs.gate.store(true, Ordering::SeqCst);
        });
        assert_eq!(fetch(&client, 0).unwrap(), Some(base_name(0)));
    });
}

#[test]
fn a_missing_socket_is_no_error_but_another_file_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    assert!(CacheClient::connect(&path).unwrap().is_none());
    File::create(&path).unwrap();
    assert!(matches!(CacheClient::connect(&path), Err(ClientError::Connect { .. })));
    std::fs::remove_file(&path).unwrap();
    // The socket of a service that has ended.
    std::mem::forget(listener::make(&path).unwrap().1);
    assert!(matches!(CacheClient::connect(&path), Err(ClientError::Connect { .. })));
}

#[test]
fn a_service_that_does_not_answer_is_abandoned_in_time() {
    let (_directory, path) = broken(|_| {});
    assert!(error_of(&path).contains("did not answer in time"));
}

#[test]
fn a_service_that_works_for_ever_is_abandoned_in_time() {
    let (_directory, path) = broken(|client| {
        let client = client.try_clone().unwrap();
        thread::spawn(move || {
            let message = Answer::WORKING.message().unwrap();
            while send(&client, &message, SendFlags::NOSIGNAL).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
    });
    assert!(error_of(&path).contains("did not answer in time"));
}

#[test]
fn a_service_that_does_not_accept_is_abandoned_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    let _listener = listener::make(&path).unwrap();
    let client = connect(&path);
    assert!(matches!(fetch(&client, 0), Err(ClientError::Silent { .. })));
}

#[test]
fn a_service_that_closes_the_connection_is_asked_only_once_more() {
    let (_directory, path) = broken(|client| rustix::net::shutdown(client, rustix::net::Shutdown::Both).unwrap());
    assert!(error_of(&path).contains("ended the connection"));
}

#[test]
fn a_message_that_is_not_an_answer_is_an_error() {
    for message in [&b"\0\xff"[..], b"{}", b"{\"version\":1}", br#"{"answer":"yes","version":1}"#, &[b' '; 8000]] {
        let message = message.to_vec();
        let (_directory, path) = broken(move |client| say(client, &message, &[]));
        assert!(error_of(&path).contains("is not a cache service of this version"));
    }
    let (_directory, path) = broken(|client| say(client, br#"{"answer":"pack","version":2}"#, &[]));
    assert!(error_of(&path).contains("has version 2, but this program supports only version 1"));
}

#[test]
fn a_pack_without_a_file_or_with_another_type_of_file_is_an_error() {
    type Descriptors = fn() -> Vec<OwnedFd>;
    let cases: [(Descriptors, &str); 6] = [
        (Vec::new, "with 0 descriptors"),
        (|| vec![open("/dev/null"), open("/dev/null")], "with 2 descriptors"),
        (|| (0..8).map(|_| open("/dev/null")).collect(), "descriptors"),
        (|| vec![open("/dev/zero")], "not a regular file"),
        (|| vec![open("/")], "not a regular file"),
        (|| vec![std::io::pipe().unwrap().0.into()], "not a regular file"),
    ];
    for (descriptors, expected) in cases {
        let (_directory, path) = broken(move |client| say(client, &Answer::PACK.message().unwrap(), &descriptors()));
        let error = error_of(&path);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_descriptor_with_a_refusal_is_an_error() {
    let (_directory, path) = broken(|client| {
        say(client, &Answer::refused(Reason::Failed, "").message().unwrap(), &[open("/dev/null")]);
    });
    assert!(error_of(&path).contains("with 1 descriptors"));
}
