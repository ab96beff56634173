//! From one life of a machine to the next: start, adoption, restore, destruction.

use std::path::Path;

use unasnap_host::hypervisor::{Ground, Hypervisor, InPause, VmState};

use crate::recorded::answer;
use crate::simulated::{LOWER, Simulated};
use crate::support::{Host, definition, until};

#[tokio::test]
async fn a_machine_is_made_ready_once() {
    let host = Host::new().await;
    let vm = host.driver.start(&host.vm, 3).await.unwrap();
    let socket = host.folder.path().join("vms/web/guest.sock");
    assert_eq!((vm.incarnation(), vm.guest_channel_path()), (3, socket.as_path()));
    let vbox = host.machine("run.vbox");
    let expected = [
        format!("registervm {}", vbox.display()),
        "modifyvm M --vm-execution-engine=recompiler".to_owned(),
        format!("modifyvm M --uart2 0x2F8 3 --uart-mode2 server {}", socket.display()),
        "snapshot M take unasnap base".to_owned(),
        "startvm M --type headless".to_owned(),
    ];
    assert_eq!(host.virtualbox.taken(), expected);
    let again = host.driver.start(&host.vm, 0).await.map(drop).unwrap_err().to_string();
    assert!(again.contains("it already runs"), "{again}");
    drop(vm);
    host.driver.destroy(&host.vm.name).await.unwrap();
    host.virtualbox.taken();
    let vm = host.driver.start(&host.vm, 0).await.unwrap();
    assert_eq!(vm.incarnation(), 3, "an incarnation never goes back");
    let expected = ["modifyvm M --vm-execution-engine=recompiler", "startvm M --type headless"];
    assert_eq!(host.virtualbox.taken(), expected);
}

#[tokio::test]
async fn a_definition_that_says_something_else_than_the_machine_is_refused() {
    let mut host = Host::new().await;
    host.vm.memory_mb = 65;
    let error = host.driver.start(&host.vm, 0).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("memory_mb = 65 and cpus = 1, and its machine has 64 and 1"), "{error}");
}

#[tokio::test]
async fn a_vm_that_is_deleted_leaves_the_machine_to_its_operator() {
    let host = Host::new().await;
    drop(host.driver.start(&host.vm, 3).await.unwrap());
    let error = host.driver.forget(&host.vm.name).await.unwrap_err().to_string();
    assert!(error.contains("cannot delete: it runs"), "{error}");
    host.driver.destroy(&host.vm.name).await.unwrap();
    host.virtualbox.taken();
    host.driver.forget(&host.vm.name).await.unwrap();
    host.driver.forget(&host.vm.name).await.unwrap();
    assert_eq!(host.virtualbox.taken(), [] as [&str; 0]);
    assert!(host.machine("run.vbox").exists() && !host.folder.path().join("vms/web").exists());
    let error = host.driver.make(&host.vm, Ground::Bases(&[]), 0).await.unwrap_err().to_string();
    assert!(error.contains("with VirtualBox's own means"), "{error}");
}

#[test]
fn only_the_guest_can_colour() {
    let folder = tempfile::tempdir().unwrap();
    let colouring = |way: &str| definition(folder.path(), way).map(|vm| format!("{:?}", vm.colouring));
    assert_eq!(colouring(""), Ok("Guest".to_owned()));
    assert_eq!(colouring("colouring = 'none'"), Ok("None".to_owned()));
    for (way, why) in [("host", "gives a VM no tap"), ("memory", "write a guest's RAM")] {
        let error = colouring(&format!("colouring = '{way}'")).unwrap_err();
        assert!(
            error.contains(&format!("key `colouring` is {way}: VirtualBox")) && error.contains(why),
            "{error}"
        );
    }
    let error = definition(folder.path(), "kernel = 'web.toml'").unwrap_err();
    assert!(error.contains("VirtualBox's machine says this itself"), "{error}");
}

#[tokio::test]
async fn ram_cannot_be_had() {
    let host = Host::new().await;
    let error = host.start().await.ram().map(drop).unwrap_err().to_string();
    assert!(error.contains("use colouring = \"guest\""), "{error}");
}

#[tokio::test]
async fn a_disk_that_no_snapshot_holds_is_refused() {
    let host = Host::new().await;
    // Registered and started by hand: its disk was never frozen.
    host.virtualbox.change(|state| (state.registered, state.name) = (true, "running"));
    let mut vm = host.adopt().await.unwrap();
    let error = vm.prepare_cut(host.draft().folder()).await.unwrap_err().to_string();
    assert!(error.contains("the machine writes run.vdi itself, so no snapshot can hold it"), "{error}");
}

#[tokio::test]
async fn a_cut_that_died_with_its_agent_is_ended_by_the_next() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    vm.prepare_cut(host.draft().folder()).await.unwrap();
    vm.cut(InPause::nothing()).await.unwrap();
    drop(vm);
    host.virtualbox.change(|state| state.name = "paused");
    let mut vm = host.adopt().await.unwrap();
    assert_eq!((vm.incarnation(), vm.state().await.unwrap()), (3, VmState::Running));
    until(|| !host.virtualbox.state.lock().unwrap().has_cut).await;
}

#[tokio::test]
async fn a_fenced_machine_stays_stopped() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    vm.fence().await.unwrap();
    drop(vm);
    let mut vm = host.adopt().await.unwrap();
    assert_eq!((vm.is_fenced(), vm.state().await.unwrap()), (true, VmState::Paused));
    vm.resume().await.unwrap();
    assert_eq!((vm.is_fenced(), vm.state().await.unwrap()), (false, VmState::Running));
}

#[tokio::test]
async fn a_machine_that_does_not_run_is_not_adopted() {
    let host = Host::new().await;
    assert!(host.adopt().await.is_none());
    drop(host.start().await);
    host.virtualbox.change(|state| state.name = "saved");
    assert!(host.adopt().await.is_none(), "somebody saved it by hand");
}

/// The same path on the host where it was and on any other: there, nothing but the base is there yet.
#[tokio::test]
async fn a_snapshot_is_restored_again_and_again_here_and_elsewhere() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let manifest = host.snapshot(vm.as_mut()).await;
    until(|| !host.virtualbox.state.lock().unwrap().has_cut).await;
    for elsewhere in [false, true, false] {
        host.driver.destroy(&host.vm.name).await.unwrap();
        drop(vm);
        if elsewhere {
            host.virtualbox.change(|state| state.registered = false);
            std::fs::remove_dir_all(host.machine("Snapshots")).unwrap();
            std::fs::remove_file(host.machine("run.vbox")).unwrap();
        }
        host.virtualbox.taken();
        vm = host.restore(&manifest).await.unwrap();
        assert_eq!((vm.incarnation(), vm.state().await.unwrap()), (9, VmState::Paused));
        let register = format!("registervm {}", host.machine("run.vbox").display());
        let expected = [register.as_str(), "snapshot M restore CUT"];
        let calls = host.virtualbox.taken();
        assert_eq!(calls[usize::from(!elsewhere)..], expected);
        assert!(elsewhere || calls[0] == "unregistervm M");
        vm.resume().await.unwrap();
        assert_eq!(vm.state().await.unwrap(), VmState::Running);
        until(|| !host.virtualbox.state.lock().unwrap().has_cut).await;
        host.store.verify(&manifest.identity.snapshot, &host.vm.name).unwrap();
    }
}

#[tokio::test]
async fn a_restored_machine_that_waits_is_adopted_and_destroyed() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let manifest = host.snapshot(vm.as_mut()).await;
    host.driver.destroy(&host.vm.name).await.unwrap();
    drop(host.restore(&manifest).await.unwrap());
    let mut vm = host.adopt().await.unwrap();
    assert_eq!((vm.incarnation(), vm.state().await.unwrap()), (9, VmState::Paused));
    drop(vm);
    host.virtualbox.taken();
    host.driver.destroy(&host.vm.name).await.unwrap();
    assert_eq!(host.virtualbox.taken(), ["discardstate M"]);
    assert!(host.adopt().await.is_none(), "nobody starts it by mistake");
}

#[tokio::test]
async fn a_restore_refuses_another_base_and_a_machine_that_lives() {
    let host = Host::new().await;
    let mut vm = host.start().await;
    let manifest = host.snapshot(vm.as_mut()).await;
    let error = host.restore(&manifest).await.map(drop).unwrap_err();
    assert!(error.contains("it already runs: destroy that first"), "{error}");
    host.driver.destroy(&host.vm.name).await.unwrap();
    host.virtualbox.put("run.vdi", "somebody else's operating system");
    let error = host.restore(&manifest).await.map(drop).unwrap_err();
    assert!(error.contains("is not the one below this snapshot"), "{error}");
    assert!(Path::new(&host.machine(&Simulated::disk(LOWER))).exists(), "nothing was touched");
}

#[tokio::test]
async fn the_end_of_a_session_is_waited_for() {
    let host = Host::new().await;
    drop(host.start().await);
    host.driver.destroy(&host.vm.name).await.unwrap();
    assert_eq!(host.virtualbox.state.lock().unwrap().locked, 0);
    host.driver.destroy(&host.vm.name).await.unwrap();
    assert_eq!(host.virtualbox.taken(), ["controlvm M poweroff"]);
}

/// As recorded: while a machine reads a truncated RAM, VirtualBox ends it for nobody.
#[tokio::test]
async fn a_machine_that_cannot_be_powered_off_is_killed_and_that_of_another_host_is_not() {
    let host = Host::new().await;
    drop(host.start().await);
    let refused = answer("07g-migrate-truncated-sav/005-unregister");
    host.virtualbox.change(|state| (state.name, state.fails) = ("restoring", Some(("poweroff", refused))));
    let process = |of: &str| {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "while :; do sleep 1; done", "--startvm", crate::simulated::UUID]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).kill_on_drop(true);
        command.env("VBOX_IPC_SOCKETID", of).spawn().unwrap()
    };
    let (mut own, mut foreign) = (process("hostA"), process("hostB"));
    let dies = async {
        while own.try_wait().unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        host.virtualbox.change(|state| state.name = "aborted");
    };
    let (destroyed, ()) = tokio::join!(host.driver.destroy(&host.vm.name), dies);
    let spared = foreign.try_wait().unwrap().is_none();
    foreign.kill().await.unwrap();
    destroyed.unwrap();
    assert!(spared, "another host's machine was killed");
}

/// It may be off by itself in the same moment.
#[tokio::test]
async fn a_machine_that_is_off_already_is_destroyed() {
    let host = Host::new().await;
    drop(host.start().await);
    let refused = answer("01-one-disk-no-snapshots/020-controlvm-poweroff-notrunning");
    host.virtualbox.change(|state| (state.name, state.fails) = ("stopping", Some(("poweroff", refused))));
    let ends = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        host.virtualbox.change(|state| state.name = "poweroff");
    };
    let (destroyed, ()) = tokio::join!(host.driver.destroy(&host.vm.name), ends);
    destroyed.unwrap();
}
