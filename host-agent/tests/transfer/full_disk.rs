//! A disk that becomes full in the middle of a transfer.

use std::fs;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Builder;
use tokio::sync::watch;
use unasnap_host::store::space::Limits;
use unasnap_protocol::control::{FailureKind, Moved};

use super::support::{Giving, Taking, envelope, name};

/// Runs with mounts of its own, which end with it; so do the threads that are started there.
fn apart(test: impl FnOnce() + Send + 'static) {
    let begin = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        test();
    };
    thread::spawn(begin).join().unwrap();
}

#[test]
fn what_has_come_is_removed_when_the_disk_becomes_full() {
    apart(|| Builder::new_current_thread().enable_all().build().unwrap().block_on(fill()));
}

/// Has not more than this, bytes: everything would fit.
const SIZE: u64 = 4 << 20;

async fn fill() {
    let giving = Giving::start(Some(2_000_000)).await;
    // Opened again where the small disk is.
    let taking = Taking::new(&giving);
    let folder = taking.folder.path();
    let options = format!("size={SIZE}");
    mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let taking = taking.opened_again(&giving, Limits { reserve: 0, quota: None });
    let folder = taking.folder.path();
    let (progress, mut moved) = watch::channel(Moved::default());
    let (envelope, source) = (envelope(), giving.source());
    let others = async {
        moved.wait_for(|moved| moved.sent > 400_000).await.unwrap();
        // Ends at the last byte.
        fs::write(folder.join("of-others"), vec![1; usize::try_from(SIZE).unwrap()]).unwrap_err();
    };
    let (failed, ()) = tokio::join!(taking.receiver.fetch(&envelope, &source, &progress), others);
    let failure = failed.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoSpace, "{failure}");
    assert!(failure.text.contains("the snapshot is untouched on host h1"), "{failure}");
    assert!(failure.text.contains("what had come of snapshot s of a was removed"), "{failure}");
    assert!(!folder.join("snapshots/s").exists(), "nothing is kept of it");
    let images = fs::read_dir(folder.join("images")).map_or(0, Iterator::count);
    assert_eq!(images, 0, "nor of its images");
    giving.store.verify(&name("s"), &name("a")).unwrap();

    fs::remove_file(folder.join("of-others")).unwrap();
    taking.fetch(&giving.source()).await.unwrap();
    taking.compare(&giving);
    umount2(folder, MntFlags::MNT_DETACH).unwrap();
}
