//! What VirtualBox wrote.

use unasnap_files::vbox::as_saved;
use unasnap_protocol::files::FileRole;

use crate::support::{data, paths, recorded};

/// VirtualBox registered, restored and resumed S2 on another host with these files and no others.
#[test]
fn the_minimal_set_is_the_one_with_which_virtualbox_resumed() {
    let folder = recorded("moved", "run.vbox");
    let report = folder.track("run.vbox", Some("S2")).unwrap();
    let tree = data("moved-minimal.tree");
    let mut proved: Vec<&str> =
        tree.lines().map(|line| line.rsplit_once(' ').unwrap().0.trim_start_matches("./")).collect();
    proved.sort_unstable();
    assert_eq!(paths!(report.needed), proved);
    assert_eq!(report.totals.needed_bytes, 13_866 + 298_409 + 2 * 3_145_728);
    assert_eq!(report.totals.needed_without_base_bytes, 13_866 + 298_409 + 3_145_728);
    assert!(report.missing.is_empty());
    // Nothing of the folder is forgotten.
    assert_eq!(report.needed.len() + report.not_needed.len(), data("moved.tree").lines().count());
}

#[test]
fn a_machine_as_saved_in_a_snapshot_needs_what_the_snapshot_needs() {
    let folder = recorded("branch", "branch.vbox");
    let snapshot = folder.track("branch.vbox", Some("S5")).unwrap();
    let text = std::fs::read_to_string(folder.path("branch.vbox")).unwrap();
    let saved = as_saved(&text, snapshot.target.as_ref().unwrap()).unwrap();
    std::fs::write(folder.path("branch.vbox"), saved).unwrap();
    let now = folder.track("branch.vbox", None).unwrap();
    assert_eq!(paths!(now.needed), paths!(snapshot.needed));
    assert_eq!(now.snapshots.len(), snapshot.snapshots.len() - 1);
    let before = snapshot.snapshots.iter().find(|node| Some(&node.id) == snapshot.target.as_ref());
    assert_eq!(now.current, before.unwrap().parent);
}

#[test]
fn one_of_two_branches_with_two_disks() {
    let folder = recorded("branch", "branch.vbox");
    let report = folder.track("branch.vbox", Some("S5")).unwrap();
    assert_eq!(
        paths!(report.needed),
        [
            "Snapshots/{3b23f05f-11fe-4740-bd89-c4d5f59fb14a}.vdi",
            "Snapshots/{655b13c3-b58f-47c7-babd-5599a788514e}.vdi",
            "Snapshots/{c8749cfb-7a52-41e2-853a-bdb1ad866360}.vdi",
            "Snapshots/{ea83a306-9f41-4c4c-9b8f-09d5b926b5f6}.vdi",
            "branch.vbox",
            "data.vdi",
            "sys.vdi",
        ]
    );
}

/// Each snapshot's disks, by the order in which they were taken: S0 has the bases alone.
#[test]
fn every_snapshot_of_the_branching_tree() {
    let folder = recorded("branch", "branch.vbox");
    let needs = |target: Option<&str>| {
        let report = folder.track("branch.vbox", target).unwrap();
        let disks = report.needed.iter().filter(|file| file.role != FileRole::Settings);
        disks.map(|file| file.path.chars().take(18).collect::<String>()).collect::<Vec<_>>()
    };
    assert_eq!(needs(Some("S0")), ["sys.vdi", "data.vdi"]);
    assert_eq!(
        needs(Some("S1")),
        ["Snapshots/{d03d54a", "sys.vdi", "Snapshots/{2dcabf8", "data.vdi"].map(|name| name.to_owned())
    );
    assert_eq!(needs(Some("S3")).len(), 6);
    assert_eq!(needs(None)[0], "Snapshots/{7b4ec4d");
    assert_eq!(needs(None).len(), 8);
    let by_uuid = needs(Some("{DF3A7CDF-772A-4859-A686-6CD67C853D3F}"));
    assert_eq!(by_uuid, needs(Some("S2")));
    assert_eq!(by_uuid, needs(Some("df3a7cdf-772a-4859-a686-6cd67c853d3f")));
}

#[test]
fn the_tree_is_told_with_parents_and_the_place_of_the_current_state() {
    let report = recorded("branch", "branch.vbox").track("branch.vbox", None).unwrap();
    let name = |id: &str| report.snapshots.iter().find(|node| node.id == id).unwrap().name.clone();
    let edges: Vec<_> = report
        .snapshots
        .iter()
        .map(|node| (node.name.as_str(), node.parent.as_deref().map(name).unwrap_or_default()))
        .collect();
    let expected = [("S0", ""), ("S1", "S0"), ("S2", "S1"), ("S3", "S1"), ("S4", "S0"), ("S5", "S4")];
    assert_eq!(edges, expected.map(|(name, parent)| (name, parent.to_owned())));
    assert_eq!(report.current.as_deref().map(name).as_deref(), Some("S2"));
    assert_eq!(report.target, None);
}

#[test]
fn why_something_is_left_out() {
    let report = recorded("branch", "branch.vbox").track("branch.vbox", Some("S0")).unwrap();
    let why = |start: &str| {
        let found = report.not_needed.iter().find(|file| file.path.contains(start)).unwrap();
        (found.role, found.why.as_str())
    };
    assert_eq!(
        why("d03d54af"),
        (FileRole::DifferenceDisk, "belongs to the current state, S1, S2 and 1 more only")
    );
    assert_eq!(why("10a116ef"), (FileRole::DifferenceDisk, "belongs to S3 only"));
    assert_eq!(why("7b4ec4de"), (FileRole::DifferenceDisk, "belongs to the current state only"));
    assert_eq!(why("branch.vbox-prev"), (FileRole::Settings, "the settings before the last change"));
}

/// Settings 1.20, with RAM; the current state is saved, and shares nothing with the snapshots' RAM.
#[test]
fn a_saved_current_state() {
    let folder = recorded("saved", "run.vbox");
    let report = folder.track("run.vbox", None).unwrap();
    let saved: Vec<_> = report.needed.iter().filter(|file| file.role == FileRole::SavedState).collect();
    assert_eq!(saved.len(), 1);
    assert_eq!(saved[0].path, "Snapshots/2026-11-21T02-13-11-724554000Z.sav");
    assert_eq!(report.needed.len(), 1 + 4 + 1);
    assert_eq!(report.not_needed.iter().filter(|file| file.role == FileRole::SavedState).count(), 3);
}

/// After a restore the current state's RAM is the snapshot's own file.
#[test]
fn a_file_of_two_states_is_listed_once() {
    let folder = recorded("restored", "run.vbox");
    let report = folder.track("run.vbox", None).unwrap();
    let saved = "Snapshots/2026-11-21T02-13-05-932510000Z.sav".to_owned();
    assert!(paths!(report.needed).contains(&saved));
    assert!(!paths!(report.not_needed).contains(&saved));
    assert_eq!(report.totals.files as usize, data("restored.tree").lines().count());
}

#[test]
fn other_formats_and_kinds_of_disks() {
    let folder = recorded("formats", "fmt.vbox");
    let report = folder.track("fmt.vbox", Some("S1")).unwrap();
    let disks: Vec<&str> = report.needed.iter().skip(1).map(|file| file.path.as_str()).collect();
    let immutable = "Snapshots/{adc46277-5c83-4d74-877e-42e9ddb2354e}.vdi";
    assert_eq!(disks, ["d.vmdk", "d.vhd", immutable, "imm.vdi", "wt.vdi"]);
}

/// VirtualBox names firmware variables for BIOS machines too, without ever writing them.
#[test]
fn firmware_variables_are_needed_of_an_efi_alone() {
    let folder = recorded("nvram", "vm.vbox");
    assert!(folder.track("vm.vbox", None).unwrap().missing.is_empty());
    let efi = data("nvram.vbox")
        .replace("<Firmware>", "<Firmware type=\"EFI\">")
        .replace("/srv/hostA/vms/delrenamed/", "");
    folder.write("vm.vbox", efi);
    assert_eq!(paths!(folder.track("vm.vbox", None).unwrap().missing), ["delrenamed.nvram"]);
    folder.sparse("delrenamed.nvram", 540_672);
    let report = folder.track("vm.vbox", None).unwrap();
    assert!(report.needed.iter().any(|file| file.role == FileRole::Nvram && file.bytes == 540_672));
}

#[test]
fn what_a_restore_leaves_behind_belongs_to_nobody() {
    let folder = recorded("moved", "run.vbox");
    folder.sparse("Snapshots/{56731949-98fb-496a-aa9c-3929aabe6dd1}.vdi", 7);
    let report = folder.track("run.vbox", Some("S2")).unwrap();
    let orphan = report.not_needed.iter().find(|file| file.path.contains("56731949")).unwrap();
    assert_eq!((orphan.bytes, orphan.why.as_str()), (Some(7), "no snapshot refers to it"));
}

#[test]
fn missing_files_are_told_if_they_are_needed() {
    let folder = recorded("moved", "run.vbox");
    std::fs::remove_file(folder.path("Snapshots/2026-11-21T02-13-09-063971000Z.sav")).unwrap();
    let report = folder.track("run.vbox", Some("S2")).unwrap();
    assert_eq!(report.missing.len(), 1);
    assert_eq!((report.missing[0].role, report.missing[0].bytes), (FileRole::SavedState, None));
    let other = folder.track("run.vbox", Some("S3")).unwrap();
    assert!(other.missing.is_empty());
    let left_out = other.not_needed.iter().find(|file| file.path.contains("13-09")).unwrap();
    assert_eq!(left_out.why, "belongs to S2 only; it is not there");
}

#[test]
fn a_machine_is_known_by_its_uuid() {
    let folder = recorded("moved", "run.vbox");
    let uuid = unasnap_files::vbox::machine_uuid(&folder.path("run.vbox")).unwrap();
    assert_eq!(uuid, "e21aff55-075a-48d2-97a4-ef0c56e67c2d");
    let text = data("moved.vbox").replace("uuid=\"{e21aff55-075a-48d2-97a4-ef0c56e67c2d}\" name", "name");
    folder.write("run.vbox", text);
    let error = unasnap_files::vbox::machine_uuid(&folder.path("run.vbox")).unwrap_err().to_string();
    assert!(error.contains("its machine has no UUID"), "{error}");
}
