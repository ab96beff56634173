//! Files of snapshots from one host to another, over real sockets: whole, cut, damaged, hostile, too many.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod authority;
mod bases;
mod damaged;
mod full_disk;
mod hostile;
mod replicas;
mod support;
mod vdi;
mod virtualbox;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::{Cutter, Giving, RAM_BYTES, Taking, envelope, name, noise};
use tokio::sync::mpsc;
use tokio::time::timeout;
use unasnap_host::store::space::Limits;
use unasnap_host::transfer::fetching::Fetcher;
use unasnap_protocol::control::{Answer, FailureKind};

/// Data of the snapshot's files and of both images, bytes.
const DATA: u64 = 4096 + 1_000_000 + 200_000 + 1234 + 600_001 + 700_000 + 90_000;
/// Their lengths.
const TOTAL: u64 = RAM_BYTES + 1234 + 600_001 + 700_000 + 90_000;

#[tokio::test]
async fn a_local_snapshot_comes_whole_with_its_images_and_without_its_holes() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let moved = taking.fetch(&giving.source()).await.unwrap();
    assert_eq!(moved.total, TOTAL);
    assert!((DATA..DATA + 32_768).contains(&moved.sent), "{moved:?}: whole blocks, and no holes");
    taking.compare(&giving);
    let (length, blocks) = fs::metadata(taking.file("ram")).map(|meta| (meta.len(), meta.blocks())).unwrap();
    assert!(length == RAM_BYTES && blocks * 512 < 2 << 20, "{blocks} blocks");
    // The VM is to use the images where they lie here.
    let definition = taking.receiver.store.definition(&name("s"), &name("a")).unwrap();
    let image = fs::metadata(&definition.disks[0].image).unwrap();
    assert_eq!((image.len(), image.mtime(), image.mtime_nsec()), (700_000, 1_700_000_000, 123_456_789));
    assert_eq!(fs::read(definition.kernel.unwrap()).unwrap(), noise(90_000, 78));
    // Asked again, it has all of it, and needs nobody for that.
    let gone = giving.source_at(([127, 0, 0, 1], 1).into());
    assert_eq!(taking.fetch(&gone).await.unwrap().sent, 0);
    assert_eq!(fs::read_dir(taking.folder.path().join("snapshots/s")).unwrap().count(), 3);
    taking.receiver.store.delete_vm(&name("s"), &name("a")).unwrap();
    assert!(!taking.folder.path().join("snapshots/s").exists(), "nothing is left of it");
}

#[tokio::test]
async fn images_come_once() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    taking.fetch(&giving.source()).await.unwrap();
    let digest = giving.snapshot("s2", "a");
    giving.store.commit(&name("s2")).unwrap();
    let source = unasnap_protocol::control::Source { digest, ..giving.source() };
    let envelope = unasnap_protocol::control::Envelope { snapshot: name("s2"), ..envelope() };
    let progress = tokio::sync::watch::channel(Default::default()).0;
    let moved = taking.receiver.fetch(&envelope, &source, &progress).await.unwrap();
    assert!(moved.sent < DATA - 700_000, "{moved:?}");
    assert_eq!(moved.total, TOTAL);
    // From there it can go on to a third host, though the manifest knows the first one's places only.
    taking.receiver.store.verify_with_bases(&name("s2"), &name("a")).unwrap();
}

/// Cuts in the middle of chunks and between them: each attempt goes on where the one before was cut, whichever agent died.
#[tokio::test]
async fn a_transfer_that_is_cut_anywhere_goes_on() {
    for after in [270_000, 300_001, 524_288, 777_777, 1_500_000] {
        let giving = Giving::start(None).await;
        let mut taking = Taking::new(&giving);
        let cutter = Cutter::new(giving.address, after).await;
        let mut attempts = 0;
        let moved = loop {
            attempts += 1;
            assert!(attempts < 30, "cut after {after} bytes it does not get on");
            match taking.fetch(&giving.source_at(cutter.address)).await {
                Ok(moved) => break moved,
                Err(failure) => {
                    assert_eq!(failure.kind, FailureKind::HostLost, "{failure}");
                    assert!(failure.text.contains("what has come is kept"), "{failure}");
                    assert!(taking.has_nothing(), "half a snapshot is none");
                }
            }
            taking.start_anew();
        };
        taking.compare(&giving);
        assert!(moved.sent < DATA && attempts > 1);
        // What came twice: a handshake, the manifest and the chunk that was cut, each time.
        let passed = cutter.passed.load(Ordering::Relaxed);
        assert!(passed < DATA + attempts * 270_000, "{passed} bytes in {attempts} attempts");
    }
}

#[tokio::test]
async fn a_damaged_byte_at_the_source_is_named_and_nothing_is_restored() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let good = fs::read(giving.file("disk0-0000.qcow2")).unwrap();
    let mut bad = good.clone();
    bad[300_000] ^= 1;
    fs::write(giving.file("disk0-0000.qcow2"), bad).unwrap();
    let failure = taking.fetch(&giving.source()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Files);
    assert!(failure.text.contains("disk0-0000.qcow2 of snapshot s of a is damaged on host h1"), "{failure}");
    assert!(taking.has_nothing());
    fs::write(giving.file("disk0-0000.qcow2"), &good[..500_000]).unwrap();
    let failure = taking.fetch(&giving.source()).await.unwrap_err();
    assert!(failure.text.contains("it has 500000 bytes instead of 600001"), "{failure}");
    // What was good came once: RAM is not sent again.
    fs::write(giving.file("disk0-0000.qcow2"), good).unwrap();
    let moved = taking.fetch(&giving.source()).await.unwrap();
    assert!(moved.sent < DATA - 1_000_000, "{moved:?}");
    taking.compare(&giving);
}

/// A crash of the target may leave anything in what had come.
#[tokio::test]
async fn what_was_torn_at_the_target_comes_again() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let cutter = Cutter::new(giving.address, 900_000).await;
    taking.fetch(&giving.source_at(cutter.address)).await.unwrap_err();
    let partial = taking.folder.path().join("snapshots/s/a.incoming/ram");
    let mut torn = fs::read(&partial).unwrap();
    torn[1 << 20] ^= 0xff;
    fs::write(&partial, torn).unwrap();
    taking.fetch(&giving.source()).await.unwrap();
    taking.compare(&giving);
}

#[tokio::test]
async fn only_what_is_committed_and_known_is_given() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let other = unasnap_protocol::control::Source { digest: [9; 32], ..giving.source() };
    let failure = taking.fetch(&other).await.unwrap_err();
    assert!(failure.text.contains("is not the one that the coordinator knows"), "{failure}");
    let digest = giving.snapshot("open", "a");
    let source = unasnap_protocol::control::Source { digest, ..giving.source() };
    for snapshot in ["open", "never"] {
        let envelope = unasnap_protocol::control::Envelope { snapshot: name(snapshot), ..envelope() };
        let progress = tokio::sync::watch::channel(Default::default()).0;
        let failure = taking.receiver.fetch(&envelope, &source, &progress).await.unwrap_err();
        assert!(failure.text.contains(&format!("no committed snapshot {snapshot} of VM a")), "{failure}");
    }
    assert!(taking.has_nothing());
}

#[tokio::test]
async fn without_room_nothing_is_begun() {
    let giving = Giving::start(None).await;
    let taking = Taking::with(&giving, Limits { reserve: 0, quota: Some(1 << 20) });
    let failure = taking.fetch(&giving.source()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoSpace, "{failure}");
    assert!(taking.has_nothing());
    assert!(!taking.folder.path().join("snapshots/s").exists(), "nothing is kept of it");
    giving.store.verify(&name("s"), &name("a")).unwrap();
}

#[tokio::test]
async fn more_than_two_wait_for_their_turn() {
    let giving = Giving::start(Some(1_500_000)).await;
    let takings: Vec<_> = (0..3).map(|_| Taking::new(&giving)).collect();
    let source = giving.source();
    let (one, two, three) =
        tokio::join!(takings[0].fetch(&source), takings[1].fetch(&source), takings[2].fetch(&source));
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    takings.iter().for_each(|taking| taking.compare(&giving));
}

#[tokio::test]
async fn an_order_is_answered_while_it_runs_and_not_begun_twice() {
    let giving = Giving::start(Some(1_000_000)).await;
    let taking = Taking::new(&giving);
    let (sender, mut answers) = mpsc::unbounded_channel();
    let fetcher = Fetcher::new(taking.receiver.into(), sender);
    fetcher.fetch(envelope(), giving.source());
    let later = unasnap_protocol::control::Envelope { term: 2, ..envelope() };
    fetcher.fetch(later.clone(), giving.source());
    let mut sent = Vec::new();
    loop {
        let (under, answer) = timeout(Duration::from_secs(20), answers.recv()).await.unwrap().unwrap();
        assert_eq!(under, later, "the coordinator that asked last hears of it");
        match answer {
            Answer::Fetching(moved) => sent.push(moved.sent),
            Answer::Fetched(moved) => break sent.push(moved.sent),
            other => panic!("{other:?}"),
        }
    }
    assert!(sent.is_sorted() && sent.len() > 3, "{sent:?}");
    assert!(taking.folder.path().join("snapshots/s/a/ram").exists());

    // Whoever deletes the snapshot ends what still comes.
    let other = unasnap_protocol::control::Envelope { snapshot: name("t"), ..envelope() };
    let digest = giving.snapshot("t", "a");
    giving.store.commit(&name("t")).unwrap();
    fetcher.fetch(other, unasnap_protocol::control::Source { digest, ..giving.source() });
    tokio::time::sleep(Duration::from_millis(600)).await;
    fetcher.cancel(&name("t"), &name("a"));
    while let Ok((under, answer)) = answers.try_recv() {
        assert!(matches!(answer, Answer::Fetching(_)), "{under:?} {answer:?}");
    }
    assert!(timeout(Duration::from_secs(2), answers.recv()).await.is_err(), "it is not heard of any more");
}
