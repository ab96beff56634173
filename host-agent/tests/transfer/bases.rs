//! An image that one host has as a base comes to another one.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use unasnap_host::bases::{Bases, Considered};
use unasnap_host::store::files;
use unasnap_host::store::manifest::BaseImage;
use unasnap_host::store::space::Limits;
use unasnap_host::transfer::bringing::Brought;
use unasnap_host::transfer::telling::Far;
use unasnap_protocol::control::{Failure, FailureKind, Source};
use unasnap_protocol::household::Bring;
use unasnap_protocol::transfer::{Ask, Chunk, Give, Image, Offer};

use super::hostile::pretend;
use super::support::{Cutter, Giving, Taking, images, name, noise};

/// Of the image, bytes: sectors of a raw one.
const BYTES: usize = 1 << 20;

/// Registers an image at the source, and says where it can be had.
async fn registered(giving: &Giving, file: &str) -> (PathBuf, Source) {
    let path = images().join(file);
    fs::write(&path, noise(BYTES, 99)).unwrap();
    let digest = blake3::hash(&noise(BYTES, 99)).into();
    let mut bases = Bases::open(giving.folder.path(), &[images().to_owned()]).unwrap();
    match bases.consider(path.to_str().unwrap(), Some(name("debian"))).await.unwrap() {
        Considered::New(unread) => bases.enter(unread.read().await.unwrap()).unwrap(),
        other => panic!("{other:?}"),
    };
    (path, Source { digest, ..giving.source() })
}

fn bring(sources: &[&Source]) -> Bring {
    let sources = sources.iter().copied().cloned().collect();
    Bring { name: name("debian"), sources, per_second: None, within_s: 60 }
}

async fn come(taking: &Taking, bring: &Bring) -> Result<Brought, Failure> {
    taking.receiver.bring(bring, |_| ()).await
}

fn gathering(taking: &Taking, source: &Source) -> u64 {
    let digest = blake3::Hash::from_bytes(source.digest).to_hex();
    let path = taking.folder.path().join(format!("images/{digest}.incoming"));
    path.metadata().map_or(0, |meta| meta.len())
}

#[tokio::test]
async fn a_base_comes_whole_and_once() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let (original, source) = registered(&giving, "whole").await;
    // Whoever does not give it is passed over.
    let gone = Source { address: "127.0.0.1:1".to_owned(), ..source.clone() };
    let Brought { path, read } = come(&taking, &bring(&[&gone, &source])).await.unwrap();
    assert!(read.is_some());
    assert_eq!(files::digest(&path).unwrap(), files::digest(&original).unwrap());
    assert!(path.starts_with(taking.folder.path().join("images")));
    assert_eq!(
        come(&taking, &bring(&[&gone])).await.unwrap(),
        Brought { path, read: None },
        "it is here, and nobody is asked"
    );
}

/// Who would read it again would find that the digest of the file is another one.
#[tokio::test]
async fn what_has_come_becomes_a_base_without_being_read_again() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let (_, source) = registered(&giving, "once").await;
    let brought = come(&taking, &bring(&[&source])).await.unwrap();
    let mut bases = Bases::open(taking.folder.path(), &[]).unwrap();
    let marked = BaseImage { blake3: "5".repeat(64), ..brought.read.clone().unwrap() };
    let marked = Brought { read: Some(marked), ..brought.clone() };
    let considered = bases.consider_brought(marked, name("marked")).await.unwrap();
    let Considered::Read(candidate) = considered else { panic!("it is read again: {considered:?}") };
    bases.enter(candidate).unwrap();
    assert_eq!(bases.known()[&name("marked")].image.blake3, "5".repeat(64));
    bases.remove(&name("marked")).unwrap();

    // It is read when nobody has read it as it is now: touched since, or here before.
    let touched = BaseImage { modified: 1, ..brought.read.clone().unwrap() };
    for read in [Some(touched), None] {
        let brought = Brought { read, ..brought.clone() };
        let considered = bases.consider_brought(brought, name("debian")).await.unwrap();
        let Considered::New(unread) = considered else { panic!("{considered:?}") };
        bases.enter(unread.read().await.unwrap()).unwrap();
        let digest = blake3::Hash::from_bytes(source.digest).to_hex();
        assert_eq!(bases.known()[&name("debian")].image.blake3, digest.as_str());
        bases.remove(&name("debian")).unwrap();
    }
}

#[tokio::test]
async fn a_base_that_is_cut_or_late_goes_on() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let (original, source) = registered(&giving, "cut").await;
    let cutter = Cutter::new(giving.address, 400_000).await;
    let cut = Source { address: cutter.address.to_string(), ..source.clone() };
    let failure = come(&taking, &bring(&[&cut])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::HostLost, "{failure}");
    let came = gathering(&taking, &source);
    assert!(came >= 256 << 10, "{came}");

    let slow = Bring { per_second: Some(100_000), within_s: 1, ..bring(&[&source]) };
    let failure = come(&taking, &slow).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut, "{failure}");
    assert!(failure.text.contains("image debian was not here after 1 s; what has come is kept"), "{failure}");
    assert!((came..BYTES as u64).contains(&gathering(&taking, &source)));

    let Brought { path, .. } = come(&taking, &bring(&[&source])).await.unwrap();
    assert_eq!(files::digest(&path).unwrap(), files::digest(&original).unwrap());
    assert_eq!(gathering(&taking, &source), 0);
}

#[tokio::test]
async fn what_is_no_base_or_has_no_room_is_refused() {
    let giving = Giving::start(None).await;
    let (original, source) = registered(&giving, "refused").await;
    let taking = Taking::with(&giving, Limits { reserve: u64::MAX / 2, quota: None });
    let failure = come(&taking, &bring(&[&source])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NoSpace, "{failure}");
    let taking = taking.opened_again(&giving, Limits::default());

    let other = Source { digest: [7; 32], ..source.clone() };
    let failure = come(&taking, &bring(&[&other])).await.unwrap_err();
    assert!(failure.text.contains("no base of this host has the digest 0707"), "{failure}");
    assert!(come(&taking, &bring(&[])).await.unwrap_err().text.contains("no host was named"));

    // Written since: it is no base any more.
    fs::remove_file(&original).unwrap();
    fs::write(&original, noise(BYTES, 100)).unwrap();
    let failure = come(&taking, &bring(&[&source])).await.unwrap_err();
    assert!(failure.text.contains("no base of this host has the digest"), "{failure}");
    assert_eq!(gathering(&taking, &source), 0);
}

/// Whoever waits for it sees how far it is.
#[tokio::test]
async fn what_comes_slowly_is_told_of() {
    let giving = Giving::start(Some(400_000)).await;
    let taking = Taking::new(&giving);
    let (_, source) = registered(&giving, "slow").await;
    let gone = Source { host: name("h9"), address: "127.0.0.1:1".to_owned(), ..source.clone() };
    let told = Mutex::new(Vec::new());
    let tell = |far| told.lock().unwrap().push(far);
    taking.receiver.bring(&bring(&[&gone, &source]), tell).await.unwrap();
    let told = told.into_inner().unwrap();
    assert!(!told.is_empty());
    for Far { from, moved } in &told {
        assert_eq!((from, moved.to_send, moved.total), (&source.host, BYTES as u64, BYTES as u64));
    }
    assert!(told.is_sorted_by_key(|far| far.moved.sent) && told[told.len() - 1].moved.sent > 0, "{told:?}");
}

/// What was not asked for, and what is not what it is said to be, is not kept.
#[tokio::test]
async fn a_source_that_lies_leaves_nothing() {
    let giving = Giving::start(None).await;
    let (path, source) = registered(&giving, "lies").await;
    let path = path.display().to_string();
    for (digest, words) in [
        ([7; 32], "its offer is not the image that was asked for"),
        (source.digest, "of image debian is damaged on host h1"),
    ] {
        let taking = Taking::new(&giving);
        let image = Image { path: path.clone(), size: 512, data_bytes: 512, digest };
        let offer = Offer { manifest_bytes: 0, data_bytes: vec![], images: vec![image] };
        let address = pretend(&giving.authority, "h1.host.unasnap", move |ask| match ask {
            Ask::Base(_) => vec![Give::Offer(offer.clone())],
            _ => vec![Give::Chunk(Chunk { offset: 0, bytes: vec![1; 512] }), Give::End(512)],
        })
        .await;
        let lying = Source { address: address.to_string(), ..source.clone() };
        let failure = come(&taking, &bring(&[&lying])).await.unwrap_err();
        assert!(failure.text.contains(words), "{failure}");
        let left = fs::read_dir(taking.folder.path().join("images")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{words}");
    }
}
