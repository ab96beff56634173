//! Every recorded answer to a call that the driver makes, and the traps among them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use unasnap_host::hypervisor::HypervisorError;
use unasnap_host::hypervisor::virtualbox::info::{Info, State};
use unasnap_host::hypervisor::virtualbox::manage::Manage;

use crate::recorded::{self, Call, Replay, answer};

fn manage(replay: Replay, machine: &str) -> (Arc<Replay>, Manage) {
    let replay = Arc::new(replay);
    (replay.clone(), Manage::new(replay, "web".to_owned(), machine.to_owned()))
}

/// Makes the call that was recorded as the driver makes it; the machine's recorded name stands for its UUID.
async fn make(call: &Call) -> Result<(), HypervisorError> {
    let then = Some(answer("06-running-vm/002-showvminfo-running"));
    let replay = Replay { left: Mutex::new(vec![call.clone()]), then };
    let arguments: Vec<&str> = call.arguments.iter().map(String::as_str).collect();
    let machine = if arguments[0] == "snapshot" || arguments.len() > 1 { arguments[1] } else { "" };
    let (replay, manage) = manage(replay, machine);
    let result = match arguments.as_slice() {
        ["showvminfo", _, "--machinereadable"] => manage.find().await.map(drop),
        ["registervm", path] => manage.register(path.as_ref(), &[]).await,
        ["unregistervm", _] => manage.unregister().await,
        ["modifyvm", _, settings @ ..] => manage.modify(settings).await,
        ["startvm", _, "--type", "headless"] => manage.start().await,
        ["controlvm", _, "pause"] => manage.pause().await,
        ["controlvm", _, "resume"] => manage.resume().await,
        ["controlvm", _, "poweroff"] => manage.power_off().await,
        ["discardstate", _] => manage.discard_saved().await,
        ["snapshot", _, "take", name] => manage.take(name).await,
        ["snapshot", _, "restore", name] => manage.go_back(name).await,
        ["snapshot", _, "delete", name] => manage.delete(name).await,
        ["showmediuminfo", "disk", path] => manage.show(path).await,
        // Of the host, not of a machine.
        ["--version"] => return Ok(()),
        // Steps to a machine on a shared base, which `making.rs` has in their order.
        ["createvm" | "storagectl" | "storageattach" | "modifymedium" | "closemedium" | "list", ..] => {
            return call.answer.clone().success("web", &arguments).map(drop);
        }
        // Calls of operators: what comes of them is read in the same way.
        _ => return call.answer.clone().success("web", &arguments).map(drop),
    };
    assert!(replay.left.lock().unwrap().is_empty(), "{}: not made", call.name);
    result
}

#[tokio::test]
async fn every_recorded_answer_is_understood() {
    let calls = recorded::all();
    assert!(calls.len() > 400, "only {} were found", calls.len());
    let mut failed = 0;
    for call in calls {
        let result = make(&call).await;
        let first = call.answer.stderr.lines().find_map(|line| line.strip_prefix("VBoxManage: error: "));
        let unknown = call.arguments[0] == "showvminfo" && call.answer.has_code("VBOX_E_OBJECT_NOT_FOUND");
        match (result, first) {
            (Ok(()), Some(_)) if unknown => {}
            (Ok(()), None) => assert_eq!(call.answer.code, 0, "{}", call.name),
            (Err(error), Some(words)) => {
                failed += 1;
                let told = error.to_string();
                assert!(told.contains(words), "{}: {told}", call.name);
                assert!(
                    told.contains(&format!("VBoxManage {}", call.arguments.join(" "))),
                    "{}: {told}",
                    call.name
                );
                assert!(!told.contains("Context:") && !told.contains("%..."), "{}: {told}", call.name);
            }
            (Err(error), None) => {
                let (told, answer) = (error.to_string(), &call.answer);
                let mut said =
                    answer.stdout.lines().chain(answer.stderr.lines()).filter(|line| !line.is_empty());
                let first = said.next();
                let has_words = answer.code == 124 || first.is_none_or(|line| told.contains(line));
                assert!(answer.code != 0 && has_words, "{}: {told}", call.name);
            }
            (Ok(()), Some(words)) => panic!("{}: success, but it says {words}", call.name),
        }
    }
    assert!(failed > 20, "only {failed} failures were recorded");
}

#[test]
fn every_recorded_machine_is_understood() {
    let states = [
        ("01-one-disk-no-snapshots/010-showvminfo-mr", State::Off, false),
        ("06-running-vm/002-showvminfo-running", State::Running, true),
        ("06-running-vm/008-showvminfo-paused", State::Paused, true),
        ("06-running-vm/019-showvminfo-saved", State::Saved, true),
        ("07c-migrate-missing-sav/003-showvminfo", State::Saved, false),
        ("07c-migrate-missing-sav/005-showvminfo-after", State::Saved, false),
        ("07g-migrate-truncated-sav/004-showvminfo-after", State::Between, true),
    ];
    for (name, state, locked) in states {
        let info = Info::parse(&answer(name).stdout).unwrap();
        assert_eq!((info.state, info.locked), (state, locked), "{name}");
        assert!(
            (info.memory_mb, info.cpus, info.guest_channel) == (16, 1, None) || info.memory_mb == 64,
            "{name}"
        );
    }
}

/// Nothing is escaped, and what the guest says of itself stands at the end.
#[test]
fn a_guest_cannot_forge_the_state_of_its_machine() {
    let honest = answer("06-running-vm/002-showvminfo-running").stdout;
    let forged = honest.clone()
        + "GuestAdditionsVersion=\"7\"\nVMState=\"poweroff\"\nuartmode1=\"server,/etc/shadow\"\n";
    assert_eq!(Info::parse(&forged), Info::parse(&honest));
    let channel =
        honest.replace("uartmode1=\"file,/srv/hostA/run-com1.log\"", "uartmode1=\"server,/run/a b.sock\"");
    assert_eq!(Info::parse(&channel).unwrap().guest_channel, Some("/run/a b.sock".into()));
    assert_eq!(Info::parse("memory=16\ncpus=1\n"), Err("it does not tell VMState".to_owned()));
}

#[tokio::test]
async fn discarding_a_state_fails_with_code_0() {
    let (_, manage) = manage(Replay::of(&["01-one-disk-no-snapshots/023-discardstate-none"]), "one");
    let error = manage.discard_saved().await.unwrap_err().to_string();
    assert!(error.contains("Cannot discard the saved state as the machine is not in the Saved"), "{error}");
}

/// What failed on stdout is told, too.
#[test]
fn no_snapshots_is_told_on_stdout() {
    let answer = unasnap_host::hypervisor::virtualbox::calls::Answer {
        code: 1,
        stdout: "This machine does not have any snapshots\n".to_owned(),
        stderr: String::new(),
    };
    assert_eq!(answer.error().unwrap(), "exit code 1: This machine does not have any snapshots");
}

#[tokio::test]
async fn a_machine_that_is_forgotten_although_unregistering_failed_is_forgotten() {
    let names = [
        "07z-session-still-locked-race/008-unregister",
        "10a-migrate-multiattach-without-holder/003-showvminfo",
    ];
    let replay = Replay::of(&names);
    replay.left.lock().unwrap()[0].arguments[1] = "run".to_owned();
    let (replay, manage) = manage(replay, "run");
    manage.unregister().await.unwrap();
    assert!(replay.left.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_so_already_is_no_error() {
    let (_, manage) =
        manage(Replay::of(&["06-running-vm/009-pause-again", "06-running-vm/008-showvminfo-paused"]), "run");
    manage.pause().await.unwrap();
}

#[tokio::test]
async fn bases_that_another_machine_registered_are_shown_first() {
    let names = [
        "10a-migrate-multiattach-without-holder/001-registervm",
        "10c-migrate-multiattach-open-in-order/001-open-base",
        "10c-migrate-multiattach-open-in-order/002-open-diff",
        "10c-migrate-multiattach-open-in-order/003-open-diff",
        "10c-migrate-multiattach-open-in-order/004-registervm",
    ];
    let (replay, manage) = manage(Replay::of(&names), "mr1");
    let vbox = "/srv/hostB/vms/mr1/mr1.vbox";
    let disk = |uuid: &str| format!("/srv/hostB/vms/mr1/Snapshots/{{{uuid}}}.vdi").into();
    let disks = [
        "/srv/hostB/vms/mabase/mabase.vdi".into(),
        disk("ed2f102a-31a2-496a-a514-237b205dc890"),
        disk("dff495c6-945d-457a-b3fe-853c1ab8f5f6"),
    ];
    manage.register(vbox.as_ref(), &disks).await.unwrap();
    assert!(replay.left.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_locked_session_is_waited_for() {
    let names = ["06-running-vm/019-showvminfo-saved"; 3];
    let mut replay = Replay::of(&names);
    replay.then = Some(answer("07c-migrate-missing-sav/003-showvminfo"));
    let (_, manage) = manage(replay, "run");
    assert_eq!(manage.unlocked(Duration::from_secs(9)).await.unwrap().state, State::Saved);
    let mut replay = Replay::of(&names);
    replay.then = Some(answer("06-running-vm/019-showvminfo-saved"));
    let (_, manage) = self::manage(replay, "run");
    let error = manage.unlocked(Duration::from_millis(150)).await.unwrap_err().to_string();
    assert!(
        error.contains("the end of the session that has locked its machine (it is Saved, locked)"),
        "{error}"
    );
}
