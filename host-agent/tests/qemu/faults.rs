//! What goes wrong leaves the VM running, no file of the attempt, and words that help.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use unasnap_host::hypervisor::{Hypervisor, HypervisorError, InPause, SavedVm, Vm, VmState};
use unasnap_host::store::manifest::RamWay;
use unasnap_host::store::{Draft, StoreError};

use crate::bench::{Bench, name, run, with_bench};

const WAYS: [RamWay; 2] = [RamWay::Live, RamWay::StopAndSave];

async fn prepare(bench: &Bench, vm: &mut dyn Vm) -> Draft {
    let draft = bench.store.begin(&name("s"), &bench.vm.name).unwrap();
    vm.prepare_cut(draft.folder()).await.unwrap();
    draft
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Discards twice; the VM goes on, and neither the draft nor the disks folder keeps anything it does not need.
async fn discard(bench: &Bench, vm: &mut dyn Vm, draft: &Draft, layers: usize) {
    for _ in 0..2 {
        vm.discard_cut().await.unwrap();
        assert!(is_empty(draft.folder()), "left in the draft");
    }
    bench.store.abandon(draft).unwrap();
    assert_eq!(bench.store.list().unwrap(), []);
    assert_eq!(bench.layers().len(), layers, "{:?}", bench.layers());
    assert_eq!(vm.state().await.unwrap(), VmState::Running);
    bench.assert_counting().await;
}

/// A cut is given up between any two steps, and in the middle of the pause. An overlay that the VM was switched to stays below it.
#[test]
fn a_cut_can_be_discarded_at_any_point() {
    for way in WAYS {
        with_bench(Some(way), |bench| {
            Box::pin(async {
                let mut vm = bench.start().await;
                vm.discard_cut().await.unwrap();
                let draft = prepare(bench, &mut *vm).await;
                discard(bench, &mut *vm, &draft, 1).await;

                let draft = prepare(bench, &mut *vm).await;
                vm.cut(InPause::nothing()).await.unwrap();
                discard(bench, &mut *vm, &draft, 2).await;

                let draft = prepare(bench, &mut *vm).await;
                vm.cut(InPause::nothing()).await.unwrap();
                let begun = tokio::time::timeout(Duration::ZERO, vm.save()).await;
                assert!(begun.is_err(), "saved before it could be given up");
                discard(bench, &mut *vm, &draft, 3).await;

                for after_us in [300, 1000, 3000, 10_000, 1_000_000] {
                    let draft = prepare(bench, &mut *vm).await;
                    vm.cut(InPause::nothing()).await.unwrap();
                    let saved =
                        tokio::time::timeout(Duration::from_micros(after_us), vm.save()).await.is_ok();
                    vm.discard_cut().await.unwrap();
                    // How far a save comes is the disk's affair; one that has ended is the store's to abandon.
                    assert!(saved || is_empty(draft.folder()), "left in the draft after {after_us} us");
                    bench.store.abandon(&draft).unwrap();
                }

                for after_us in [0, 1000, 3000, 6000, 12_000] {
                    let draft = prepare(bench, &mut *vm).await;
                    drop(
                        tokio::time::timeout(Duration::from_micros(after_us), vm.cut(InPause::nothing()))
                            .await,
                    );
                    vm.discard_cut().await.unwrap();
                    bench.store.abandon(&draft).unwrap();
                    assert_eq!(vm.state().await.unwrap(), VmState::Running, "after {after_us} us");
                    bench.assert_counting().await;
                }
                bench.snapshot(&mut *vm, "whole").await;
            })
        });
    }
}

/// From shortly before its cut until it runs on, QEMU comes first on a busy host; its guest's processors do not.
#[test]
fn a_cut_is_urgent_and_leaves_no_priority_behind() {
    with_bench(Some(RamWay::Live), |bench| {
        Box::pin(async {
            let urgent = || {
                let tasks = format!("/proc/{}/task", bench.qemu_pid());
                let is_urgent = |task: std::path::PathBuf| {
                    let stat = std::fs::read_to_string(task.join("stat")).unwrap();
                    let (name, fields) = stat.rsplit_once(") ").unwrap();
                    // Field 41 of proc(5)'s stat is the policy.
                    let realtime = fields.split(' ').nth(38) == Some("2");
                    assert!(!(realtime && name.contains("(CPU ")), "{stat}");
                    realtime
                };
                let tasks = std::fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path());
                tasks.filter(|task| is_urgent(task.clone())).count()
            };
            let mut vm = bench.start().await;
            for cut in [true, false] {
                let draft = prepare(bench, &mut *vm).await;
                assert_eq!(urgent(), 0);
                vm.arm_cut().await.unwrap();
                assert!(urgent() >= 2, "the main thread and that of the copy");
                if cut {
                    vm.cut(InPause::nothing()).await.unwrap();
                    assert_eq!(urgent(), 0);
                }
                vm.discard_cut().await.unwrap();
                bench.store.abandon(&draft).unwrap();
                assert_eq!(urgent(), 0);
            }
        })
    });
}

/// Before the cut a dead VM is an error; after it, the snapshot does without the VM.
#[test]
fn qemu_may_die_at_any_point() {
    with_bench(Some(RamWay::Live), |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            let draft = prepare(bench, &mut *vm).await;
            vm.cut(InPause::nothing()).await.unwrap();
            kill(bench.qemu_pid(), Signal::SIGKILL).unwrap();
            bench.finish(&mut *vm, draft, "s").await;
            assert_eq!(vm.state().await.unwrap(), VmState::Dead);
            // What the guest had written to its disk before the cut is there when it boots again.
            let counted = *bench.ticks(0).last().unwrap();
            let from = bench.console().len();
            let mut vm = bench.driver.start(&bench.vm, 2).await.unwrap();
            let ticks = bench.wait_ticks(from, 5).await;
            assert!(ticks[0] >= counted, "the disk went back from {counted} to {}", ticks[0]);

            let draft = bench.store.begin(&name("lost"), &bench.vm.name).unwrap();
            vm.prepare_cut(draft.folder()).await.unwrap();
            kill(bench.qemu_pid(), Signal::SIGKILL).unwrap();
            let error = vm.cut(InPause::nothing()).await.unwrap_err();
            assert!(matches!(error, HypervisorError::Gone { .. }), "{error}");
            assert!(error.to_string().contains("VM counter: the hypervisor is gone"), "{error}");
            vm.discard_cut().await.unwrap();
            bench.store.abandon(&draft).unwrap();
            bench.driver.destroy(&bench.vm.name).await.unwrap();
            let from = bench.console().len();
            bench.restore("s").await.resume().await.unwrap();
            bench.wait_ticks(from, 10).await;
        })
    });
}

/// The disk with the snapshots is full: refused beforehand, and survived when it fills up meanwhile.
#[test]
fn a_full_disk_ends_the_cut_and_not_the_vm() {
    for way in WAYS {
        with_bench(Some(way), |bench| {
            Box::pin(async move {
                let mut vm = bench.start().await;
                let snapshots = bench.path().join("state/snapshots");
                run("mount", &["-t", "tmpfs", "-o", "size=8m", "none", &snapshots.to_string_lossy()]);
                let refusal = bench.store.check_space(vm.space_needed()).unwrap_err();
                assert!(matches!(refusal, StoreError::NoSpace { .. }), "{refusal}");
                let draft = bench.store.begin(&name("s"), &bench.vm.name).unwrap();
                let prepared = vm.prepare_cut(draft.folder()).await;
                // RAM is written before the cut by one way, in its pause by the other.
                assert_eq!(prepared.is_err(), way == RamWay::Live);
                let failed = match prepared {
                    Ok(()) => vm.cut(InPause::nothing()).await.map(drop),
                    Err(error) => Err(error),
                };
                println!("{:?}: {}", bench.driver.about().ram_way, failed.unwrap_err());
                discard(bench, &mut *vm, &draft, 1 + usize::from(way == RamWay::StopAndSave)).await;
                run("umount", &[&snapshots.to_string_lossy()]);
                bench.snapshot(&mut *vm, "whole").await;
            })
        });
    }
}

/// Whatever of a snapshot is damaged is named before anything is loaded; a foreign disk image, too.
#[test]
fn damage_is_named_before_a_restore() {
    with_bench(None, |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            bench.snapshot(&mut *vm, "s").await;
            bench.driver.destroy(&bench.vm.name).await.unwrap();
            let (snapshot, vm) = (name("s"), &bench.vm.name);
            let folder = bench.store.vm_folder(&snapshot, vm);
            let manifest = bench.store.verify(&snapshot, vm).unwrap();

            let ram = std::fs::read(folder.join("ram")).unwrap();
            let mut flipped = ram.clone();
            flipped[ram.len() / 2] ^= 1;
            std::fs::write(folder.join("ram"), flipped).unwrap();
            let message = bench.store.verify(&snapshot, vm).unwrap_err().to_string();
            assert!(message.contains("s/counter/ram is damaged: its content has changed"), "{message}");
            std::fs::write(folder.join("ram"), ram).unwrap();

            let layer = folder.join("disk0-0000.qcow2");
            std::fs::rename(&layer, bench.path().join("moved")).unwrap();
            let message = bench.store.verify(&snapshot, vm).unwrap_err().to_string();
            assert!(message.contains("disk0-0000.qcow2 is damaged: it is missing"), "{message}");
            std::fs::rename(bench.path().join("moved"), &layer).unwrap();

            run(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", &bench.vm.disks[0].image.to_string_lossy(), "65M"],
            );
            let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
            let message = bench.driver.restore(&bench.vm, saved, 2).await.err().unwrap().to_string();
            assert!(message.contains("base.qcow2 is not the one below this snapshot"), "{message}");
        })
    });
}
