//! What operators do to a VM: pause, resume, power button, start.

use std::sync::Arc;
use std::time::Duration;

use unasnap_host::colouring::host::KernelTaps;
use unasnap_host::definition::Colouring;
use unasnap_host::hypervisor::qemu::Qemu;
use unasnap_host::hypervisor::{self, Hypervisor};
use unasnap_host::switches::Switches;
use unasnap_host::works::Works;
use unasnap_protocol::control::{Envelope, Failure, FailureKind, VmState};
use unasnap_protocol::participant::{Job, Outcome, Step};
use unasnap_protocol::power::Verb;

use crate::bench::{Bench, name, with_bench};

#[test]
fn a_paused_vm_stays_so_until_it_is_resumed_whatever_happens_meanwhile() {
    with_bench(None, |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            vm.pause().await.unwrap();
            // A snapshot that was refused is undone, the host is cut off and back, its agent dies.
            vm.discard_cut().await.unwrap();
            vm.fence().await.unwrap();
            vm.lift_fence().await.unwrap();
            assert_eq!(vm.state().await.unwrap(), hypervisor::VmState::Paused);
            drop(vm);
            let mut vm = bench.second_driver().await.adopt(&bench.vm).await.unwrap().unwrap();
            assert_eq!(vm.state().await.unwrap(), hypervisor::VmState::Paused);
            let before = bench.console().len();
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(bench.ticks(before), [] as [u64; 0]);
            vm.resume().await.unwrap();
            bench.assert_counting().await;
            bench.snapshot(&mut *vm, "whole").await;
        })
    });
}

#[test]
fn a_fence_that_is_lifted_does_not_end_a_restore() {
    with_bench(None, |bench| {
        Box::pin(async {
            let mut vm = bench.start().await;
            bench.snapshot(&mut *vm, "s").await;
            bench.driver.destroy(&bench.vm.name).await.unwrap();
            let mut vm = bench.restore("s").await;
            vm.fence().await.unwrap();
            vm.lift_fence().await.unwrap();
            assert!(vm.awaits_resume());
            assert_eq!(vm.state().await.unwrap(), hypervisor::VmState::Paused);
        })
    });
}

fn works(bench: &Bench, driver: Qemu, append: &str) -> Works {
    let taps = Arc::new(KernelTaps::new(bench.path()));
    let mut definition = bench.vm.clone();
    definition.append += append;
    definition.colouring = Colouring::None;
    let switches = Switches { shut_down_limit: Some(Duration::from_secs(30)), ..Switches::default() };
    Works::new(definition, Arc::new(driver), bench.store.clone(), taps, switches)
}

async fn control(works: &Works, verb: Verb) -> Result<(VmState, bool), Failure> {
    let envelope = Envelope {
        vm: name("counter"),
        deployment: name("test"),
        snapshot: name("control-1-1-vm"),
        epoch: 0,
        term: 1,
        incarnation: 0,
    };
    match works.carry_out(Job { envelope, step: Step::Control(verb) }).await? {
        Outcome::Controlled(done) => Ok((done.state, done.changed)),
        other => panic!("{other:?}"),
    }
}

/// What the host agent does with a real VM when the coordinator orders it.
#[test]
fn a_vm_is_started_paused_resumed_reset_and_stopped() {
    with_bench(None, |bench| {
        Box::pin(async {
            let works = works(bench, bench.second_driver().await, "");
            assert_eq!(control(&works, Verb::Start).await, Ok((VmState::Starting, true)));
            bench.wait_ticks(0, 5).await;
            assert_eq!(control(&works, Verb::Pause).await, Ok((VmState::Paused, true)));
            let paused = bench.console().len();
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(bench.ticks(paused), [] as [u64; 0]);
            assert_eq!(control(&works, Verb::Resume).await, Ok((VmState::Running, true)));
            let counted = bench.wait_ticks(paused, 5).await;

            let reset = bench.console().len();
            assert_eq!(control(&works, Verb::Reset).await, Ok((VmState::Starting, true)));
            let goes_on = bench.wait_ticks(reset, 5).await;
            assert!(bench.console()[reset..].contains("begin "), "it has not booted");
            assert!(goes_on[0] > counted[0], "the disk was lost: {goes_on:?} after {counted:?}");

            // Nothing in this guest listens to ACPI.
            let refused = control(&works, Verb::Stop).await.unwrap_err();
            assert_eq!(refused.kind, FailureKind::TimedOut, "{refused}");
            bench.assert_counting().await;
            assert_eq!(control(&works, Verb::Kill).await, Ok((VmState::Stopped, true)));
            assert_eq!(control(&works, Verb::Stop).await, Ok((VmState::Stopped, false)));
        })
    });
}

/// And is started again.
#[test]
fn a_guest_that_shuts_down_in_time_was_stopped() {
    with_bench(None, |bench| {
        Box::pin(async {
            let works = works(bench, bench.second_driver().await, " leaves");
            control(&works, Verb::Start).await.unwrap();
            bench.wait_ticks(0, 50).await;
            assert_eq!(control(&works, Verb::Stop).await, Ok((VmState::Stopped, true)));
            let stopped = bench.console().len();
            assert_eq!(control(&works, Verb::Start).await, Ok((VmState::Starting, true)));
            let goes_on = bench.wait_ticks(stopped, 5).await;
            assert!(goes_on[0] > 50, "the disk was lost: {goes_on:?}");
            control(&works, Verb::Kill).await.unwrap();
        })
    });
}
