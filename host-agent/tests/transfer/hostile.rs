//! Peers that are not hosts, or do not keep to the protocol.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use unasnap_channel::{Connection, Listener, connect, connect_to_host};
use unasnap_host::store::files;
use unasnap_protocol::control::{Envelope, FailureKind, Moved, Source};
use unasnap_protocol::transfer::{
    Ask, Chunk, Give, Image, Item, MAX_CHUNK_BYTES as CHUNK, Offer, Piece, Wanted,
};

use super::authority::Authority;
use super::support::{Giving, Taking, envelope, images, name, noise, qcow2};

async fn word(connection: &mut Connection) -> Option<Give> {
    let frame = timeout(Duration::from_secs(10), connection.recv()).await.unwrap().ok()??;
    Some(Give::decode(&frame).unwrap().1)
}

/// A source that answers as it is told.
pub async fn pretend(
    authority: &Authority,
    dns_name: &str,
    answer: impl Fn(&Ask) -> Vec<Give> + Send + 'static,
) -> SocketAddr {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), authority.trust(dns_name)).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok(mut connection) = listener.accept().await.unwrap().handshake().await else { continue };
            while let Ok(Some(frame)) = connection.recv().await {
                for give in answer(&Ask::decode(&frame).unwrap().1) {
                    if connection.send(&give.encode(&())).await.is_err() {
                        break;
                    }
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn files_are_given_to_hosts_of_the_cluster_only() {
    let giving = Giving::start(None).await;
    let wanted =
        || Ask::Open(Wanted { snapshot: name("s"), vm: name("a"), digest: giving.digest }).encode(&());
    let address = giving.address.to_string();
    let operator = giving.authority.trust("eve.admin.operator.unasnap").identity();
    let mut connection = connect_to_host(&address, &name("h1"), &operator).await.unwrap();
    connection.send(&wanted()).await.unwrap();
    let refused = word(&mut connection).await;
    assert!(
        matches!(&refused, Some(Give::Refused(why)) if why.contains("not to operator eve")),
        "{refused:?}"
    );
    // The coordinator's certificate is a server's, and one of another CA is nobody's: the handshake ends.
    for trust in [giving.authority.trust("coordinator.unasnap"), Authority::new().trust("h2.host.unasnap")] {
        let connected = connect_to_host(&address, &name("h1"), &trust.identity()).await;
        let heard = match connected {
            Err(_) => None,
            Ok(mut connection) => match connection.send(&wanted()).await {
                Err(_) => None,
                Ok(()) => word(&mut connection).await,
            },
        };
        assert_eq!(heard, None);
    }
    // And whoever looks for a coordinator finds none here.
    assert!(connect(&address, &giving.authority.trust("h2.host.unasnap").identity()).await.is_err());
}

#[tokio::test]
async fn a_target_takes_files_from_the_host_that_was_named_only() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    for (peer, words) in [
        ("h3.host.unasnap", "the peer is host h3, not host h1"),
        ("coordinator.unasnap", "certificate is not a host's"),
        ("bob.admin.operator.unasnap", "certificate is not a host's"),
    ] {
        let address = pretend(&giving.authority, peer, |_| Vec::new()).await;
        let failure = taking.fetch(&giving.source_at(address)).await.unwrap_err();
        assert!(failure.text.contains(words), "{peer}: {failure}");
        assert_ne!(failure.kind, FailureKind::HostLost, "it is not asked again: {failure}");
    }
    let nobody = taking.fetch(&giving.source_at(([127, 0, 0, 1], 1).into())).await.unwrap_err();
    assert_eq!(nobody.kind, FailureKind::HostLost);
    assert!(nobody.text.contains("cannot reach host h1 at 127.0.0.1:1"), "{nobody}");
}

/// What the real source would say, as far as a lie needs it.
fn manifest(giving: &Giving) -> (Vec<u8>, Offer) {
    let text = giving.store.manifest_text(&name("s"), &name("a")).unwrap().unwrap();
    let manifest = giving.store.manifest(&name("s"), &name("a")).unwrap();
    let digest = |hex: &str| *blake3::Hash::from_hex(hex).unwrap().as_bytes();
    let image = |path: &str, size, blake3: &str| unasnap_protocol::transfer::Image {
        path: path.to_owned(),
        size,
        data_bytes: size,
        digest: digest(blake3),
    };
    let images =
        vec![image("base", 700_000, &manifest.bases[0].blake3), image("kernel", 90_000, &"ab".repeat(32))];
    let data_bytes = manifest.files.iter().map(|file| file.size).collect();
    (text.clone(), Offer { manifest_bytes: text.len() as u64, data_bytes, images })
}

/// What it is called, its offer, its manifest, its RAM, and what is said of it.
type Lie = (&'static str, Offer, Vec<Give>, Vec<Give>, &'static str);

#[tokio::test]
async fn a_source_that_lies_is_found_out() {
    let giving = Giving::start(None).await;
    let (text, offer) = manifest(&giving);
    let chunk = |offset: u64, length: usize| Give::Chunk(Chunk { offset, bytes: vec![7; length] });
    let whole = |text: &[u8]| {
        vec![Give::Chunk(Chunk { offset: 0, bytes: text.to_vec() }), Give::End(text.len() as u64)]
    };
    let mut foreign = text.clone();
    foreign[10] ^= 1;
    let fewer = Offer { images: offer.images[..1].to_vec(), ..offer.clone() };
    let mut other_base = offer.clone();
    other_base.images[0].digest = [1; 32];
    let cases: Vec<Lie> = vec![
        ("a foreign manifest", offer.clone(), whole(&foreign), vec![], "another manifest"),
        (
            "more manifest than announced",
            offer.clone(),
            vec![chunk(0, text.len()), chunk(text.len() as u64, 1)],
            vec![],
            "more bytes of its manifest than it announced",
        ),
        ("fewer images", fewer, whole(&text), vec![], "its offer does not fit the manifest"),
        ("another base", other_base, whole(&text), vec![], "its offer does not fit the manifest"),
        (
            "a huge manifest",
            Offer { manifest_bytes: 1 << 40, ..offer.clone() },
            vec![],
            vec![],
            "its manifest has 1099511627776 bytes",
        ),
        (
            "more bytes than announced",
            offer.clone(),
            whole(&text),
            vec![chunk((8 << 20) - 1, 2)],
            "it sends more than the 8388608 bytes",
        ),
        (
            "bytes that go back",
            offer.clone(),
            whole(&text),
            vec![chunk(4096, 10), chunk(4000, 10)],
            "it sends bytes that were not asked for",
        ),
        ("no bytes, for ever", offer.clone(), whole(&text), vec![chunk(0, 0)], "that were not asked for"),
        (
            "a chunk that is too long",
            offer.clone(),
            whole(&text),
            vec![chunk(0, 256 * 1024 + 1)],
            "that were not asked for",
        ),
        (
            "an early end",
            offer.clone(),
            whole(&text),
            vec![Give::End(5)],
            "it has 5 bytes instead of 8388608",
        ),
        (
            "an offer again",
            offer.clone(),
            whole(&text),
            vec![Give::Offer(offer.clone())],
            "answered with Offer",
        ),
        (
            "other bytes",
            offer.clone(),
            whole(&text),
            vec![chunk(0, 100), Give::End(8 << 20)],
            "ram of snapshot s of a is damaged on host h1",
        ),
    ];
    for (what, offer, manifest, ram, words) in cases {
        let taking = Taking::new(&giving);
        let address = pretend(&giving.authority, "h1.host.unasnap", move |ask| match ask {
            Ask::Open(_) | Ask::Base(_) | Ask::Disks(_) => vec![Give::Offer(offer.clone())],
            Ask::Read(Piece { item: Item::Manifest, .. }) => manifest.clone(),
            Ask::Read(_) => ram.clone(),
        })
        .await;
        let failure = taking.fetch(&giving.source_at(address)).await.unwrap_err();
        assert!(failure.text.contains(words), "{what}: {failure}");
        assert_ne!(failure.kind, FailureKind::HostLost, "{what}: {failure}");
        assert!(taking.has_nothing(), "{what}");
    }
}

/// A source whose disk is made so that the target's QEMU would open a file of the target's for it.
#[tokio::test]
async fn no_file_of_the_target_is_opened_for_a_vm_that_comes() {
    let layer = |data_file| qcow2(600_001, 6, Some("base"), data_file);
    let cases: [(&str, Vec<u8>, Option<&str>, &str); 4] = [
        // Of an image that does not come, the target would open the file at the source's place.
        ("without", layer(None), None, "does not fit the manifest"),
        ("data", layer(Some("/etc/shadow")), Some("base"), "only a part of an image"),
        ("foreign", noise(600_001, 6), Some("base"), "is no qcow2 image"),
        ("backing", layer(None), Some("/etc/shadow"), "only a part of an image"),
    ];
    for (snapshot, layer, base, words) in cases {
        let giving = Giving::start(None).await;
        let digest = giving.snapshot_of(snapshot, "a", &layer, |saved| match base {
            None => saved.bases.clear(),
            Some("base") => {}
            Some(backing) => {
                let path = images().join(&giving.images[0]);
                std::fs::write(&path, qcow2(700_000, 77, Some(backing), None)).unwrap();
                saved.bases[0].blake3 = files::digest(&path).unwrap();
            }
        });
        giving.store.commit(&name(snapshot)).unwrap();
        let taking = Taking::new(&giving);
        // The real source refuses most of them itself; one that lies does not.
        let places = base.iter().map(|_| &giving.images[0]).chain([&giving.images[1]]);
        let places = places.map(|name| images().join(name)).collect();
        let lying = giving.source_at(lying(&giving, snapshot, places).await);
        for source in [giving.source(), lying] {
            let failure = taking.fetch_of(snapshot, &Source { digest, ..source }).await.unwrap_err();
            assert!(failure.text.contains(words), "{snapshot}: {failure}");
            assert_ne!(failure.kind, FailureKind::HostLost, "{snapshot}: {failure}");
            assert!(taking.has_nothing(), "{snapshot}");
        }
    }
}

#[tokio::test]
async fn a_vm_comes_into_the_deployment_that_is_restored_only() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    let envelope = Envelope { deployment: name("other"), ..envelope() };
    let progress = watch::channel(Moved::default()).0;
    let failure = taking.receiver.fetch(&envelope, &giving.source(), &progress).await.unwrap_err();
    assert!(failure.text.contains("its VM is one of deployment d"), "{failure}");
    assert!(taking.has_nothing());
}

/// Gives whatever it has, unseen; the images from these places.
pub async fn lying(giving: &Giving, snapshot: &str, places: Vec<PathBuf>) -> SocketAddr {
    let (store, snapshot, vm) = (giving.store.clone(), name(snapshot), name("a"));
    let manifest = store.manifest(&snapshot, &vm).unwrap();
    let text = store.manifest_text(&snapshot, &vm).unwrap().unwrap();
    let image = |path: &PathBuf| Image {
        path: path.display().to_string(),
        size: path.metadata().unwrap().len(),
        data_bytes: path.metadata().unwrap().len(),
        digest: *blake3::hash(&std::fs::read(path).unwrap()).as_bytes(),
    };
    let offer = Offer {
        manifest_bytes: text.len() as u64,
        data_bytes: manifest.files.iter().map(|file| file.size).collect(),
        images: places.iter().map(image).collect(),
    };
    pretend(&giving.authority, "h1.host.unasnap", move |ask| {
        let bytes = match ask {
            Ask::Open(_) | Ask::Base(_) | Ask::Disks(_) => return vec![Give::Offer(offer.clone())],
            Ask::Read(Piece { item: Item::Manifest, .. }) => text.clone(),
            Ask::Read(Piece { item: Item::File(index), .. }) => {
                let file = &manifest.files[*index as usize].name;
                std::fs::read(store.vm_folder(&snapshot, &vm).join(file)).unwrap()
            }
            Ask::Read(Piece { item: Item::Image(index), .. }) => {
                std::fs::read(&places[*index as usize]).unwrap()
            }
        };
        let chunk = |(index, bytes): (usize, &[u8])| {
            Give::Chunk(Chunk { offset: (index * CHUNK) as u64, bytes: bytes.to_vec() })
        };
        let mut said: Vec<Give> = bytes.chunks(CHUNK).enumerate().map(chunk).collect();
        said.push(Give::End(bytes.len() as u64));
        said
    })
    .await
}

#[tokio::test]
async fn whoever_asks_for_what_is_not_offered_gets_nothing() {
    let giving = Giving::start(None).await;
    let identity = giving.authority.trust("h2.host.unasnap").identity();
    let open = Ask::Open(Wanted { snapshot: name("s"), vm: name("a"), digest: giving.digest });
    for (asked, words) in [
        (vec![Ask::Read(Piece { item: Item::Manifest, offset: 0 })], "the first question"),
        (vec![open.clone(), open.clone()], "one thing for each connection"),
        (vec![open.clone(), Ask::Read(Piece { item: Item::File(99), offset: 0 })], "no such file"),
        (vec![open.clone(), Ask::Read(Piece { item: Item::Image(99), offset: 0 })], "no such image"),
        (vec![open.clone(), Ask::Read(Piece { item: Item::File(0), offset: u64::MAX })], "not that long"),
    ] {
        let address = giving.address.to_string();
        let mut connection = connect_to_host(&address, &name("h1"), &identity).await.unwrap();
        for question in &asked {
            connection.send(&question.encode(&())).await.unwrap();
        }
        let mut last = None;
        while let Some(give) = word(&mut connection).await {
            last = Some(give);
        }
        assert!(matches!(&last, Some(Give::Refused(why)) if why.contains(words)), "{asked:?}: {last:?}");
    }
}

#[tokio::test]
async fn whoever_says_nothing_does_not_keep_a_place() {
    let giving = Giving::start(None).await;
    let identity = giving.authority.trust("h2.host.unasnap").identity();
    let began = Instant::now();
    let mut silent = connect_to_host(&giving.address.to_string(), &name("h1"), &identity).await.unwrap();
    assert_eq!(word(&mut silent).await, None);
    assert!((4..60).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}
