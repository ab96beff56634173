//! The QEMU driver with real guests.

#[path = "qemu/bench.rs"]
mod bench;

use std::time::Duration;

use bench::{Bench, name, with_bench};
use unasnap_host::hypervisor::{Hypervisor, Vm, VmState};
use unasnap_host::store::manifest::RamWay;

/// Two snapshots while the guest counts; then each is restored, the older one last.
async fn round_trip(bench: &Bench) {
    let mut vm = bench.start().await;
    let base = std::fs::read(bench.path().join("base.qcow2")).unwrap();
    let mut cut_at = Vec::new();
    for snapshot in ["first", "second"] {
        let before = bench.ticks(0).len() as u64;
        let times = bench.snapshot(&mut *vm, snapshot).await;
        println!("{:?}: pause {:?} {:?}", bench.driver.about().ram_way, times.pause(), times.parts);
        cut_at.push(before..bench.ticks(0).len() as u64);
        bench.assert_counting().await;
    }
    for (snapshot, cut) in ["second", "first"].into_iter().zip(cut_at.iter().rev()) {
        bench.driver.destroy(&bench.vm.name).await.unwrap();
        let from = bench.console().len();
        let mut vm = bench.restore(snapshot).await;
        assert_eq!(vm.state().await.unwrap(), VmState::Paused);
        assert_eq!(vm.incarnation(), 2);
        assert_eq!(bench.console().len(), from, "a paused VM talks");
        vm.resume().await.unwrap();
        let ticks = bench.wait_ticks(from, 20).await;
        assert!((cut.start..=cut.end + 1).contains(&ticks[0]), "cut within {cut:?}, goes on at {}", ticks[0]);
        assert!(ticks.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ticks:?}");
    }
    // A restored VM is again one like any other.
    let mut vm = bench.driver.adopt(&bench.vm).await.unwrap().unwrap();
    bench.snapshot(&mut *vm, "third").await;
    bench.assert_counting().await;
    assert_eq!(
        std::fs::read(bench.path().join("base.qcow2")).unwrap(),
        base,
        "the operator's image was written"
    );
}

#[test]
fn background_snapshot_restores() {
    with_bench(Some(RamWay::BackgroundSnapshot), |bench| Box::pin(round_trip(bench)));
}

#[test]
fn ram_copy_restores() {
    with_bench(Some(RamWay::RamCopy), |bench| Box::pin(round_trip(bench)));
}

#[test]
fn stop_and_save_restores() {
    with_bench(Some(RamWay::StopAndSave), |bench| Box::pin(round_trip(bench)));
}
