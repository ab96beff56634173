//! Commands and files for an operator, over the agent's port.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::mount::{MsFlags, mount};
use unasnap_protocol::{
    access::{Ask, Exit, File, Opened, RefusalKind, Said, Stream, Turn},
    guest::{GuestReply, GuestRequest, WordState},
};

use crate::bench::Bench;

const ROOM: u16 = 16 << 10;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// One conversation.
struct Talk {
    session: u64,
    number: u32,
}

fn allowing(rights: &str) -> Bench {
    let mut bench = Bench::new();
    bench.kill();
    bench.start_with(&["--allow", rights]);
    bench
}

fn turn(bench: &mut Bench, session: u64, number: u32, ask: &Ask) -> Said {
    match bench.ask(&GuestRequest::Access(Turn { session, number, ask: ask.clone() })) {
        GuestReply::Access(said) => said,
        other => panic!("{other:?}"),
    }
}

/// The turn is asked until there is an answer: there is none also while the worker has its hand on it.
fn answered(bench: &mut Bench, session: u64, number: u32, ask: &Ask) -> Said {
    let begun = Instant::now();
    loop {
        match turn(bench, session, number, ask) {
            Said::NotYet => assert!(begun.elapsed() < PATIENCE, "no answer to {ask:?}"),
            said => return said,
        }
        sleep(Duration::from_millis(2));
    }
}

impl Talk {
    fn begin(bench: &mut Bench, session: u64, ask: &Ask) -> (Self, Said) {
        let mut talk = Self { session, number: 0 };
        let said = talk.ask(bench, ask);
        (talk, said)
    }

    /// Each turn is asked once more than needed.
    fn ask(&mut self, bench: &mut Bench, ask: &Ask) -> Said {
        self.number += 1;
        let said = answered(bench, self.session, self.number, ask);
        assert_eq!(answered(bench, self.session, self.number, ask), said, "a repeated turn");
        said
    }

    /// All that a command writes, and how it ends.
    fn hear(&mut self, bench: &mut Bench) -> (String, String, Exit) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.ask(bench, &Ask::More(ROOM)) {
                Said::Output(Stream::Out, chunk) => out.extend_from_slice(chunk.bytes()),
                Said::Output(Stream::Err, chunk) => err.extend_from_slice(chunk.bytes()),
                Said::Exited(exit) => {
                    return (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), exit);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn exec(words: &[&str], seconds: u32) -> Ask {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    Ask::Exec(words.try_into().unwrap(), seconds)
}

fn run(bench: &mut Bench, session: u64, words: &[&str]) -> (String, String, Exit) {
    let (mut talk, said) = Talk::begin(bench, session, &exec(words, 30));
    assert_eq!(said, Said::Opened(Opened { chunk: ROOM, file: None }));
    talk.hear(bench)
}

fn refused(said: &Said, kind: RefusalKind, words: &str) {
    let Said::Refused(refusal) = said else { panic!("{said:?}") };
    assert!(refusal.kind == kind && refusal.text.contains(words), "{refusal:?}");
}

fn until_gone(bench: &mut Bench, path: &Path) {
    let begun = Instant::now();
    while path.exists() {
        assert!(begun.elapsed() < PATIENCE, "{} is still there\n{}", path.display(), bench.log());
        sleep(Duration::from_millis(5));
    }
}

fn process(id: &str) -> PathBuf {
    Path::new("/proc").join(id.trim())
}

/// A command that says its child's number and stays.
fn stays(bench: &mut Bench, session: u64, seconds: u32) -> (Talk, PathBuf) {
    let (mut talk, _) =
        Talk::begin(bench, session, &exec(&["sh", "-c", "sleep 3600 & echo $!; wait"], seconds));
    let Said::Output(Stream::Out, chunk) = talk.ask(bench, &Ask::More(ROOM)) else { panic!("no number") };
    let child = process(std::str::from_utf8(chunk.bytes()).unwrap());
    assert!(child.exists());
    (talk, child)
}

#[test]
fn nothing_is_allowed_unless_the_agent_was_told_to() {
    let path = "/etc/hostname".parse().unwrap();
    let mut bench = Bench::new();
    refused(&answered(&mut bench, 1, 1, &exec(&["true"], 1)), RefusalKind::NotAllowed, "run --allow exec`");
    let mut bench = allowing("files");
    refused(
        &answered(&mut bench, 1, 1, &exec(&["true"], 1)),
        RefusalKind::NotAllowed,
        "run --allow files,exec`",
    );
    let mut bench = allowing("exec");
    assert_eq!(run(&mut bench, 1, &["true"]).2, Exit::Code(0));
    refused(&answered(&mut bench, 2, 1, &Ask::Get(path)), RefusalKind::NotAllowed, "does not allow files");
}

#[test]
fn a_command_has_its_arguments_its_streams_and_its_own_end() {
    let mut bench = allowing("exec");
    let script = "printf '%s|' \"$@\"; echo oops >&2; exit 7";
    let (out, err, exit) = run(&mut bench, 1, &["sh", "-c", script, "name", "a b", "$HOME", "*"]);
    assert_eq!((out.as_str(), err.as_str(), exit), ("a b|$HOME|*|", "oops\n", Exit::Code(7)));
    assert_eq!(run(&mut bench, 2, &["sh", "-c", "kill -9 $$"]).2, Exit::Signal(9));
    let (out, _, _) =
        run(&mut bench, 3, &["sh", "-c", "cat; pwd; env | grep -v PWD | grep -v SHLVL | grep -v ^_"]);
    assert_eq!(out.lines().next(), Some("/"), "its input is empty: {out}");
    assert!(out.contains("HOME=/root") && out.lines().count() == 3, "{out}");
    let (mut talk, _) = Talk::begin(&mut bench, 4, &exec(&["cat", "/proc/self/stat"], 30));
    let (stat, _, _) = talk.hear(&mut bench);
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // Fields 19 and 41 of proc_pid_stat(5); the first here is the third there.
    assert_eq!((fields[16], fields[38]), ("10", "0"), "niceness and scheduling policy");
    let refusal = Talk::begin(&mut bench, 5, &exec(&["no-such-program"], 1)).1;
    refused(&refusal, RefusalKind::NotFound, "there is no program no-such-program");
    assert!(
        !bench.log().contains("HOME") && bench.log().contains("\"sh\" with 6 arguments"),
        "{}",
        bench.log()
    );
}

#[test]
fn output_waits_for_whoever_reads_it_and_none_is_lost() {
    let mut bench = allowing("exec");
    let (out, _, exit) = run(&mut bench, 1, &["seq", "1", "200000"]);
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(out == expected && exit == Exit::Code(0));
    // A child that keeps the output open, longer than an answer is waited for, does not keep the command.
    let (out, _, exit) = run(&mut bench, 2, &["sh", "-c", "sleep 40 & echo $!"]);
    assert_eq!(exit, Exit::Code(0));
    assert!(process(&out).exists(), "what a command leaves in the background goes on");
}

#[test]
fn a_command_whose_time_is_over_dies_with_its_children() {
    let mut bench = allowing("exec");
    let (mut talk, child) = stays(&mut bench, 1, 1);
    assert_eq!(talk.hear(&mut bench).2, Exit::TimedOut);
    until_gone(&mut bench, &child);
    // Also when nobody asks.
    let (_talk, child) = stays(&mut bench, 2, 1);
    until_gone(&mut bench, &child);
}

#[test]
fn what_nobody_wants_any_more_is_killed() {
    let mut bench = allowing("exec");
    let (mut talk, child) = stays(&mut bench, 1, 3600);
    assert_eq!(talk.ask(&mut bench, &Ask::Close), Said::Closed);
    until_gone(&mut bench, &child);
    refused(&answered(&mut bench, 1, 3, &Ask::More(1)), RefusalKind::Gone, "does not know");

    // The guest was restored: its host side is of another life.
    let (talk, child) = stays(&mut bench, 2, 3600);
    bench.incarnation += 1;
    bench.set_word(WordState::idle(0));
    until_gone(&mut bench, &child);
    refused(&answered(&mut bench, 2, talk.number, &Ask::More(1)), RefusalKind::Gone, "does not know");
    assert_eq!(run(&mut bench, 3, &["true"]).2, Exit::Code(0));
}

/// What waits for its child does not outlive the agent; the child does.
#[test]
fn a_killed_agent_takes_its_commands_along() {
    let mut bench = allowing("exec");
    let (mut talk, _) = Talk::begin(&mut bench, 1, &exec(&["sh", "-c", "echo $$; exec sleep 3600"], 3600));
    let Said::Output(Stream::Out, chunk) = talk.ask(&mut bench, &Ask::More(ROOM)) else {
        panic!("no number")
    };
    let command = process(std::str::from_utf8(chunk.bytes()).unwrap());
    assert!(command.exists());
    bench.kill();
    until_gone(&mut bench, &command);
}

#[test]
fn a_guest_has_so_many_conversations_and_no_more() {
    let mut bench = allowing("exec");
    for session in 1..=8 {
        Talk::begin(&mut bench, session, &exec(&["sleep", "3600"], 3600));
    }
    refused(&answered(&mut bench, 9, 1, &exec(&["true"], 1)), RefusalKind::Busy, "wait for one to end");
    assert_eq!(turn(&mut bench, 1, 2, &Ask::Close), Said::Closed);
    for session in 10..40 {
        assert_eq!(run(&mut bench, session, &["true"]).2, Exit::Code(0), "ended ones make room");
    }
}

#[test]
fn turns_that_do_not_follow_are_refused_and_none_is_done_twice() {
    let mut bench = allowing("exec");
    let folder = tempfile::tempdir().unwrap();
    let script = format!("echo x >>{}", folder.path().join("log").display());
    let (mut talk, _) = Talk::begin(&mut bench, 1, &exec(&["sh", "-c", &script], 30));
    assert_eq!(talk.hear(&mut bench).2, Exit::Code(0));
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "x\n");
    for number in [0, 1, talk.number + 1, u32::MAX] {
        refused(&answered(&mut bench, 1, number, &Ask::More(1)), RefusalKind::Gone, "does not know");
    }
    refused(&answered(&mut bench, 2, 1, &Ask::More(1)), RefusalKind::Gone, "does not know");
    refused(&answered(&mut bench, 3, 2, &exec(&["true"], 1)), RefusalKind::Gone, "does not know");
    let (mut talk, _) = Talk::begin(&mut bench, 4, &exec(&["sleep", "9"], 30));
    refused(&talk.ask(&mut bench, &Ask::End([0; 32])), RefusalKind::Failed, "does not belong here");
}

/// Sends a file; answers what was said last.
fn put(
    bench: &mut Bench,
    session: u64,
    path: &Path,
    announced: File,
    content: &[u8],
    digest: [u8; 32],
) -> Said {
    let path = path.to_str().unwrap().parse().unwrap();
    let (mut talk, mut said) = Talk::begin(bench, session, &Ask::Put(path, announced));
    for chunk in content.chunks(usize::from(ROOM)) {
        if matches!(said, Said::Refused(_)) {
            return said;
        }
        said = talk.ask(bench, &Ask::Data(chunk.to_vec().try_into().unwrap()));
    }
    if matches!(said, Said::Refused(_)) { said } else { talk.ask(bench, &Ask::End(digest)) }
}

#[test]
fn files_come_and_go_whole_with_their_modes() {
    let mut bench = allowing("files");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for (session, length) in [(1, 3_000_000), (3, 0), (5, 16 << 10)] {
        let content: Vec<u8> = (0..length).map(|at: u32| (at % 253) as u8).collect();
        let digest = *blake3::hash(&content).as_bytes();
        let file = File { mode: 0o2750, bytes: content.len() as u64 };
        assert_eq!(put(&mut bench, session, &path, file, &content, digest), Said::Done(digest));
        assert!(fs::read(&path).unwrap() == content, "{length} bytes");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o2750);

        let ask = Ask::Get(path.to_str().unwrap().parse().unwrap());
        let (mut talk, said) = Talk::begin(&mut bench, session + 1, &ask);
        assert_eq!(said, Said::Opened(Opened { chunk: ROOM, file: Some(file) }));
        let mut got = Vec::new();
        let end = loop {
            match talk.ask(&mut bench, &Ask::More(ROOM)) {
                Said::Data(chunk) => got.extend_from_slice(chunk.bytes()),
                said => break said,
            }
        };
        assert!(got == content && end == Said::Done(digest), "{length} bytes: {end:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left");
}

#[test]
fn what_does_not_arrive_whole_leaves_nothing_and_harms_nothing() {
    let mut bench = allowing("files");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, b"before").unwrap();
    let digest = *blake3::hash(b"after").as_bytes();
    let file = |bytes| File { mode: 0o644, bytes };
    let said = put(&mut bench, 1, &path, file(5), b"after", [0; 32]);
    refused(&said, RefusalKind::Failed, "the digests differ");
    refused(&put(&mut bench, 2, &path, file(6), b"after", digest), RefusalKind::Failed, "fewer bytes");
    refused(&put(&mut bench, 3, &path, file(4), b"after", digest), RefusalKind::Failed, "more bytes");
    refused(
        &put(&mut bench, 4, folder.path(), file(5), b"after", digest),
        RefusalKind::NotFound,
        "directory",
    );
    let nowhere = folder.path().join("none/file");
    refused(
        &put(&mut bench, 5, &nowhere, file(5), b"after", digest),
        RefusalKind::NotFound,
        "cannot be made",
    );
    let ask = Ask::Put(path.to_str().unwrap().parse().unwrap(), file(5));
    let (mut talk, _) = Talk::begin(&mut bench, 6, &ask);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    talk.ask(&mut bench, &Ask::Close);
    until_gone(&mut bench, &folder.path().join(".unasnap-put-0"));

    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
    let content = vec![7; 1 << 20];
    let digest = *blake3::hash(&content).as_bytes();
    let said = put(&mut bench, 7, &small.join("file"), file(1 << 20), &content, digest);
    nix::mount::umount(&small).unwrap_or_else(|_| panic!("half a file is open: {said:?}"));
    refused(&said, RefusalKind::NoSpace, "nothing of it is left");
    assert_eq!(fs::read(&path).unwrap(), b"before");
}

#[test]
fn only_ordinary_files_are_read() {
    let mut bench = allowing("files");
    for (session, path) in [(1, "/dev/zero"), (2, "/etc"), (3, "/no/such/file")] {
        let said = Talk::begin(&mut bench, session, &Ask::Get(path.parse().unwrap())).1;
        refused(&said, RefusalKind::NotFound, "cannot be read");
    }
}

/// What a snapshot waits for does not wait for a command, whatever that does.
#[test]
fn the_agent_answers_at_once_while_commands_rage_and_nobody_reads() {
    let mut bench = allowing("exec,files");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("large"), vec![1; 64 << 20]).unwrap();
    // Not without end: an agent that is broken may leave them the machine.
    let rage = "yes & i=0; while [ $i -lt 4000000 ]; do i=$((i+1)); done";
    for session in 1..=3 {
        Talk::begin(&mut bench, session, &exec(&["sh", "-c", rage], 60));
    }
    let ask = Ask::Get(folder.path().join("large").to_str().unwrap().parse().unwrap());
    let (mut talk, _) = Talk::begin(&mut bench, 4, &ask);
    take_precedence();
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        talk.number += 1;
        assert_eq!(turn(&mut bench, 4, talk.number, &Ask::More(ROOM)), Said::NotYet);
        let begun = Instant::now();
        bench.set_word(WordState::idle(1));
        slowest = slowest.max(begun.elapsed());
        talk.number -= 1;
        assert!(matches!(talk.ask(&mut bench, &Ask::More(ROOM)), Said::Data(_)));
    }
    println!("slowest answer {slowest:?}");
    assert!(slowest < Duration::from_millis(250), "{slowest:?}");
}

/// Who measures an answer must not stand behind what rages either.
fn take_precedence() {
    let lowest_realtime = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is this thread, and the parameter lives through the call.
    let outcome = unsafe { libc::sched_setscheduler(0, policy, &raw const lowest_realtime) };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}
