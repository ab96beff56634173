//! An agent without a port: requests come by `unasnap-guest relay`.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::Output,
};

use nix::mount::{MsFlags, mount};
use unasnap_protocol::{
    frame::{Decoder, MAX_GUEST_PAYLOAD, encode},
    guest::{GuestReply, GuestRequest, ReplyHead, RequestHead, WordState},
    relay,
};

use crate::bench::{Bench, wait_for};

/// A guest whose `/run` is its own, with an agent that has no port.
fn without_port() -> Bench {
    let mut bench = Bench::new();
    bench.kill();
    mount(None::<&str>, "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    bench.start_without_port();
    wait_for("the agent to listen", || UnixStream::connect(relay::SOCKET).ok());
    bench
}

fn word_of(request: &GuestRequest, sequence: u64) -> String {
    relay::word(&request.encode(&RequestHead { sequence, incarnation: 1 }))
}

fn reply_in(output: &Output) -> (ReplyHead, GuestReply) {
    assert!(output.status.success(), "{}", complaint(output));
    let mut decoder = Decoder::strict(MAX_GUEST_PAYLOAD);
    decoder.push(&relay::frame(std::str::from_utf8(&output.stdout).unwrap()).unwrap());
    GuestReply::decode(&decoder.next_frame().unwrap().unwrap()).unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn word_now(bench: &Bench) -> WordState {
    let (_, reply) = reply_in(&bench.command_with(&["relay", &word_of(&GuestRequest::Identify(()), 1)]));
    let GuestReply::Identity(identity) = reply else { panic!("{reply:?}") };
    identity.word
}

#[test]
fn a_request_on_the_command_line_is_answered() {
    let bench = without_port();
    let wanted = WordState::colouring(4);
    let output = bench.command_with(&["relay", &word_of(&GuestRequest::SetWord(wanted), 77)]);
    assert_eq!(reply_in(&output), (ReplyHead { sequence: 77 }, GuestReply::Word(wanted)));
    assert_eq!(word_now(&bench), wanted);
}

#[test]
fn a_request_in_a_file_is_answered_and_the_file_is_gone() {
    let bench = without_port();
    let wanted = WordState::colouring(5);
    fs::write(relay::REQUEST_FILE, word_of(&GuestRequest::SetWord(wanted), 3)).unwrap();
    let output = bench.command_with(&["relay", "--file", relay::REQUEST_FILE]);
    assert_eq!(reply_in(&output), (ReplyHead { sequence: 3 }, GuestReply::Word(wanted)));
    assert!(!Path::new(relay::REQUEST_FILE).exists());
    let again = bench.command_with(&["relay", "--file", relay::REQUEST_FILE]);
    assert!(!again.status.success() && complaint(&again).contains("cannot read"), "{}", complaint(&again));
}

#[test]
fn only_root_gets_there() {
    let _bench = without_port();
    assert_eq!(fs::metadata(relay::FOLDER).unwrap().permissions().mode() & 0o777, 0o700);
}

/// None of it costs the agent its word, or the next request its answer.
#[test]
fn what_is_no_request_is_refused_in_words() {
    let bench = without_port();
    let unknown = relay::word(&encode(999, b"what is this"));
    for (word, words) in [("nonsense", "no message of unasnap's"), (&*unknown, "no answer from /run/unasnap")]
    {
        let output = bench.command_with(&["relay", word]);
        assert!(!output.status.success() && complaint(&output).contains(words), "{}", complaint(&output));
    }
    fs::write(relay::REQUEST_FILE, vec![b'A'; 1 << 20]).unwrap();
    let output = bench.command_with(&["relay", "--file", relay::REQUEST_FILE]);
    assert!(complaint(&output).contains("no message of unasnap's"), "{}", complaint(&output));
    for torn in [b"USNP".as_slice(), b"", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = UnixStream::connect(relay::SOCKET).unwrap();
        stream.write_all(torn).unwrap();
    }
    // Says nothing, and stays.
    let _silent = UnixStream::connect(relay::SOCKET).unwrap();
    assert_eq!(word_now(&bench), WordState::idle(0));
}

#[test]
fn an_agent_that_is_not_there_is_named_and_the_next_one_is_found() {
    let mut bench = without_port();
    bench.kill();
    let output = bench.command_with(&["relay", &word_of(&GuestRequest::Identify(()), 1)]);
    assert!(complaint(&output).contains("does unasnap-guest run, without --port?"), "{}", complaint(&output));
    bench.start_without_port();
    wait_for("the agent to listen", || UnixStream::connect(relay::SOCKET).ok());
    assert_eq!(word_now(&bench), WordState::idle(0));
}
