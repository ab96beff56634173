//! VMs outlive their host agent, wherever in a cut that ends.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use unasnap_host::hypervisor::{Hypervisor, InPause, VmState};
use unasnap_host::store::Store;
use unasnap_host::store::space::Limits;

use crate::bench::{Bench, name, with_bench};

/// Gives QEMU commands while no agent is there, and waits until each is answered.
fn behind_the_agents_back(bench: &Bench, commands: &[&str]) {
    let mut monitor = UnixStream::connect(bench.path().join("state/vms/counter/qmp.sock")).unwrap();
    let mut lines = BufReader::new(monitor.try_clone().unwrap()).lines().map(Result::unwrap);
    for command in [&[r#"{"execute":"qmp_capabilities"}"#], commands].concat() {
        writeln!(monitor, "{command}").unwrap();
        let answer = lines.find(|line| !line.contains(r#""event""#) && !line.contains(r#""QMP""#)).unwrap();
        assert!(answer.contains(r#""return""#), "{command}: {answer}");
    }
}

#[test]
fn a_running_vm_is_adopted() {
    with_bench(None, |bench| {
        Box::pin(async {
            drop(bench.start().await);
            let driver = bench.second_driver().await;
            let mut vm = driver.adopt(&bench.vm).await.unwrap().unwrap();
            assert_eq!(vm.state().await.unwrap(), VmState::Running);
            assert_eq!(vm.incarnation(), 1);
            let refusal = driver.start(&bench.vm, 2).await.err().unwrap().to_string();
            assert!(refusal.contains("it already runs as process"), "{refusal}");
            bench.assert_counting().await;
        })
    });
}

/// Its deployment has gone on to an incarnation that the agent no longer knows when it boots the VM afresh.
#[test]
fn a_vm_that_is_booted_again_keeps_its_incarnation() {
    with_bench(None, |bench| {
        Box::pin(async {
            for (asked, expected) in [(2, 2), (0, 2), (3, 3)] {
                let vm = bench.driver.start(&bench.vm, asked).await.unwrap();
                assert_eq!(vm.incarnation(), expected);
                bench.driver.destroy(&bench.vm.name).await.unwrap();
            }
        })
    });
}

/// The agent dies after a preparation, in the middle of a pause, and while the bytes are saved.
#[test]
fn an_unfinished_cut_ends_with_its_agent() {
    with_bench(None, |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            for steps in 0..3 {
                let draft = bench.store.begin(&name("lost"), &bench.vm.name).unwrap();
                vm.prepare_cut(draft.folder()).await.unwrap();
                match steps {
                    0 => {}
                    1 => drop(
                        tokio::time::timeout(std::time::Duration::from_millis(4), vm.cut(InPause::nothing()))
                            .await,
                    ),
                    _ => drop(vm.cut(InPause::nothing()).await.unwrap()),
                }
                drop(vm);
                let store = Store::open(&bench.path().join("state"), Limits::default()).unwrap();
                vm = bench.second_driver().await.adopt(&bench.vm).await.unwrap().unwrap();
                store.remove_partial().unwrap();
                assert_eq!(store.list().unwrap(), []);
                assert_eq!(vm.state().await.unwrap(), VmState::Running, "after {steps} steps");
                bench.assert_counting().await;
            }
            bench.snapshot(&mut *vm, "whole").await;
        })
    });
}

#[test]
fn a_restored_vm_stays_paused_until_it_is_resumed() {
    with_bench(None, |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            bench.snapshot(&mut *vm, "s").await;
            bench.driver.destroy(&bench.vm.name).await.unwrap();
            drop(bench.restore("s").await);
            let mut vm = bench.second_driver().await.adopt(&bench.vm).await.unwrap().unwrap();
            assert_eq!(vm.state().await.unwrap(), VmState::Paused);
            assert_eq!(vm.incarnation(), 2);
            vm.resume().await.unwrap();
            bench.assert_counting().await;
        })
    });
}

/// The agent of a host that is cut off dies, too.
#[test]
fn a_fenced_vm_stays_stopped_until_it_is_resumed() {
    with_bench(None, |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            vm.fence().await.unwrap();
            vm.discard_cut().await.unwrap();
            drop(vm);
            let mut vm = bench.second_driver().await.adopt(&bench.vm).await.unwrap().unwrap();
            assert!(vm.is_fenced());
            assert_eq!(vm.state().await.unwrap(), VmState::Paused);
            vm.resume().await.unwrap();
            assert!(!vm.is_fenced());
            bench.assert_counting().await;
        })
    });
}

/// The agent dies after QEMU was made and before that was recorded.
#[test]
fn an_unrecorded_process_is_found() {
    with_bench(None, |bench| {
        Box::pin(async {
            drop(bench.start().await);
            let path = bench.path().join("state/vms/counter/instance.json");
            let mut record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            record["process"] = serde_json::Value::Null;
            std::fs::write(&path, record.to_string()).unwrap();
            let mut vm = bench.second_driver().await.adopt(&bench.vm).await.unwrap().unwrap();
            assert_eq!(vm.state().await.unwrap(), VmState::Running);
        })
    });
}

/// Such a device would be in the saved state and not in the machine that is to load it.
#[test]
fn a_card_that_was_plugged_in_later_is_refused() {
    with_bench(None, |bench| {
        Box::pin(async {
            drop(bench.start().await);
            let plug = r#"{"execute":"device_add","arguments":{"driver":"virtio-net-pci","id":"late","romfile":""}}"#;
            behind_the_agents_back(bench, &[plug]);
            let mut vm = bench.second_driver().await.adopt(&bench.vm).await.unwrap().unwrap();
            let draft = bench.store.begin(&name("s"), &bench.vm.name).unwrap();
            let refusal = vm.prepare_cut(draft.folder()).await.unwrap_err().to_string();
            assert!(refusal.contains("late was plugged in since it was started"), "{refusal}");
            bench.store.abandon(&draft).unwrap();
            bench.assert_counting().await;
        })
    });
}
