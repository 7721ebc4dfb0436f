//! Attacks by clients of the cache service, one per test. The service continues to serve other clients.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod service;

use imagebuilder::cache_service::protocol::MAX_MESSAGE_BYTES;
use nix::fcntl::{Flock, FlockArg};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use service::{Making, Received, Running, TestClient, base_name, planned, request, wait_until};
use std::fs::File;
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Returns the request for the first store path with a part of its text replaced.
fn changed(old: &str, new: &str) -> Vec<u8> {
    let text = String::from_utf8(request(0)).unwrap();
    assert!(text.contains(old), "{old} is not in {text}");
    text.replacen(old, new, 1).into_bytes()
}

fn answer_to(service: &Running, message: &[u8]) -> String {
    let client = service.client();
    client.send(message);
    client.receive().reason()
}

#[test]
fn names_that_point_out_of_the_store_are_refused() {
    let service = Running::new();
    for name in ["../../etc/shadow", "/etc/shadow", "..", ".", "", "a/b", &format!("{}/../x", base_name(0))] {
        assert_eq!(answer_to(&service, &changed(&base_name(0), name)), "malformed", "{name}");
    }
    assert!(service.packs.begun().is_empty());
    service.client().expect_pack(0);
}

#[test]
fn a_path_that_is_being_built_is_refused() {
    let service = Running::new();
    service.nix.remove(&base_name(0));
    let client = service.client();
    assert_eq!(client.ask(0).reason(), "notValid");
    assert!(service.packs.begun().is_empty());
    // The same client can request other paths, and this one after it is built.
    client.expect_pack(1);
    service.nix.add(&base_name(0), [7; 32], 120);
    client.expect_pack(0);
}

#[test]
fn the_pack_of_a_path_that_is_no_longer_valid_is_refused() {
    let service = Running::new();
    service.client().expect_pack(0);
    service.nix.remove(&base_name(0));
    assert_eq!(service.client().ask(0).reason(), "notValid");
}

#[test]
fn a_path_whose_content_differs_from_the_clients_is_refused() {
    let service = Running::new();
    service.nix.add(&base_name(0), [8; 32], 120);
    assert_eq!(service.client().ask(0).reason(), "otherContent");
    assert!(service.packs.begun().is_empty());
}

#[test]
fn a_client_of_another_encoder_or_version_is_refused() {
    let service = Running::new();
    let client = service.client();
    client.send(&changed("fake-1", "fake-2"));
    assert_eq!(client.receive().reason(), "encoder");
    client.expect_pack(0);
    client.send(&changed("\"version\":1", "\"version\":2"));
    assert_eq!(client.receive().reason(), "version");
    assert!(client.receive().is_end());
}

#[test]
fn a_path_is_protected_from_garbage_collection_while_its_pack_is_made() {
    let service = Running::new();
    service.client().expect_pack(0);
    assert_eq!(service.nix.roots(), [base_name(0)]);
    // An existing pack needs no store path.
    service.client().expect_pack(0);
    assert_eq!(service.nix.roots().len(), 1);
}

#[test]
fn invalid_messages_end_the_connection() {
    let service = Running::new();
    let long = [b" ".repeat(MAX_MESSAGE_BYTES), request(0)].concat();
    let cut = request(0)[..40].to_vec();
    for message in [&b"\0\xff\xfe"[..], b"{}", b"[[[[[[[[[[", &b"[".repeat(MAX_MESSAGE_BYTES), &cut, &long, b"null"] {
        let client = service.client();
        client.send(message);
        // A message that is too long gets no answer.
        let is_long = message.len() > MAX_MESSAGE_BYTES;
        if !is_long {
            client.receive().reason();
        }
        assert!(client.receive().is_end());
    }
    // An empty message also ends a connection.
    let client = service.client();
    client.send(b"");
    assert!(client.receive().is_end());
    service.client().expect_pack(0);
}

#[test]
fn descriptors_that_a_client_sends_are_not_kept() {
    let service = Running::new();
    let client = service.client();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let descriptors = [writer.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let message = request(0);
    sendmsg(&client.0, &[IoSlice::new(&message)], &mut ancillary, SendFlags::empty()).unwrap();
    drop(writer);
    assert!(matches!(client.receive(), Received::Answer(_, Some(_))));
    // The connection is still open, but the service has closed the other end of the pipe.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_silent_client_is_dropped() {
    let service = Running::with(|limits| limits.silence = Duration::from_secs(3));
    let client = service.client();
    assert!(client.receive().is_end());
    service.client().expect_pack(0);
}

#[test]
fn a_client_that_does_not_read_is_dropped_before_many_descriptors_are_queued() {
    let service = Running::new();
    let client = service.client();
    // Sending blocks when the service stops reading, and fails when the service has dropped the client.
    let mut sent = 0;
    while sent < 10_000 && send(&client.0, &request(0), SendFlags::NOSIGNAL).is_ok() {
        sent += 1;
    }
    let mut packs = 0;
    while let Ok((message, descriptor)) = client.receive_raw()
        && !message.is_empty()
    {
        packs += usize::from(descriptor.is_some());
    }
    assert!(sent < 10_000 && packs < 32, "{sent} requests were sent, {packs} packs were queued");
    service.client().expect_pack(0);
}

#[test]
fn a_pack_cannot_be_changed_through_its_descriptor() {
    let service = Running::new();
    let client = service.client();
    client.send(&request(0));
    let (_, pack) = client.receive_raw().unwrap();
    let mut pack = pack.unwrap();
    assert!(pack.write(b"x").is_err() && pack.set_len(0).is_err());
    if nix::unistd::geteuid().is_root() {
        // Another user cannot open it again for writing, nor change its mode.
        for command in ["echo x >/proc/self/fd/0", "chmod 777 /proc/self/fd/0"] {
            let stdin = Stdio::from(pack.try_clone().unwrap());
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", command]).stdin(stdin).stderr(Stdio::null());
            std::os::unix::process::CommandExt::uid(&mut shell, 65_533);
            assert!(!shell.status().unwrap().success(), "{command}");
        }
    }
    service.client().expect_pack(0);
}

#[test]
fn a_clients_use_of_its_descriptor_does_not_affect_others() {
    let service = Running::new();
    let client = service.client();
    client.send(&request(0));
    let (_, pack) = client.receive_raw().unwrap();
    let mut pack = pack.unwrap();
    pack.seek(SeekFrom::End(1000)).unwrap();
    let locked = Flock::lock(pack, FlockArg::LockExclusiveNonblock).unwrap();
    // Neither the file position nor a lock affects others.
    service.client().expect_pack(0);
    drop(locked);
}

#[test]
fn a_pack_is_made_once_for_all_clients_that_request_it() {
    let service = Running::new();
    service.packs.set(0, Making::Takes);
    let clients: Vec<TestClient> = (0..10).map(|_| service.client()).collect();
    clients.iter().for_each(|client| client.send(&request(0)));
    wait_until("the making begins", || !service.packs.begun().is_empty());
    service.packs.gate.store(true, Ordering::SeqCst);
    for client in &clients {
        assert!(matches!(client.receive(), Received::Answer(_, Some(content)) if content == base_name(0)));
    }
    assert_eq!(service.packs.begun(), [base_name(0)]);
}

#[test]
fn one_client_with_a_thousand_requests_does_not_starve_another() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("only root can be two users");
    }
    let service = Running::with(|limits| limits.clients_per_user = 12);
    let hostile: Vec<TestClient> = (0..12).map(|_| service.client_of(65_531)).collect();
    for (number, client) in hostile.iter().enumerate() {
        service.packs.set(number, Making::Takes);
        client.send(&request(number));
    }
    wait_until("the hostile client keeps its makers busy", || !service.packs.begun().is_empty());
    // The requests of the other user are served although none of the first user's ever ends.
    let other = service.client_of(65_532);
    for number in 100..110 {
        other.expect_pack(number);
    }
    assert_eq!(service.packs.begun().iter().filter(|name| **name < base_name(100)).count(), 1);
    // This includes a pack that is already queued for the first user.
    service.packs.set(11, Making::Works);
    other.expect_pack(11);
}

#[test]
fn a_user_with_too_many_connections_is_refused_further_ones() {
    let service = Running::with(|limits| limits.clients_per_user = 3);
    let clients: Vec<TestClient> = (0..3).map(|_| service.client()).collect();
    clients.iter().for_each(|client| client.expect_pack(0));
    assert_eq!(service.client().receive().reason(), "busy");
    drop(clients);
    wait_until("there is room again", || {
        let client = service.client();
        // The service may close the connection of a refused client before the client sends its request.
        send(&client.0, &request(0), SendFlags::NOSIGNAL).is_ok()
            && matches!(client.receive(), Received::Answer(_, Some(_)))
    });
}

#[test]
fn all_users_of_a_user_namespace_share_one_limit() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("only root can be several users");
    }
    let service = Running::with(|limits| limits.clients_per_user = 3);
    let clients: Vec<TestClient> = (0..3).map(|number| service.client_of(100_000 + number)).collect();
    clients.iter().for_each(|client| client.expect_pack(0));
    assert_eq!(service.client_of(100_500).receive().reason(), "busy");
    service.client_of(1000).expect_pack(0);
}

#[test]
fn the_service_accepts_a_limited_number_of_clients() {
    let service = Running::with(|limits| limits.clients = 3);
    let clients: Vec<TestClient> = (0..3).map(|_| service.client()).collect();
    clients.iter().for_each(|client| client.expect_pack(0));
    assert_eq!(service.client().receive().reason(), "busy");
}

#[test]
fn work_is_cancelled_when_no_client_waits_for_it() {
    let service = Running::new();
    service.packs.set(0, Making::Takes);
    let (first, second) = (service.client(), service.client());
    first.send(&request(0));
    wait_until("the making begins", || !service.packs.begun().is_empty());
    second.send(&request(0));
    second.send(&request(1));
    drop(first);
    drop(second);
    wait_until("the making is cancelled", || service.packs.cancelled.load(Ordering::SeqCst) == 1);
    // A new request starts it again.
    service.packs.set(0, Making::Works);
    service.client().expect_pack(0);
}

#[test]
fn a_request_that_takes_too_long_is_refused_and_its_work_is_cancelled() {
    let service = Running::with(|limits| limits.request_time = Duration::from_secs(3));
    service.packs.set(0, Making::Takes);
    let client = service.client();
    assert_eq!(client.ask(0).reason(), "tooSlow");
    wait_until("the making is cancelled", || service.packs.cancelled.load(Ordering::SeqCst) == 1);
    client.expect_pack(1);
}

#[test]
fn requests_of_a_client_are_answered_one_after_the_other() {
    let service = Running::new();
    let client = service.client();
    (0..5).for_each(|number| client.send(&request(number)));
    for number in 0..5 {
        assert!(matches!(client.receive(), Received::Answer(_, Some(content)) if content == base_name(number)));
    }
}

#[test]
fn a_pack_that_cannot_be_made_is_refused_and_a_defect_costs_one_request() {
    let service = Running::new();
    service.packs.set(0, Making::Fails);
    service.packs.set(1, Making::Panics);
    let client = service.client();
    for number in [0, 1, 0, 1, 1, 1] {
        assert_eq!(client.ask(number).reason(), "failed");
    }
    client.expect_pack(2);
    let printed = service.printed.lock().unwrap().clone();
    assert!(printed[0].contains(&base_name(0)) && printed[0].contains("no space left"), "{printed:?}");
    assert!(planned(0).nar_hash.is_some());
}

#[test]
fn a_client_gets_a_message_while_the_service_works() {
    let service = Running::new();
    service.packs.set(0, Making::Takes);
    let client = service.client();
    client.send(&request(0));
    let (message, _) = client.receive_raw().unwrap();
    assert_eq!(String::from_utf8(message).unwrap(), r#"{"answer":"working","version":1}"#);
    service.packs.gate.store(true, Ordering::SeqCst);
    assert!(matches!(client.receive(), Received::Answer(_, Some(_))));
}

#[test]
fn an_unused_service_ends_and_one_in_use_does_not() {
    let service = Running::with(|limits| limits.idle_exit = Some(Duration::from_secs(3)));
    let client = service.client();
    client.expect_pack(0);
    std::thread::sleep(Duration::from_secs(4));
    client.expect_pack(1);
    drop(client);
    service.wait();
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let first = imagebuilder::cache_service::listener::make(&path).unwrap();
    let error = imagebuilder::cache_service::listener::make(&path).unwrap_err().to_string();
    assert!(error.contains("another process already listens on"), "{error}");
    // A killed service removes nothing.
    std::mem::forget(first.1);
    drop(first.0);
    assert!(path.exists());
    drop(imagebuilder::cache_service::listener::make(&path).unwrap());
    assert!(!path.exists());
    File::create(&path).unwrap();
    assert!(imagebuilder::cache_service::listener::make(&path).is_err());
    assert_eq!(rustix::fs::stat(&path).map(|found| found.st_size), Ok::<_, Errno>(0));
}
