//! Disks of a VM that does not run, from one host to another.

use std::fs;

use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::FrozenDisks;
use unasnap_host::store::manifest::{BaseImage, FileRole, Saved, SavedFile};
use unasnap_host::store::space::Limits;
use unasnap_host::transfer::replicating::Arrived;
use unasnap_protocol::control::{Failure, FailureKind, Source};
use unasnap_protocol::household::{Replica, VmClone};

use crate::support::{Cutter, Giving, Taking, facts, name, qcow2};

const LAYERS: [(&str, u64); 2] = [("disk0-0000.qcow2", 1), ("disk0-0001.qcow2", 2)];

fn definition(giving: &Giving) -> VmDefinition {
    let [image, kernel] = &giving.images;
    let text =
        format!("name='a'\ndeployment='d'\nmemory_mb=128\nkernel='{kernel}'\n[[disk]]\nimage='{image}'");
    toml::from_str(&text).unwrap()
}

/// Puts two layers of 600 kB on the shelf; digest of their manifest.
fn freeze(giving: &Giving, change: impl FnOnce(&mut Saved)) -> Source {
    let folder = giving.folder.path().join("disks");
    fs::create_dir_all(&folder).unwrap();
    for (layer, seed) in LAYERS {
        fs::write(folder.join(layer), qcow2(600_000, seed, Some("base"), None)).unwrap();
    }
    let file = |name: &str| SavedFile { name: name.to_owned(), role: FileRole::DiskLayer(0), blake3: None };
    let base = BaseImage {
        path: giving.images[0].clone().into(),
        size: 700_000,
        modified: 1_700_000_000_123_456_789,
        blake3: giving.image_digest.clone(),
    };
    let files = LAYERS.map(|(layer, _)| file(layer)).to_vec();
    let mut saved = Saved { hypervisor: facts(), files, bases: vec![base] };
    change(&mut saved);
    let digest = giving.shelf.put(&definition(giving), FrozenDisks { folder, saved }).unwrap();
    Source { digest, ..giving.source() }
}

async fn replicate(taking: &Taking, source: &Source, to: &str) -> Result<Option<Arrived>, Failure> {
    let clone = VmClone { of: name("a"), name: name(to), deployment: None, addresses: Vec::new() };
    let replica = Replica { clone, per_second: None, source: Some(source.clone()) };
    taking.receiver.replicate(&replica, |like| Ok(like.name != name("a")), |_| ()).await
}

fn words(result: Result<Option<Arrived>, Failure>) -> String {
    result.map(drop).unwrap_err().text
}

fn is_empty(taking: &Taking) -> bool {
    fs::read_dir(taking.folder.path().join("snapshots")).unwrap().count() == 0
}

#[tokio::test]
async fn frozen_disks_come_whole_and_nothing_is_left_of_them() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let source = freeze(&giving, |_| ());
    let arrived = replicate(&taking, &source, "b").await.unwrap().unwrap();
    for (layer, seed) in LAYERS {
        let came = fs::read(arrived.saved().folder.join(layer)).unwrap();
        assert_eq!(came, qcow2(600_000, seed, Some("base"), None));
    }
    let image = &arrived.definition().disks[0].image;
    assert!(image.starts_with(taking.folder.path()), "{}", image.display());
    assert_eq!(fs::metadata(image).unwrap().len(), 700_000);
    arrived.discard().unwrap();
    assert!(is_empty(&taking) && image.exists(), "what other VMs can use stays");
}

#[tokio::test]
async fn a_replica_that_is_here_already_moves_no_byte_of_a_disk() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let clone = VmClone { of: name("a"), name: name("b"), deployment: None, addresses: Vec::new() };
    let replica = Replica { clone, per_second: None, source: Some(freeze(&giving, |_| ())) };
    assert!(taking.receiver.replicate(&replica, |_| Ok(true), |_| ()).await.unwrap().is_none());
    let no = || Failure { text: "another".to_owned(), ..taking_failure() };
    let refused = taking.receiver.replicate(&replica, |_| Err(no()), |_| ()).await;
    assert_eq!(words(refused), "another");
    assert!(is_empty(&taking));
}

fn taking_failure() -> Failure {
    Failure::new(FailureKind::BadRequest, unasnap_protocol::control::Phase::Fetch, String::new())
}

#[tokio::test]
async fn what_broke_off_goes_on_where_it_was() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let source = freeze(&giving, |_| ());
    let cutter = Cutter::new(giving.address, 900_000).await;
    let cut = Source { address: cutter.address.to_string(), ..source.clone() };
    let failure = replicate(&taking, &cut, "b").await.map(drop).unwrap_err();
    assert_eq!(failure.kind, FailureKind::HostLost, "{failure}");
    let partial = taking.folder.path().join("snapshots/a/b.incoming");
    assert!(fs::metadata(partial.join(LAYERS[0].0)).unwrap().len() == 600_000);
    // Whatever was damaged meanwhile comes once more, and the rest is not sent twice.
    let counter = Cutter::new(giving.address, u64::MAX).await;
    let rest = Source { address: counter.address.to_string(), ..source };
    replicate(&taking, &rest, "b").await.unwrap().unwrap();
    let passed = counter.passed.load(std::sync::atomic::Ordering::Relaxed);
    assert!(passed < 1_300_000, "{passed} bytes for the rest of 1.99 MB");
}

#[tokio::test]
async fn a_vm_that_runs_on_may_merge_its_layers_while_they_are_fetched() {
    let giving = Giving::start(Some(1_500_000)).await;
    let taking = Taking::new(&giving);
    let source = freeze(&giving, |_| ());
    let merges = async {
        // Its connection is open by then, and far from its end.
        while !taking.folder.path().join("snapshots/a/b.incoming").join(LAYERS[0].0).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        LAYERS
            .iter()
            .for_each(|(layer, _)| fs::remove_file(giving.folder.path().join("disks").join(layer)).unwrap());
    };
    let (arrived, ()) = tokio::join!(replicate(&taking, &source, "b"), merges);
    arrived.unwrap().unwrap().discard().unwrap();
    // Whoever comes later is told what to do.
    assert!(words(replicate(&taking, &source, "c").await).contains("disk0-0000.qcow2"));
}

#[tokio::test]
async fn only_what_is_frozen_and_known_is_given_and_only_disks_are_taken() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let old = freeze(&giving, |_| ());
    let new = freeze(&giving, |saved| drop(saved.files.pop()));
    assert!(words(replicate(&taking, &old, "b").await).contains("repeat `unasnap vm replicate`"));
    replicate(&taking, &new, "b").await.unwrap().unwrap().discard().unwrap();
    let ram = freeze(&giving, |saved| saved.files[1].role = FileRole::Ram);
    assert!(words(replicate(&taking, &ram, "b").await).contains("more than disks"));
    let foreign = freeze(&giving, |saved| saved.hypervisor.kind = "virtualbox".to_owned());
    assert!(words(replicate(&taking, &foreign, "b").await).contains("was snapshotted by virtualbox"));
    assert!(is_empty(&taking));
}

#[tokio::test]
async fn without_room_nothing_is_kept() {
    let giving = Giving::start(None).await;
    let taking = Taking::with(&giving, Limits { reserve: 0, quota: Some(1 << 20) });
    let failure = replicate(&taking, &freeze(&giving, |_| ()), "b").await.map(drop).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoSpace, "{failure}");
    assert!(is_empty(&taking));
}
