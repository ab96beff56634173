//! Cuts: their order, what they leave in the store and in VirtualBox, and how they are given up.

use std::sync::Mutex;
use std::time::Duration;

use unasnap_host::hypervisor::{HypervisorError, InPause, VmState};
use unasnap_host::store::manifest::FileRole;

use crate::recorded::answer;
use crate::simulated::{LOWER, Simulated};
use crate::support::{Host, until};

#[tokio::test]
async fn the_machine_stands_still_from_the_flip_to_the_resume() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let draft = host.draft();
    vm.prepare_cut(draft.folder()).await.unwrap();
    vm.arm_cut().await.unwrap();
    let at = Mutex::new(Vec::new());
    let seen = |what: &'static str| {
        let state = host.virtualbox.state.lock().unwrap();
        at.lock().unwrap().push((what, state.name, state.has_cut));
    };
    let in_pause = InPause {
        stopped: Box::new(|| seen("stopped")),
        fixed: Box::new(|| seen("fixed")),
        run_on: Box::pin(async { seen("run on") }),
    };
    let times = vm.cut(in_pause).await.unwrap();
    let expected = [("stopped", "paused", false), ("fixed", "paused", true), ("run on", "paused", true)];
    assert_eq!(*at.lock().unwrap(), expected);
    assert!(times.stopped_at <= times.instant && times.instant <= times.resumed_at);
    assert_eq!(
        times.parts.iter().map(|part| part.0).collect::<Vec<_>>(),
        ["pause", "take", "others", "resume"]
    );
    assert_eq!(vm.state().await.unwrap(), VmState::Running);
    assert_eq!(
        host.virtualbox.taken(),
        ["controlvm M pause", "snapshot M take unasnap cut", "controlvm M resume"]
    );
}

#[tokio::test]
async fn a_local_snapshot_needs_nothing_of_virtualbox_but_the_base() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let manifest = host.snapshot(vm.as_mut()).await;
    let files: Vec<_> = manifest.files.iter().map(|file| (file.name.as_str(), file.role)).collect();
    assert_eq!(
        files,
        [
            ("machine.vbox", FileRole::Settings),
            ("f36878e9-4366-4e89-981e-f40e822299f7.vdi", FileRole::DifferenceDisk),
            ("2026-11-21T02-13-09-063971000Z.sav", FileRole::SavedState),
            ("layout.json", FileRole::Layout),
        ]
    );
    assert_eq!(manifest.bases.len(), 1);
    assert_eq!(manifest.bases[0].path, host.machine("run.vdi"));
    until(|| !host.virtualbox.state.lock().unwrap().has_cut).await;
    // VirtualBox has merged and deleted: the local snapshot is what it was.
    assert_eq!(std::fs::read_to_string(host.machine(&Simulated::disk(LOWER))).unwrap(), "merged");
    host.store.verify(&manifest.identity.snapshot, &host.vm.name).unwrap();
    assert_eq!(host.virtualbox.taken().last().unwrap(), "snapshot M delete CUT");
}

#[tokio::test]
async fn a_cut_that_is_given_up_anywhere_leaves_nothing() {
    for steps in 0..5 {
        let host = Host::new().await;
        let mut vm = host.start().await;
        let draft = host.draft();
        if steps > 0 {
            vm.prepare_cut(draft.folder()).await.unwrap();
        }
        if steps > 1 {
            vm.arm_cut().await.unwrap();
        }
        if steps > 2 {
            vm.cut(InPause::nothing()).await.unwrap();
        }
        if steps > 3 {
            // Broken off where it first waits.
            let _ = tokio::time::timeout(Duration::ZERO, vm.save()).await;
        }
        for _ in 0..2 {
            vm.discard_cut().await.unwrap();
        }
        assert_eq!(std::fs::read_dir(draft.folder()).unwrap().count(), 0, "after {steps} steps");
        until(|| !host.virtualbox.state.lock().unwrap().has_cut).await;
        assert_eq!(vm.state().await.unwrap(), VmState::Running);
        host.store.abandon(&draft).unwrap();
        host.snapshot(vm.as_mut()).await;
    }
}

#[tokio::test]
async fn a_snapshot_that_virtualbox_refuses_leaves_the_machine_running() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let draft = host.draft();
    vm.prepare_cut(draft.folder()).await.unwrap();
    let refused = answer("07d-migrate-missing-base/003-restore-S2");
    host.virtualbox.change(|state| state.fails = Some(("take", refused)));
    let error = vm.cut(InPause::nothing()).await.unwrap_err().to_string();
    assert!(error.contains("VBoxManage snapshot") && error.contains("Could not open the medium"), "{error}");
    assert_eq!(vm.state().await.unwrap(), VmState::Running);
    vm.discard_cut().await.unwrap();
    assert_eq!(host.virtualbox.taken().last().unwrap(), "controlvm M resume");
}

/// The participant gives a cut up after some seconds; VirtualBox goes on with it, and nobody else resumes the machine.
#[tokio::test]
async fn a_cut_that_hangs_is_given_up_and_the_machine_runs_on_when_it_ends() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let draft = host.draft();
    vm.prepare_cut(draft.folder()).await.unwrap();
    host.virtualbox.change(|state| state.hangs = true);
    tokio::time::timeout(Duration::from_millis(50), vm.cut(InPause::nothing())).await.unwrap_err();
    assert_eq!(vm.state().await.unwrap(), VmState::Paused);
    let ends = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        host.virtualbox.put("Snapshots/2026-11-21T02-13-09-063971000Z.sav", "");
        host.virtualbox.put(&Simulated::disk("d6869b71-e99d-40dc-b52b-576a1c900dd4"), "");
        host.virtualbox.change(|state| (state.name, state.has_cut, state.hangs) = ("paused", true, false));
    };
    let (discarded, ()) = tokio::join!(vm.discard_cut(), ends);
    discarded.unwrap();
    assert_eq!(vm.state().await.unwrap(), VmState::Running);
    until(|| !host.virtualbox.state.lock().unwrap().has_cut).await;
}

/// Somebody has gone back and branched off below a cut; such a snapshot cannot be deleted.
#[tokio::test]
async fn what_virtualbox_does_not_delete_is_told_at_the_next_snapshot() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let refused = answer("03-branching-S0-S5/025-delete-S1-two-children");
    host.virtualbox.change(|state| state.fails = Some(("delete", refused)));
    let manifest = host.snapshot(vm.as_mut()).await;
    host.store.delete(&manifest.identity.snapshot).unwrap();
    let draft = host.draft();
    let error = vm.prepare_cut(draft.folder()).await.unwrap_err();
    assert!(matches!(error, HypervisorError::Refused { .. }));
    assert!(error.to_string().contains("cannot be deleted, because it has 2 child snapshots"), "{error}");
    host.virtualbox.change(|state| state.fails = None);
    vm.prepare_cut(draft.folder()).await.unwrap();
}

#[tokio::test]
async fn a_base_that_changed_below_its_vm_is_noticed() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let manifest = host.snapshot(vm.as_mut()).await;
    host.store.delete(&manifest.identity.snapshot).unwrap();
    host.virtualbox.put("run.vdi", "somebody else's operating system");
    let draft = host.draft();
    vm.prepare_cut(draft.folder()).await.unwrap();
    vm.cut(InPause::nothing()).await.unwrap();
    let error = vm.save().await.unwrap_err().to_string();
    assert!(error.contains("run.vdi was changed while a VM runs above it"), "{error}");
    vm.discard_cut().await.unwrap();
    until(|| !host.virtualbox.state.lock().unwrap().has_cut).await;
}
