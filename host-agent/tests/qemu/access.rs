//! Operators use a real guest: commands, files, the console, beside a snapshot, and through a restore.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use unasnap_host::definition::VmDefinition;
use unasnap_host::guest_channel::{GuestChannel, Pace};
use unasnap_host::hypervisor::Hypervisor;
use unasnap_protocol::access::{Ask, Said, Turn};

use crate::bench::with_bench;
use crate::cluster::{Cluster, privileges};

/// Of one file that is moved both ways.
const BYTES: usize = 3_000_000;

#[test]
fn commands_and_files_of_a_real_guest() {
    let host = privileges("unasnap-host.service");
    let cluster = Cluster::start(&host, &["guest allow guest_access", "guest guest_access"]);
    let exec = |vm: &str, words: &[&str]| cluster.attempt(&[&["vm", "exec", vm, "--"], words].concat());
    let (code, out) = exec("vm1", &["sh", "-c", "echo $0 \"$@\"; exit 42", "a b", "$HOME"]);
    assert_eq!((code, out.as_str()), (42, "a b $HOME\n"), "{}", cluster.words());

    let content: Vec<u8> = (0..BYTES).map(|at| (at * at % 251) as u8).collect();
    fs::write(cluster.path("file"), &content).unwrap();
    fs::set_permissions(cluster.path("file"), fs::Permissions::from_mode(0o750)).unwrap();
    let put = cluster.json(&["vm", "put", "vm1", "file", "/tmp/file"]);
    let get = cluster.json(&["vm", "get", "vm1", "/tmp/file", "copy"]);
    println!("put {} ms, get {} ms", put["put"]["ms"], get["get"]["ms"]);
    assert!(fs::read(cluster.path("copy")).unwrap() == content);
    assert_eq!(fs::metadata(cluster.path("copy")).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(exec("vm1", &["sh", "-c", "wc -c </tmp/file"]).1.trim(), BYTES.to_string());

    // The second guest's agent was not started with anything.
    let (code, _) = exec("vm2", &["true"]);
    assert_eq!(code, 205);
    assert!(
        cluster.words().contains("the guest agent does not allow exec; start it with"),
        "{}",
        cluster.words()
    );
    let console = cluster.attempt(&["vm", "console", "vm2", "--lines", "3"]).1;
    assert!(console.lines().count() == 3 && console.contains("tick "), "{console:?}");

    // A snapshot beside a command that writes without end and a file on its way.
    let mut flood = cluster.begin(&["vm", "exec", "vm1", "--timeout", "600", "--", "yes"]);
    let mut file = cluster.begin(&["vm", "get", "vm1", "/tmp/file", "beside"]);
    let taken = cluster.json(&["snapshot", "take", "test"]);
    let quiet = |member: usize| {
        let member = &taken["snapshot"]["members"][member];
        let (from, to) = (member["send_flipped_ns"].as_u64(), member["receive_flipped_ns"].as_u64());
        (to.unwrap() - from.unwrap()) as f64 / 1e6
    };
    println!("straddle of vm1, which is used: {:.1} ms; of vm2: {:.1} ms", quiet(0), quiet(1));
    assert!(file.wait().unwrap().success(), "{}", cluster.words());
    assert!(fs::read(cluster.path("beside")).unwrap() == content);

    // The restored guest's agent is woken, and ends what its host side has not survived.
    let running = |cluster: &Cluster| cluster.attempt(&["vm", "exec", "vm1", "--", "pidof", "yes"]).0 == 0;
    assert!(running(&cluster));
    let restored = cluster.json(&["restore"]);
    assert_eq!(restored["restore"]["incarnation"], 1, "{restored}");
    let ended = flood.wait().unwrap();
    assert_eq!(ended.code(), Some(205), "{}", cluster.words());
    assert!(cluster.words().contains("was restored, reset or ended since"), "{}", cluster.words());
    cluster.wait("the command is gone", |cluster| {
        let (code, _) = cluster.attempt(&["vm", "exec", "vm1", "--", "true"]);
        code == 0 && !running(cluster)
    });
}

/// How long a message on which a snapshot waits stands behind a chunk that nobody waits for any more.
#[test]
fn a_chunk_under_way_delays_a_ping_by_its_own_length_at_most() {
    with_bench(None, |bench| {
        Box::pin(async {
            let append = format!("{} agent allow", bench.vm.append);
            let definition = VmDefinition { append, ..bench.vm.clone() };
            let vm = bench.driver.start(&definition, 1).await.unwrap();
            let mut channel =
                GuestChannel::new(vm.guest_channel_path().to_owned(), Pace::PORT, vm.incarnation());
            let deadline = Instant::now() + Duration::from_secs(60);
            while let Err(error) = channel.self_check().await {
                assert!(Instant::now() < deadline, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let alone = pings(&mut channel, None).await;
            let ask = Ask::Exec(vec![b"yes".to_vec()].try_into().unwrap(), 60);
            let first = Turn { session: 1, number: 1, ask };
            while channel.access(&first).await.unwrap() == Said::NotYet {}
            let beside = pings(&mut channel, Some(2)).await;
            println!("ping alone: median {:?}, slowest {:?}", alone[50], alone[99]);
            println!("ping behind a chunk: median {:?}, slowest {:?}", beside[50], beside[99]);
            assert!(beside[50] < alone[50] + Duration::from_millis(50), "{alone:?} {beside:?}");
        })
    });
}

/// A hundred, sorted; each right after a turn from this number on was given up without its answer.
async fn pings(channel: &mut GuestChannel, turns: Option<u32>) -> Vec<Duration> {
    let mut took = Vec::new();
    for number in 0..100 {
        if let Some(first) = turns {
            let turn = Turn { session: 1, number: first + number, ask: Ask::More(16 << 10) };
            // Until the chunk is ready in the guest; then it is asked for, and not waited for.
            while channel.access(&turn).await.unwrap() == Said::NotYet {}
            let given_up = tokio::time::timeout(Duration::from_micros(200), channel.access(&turn));
            let _ = given_up.await;
        }
        let begun = Instant::now();
        channel.identify().await.unwrap();
        took.push(begun.elapsed());
    }
    took.sort();
    took
}
