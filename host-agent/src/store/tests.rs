//! Drafts, names, marks, and every kind of damage.

use super::manifest::{Accel, Facts, FileRole, RamWay, SavedFile};
use super::*;
use crate::definition::VmDefinition;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn identity(snapshot: &str) -> Identity {
    let text = "name='a'\ndeployment='d'\nmemory_mb=128\nkernel='k'";
    let definition: VmDefinition = toml::from_str(text).unwrap();
    Identity { snapshot: name(snapshot), deployment: name("d"), epoch: 7, definition }
}

fn saved() -> Saved {
    let hypervisor = Facts {
        kind: "qemu".to_owned(),
        version: "10".to_owned(),
        machine: "pc".to_owned(),
        accel: Accel::Tcg,
        ram_way: RamWay::Live,
    };
    let file = |name: &str, role| SavedFile { name: name.to_owned(), role, blake3: None };
    let files = vec![file("ram", FileRole::Ram), file("devices", FileRole::DeviceState)];
    Saved { hypervisor, files, bases: Vec::new() }
}

/// A store with snapshot `s` of VM `a`.
fn store() -> (tempfile::TempDir, Store, Stored) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let draft = store.begin(&name("s"), &name("a")).unwrap();
    fs::write(draft.folder().join("ram"), [0; 10_000]).unwrap();
    fs::write(draft.folder().join("devices"), "state").unwrap();
    let stored = store.finish(&draft, identity("s"), saved()).unwrap();
    (folder, store, stored)
}

#[test]
fn a_saved_snapshot_is_listed_verified_and_deleted() {
    let (_folder, store, stored) = store();
    assert_eq!(stored.bytes, 10_005);
    assert_eq!(store.verify(&name("s"), &name("a")).unwrap().identity.epoch, 7);
    let entry = Entry { snapshot: name("s"), vms: vec![name("a")], committed: false };
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&entry));
    for _ in 0..2 {
        store.commit(&name("s")).unwrap();
        assert_eq!(store.list().unwrap(), [Entry { committed: true, ..entry.clone() }]);
    }
    assert!(matches!(store.begin(&name("s"), &name("a")), Err(StoreError::Exists { .. })));
    for _ in 0..2 {
        store.delete(&name("s")).unwrap();
        assert_eq!(store.list().unwrap(), []);
    }
    assert!(matches!(store.verify(&name("s"), &name("a")), Err(StoreError::Absent { .. })));
    assert!(store.commit(&name("s")).is_err(), "nothing is here to commit");
}

#[test]
fn a_draft_leaves_nothing_behind() {
    let (_folder, store, _) = store();
    for give_up in [false, true] {
        let draft = store.begin(&name("t"), &name("a")).unwrap();
        fs::write(draft.folder().join("ram"), "half").unwrap();
        assert!(
            store.list().unwrap().iter().all(|entry| entry.vms.is_empty() || entry.snapshot == name("s"))
        );
        if give_up {
            store.abandon(&draft).unwrap()
        } else {
            store.remove_partial().unwrap()
        }
        assert_eq!(store.list().unwrap().len(), 1, "only s stays");
    }
}

#[test]
fn every_kind_of_damage_is_named() {
    type Damage = fn(&Path);
    let cases: [(Damage, &str); 9] = [
        (
            |folder| fs::write(folder.join("ram"), [1; 10_000]).unwrap(),
            "ram is damaged: its content has changed",
        ),
        (|folder| fs::write(folder.join("ram"), [0; 9_999]).unwrap(), "ram is damaged: it has 9999 bytes"),
        (|folder| fs::remove_file(folder.join("devices")).unwrap(), "devices is damaged: it is missing"),
        (
            |folder| fs::write(folder.join("extra"), "").unwrap(),
            "extra is damaged: the manifest does not know it",
        ),
        (
            |folder| fs::remove_file(folder.join(MANIFEST_FILE)).unwrap(),
            "manifest.json is damaged: it is missing",
        ),
        (|folder| fs::write(folder.join(MANIFEST_FILE), "{").unwrap(), "it is not JSON"),
        (|folder| edit(folder, "\"format\": 2", "\"format\": 3"), "its format is 3"),
        (|folder| edit(folder, "\"name\": \"ram\"", "\"name\": \"../ram\""), "is not a file of the folder"),
        (|folder| edit(folder, "\"snapshot\": \"s\"", "\"snapshot\": \"t\""), "it holds snapshot t of VM a"),
    ];
    for (damage, words) in cases {
        let (_folder, store, _) = store();
        damage(&store.vm_folder(&name("s"), &name("a")));
        let message = store.verify(&name("s"), &name("a")).unwrap_err().to_string();
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
}

fn edit(folder: &Path, from: &str, to: &str) {
    let path = folder.join(MANIFEST_FILE);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_full_disk_is_refused_with_the_figures() {
    let (_folder, store, _) = store();
    store.check_space(1).unwrap();
    let message = store.check_space(u64::MAX).unwrap_err().to_string();
    assert!(message.contains("no room for a snapshot"), "{message}");
}

#[test]
fn what_is_no_snapshot_stands_in_nobodys_way() {
    let (folder, store, _) = store();
    for name in ["notes", ".hidden"] {
        fs::write(folder.path().join("snapshots").join(name), "").unwrap();
    }
    store.remove_partial().unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn what_was_promised_to_one_is_not_given_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let quota = Limits { reserve: 0, quota: Some(1 << 20) };
    let store = Store::open(folder.path(), quota).unwrap();
    let one = store.begin(&name("s"), &name("a")).unwrap();
    let other = store.begin(&name("s"), &name("b")).unwrap();
    store.promise(&one, 600_000).unwrap();
    let message = store.promise(&other, 600_000).unwrap_err().to_string();
    assert!(message.contains("of the quota of 1048576 bytes"), "{message}");
    // What it writes counts once.
    fs::write(one.folder().join("ram"), vec![1; 500_000]).unwrap();
    store.promise(&other, 300_000).unwrap();
    store.abandon(&one).unwrap();
    store.promise(&other, 600_000).unwrap();
    store.check_space(500_000).unwrap_err();
    store.abandon(&other).unwrap();
    store.check_space(1 << 20).unwrap();
}

#[test]
fn the_images_below_are_verified_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("base.qcow2");
    fs::write(&image, [7; 5000]).unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let draft = store.begin(&name("s"), &name("a")).unwrap();
    for file in ["ram", "devices"] {
        fs::write(draft.folder().join(file), "bytes").unwrap();
    }
    let base = manifest::BaseImage {
        path: image.clone(),
        size: 5000,
        modified: 0,
        blake3: blake3::hash(&[7; 5000]).to_hex().to_string(),
    };
    store.finish(&draft, identity("s"), Saved { bases: vec![base], ..saved() }).unwrap();
    let verify = || store.verify_with_bases(&name("s"), &name("a"));
    verify().unwrap();
    let mut bytes = [7; 5000];
    bytes[4321] ^= 4;
    for (content, words) in [(&bytes[..], "its content has changed"), (&bytes[1..], "it has 4999 bytes")] {
        fs::write(&image, content).unwrap();
        store.verify(&name("s"), &name("a")).unwrap();
        let message = verify().unwrap_err().to_string();
        assert!(message.contains("base.qcow2 is damaged") && message.contains(words), "{message}");
    }
    fs::remove_file(&image).unwrap();
    assert!(verify().unwrap_err().to_string().contains("it is missing"));
}
