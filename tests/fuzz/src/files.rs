//! What hypervisors write: machines of VirtualBox and headers of disks, each alone in a folder.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use unasnap_files::vbox::foreign::{Own, written_anew};
use unasnap_files::vbox::{as_saved, as_saved_alone, with_shared_base};
use unasnap_files::{FilesError, qcow2 as disks, vbox as machines};
use unasnap_protocol::files::FileReport;

const UUID: &str = "20d1e9a4-523c-4243-a6bd-635926e1d6f9";

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

/// What is understood is written so that it is understood in the same way once more. What is done next to settings that are believed
/// changes others, too, or says why not.
pub fn foreign_vbox(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (guest_channel, console) = ("/vms/web/guest.sock", "/vms/web/console.sock");
    let own = |believed| Own { name: "web", bridges: &["br0"], guest_channel, console, believed };
    let snapshot = text.split_once("<Snapshot uuid=\"{").and_then(|(_, rest)| rest.split_once('}'));
    let saved = snapshot.into_iter().flat_map(|(uuid, _)| [as_saved(text, uuid), as_saved_alone(text, uuid)]);
    for changed in saved.chain([with_shared_base(text, UUID, "/b&<\"")]) {
        assert!(changed.map_or_else(|why| !why.is_empty(), |text| text.contains("<Machine")));
    }
    for believed in [false, true] {
        match written_anew(text, &own(believed)) {
            Ok(here) => assert_eq!(written_anew(&here, &own(believed)).as_ref(), Ok(&here)),
            Err(why) => assert!(!why.is_empty()),
        }
    }
}

pub fn qcow2(input: &[u8]) {
    let folder = folder_with("web.qcow2", input);
    for snapshot in [None, Some("1")] {
        check("web.qcow2", disks::track(&folder.path().join("web/web.qcow2"), snapshot));
    }
}
