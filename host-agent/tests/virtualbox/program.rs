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

#[tokio::test]
async fn a_call_that_does_not_end_is_named_and_killed() {
    let folder = tempfile::tempdir().unwrap();
    let calls = script(folder.path(), "echo $$ > $(dirname $0)/pid; exec sleep 60");
    let error =
        calls.call("web", &["startvm", "u"], Duration::from_millis(500)).await.unwrap_err().to_string();
    assert_eq!(error, "VM web: VBoxManage startvm u did not finish within 500 ms");
    let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
    let (process, deadline) = (
        std::path::PathBuf::from(format!("/proc/{}/fd/0", pid.trim())),
        Instant::now() + Duration::from_secs(5),
    );
    while process.exists() {
        assert!(Instant::now() < deadline, "it was not killed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// VirtualBox's service is started by the first call and inherits what it has open.
#[tokio::test]
async fn a_service_that_the_call_starts_does_not_hold_it_up() {
    let folder = tempfile::tempdir().unwrap();
    let calls = script(folder.path(), "sleep 5 & echo done");
    let begun = Instant::now();
    let answer = calls.call("web", &[], Duration::from_secs(9)).await.unwrap();
    assert_eq!(answer.stdout, "done\n");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = VirtualBoxConfig { vboxmanage: folder.path().join("absent"), ..VirtualBoxConfig::default() };
    let calls = VBoxManage::new(&config, folder.path());
    let error = calls.call("web", &["list"], Duration::from_secs(9)).await.unwrap_err().to_string();
    assert!(error.contains("`VBoxManage list` failed") && error.contains("absent"), "{error}");
}
