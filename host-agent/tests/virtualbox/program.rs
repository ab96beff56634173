//! The program itself: environment, time-out, and who keeps its output open.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use unasnap_host::hypervisor::virtualbox::VirtualBoxConfig;
use unasnap_host::hypervisor::virtualbox::calls::{Calls, VBoxManage};

fn script(folder: &std::path::Path, text: &str) -> VBoxManage {
    let program = folder.join("VBoxManage");
    std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = VirtualBoxConfig {
        vboxmanage: program,
        user_home: Some("/srv/hostA/cfg".into()),
        ipc_socket_id: Some("hostA".to_owned()),
        ..VirtualBoxConfig::default()
    };
    VBoxManage::new(&config, folder)
}

/// The wrapper of that name in the PATH prints warnings on stdout.
#[test]
fn the_program_proper_is_called() {
    assert_eq!(VirtualBoxConfig::default().vboxmanage.to_str(), Some("/usr/lib/virtualbox/VBoxManage"));
}

#[tokio::test]
async fn each_of_several_virtualboxes_is_called_by_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    let calls =
        script(folder.path(), "echo \"$VBOX_USER_HOME $VBOX_IPC_SOCKETID $*\"; echo 0%...100% >&2; exit 3");
    let answer = calls.call("web", &["list", "a b"], Duration::from_secs(9)).await.unwrap();
    assert_eq!((answer.code, answer.stdout.as_str()), (3, "/srv/hostA/cfg hostA list a b\n"));
    assert_eq!(answer.stderr, "0%...100%\n");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "answers are left in the folder");
}

/// Time passes only when nothing runs: a machine that starts the program slowly does not let the limit pass before it is there.
#[tokio::test(start_paused = true)]
async fn a_call_that_does_not_end_is_named_and_killed() {
    let folder = tempfile::tempdir().unwrap();
    // Written whole: the name is there when the number is.
    let calls = script(folder.path(), "cd $(dirname $0); echo $$ > new; mv new pid; exec sleep 600");
    let pid = folder.path().join("pid");
    let there = tokio::task::spawn_blocking(move || {
        soon("it has not begun", || pid.exists());
        std::fs::read_to_string(pid).unwrap()
    });
    let (answer, pid) = tokio::join!(calls.call("web", &["startvm", "u"], Duration::from_millis(500)), there);
    let error = answer.unwrap_err().to_string();
    assert_eq!(error, "VM web: VBoxManage startvm u did not finish within 500 ms");
    let process = std::path::PathBuf::from(format!("/proc/{}/fd/0", pid.unwrap().trim()));
    soon("it was not killed", || !process.exists());
}

/// A guest decides what programs print that run in it.
#[tokio::test]
async fn an_answer_without_end_does_not_fill_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let calls = script(folder.path(), "exec yes");
    let error = calls.call("web", &["guestcontrol"], Duration::from_secs(60)).await.unwrap_err().to_string();
    assert!(error.contains("it printed more than 1048576 bytes, and was killed"), "{error}");
}

fn soon(otherwise: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(Instant::now() < deadline, "{otherwise}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// VirtualBox's service is started by the first call and inherits what it has open.
#[tokio::test]
async fn a_service_that_the_call_starts_does_not_hold_it_up() {
    let folder = tempfile::tempdir().unwrap();
    let calls = script(folder.path(), "sleep 600 & echo $!");
    let answer = calls.call("web", &[], Duration::from_secs(60)).await.unwrap();
    let service = answer.stdout.trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(service), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = VirtualBoxConfig { vboxmanage: folder.path().join("absent"), ..VirtualBoxConfig::default() };
    let calls = VBoxManage::new(&config, folder.path());
    let error = calls.call("web", &["list"], Duration::from_secs(9)).await.unwrap_err().to_string();
    assert!(error.contains("`VBoxManage list` failed") && error.contains("absent"), "{error}");
}
