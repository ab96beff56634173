//! Turns of conversations with guests: every question and every answer.

use unasnap_protocol::access::*;

use super::*;

pub fn asks() -> Vec<Ask> {
    let command = vec![b"ls".to_vec(), b"-l".to_vec()].try_into().unwrap();
    let path: GuestPath = "/etc/motd".parse().unwrap();
    vec![
        Ask::Exec(command, 60),
        Ask::Put(path.clone(), File { mode: 0o644, bytes: 300 }),
        Ask::Get(path),
        Ask::More(16384),
        Ask::Data(chunk()),
        Ask::End([9; 32]),
        Ask::Close,
    ]
}

fn chunk() -> Chunk {
    b"hello\n".to_vec().try_into().unwrap()
}

fn said() -> Vec<Said> {
    let refused = |kind| Said::Refused(Refusal { kind, text: "why".to_owned() });
    vec![
        Said::NotYet,
        Said::Opened(Opened { chunk: 16384, file: Some(File { mode: 0o644, bytes: 300 }) }),
        Said::Output(Stream::Out, chunk()),
        Said::Output(Stream::Err, chunk()),
        Said::Exited(Exit::Code(3)),
        Said::Exited(Exit::Signal(9)),
        Said::Exited(Exit::TimedOut),
        Said::Data(chunk()),
        Said::Taken,
        Said::Done([9; 32]),
        Said::Closed,
        refused(RefusalKind::NotAllowed),
        refused(RefusalKind::NotFound),
        refused(RefusalKind::NoSpace),
        refused(RefusalKind::Gone),
        refused(RefusalKind::Busy),
        refused(RefusalKind::Failed),
    ]
}

#[test]
fn what_is_handed_on() {
    let turn = Turn { session: 300, number: 2, ask: Ask::More(16384) };
    pin!(AccessOrder, envelope(), [AccessOrder::Turn(turn), AccessOrder::Console(20)]);
    pin!(
        AccessAnswer,
        envelope(),
        [
            AccessAnswer::Said(Said::Taken),
            AccessAnswer::Console(b"login:".to_vec()),
            AccessAnswer::Failed(failure()),
        ]
    );
}

/// Enums travel by the order of their variants.
#[test]
fn turns() {
    let mut lines = String::new();
    let mut pin = |bytes: Vec<u8>, shown: String| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(lines, "{shown} {hex}").unwrap();
    };
    for ask in asks() {
        let bytes = postcard::to_allocvec(&ask).unwrap();
        assert_eq!(postcard::from_bytes::<Ask>(&bytes), Ok(ask.clone()));
        pin(bytes, format!("{ask:?}"));
    }
    for said in said() {
        let bytes = postcard::to_allocvec(&said).unwrap();
        assert_eq!(postcard::from_bytes::<Said>(&bytes), Ok(said.clone()));
        pin(bytes, format!("{said:?}"));
    }
    let place = Place { vm: name("vm1"), host: name("h1") };
    let replies = [
        AccessReply::Begun(vec![place]),
        AccessReply::Said(name("vm1"), Said::Taken),
        AccessReply::Failed(name("vm1"), failure()),
    ];
    for reply in replies {
        pin(Reply::Access(reply.clone()).encode(&()), format!("{reply:?}"));
    }
    let vms = vec![Pattern::new("ring-*").unwrap()].try_into().unwrap();
    let open = AccessRequest::Open(vms, Ask::More(1));
    pin(Request::Access(open).encode(&()), "Open".to_owned());
    insta::assert_snapshot!("turns", lines);
}
