//! Machines of VirtualBox that unasnap has made come to another host, with nothing of the one that they come from.

use std::fs;
use std::path::{Path, PathBuf};

use unasnap_host::bases::{Bases, Considered};
use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::virtualbox::own_machine;
use unasnap_host::store::manifest::{BaseImage, FileRole, Identity, Manifest, Saved, SavedFile};
use unasnap_host::store::{Placed, files};
use unasnap_protocol::control::{FailureKind, Source};

use super::hostile::lying;
use super::support::{Giving, Taking, images, name, qcow2, virtualbox_facts};
use super::vdi::header;

/// As VirtualBox 7.2.22 has written it.
const SETTINGS: &str = include_str!("../../files/tests/data/own-1.19.vbox");
/// Its base, its disk at the cut, and the snapshot of VirtualBox that is the cut.
const BASE: &str = "0c65fe2a-2e6a-4fe9-864e-55e767dc5422";
const LOWER: &str = "2d309c1e-d210-4b30-a48a-62788978f1ce";
const CUT: &str = "ad0f1e71-224a-4e61-b954-d95ce9dbc6e8";
const STATE: &str = "Snapshots/2026-11-22T13-55-46-595463000Z.sav";
/// Of the base, bytes.
const BASE_BYTES: usize = 300_000;

/// A VDI as far as its header.
fn vdi(uuid: &str, parent: Option<&str>, length: usize) -> Vec<u8> {
    let mut image = super::support::noise(length, 11);
    image[..512].copy_from_slice(&header(uuid, parent));
    image
}

/// A local snapshot before it is saved.
struct Machine {
    settings: String,
    layout: serde_json::Value,
    lower: Vec<u8>,
    base: Vec<u8>,
    machine: PathBuf,
    saved: Saved,
    bases: usize,
}

impl Machine {
    fn new(giving: &Giving) -> Self {
        let file = |name: &str, role| SavedFile { name: name.to_owned(), role, blake3: None };
        let layout = serde_json::json!({
            "snapshot": CUT,
            "places": [["lower.vdi", format!("Snapshots/{{{LOWER}}}.vdi")], ["ram.sav", STATE]],
            "bases": ["/srv/images/debian.vdi"],
        });
        let files = vec![
            file("machine.vbox", FileRole::Settings),
            file("lower.vdi", FileRole::DifferenceDisk),
            file("ram.sav", FileRole::SavedState),
            file("layout.json", FileRole::Layout),
        ];
        Self {
            settings: SETTINGS.replace("name=\"web\"", "name=\"a\"").replace("\"br0\"", "\"lo\""),
            layout,
            lower: vdi(LOWER, Some(BASE), 5000),
            base: vdi(BASE, None, BASE_BYTES),
            machine: own_machine(&giving.folder.path().canonicalize().unwrap(), &name("a")),
            saved: Saved { hypervisor: virtualbox_facts(), files, bases: Vec::new() },
            bases: 1,
        }
    }

    /// Where its base lies: relative, so that nobody else finds it there.
    fn base_place(snapshot: &str, giving: &Giving) -> PathBuf {
        format!("{}-{snapshot}.vdi", giving.images[0]).into()
    }

    /// Commits it at the source.
    fn commit(mut self, giving: &Giving, snapshot: &str) -> Source {
        let place = Self::base_place(snapshot, giving);
        fs::write(images().join(&place), &self.base).unwrap();
        let (size, modified) = (self.base.len() as u64, 1_700_000_000_123_456_789);
        let blake3 = files::digest(&images().join(&place)).unwrap();
        self.saved.bases = vec![BaseImage { path: place, size, modified, blake3 }; self.bases];
        let draft = giving.store.begin(&name(snapshot), &name("a")).unwrap();
        let write = |name: &str, content: &[u8]| {
            let listed = self.saved.files.iter().filter(|file| file.name == name);
            listed.for_each(|_| fs::write(draft.folder().join(name), content).unwrap());
        };
        write("machine.vbox", self.settings.as_bytes());
        write("layout.json", self.layout.to_string().as_bytes());
        write("lower.vdi", &self.lower);
        write("ram.sav", b"what the guest thought");
        let text = format!(
            "name='a'\ndeployment='d'\nmemory_mb=64\ncpus=2\nmachine='{}'\ncolouring='guest'\n[[nic]]\nbridge='lo'\nmac='52:54:00:00:00:01'\n",
            self.machine.display()
        );
        let definition: VmDefinition = toml::from_str(&text).unwrap();
        let identity = Identity { snapshot: name(snapshot), deployment: name("d"), epoch: 7, definition };
        let stored = giving.store.finish(&draft, identity, self.saved).unwrap();
        giving.store.commit(&name(snapshot)).unwrap();
        Source { digest: *blake3::Hash::from_hex(&stored.digest).unwrap().as_bytes(), ..giving.source() }
    }
}

/// What came, and how it is to be here.
fn arrived(taking: &Taking, snapshot: &str) -> (Manifest, Placed) {
    let store = &taking.receiver.store;
    let manifest = store.manifest(&name(snapshot), &name("a")).unwrap();
    let placed = store.placed(&manifest).unwrap().unwrap();
    store.verify_with_bases(&name(snapshot), &name("a")).unwrap();
    (manifest, placed)
}

fn is_here(taking: &Taking, machine: &Path) {
    let own = own_machine(&taking.folder.path().canonicalize().unwrap(), &name("a"));
    assert_eq!(machine, own);
}

#[tokio::test]
async fn a_machine_comes_with_its_base_and_has_its_place_here() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let machine = Machine::new(&giving);
    let content = machine.base.clone();
    let source = machine.commit(&giving, "v");
    let moved = taking.fetch_of("v", &source).await.unwrap();
    assert!(moved.sent > BASE_BYTES as u64, "{moved:?}");
    let (manifest, Placed { definition, bases, believed }) = arrived(&taking, "v");
    assert!(!believed);
    is_here(&taking, definition.machine.as_deref().unwrap());
    assert_eq!((manifest.bases.len(), bases.len()), (1, 1));
    assert!(bases[0].starts_with(taking.folder.path().join("images")), "{bases:?}");
    assert!(fs::read(&bases[0]).unwrap() == content);
    assert_eq!(taking.receiver.store.definition(&name("v"), &name("a")).unwrap(), definition);
}

#[tokio::test]
async fn a_base_that_is_here_is_used_and_not_copied() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let machine = Machine::new(&giving);
    let elsewhere = tempfile::tempdir().unwrap();
    let preloaded = elsewhere.path().join("debian.vdi");
    fs::write(&preloaded, &machine.base).unwrap();
    let mut bases = Bases::open(taking.folder.path(), &[elsewhere.path().to_owned()]).unwrap();
    match bases.consider(preloaded.to_str().unwrap(), Some(name("debian"))).await.unwrap() {
        Considered::New(unread) => drop(bases.enter(unread.read().await.unwrap()).unwrap()),
        other => panic!("{other:?}"),
    }
    let source = machine.commit(&giving, "preloaded");
    let moved = taking.fetch_of("preloaded", &source).await.unwrap();
    assert!(moved.sent < 100_000, "{moved:?}");
    let (_, placed) = arrived(&taking, "preloaded");
    assert_eq!(placed.bases, [preloaded.canonicalize().unwrap()]);
    assert!(!taking.folder.path().join("images").exists());
}

/// A change, and what is said of it.
type Case = (&'static str, Box<dyn Fn(&mut Machine)>, &'static str);

fn settings(snapshot: &'static str, there: &'static str, instead: &'static str, words: &'static str) -> Case {
    let change = move |machine: &mut Machine| {
        assert!(machine.settings.contains(there), "{there}");
        machine.settings = machine.settings.replacen(there, instead, 1);
    };
    (snapshot, Box::new(change), words)
}

fn place(snapshot: &'static str, of: usize, place: &'static str) -> Case {
    (snapshot, Box::new(move |machine| machine.layout["places"][of][1] = place.into()), "into Snapshots/")
}

/// A source whose machine would make the target's VirtualBox open a file of the target's, or do what none of unasnap's does.
#[tokio::test]
async fn no_machine_does_more_here_than_one_that_was_made_here() {
    const OTHER: &str = "7a5049af-1ef8-43d1-8d59-ee424ef7fce2";
    let role = |role| move |machine: &mut Machine| machine.saved.files[2].role = role;
    let cases: Vec<Case> = vec![
        settings(
            "shared",
            "<Clipboard/>",
            "<SharedFolders><SharedFolder name=\"x\" hostPath=\"/\"/></SharedFolders>",
            "the settings of a's machine are not as unasnap makes them: it has <SharedFolders>",
        ),
        settings("bridge", "Interface name=\"lo\"", "Interface name=\"eth0\"", "name=\"eth0\""),
        settings("state", "stateFile=\"Snapshots/", "stateFile=\"/etc/", "stateFile=\"/etc/"),
        settings("name", "name=\"a\"", "name=\"b\"", "name=\"b\""),
        settings("cut", "<Snapshot uuid=\"{ad0f", "<Snapshot uuid=\"{bd0f", "other snapshots of VirtualBox"),
        settings(
            "two",
            "<Snapshot ",
            "<Snapshot uuid=\"{fa5049af-1ef8-43d1-8d59-ee424ef7fce2}\" name=\"own\"/><Snapshot ",
            "other snapshots of VirtualBox",
        ),
        settings("disk", "<Image uuid=\"{2d30", "<Image uuid=\"{3d30", "has not come with it"),
        place("settings-place", 0, "a.vbox"),
        place("record", 0, "virtualbox.json"),
        place("absolute", 0, "/root/x.vdi"),
        place("above", 0, "Snapshots/../../x.vdi"),
        place("below", 0, "Snapshots/x/x.vdi"),
        place("other-end", 1, "Snapshots/x.vdi"),
        (
            "more-places",
            Box::new(|machine| machine.layout["places"][0][0] = "lower".into()),
            "does not put lower.vdi",
        ),
        (
            "unknown-file",
            Box::new(|machine| {
                let places = machine.layout["places"].as_array_mut().unwrap();
                places.push(serde_json::json!(["manifest.json", "Snapshots/x.vdi"]));
            }),
            "which has not come",
        ),
        ("no-base", Box::new(|machine| machine.layout["bases"] = serde_json::json!([])), "not one disk"),
        ("nvram", Box::new(role(FileRole::Nvram)), "ram.sav is a Nvram"),
        ("ram", Box::new(role(FileRole::Ram)), "ram.sav is a Ram"),
        (
            "parent",
            Box::new(|machine| machine.lower = vdi(LOWER, Some(OTHER), 5000)),
            "stands on another base than the one that came",
        ),
        ("whole", Box::new(|machine| machine.lower = vdi(LOWER, None, 5000)), "is not a difference"),
        ("raw", Box::new(|machine| machine.lower = vec![0; 5000]), "is not a difference"),
        (
            "whole-with-parent",
            Box::new(|machine| {
                machine.base = vdi(BASE, Some(OTHER), 5000);
                machine.base[76] = 1;
            }),
            "is not a base",
        ),
        ("layer", Box::new(|machine| machine.base = vdi(BASE, Some(OTHER), 5000)), "is not a base"),
    ];
    for (snapshot, change, words) in cases {
        let giving = Giving::start(None).await;
        let mut machine = Machine::new(&giving);
        change(&mut machine);
        let source = machine.commit(&giving, snapshot);
        let taking = Taking::new(&giving);
        // The real source refuses itself what nobody could use; one that lies does not.
        let base = images().join(Machine::base_place(snapshot, &giving));
        let address = lying(&giving, snapshot, vec![base]).await.to_string();
        for source in [source.clone(), Source { address, ..source }] {
            let failure = taking.fetch_of(snapshot, &source).await.expect_err(snapshot);
            let is_refused =
                ["refuses:", "nothing of it is used:"].iter().any(|who| failure.text.contains(who));
            assert!(failure.text.contains(words) && is_refused, "{snapshot}: {failure}");
            assert_eq!(failure.kind, FailureKind::Files, "{snapshot}: {failure}");
            assert!(taking.has_nothing(), "{snapshot}");
        }
    }
}

/// It may have any settings, and snapshots of VirtualBox below the cut.
#[tokio::test]
async fn a_machine_that_was_made_by_hand_comes_where_its_host_is_believed() {
    let giving = Giving::start(None).await;
    let own = "<Snapshot uuid=\"{fa5049af-1ef8-43d1-8d59-ee424ef7fce2}\" name=\"own\"/><Snapshot ";
    let by_hand = Machine::new(&giving);
    let settings = by_hand.settings.replacen("<Snapshot ", own, 1).replace("<Clipboard/>", "<USB/>");
    let by_hand = Machine { machine: "/srv/vms/a/a.vbox".into(), settings, ..by_hand };
    let source = by_hand.commit(&giving, "by-hand");
    let taking = Taking::new(&giving);
    let failure = taking.fetch_of("by-hand", &source).await.unwrap_err();
    assert!(failure.text.contains("it has <USB>") && failure.text.contains("`believes`"), "{failure}");
    assert!(taking.has_nothing());
    let mut taking = Taking::new(&giving);
    taking.receiver.believes = vec![name("h2"), name("h1")];
    taking.fetch_of("by-hand", &source).await.unwrap();
    let (_, placed) = arrived(&taking, "by-hand");
    assert!(placed.believed);
    is_here(&taking, placed.definition.machine.as_deref().unwrap());
}

#[tokio::test]
async fn a_machine_stands_on_one_base() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    for (snapshot, bases) in [("none", 0), ("two", 2)] {
        let machine = Machine { bases, ..Machine::new(&giving) };
        let source = machine.commit(&giving, snapshot);
        let failure = taking.fetch_of(snapshot, &source).await.unwrap_err();
        assert!(failure.text.contains("not one disk on one base"), "{failure}");
        let base = images().join(Machine::base_place(snapshot, &giving));
        let address = lying(&giving, snapshot, vec![base; bases]).await.to_string();
        let failure = taking.fetch_of(snapshot, &Source { address, ..source }).await.unwrap_err();
        assert!(failure.text.contains("does not fit the manifest"), "{failure}");
        assert!(taking.has_nothing());
    }
}

/// Such are given of a VM that does not run, to be those of another one.
#[tokio::test]
async fn disks_alone_are_no_snapshot() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let mut machine = Machine::new(&giving);
    machine.saved.files.retain(|file| file.role == FileRole::DifferenceDisk);
    let disks = machine.commit(&giving, "disks");
    let mut sources = vec![("disks", disks)];
    for (snapshot, lost) in [("qemus", FileRole::DeviceState), ("ramless", FileRole::Ram)] {
        let layer = qcow2(600_001, 6, Some("base"), None);
        let without = |saved: &mut Saved| saved.files.retain(|file| file.role != lost);
        let digest = giving.snapshot_of(snapshot, "a", &layer, without);
        giving.store.commit(&name(snapshot)).unwrap();
        sources.push((snapshot, Source { digest, ..giving.source() }));
    }
    for (snapshot, source) in sources {
        let failure = taking.fetch_of(snapshot, &source).await.unwrap_err();
        assert!(failure.text.contains("gives disks, and no snapshot of a VM that ran"), "{failure}");
        assert!(taking.has_nothing());
    }
}
