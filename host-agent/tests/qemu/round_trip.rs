//! Cut, save, destroy, restore: the guest goes on counting from the cut, on disk and in RAM alike.

use std::path::Path;
use std::time::{Duration, Instant};

use unasnap_host::hypervisor::{Hypervisor, InPause, SavedVm, VmState};
use unasnap_host::store::manifest::RamWay;
use unasnap_host::transfer::images::Images;

use crate::bench::{Bench, name, with_bench};

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

/// What is saved is what the RAM was in the pause, to the last byte, while the guest changes it all the time.
#[test]
fn the_saved_ram_is_the_ram_of_the_instant() {
    with_bench(Some(RamWay::Live), |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            for snapshot in ["s1", "s2", "s3", "s4"] {
                let draft = bench.store.begin(&name(snapshot), &bench.vm.name).unwrap();
                vm.prepare_cut(draft.folder()).await.unwrap();
                vm.arm_cut().await.unwrap();
                let mut in_the_pause = Vec::new();
                vm.cut(InPause { fixed: Box::new(|| in_the_pause = bench.ram()), ..InPause::nothing() })
                    .await
                    .unwrap();
                bench.finish(&mut *vm, draft, snapshot).await;
                let folder = bench.store.vm_folder(&name(snapshot), &bench.vm.name);
                let saved = std::fs::read(folder.join("ram")).unwrap();
                assert_eq!(saved.len(), in_the_pause.len());
                let pages = saved.chunks(4096).zip(in_the_pause.chunks(4096));
                assert_eq!(pages.filter(|(saved, real)| saved != real).count(), 0, "pages differ");
            }
        })
    });
}

/// On a host that has nothing where the images lay when the snapshot was taken, as after a transfer. What the headers of the
/// layers name is not there.
#[test]
fn a_snapshot_is_restored_above_images_that_lie_elsewhere() {
    with_bench(Some(RamWay::Live), |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            for snapshot in ["before", "moved"] {
                bench.snapshot(&mut *vm, snapshot).await;
            }
            bench.driver.destroy(&bench.vm.name).await.unwrap();
            let last = *bench.ticks(0).last().unwrap();
            let other = bench.path().join("other");
            std::fs::create_dir(&other).unwrap();
            std::fs::copy(bench.vm.kernel.as_ref().unwrap(), other.join("kernel")).unwrap();
            for image in ["base.qcow2", "initrd"] {
                std::fs::rename(bench.path().join(image), other.join(image)).unwrap();
            }
            let places = ["base.qcow2", "kernel", "initrd"].map(|image| other.join(image));
            let driver = bench.driver_of("other").await;
            let manifest = bench.store.verify(&name("moved"), &bench.vm.name).unwrap();
            let definition = Images::new(&other).placed(&manifest, &places, false).unwrap().definition;
            let folder = bench.store.vm_folder(&name("moved"), &bench.vm.name);
            let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
            let mut vm = driver.restore(&definition, saved, 2).await.unwrap();
            vm.resume().await.unwrap();
            let counted = wait_counted(&other.join("vms/counter/console.log")).await;
            assert!(counted.len() >= 10 && counted[0] <= last + 1, "{last}, then {counted:?}");
            // And so is what is taken there.
            bench.snapshot(&mut *vm, "there").await;
            driver.destroy(&bench.vm.name).await.unwrap();
            let manifest = bench.store.verify(&name("there"), &bench.vm.name).unwrap();
            assert_eq!(manifest.bases[0].path, places[0]);
            let folder = bench.store.vm_folder(&name("there"), &bench.vm.name);
            let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
            driver.restore(&definition, saved, 3).await.unwrap();
            driver.destroy(&bench.vm.name).await.unwrap();
        })
    });
}

/// Ten ticks, or those that came in a minute.
async fn wait_counted(console: &Path) -> Vec<u64> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = std::fs::read_to_string(console).unwrap_or_default();
        assert!(!text.contains("torn"), "RAM and disk are of different instants:\n{text}");
        let counted = text.lines().filter_map(|line| line.trim().strip_prefix("tick ")?.parse().ok());
        let counted: Vec<u64> = counted.collect();
        if counted.len() >= 10 || Instant::now() > deadline {
            return counted;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn live_restores() {
    with_bench(Some(RamWay::Live), |bench| Box::pin(round_trip(bench)));
}

#[test]
fn stop_and_save_restores() {
    with_bench(Some(RamWay::StopAndSave), |bench| Box::pin(round_trip(bench)));
}

/// More snapshots than a chain may have layers: it is merged behind the running VM, and the disk stays right.
#[test]
fn long_chains_are_merged() {
    with_bench(None, |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            for number in 0..10 {
                bench.snapshot(&mut *vm, &format!("s{number}")).await;
            }
            // Whether the merge has ended is seen when the next cut is prepared.
            let merged = Instant::now() + Duration::from_secs(30);
            let mut number = 10;
            while bench.layers().len() > 8 {
                assert!(Instant::now() < merged, "still {:?}", bench.layers());
                tokio::time::sleep(Duration::from_secs(1)).await;
                bench.snapshot(&mut *vm, &format!("s{number}")).await;
                number += 1;
            }
            bench.driver.destroy(&bench.vm.name).await.unwrap();
            let from = bench.console().len();
            bench.restore(&format!("s{}", number - 1)).await.resume().await.unwrap();
            bench.wait_ticks(from, 10).await;
        })
    });
}
