//! `unasnap files`: what is printed, and the exit codes. Which files are needed is tested where that is found out.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const UUIDS: [&str; 3] = [
    "{11111111-0000-4000-8000-000000000000}",
    "{22222222-0000-4000-8000-000000000000}",
    "{33333333-0000-4000-8000-000000000000}",
];

/// A machine with one snapshot in RAM; its name and the snapshot's are full of what a terminal obeys.
fn write_machine(folder: &Path) {
    let device =
        |uuid| format!("<AttachedDevice type=\"HardDisk\"><Image uuid=\"{uuid}\"/></AttachedDevice>");
    let [snapshot, base, difference] = UUIDS;
    let text = format!(
        "<VirtualBox version=\"1.19-linux\"><Machine name=\"web &#x9b;2J\" currentSnapshot=\"{snapshot}\" \
         snapshotFolder=\"Snapshots\"><MediaRegistry><HardDisks><HardDisk uuid=\"{base}\" location=\"web&#10;1.vdi\"><HardDisk \
         uuid=\"{difference}\" location=\"Snapshots/d.vdi\"/></HardDisk></HardDisks></MediaRegistry><Snapshot uuid=\"{snapshot}\" \
         name=\"S&#10;1\u{202e}\" timeStamp=\"2026-11-21T02:09:24Z\" stateFile=\"Snapshots/1.sav\"><Hardware>{}</Hardware></Snapshot>\
         <Hardware>{}</Hardware></Machine></VirtualBox>",
        device(base),
        device(difference),
    );
    fs::create_dir(folder.join("Snapshots")).unwrap();
    for (name, bytes) in [("web\n1.vdi", 3 << 20), ("Snapshots/d.vdi", 2 << 20), ("Snapshots/1.sav", 1 << 20)]
    {
        fs::File::create(folder.join(name)).unwrap().set_len(bytes).unwrap();
    }
    fs::write(folder.join("web.vbox"), text).unwrap();
}

fn files(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unasnap"));
    command.current_dir(folder).arg("files").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let steers = |letter: char| letter != '\n' && letter.is_control() || letter == '\u{202e}';
    assert!(!text.contains(steers), "{text:?}");
    text
}

#[test]
fn the_tree_the_table_and_the_sums() {
    let folder = tempfile::tempdir().unwrap();
    write_machine(folder.path());
    let output = files(folder.path(), &["--vbox", "web.vbox"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let folder_name = folder.path().to_str().unwrap();
    let size = fs::metadata(folder.path().join("web.vbox")).unwrap().len();
    let shown = text(&output.stdout).replace(folder_name, "FOLDER").replace(&format!("{size} B"), "SIZE");
    insta::assert_snapshot!("files_vbox", shown);
}

#[test]
fn json_is_one_object_with_a_schema() {
    let folder = tempfile::tempdir().unwrap();
    write_machine(folder.path());
    let output = files(folder.path(), &["--vbox", "web.vbox", "--snapshot", UUIDS[0], "--json"]);
    let json: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["vm"], "web \u{9b}2J");
    let paths = |list: &str| -> Vec<String> {
        json[list].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(paths("needed"), ["web.vbox", "web\n1.vdi", "Snapshots/1.sav"]);
    assert_eq!(json["needed"][1]["role"], "base-disk");
    assert_eq!(json["needed"][1]["bytes"], 3 << 20);
    assert_eq!(paths("not_needed"), ["Snapshots/d.vdi"]);
    assert_eq!(json["not_needed"][0]["why"], "belongs to the current state only");
    assert_eq!(json["missing"], Value::Array(Vec::new()));
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    write_machine(folder.path());
    fs::remove_file(folder.path().join("Snapshots/d.vdi")).unwrap();
    let output = files(folder.path(), &["--vbox", "web.vbox"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stdout).contains("MISSING"));
    assert!(text(&output.stderr).contains("needed files are missing: 1;"));
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--vbox", "web.vbox", "--snapshot", "no\u{1b}pe"], 4, "no snapshot"),
        (&["--qcow2", "web.vbox"], 2, "is no qcow2 image"),
        (&["--vbox", "absent.vbox"], 2, "cannot read"),
        (&[], 2, "required"),
    ];
    for (arguments, code, words) in cases {
        let output = files(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(text(&output.stderr).contains(words), "{output:?}");
    }
}

#[test]
fn a_qcow2_image_needs_nobody_either() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = vec![0; 1024];
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
    image[23] = 16;
    fs::write(folder.path().join("vm.qcow2"), image).unwrap();
    let output = files(folder.path(), &["--qcow2", "vm.qcow2", "--json"]);
    let json: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(
        (json["needed"][0]["path"].as_str(), json["totals"]["bytes"].as_u64()),
        (Some("vm.qcow2"), Some(1024))
    );
}

/// Two VMs of a deployment share a base, which is to be copied once.
#[test]
fn the_sum_of_a_deployment_counts_a_shared_base_once() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.qcow2");
    let image = |backing: &str| {
        let mut image = vec![0; 1024];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
        image[23] = 16;
        if !backing.is_empty() {
            image[14] = 2;
            image[19] = u8::try_from(backing.len()).unwrap();
            image[512..512 + backing.len()].copy_from_slice(backing.as_bytes());
        }
        image
    };
    fs::write(&base, image("")).unwrap();
    for vm in ["one", "two"] {
        fs::create_dir(folder.path().join(vm)).unwrap();
        fs::write(folder.path().join(vm).join("vm.qcow2"), image("../base.qcow2")).unwrap();
    }
    let both = ["--qcow2", "one/vm.qcow2", "--qcow2", "two/vm.qcow2"];
    let output = files(folder.path(), &[&both[..], &["--json"]].concat());
    let json: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(json["vms"][1]["needed"][1]["path"], "../base.qcow2");
    assert_eq!(json["vms"][1]["totals"]["needed_bytes"], 2048);
    assert_eq!(json["totals"]["needed_files"], 3);
    assert_eq!(json["totals"]["needed_bytes"], 3072);
    assert_eq!(json["totals"]["needed_without_base_bytes"], 2048);
    fs::remove_file(base).unwrap();
    let output = files(folder.path(), &both);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("needed files are missing: 1;"));
}
