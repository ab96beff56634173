//! What hypervisors write: machines of VirtualBox and headers of disks, each alone in a folder.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use unasnap_files::vbox::foreign::{Own, written_anew};
use unasnap_files::{FilesError, qcow2 as disks, vbox as machines};
use unasnap_protocol::files::FileReport;

/// A new folder; in memory if the machine has such a file system.
pub(crate) fn folder() -> TempDir {
    let shared = Path::new("/dev/shm");
    let above = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("unasnap-fuzz-").tempdir_in(above).expect("a new folder")
}

/// A new folder with `web/NAME`.
fn folder_with(name: &str, input: &[u8]) -> TempDir {
    let folder = folder();
    fs::create_dir(folder.path().join("web")).expect("a folder in it");
    fs::write(folder.path().join("web").join(name), input).expect("a file in that");
    folder
}

/// Whatever a file says, as long as it is understood it is needed itself, and every error has words.
fn check(name: &str, tracked: Result<FileReport, FilesError>) {
    match tracked {
        Ok(report) => assert!(report.needed.iter().any(|file| file.path == name), "{report:?}"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub fn vbox(input: &[u8]) {
    let folder = folder_with("web.vbox", input);
    for snapshot in [None, Some("first")] {
        check("web.vbox", machines::track(&folder.path().join("web/web.vbox"), snapshot));
    }
}

/// What is understood is written so that it is understood in the same way once more.
pub fn foreign_vbox(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let own = Own { name: "web", bridges: &["br0"], guest_channel: "/vms/web/guest.sock" };
    match written_anew(text, &own) {
        Ok(here) => assert_eq!(written_anew(&here, &own).as_ref(), Ok(&here)),
        Err(why) => assert!(!why.is_empty()),
    }
}

pub fn qcow2(input: &[u8]) {
    let folder = folder_with("web.qcow2", input);
    for snapshot in [None, Some("1")] {
        check("web.qcow2", disks::track(&folder.path().join("web/web.qcow2"), snapshot));
    }
}
