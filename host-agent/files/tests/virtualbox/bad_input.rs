//! What VirtualBox would never write: each is refused with what, why and what to do, or read as far as it makes sense.

use unasnap_protocol::files::FileRole;

use crate::support::{Folder, Made, data, paths, uuid};

fn refusal(text: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    folder.write("vm.vbox", text);
    folder.track("vm.vbox", None).unwrap_err().to_string()
}

fn machine(version: &str, inside: &str) -> String {
    format!("<VirtualBox version=\"{version}\"><Machine name=\"m\">{inside}</Machine></VirtualBox>")
}

#[test]
fn foreign_files_are_named_as_such() {
    let bomb = "<!DOCTYPE a [<!ENTITY x \"xxxxxxxxxx\"><!ENTITY y \"&x;&x;&x;&x;\">]>";
    let bomb = format!("{bomb}{}", machine("1.19-linux", "&y;"));
    let cases: [(Vec<u8>, &str); 11] = [
        (b"".into(), "no machine is in it"),
        (b"QFI\xfb\0\0\0\x03".into(), "not UTF-8"),
        (b"[package]\nname = \"x\"\n".into(), "no machine is in it"),
        (b"<html><body/></html>".into(), "outermost element is \"html\""),
        (data("VirtualBox.xml").into(), "own list of machines"),
        (bomb.into(), "document type"),
        (machine("1.9-linux", "").into(), "1.11 (VirtualBox 4.0) is the oldest"),
        (machine("", "").into(), "no settings version"),
        (b"<VirtualBox version=\"1.20-linux\"/>".into(), "no machine is in it"),
        (b"<VirtualBox version=\"1.20-linux\"><MachineEncrypted/></VirtualBox>".into(), "removeencryption"),
        (b"<VirtualBox version=\"1.19\"><Machine/><Machine/></VirtualBox>".into(), "2 machines"),
    ];
    for (text, what) in cases {
        let refusal = refusal(text);
        assert!(refusal.contains(what), "{refusal}");
        assert!(
            refusal.contains("; give the .vbox") || refusal.contains("; take an intact copy"),
            "{refusal}"
        );
    }
}

/// An attribute that refers to an entity of its own is not expanded, whatever the size.
#[test]
fn entities_are_never_expanded() {
    let text = "<VirtualBox version=\"1.19\"><Machine name=\"&lol;\"/></VirtualBox>";
    assert!(refusal(text).contains("attribute name"), "{}", refusal(text));
}

#[test]
fn damaged_machines_are_named_as_such() {
    let disk = |id: usize| format!("<HardDisk uuid=\"{}\" location=\"a.vdi\"/>", uuid(1, id));
    let disks = |inside: &str| {
        machine("1.19", &format!("<MediaRegistry><HardDisks>{inside}</HardDisks></MediaRegistry>"))
    };
    let cases = [
        (disks(&(disk(1) + &disk(1))), "two things in it have the UUID"),
        (disks("<HardDisk uuid=\"x\" location=\"a.vdi\"/>"), "\"x\" where a UUID belongs"),
        (disks("<HardDisk uuid=\"{00000001-0000-4000-8000-000000000000}\"/>"), "has no location"),
        (machine("1.19", "<Snapshot name=\"S1\"/>"), "a Snapshot has \"\" where a UUID belongs"),
        (machine("1.19", "<Hardware></Machine>"), "at byte"),
        ("<VirtualBox version=\"1.19\">".repeat(5000), "nested deeper than 4096"),
    ];
    for (text, what) in cases {
        let refusal = refusal(text);
        assert!(refusal.contains(what) && refusal.contains("; take an intact copy"), "{refusal}");
    }
}

#[test]
fn a_machine_that_is_cut_off_anywhere_is_refused() {
    let whole = data("branch.vbox");
    let end = whole.rfind("</VirtualBox>").unwrap();
    for length in (0..end).step_by(53) {
        let refusal = refusal(&whole[..length]);
        assert!(refusal.contains("damaged") || refusal.contains("no machine"), "{length}: {refusal}");
    }
}

/// Whatever becomes of single bytes: a report or a refusal.
#[test]
fn changed_bytes_do_no_harm() {
    let folder = Folder::new();
    let whole = data("moved.vbox").into_bytes();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..500 {
        let mut text = whole.clone();
        for _ in 0..3 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = random as usize % text.len();
            text[at] = b"<>\"'/& =\0{}-aZ09\xff"[(random >> 40) as usize % 17];
        }
        folder.write("vm.vbox", text);
        let _ = folder.track("vm.vbox", Some("S2"));
    }
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("vm.vbox")).unwrap();
    assert!(folder.track("vm.vbox", None).unwrap_err().to_string().contains("no regular file"));
    let pipe = folder.path("pipe.vbox");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(folder.track("pipe.vbox", None).unwrap_err().to_string().contains("no regular file"));
    let text = folder.track("absent.vbox", None).unwrap_err().to_string();
    assert!(text.contains("cannot read") && text.contains("as the user to whom it belongs"), "{text}");
    folder.sparse("huge.vbox", 1 << 40);
    let text = folder.track("huge.vbox", None).unwrap_err().to_string();
    assert!(text.contains("1099511627776 bytes"), "{text}");
}

#[test]
fn a_folder_in_the_place_of_a_disk_is_missing() {
    let made = Made::line(1, 1);
    let folder = made.lay_out(|_, _| 1);
    std::fs::remove_file(folder.path("disk0.vdi")).unwrap();
    std::fs::create_dir(folder.path("disk0.vdi")).unwrap();
    let report = folder.track("made.vbox", None).unwrap();
    assert_eq!(report.missing[0].why, "it is no regular file");
}

#[test]
fn odd_names_and_paths_are_kept_as_they_are() {
    let names = [
        "a b.vdi",
        "it's &quot;new&quot;.vdi",
        "Größe-日本.vdi",
        "a&#10;b&#27;[2J.vdi",
        "100%.vdi",
        "&lt;x&gt;.vdi",
    ];
    let plain = ["a b.vdi", "it's \"new\".vdi", "Größe-日本.vdi", "a\nb\u{1b}[2J.vdi", "100%.vdi", "<x>.vdi"];
    let mut disks = String::new();
    let mut devices = String::new();
    for (index, name) in names.iter().enumerate() {
        disks += &format!("<HardDisk uuid=\"{}\" location=\"{name}\"/>", uuid(1, index));
        devices += &format!(
            "<AttachedDevice type=\"HardDisk\"><Image uuid=\"{}\"/></AttachedDevice>",
            uuid(1, index)
        );
    }
    let text = machine(
        "1.20-linux",
        &format!(
            "<MediaRegistry><HardDisks>{disks}</HardDisks></MediaRegistry><Hardware><StorageControllers><StorageController>\
             {devices}</StorageController></StorageControllers></Hardware>"
        ),
    );
    // XML 1.0 does not allow an escape character, not even as a reference.
    let text_without = text.replace("&#27;", "\u{85}");
    let plain_without = plain.map(|name| name.replace('\u{1b}', "\u{85}"));
    let folder = Folder::new();
    folder.write("vm.vbox", text_without);
    plain_without.iter().for_each(|name| folder.sparse(name, 5));
    let report = folder.track("vm.vbox", None).unwrap();
    let found: Vec<_> = report.needed.iter().skip(1).map(|file| file.path.clone()).collect();
    assert_eq!(found, plain_without);
    assert!(report.missing.is_empty());
}

#[test]
fn paths_that_lead_out_of_the_folder_are_shown_as_such() {
    let folder = Folder::new();
    folder.sparse("secret", 3);
    let outside = folder.path("secret");
    let disks = format!(
        "<MediaRegistry><HardDisks><HardDisk uuid=\"{}\" location=\"x/../../secret\"/><HardDisk uuid=\"{}\" \
         location=\"{}\"/></HardDisks></MediaRegistry>",
        uuid(1, 1),
        uuid(1, 2),
        outside.display()
    );
    let device =
        |id| format!("<AttachedDevice type=\"HardDisk\"><Image uuid=\"{}\"/></AttachedDevice>", uuid(1, id));
    let text = machine("1.19", &format!("{disks}<Hardware>{}</Hardware>", device(1)));
    folder.write("vm/vm.vbox", &text);
    let report = folder.track("vm/vm.vbox", None).unwrap();
    assert_eq!(paths!(report.needed), ["../secret", "vm.vbox"]);
    let absolute = machine("1.19", &format!("{disks}<Hardware>{}</Hardware>", device(2)));
    folder.write("vm/vm.vbox", absolute);
    let report = folder.track("vm/vm.vbox", None).unwrap();
    assert_eq!(report.needed[1].path, outside.to_str().unwrap());
    // Nor is a folder elsewhere listed because the settings say that snapshots lie there.
    folder.write("vm/vm.vbox", text.replace("<Machine ", "<Machine snapshotFolder=\"..\" "));
    let report = folder.track("vm/vm.vbox", None).unwrap();
    assert!(report.not_needed.iter().all(|file| file.role != FileRole::Other), "{:?}", report.not_needed);
}

#[test]
fn a_snapshot_is_chosen_by_uuid_or_by_a_name_that_is_its_own() {
    let made = Made::line(1, 3);
    let folder = made.lay_out(|_, _| 1);
    let text = folder.track("made.vbox", Some("nope")).unwrap_err().to_string();
    assert!(text.contains("no snapshot \"nope\"; it has \"S0\", \"S1\", \"S2\""), "{text}");
    folder.write("made.vbox", made.settings().replace("name=\"S2\"", "name=\"S1\""));
    let text = folder.track("made.vbox", Some("S1")).unwrap_err().to_string();
    let plain = uuid(0, 1).trim_matches(['{', '}']).to_owned();
    assert!(text.contains("2 snapshots") && text.contains(&plain), "{text}");
    assert_eq!(folder.track("made.vbox", Some(&plain)).unwrap().target, Some(plain));
}
