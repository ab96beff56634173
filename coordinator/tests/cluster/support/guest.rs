//! Guests for tests: what an operator would find behind a host's agent.

use std::collections::BTreeMap;

use unasnap_protocol::access::{
    AccessAnswer, AccessOrder, Ask, Chunk, CommandLine, Exit, File, Opened, Refusal, RefusalKind, Said,
    Stream, Turn,
};
use unasnap_protocol::control::{Envelope, Failure, FailureKind, Phase};

/// Most bytes of a turn: small, so that there are many.
pub const CHUNK: u16 = 1000;

/// All guests of a host: they share their files.
#[derive(Default)]
pub struct Guests {
    pub files: BTreeMap<String, (u32, Vec<u8>)>,
    /// Conversations that were closed.
    pub closed: usize,
    /// Questions of all kinds.
    pub asked: usize,
    open: BTreeMap<(String, u64), Open>,
}

/// What a conversation is about.
enum Open {
    Running { left: Vec<Said> },
    Coming { path: String, file: File, bytes: Vec<u8> },
    Going { bytes: Vec<u8>, at: usize },
}

impl Guests {
    /// `None`: nothing is ever answered.
    pub fn answer(&mut self, envelope: &Envelope, order: AccessOrder) -> Option<AccessAnswer> {
        self.asked += 1;
        match order {
            AccessOrder::Console(lines) => {
                let lines: Vec<_> = (1..=lines).map(|number| format!("line {number}\r\n")).collect();
                Some(AccessAnswer::Console(lines.concat().into_bytes()))
            }
            AccessOrder::Turn(turn) => match self.turn(envelope.vm.as_str(), turn)? {
                Said::Refused(Refusal { text, .. }) => {
                    let failure = Failure::new(FailureKind::NotAllowed, Phase::Access, text);
                    Some(AccessAnswer::Failed(failure))
                }
                said => Some(AccessAnswer::Said(said)),
            },
        }
    }

    fn turn(&mut self, vm: &str, Turn { session, ask, .. }: Turn) -> Option<Said> {
        let key = (vm.to_owned(), session);
        let opened = |file| Said::Opened(Opened { chunk: CHUNK, file });
        Some(match ask {
            Ask::Exec(command, seconds) => {
                let left = run(vm, &command, seconds)?;
                self.open.insert(key, Open::Running { left });
                opened(None)
            }
            Ask::Put(path, file) => {
                let path = path.as_str().to_owned();
                self.open.insert(key, Open::Coming { path, file, bytes: Vec::new() });
                opened(None)
            }
            Ask::Get(path) => {
                let Some((mode, bytes)) = self.files.get(path.as_str()).cloned() else {
                    let text = format!("there is no {}", path.as_str());
                    return Some(Said::Refused(Refusal { kind: RefusalKind::NotFound, text }));
                };
                // One that lies about its length.
                let lie = if path.as_str() == "/lie" { 1 } else { 0 };
                let file = File { mode, bytes: bytes.len() as u64 - lie };
                self.open.insert(key, Open::Going { bytes, at: 0 });
                opened(Some(file))
            }
            Ask::Close => {
                self.closed += 1;
                self.open.remove(&key);
                Said::Closed
            }
            ask => self.go_on(&key, ask)?,
        })
    }

    fn go_on(&mut self, key: &(String, u64), ask: Ask) -> Option<Said> {
        match (self.open.get_mut(key)?, ask) {
            (Open::Running { left }, Ask::More(_)) => (!left.is_empty()).then(|| left.remove(0)),
            (Open::Coming { bytes, .. }, Ask::Data(chunk)) => {
                assert!(chunk.bytes().len() <= usize::from(CHUNK));
                bytes.extend_from_slice(chunk.bytes());
                Some(Said::Taken)
            }
            (Open::Coming { path, file, bytes }, Ask::End(digest)) => {
                assert_eq!(file.bytes, bytes.len() as u64);
                self.files.insert(path.clone(), (file.mode, bytes.clone()));
                Some(Said::Done(digest))
            }
            (Open::Going { bytes, at }, Ask::More(room)) => {
                let end = bytes.len().min(*at + usize::from(room));
                let chunk = bytes[*at..end].to_vec();
                *at = end;
                let digest = *blake3::hash(bytes).as_bytes();
                Some(if chunk.is_empty() {
                    Said::Done(digest)
                } else {
                    Said::Data(chunk.try_into().unwrap())
                })
            }
            (_, ask) => panic!("{ask:?} does not belong here"),
        }
    }
}

fn chunk(text: &str) -> Chunk {
    text.as_bytes().to_vec().try_into().unwrap()
}

/// What a program says, and how it ends.
fn run(vm: &str, command: &CommandLine, seconds: u32) -> Option<Vec<Said>> {
    let word = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let arguments: Vec<_> = command.arguments().iter().map(|argument| word(argument)).collect();
    let exited = |code: &str| Said::Exited(Exit::Code(code.parse().unwrap()));
    Some(match word(command.program()).as_str() {
        "echo" => {
            let line = format!("{vm} {seconds} {}\n", arguments.join("|"));
            let (first, rest) = line.split_at(3);
            let out = |text| Said::Output(Stream::Out, chunk(text));
            vec![out(first), Said::NotYet, out(rest), Said::Output(Stream::Err, chunk("done\n")), exited("0")]
        }
        "exit" => vec![exited(&arguments[0])],
        // A different code in each VM: the number at the end of its name.
        "differ" => vec![exited(&vm[vm.len() - 1..])],
        "killed" => vec![Said::Exited(Exit::Signal(9))],
        "late" => vec![Said::Exited(Exit::TimedOut)],
        "flood" => vec![Said::Output(Stream::Out, chunk(&"x".repeat(1000))); 1100],
        "refuse" => vec![Said::Refused(Refusal { kind: RefusalKind::Failed, text: "no\x1b[2J".to_owned() })],
        "hang" => Vec::new(),
        "silent" => return None,
        other => panic!("there is no {other} here"),
    })
}
