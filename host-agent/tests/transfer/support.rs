//! Two hosts on this machine: certificates, stores, a snapshot at one of them, and what stands between them.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use unasnap_channel::Listener;
use unasnap_host::definition::VmDefinition;
use unasnap_host::drivers::Runners;
use unasnap_host::hypervisor::Pending;
use unasnap_host::store::manifest::{
    Accel, BaseImage, Facts, FileRole, Identity as Of, MANIFEST_FILE, RamWay, Saved, SavedFile,
};
use unasnap_host::store::space::Limits;
use unasnap_host::store::{Store, files};
use unasnap_host::transfer::frozen::Shelf;
use unasnap_host::transfer::giving::Giver;
use unasnap_host::transfer::images::Images;
use unasnap_host::transfer::receiving::Receiver;
use unasnap_protocol::control::{Envelope, Failure, Moved, Source};
use unasnap_protocol::name::Name;

use super::authority::Authority;

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn envelope() -> Envelope {
    Envelope { vm: name("a"), deployment: name("d"), snapshot: name("s"), epoch: 7, term: 1, incarnation: 1 }
}

pub fn facts() -> Facts {
    let (kind, version, machine) = ("qemu".to_owned(), "10.0".to_owned(), "pc".to_owned());
    Facts { kind, version, machine, accel: Accel::Tcg, ram_way: RamWay::Live }
}

pub fn virtualbox_facts() -> Facts {
    let (kind, version) = ("virtualbox".to_owned(), "7.2.22_Debianr175245".to_owned());
    let (machine, accel, ram_way) = (String::new(), Accel::VirtualBox, RamWay::StopAndSave);
    Facts { kind, version, machine, accel, ram_way }
}

/// Images are named relative to this folder, so that the target does not find the source's.
pub fn images() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        std::env::set_current_dir(folder.path()).unwrap();
        folder
    });
    folder.path()
}

/// Bytes that no compression and no hole shortens.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// A qcow2 image of this length as far as its header, which names a backing file or a data file.
pub fn qcow2(length: usize, seed: u64, backing: Option<&str>, data_file: Option<&str>) -> Vec<u8> {
    let mut bytes = noise(length, seed);
    bytes[..4096].fill(0);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    if let Some(name) = data_file {
        put(72, &4u64.to_be_bytes());
        put(104, &0x4441_5441_u32.to_be_bytes());
        put(108, &u32::try_from(name.len()).unwrap().to_be_bytes());
        put(112, name.as_bytes());
    }
    if let Some(name) = backing {
        put(8, &2048u64.to_be_bytes());
        put(16, &u32::try_from(name.len()).unwrap().to_be_bytes());
        put(2048, name.as_bytes());
    }
    bytes
}

/// The host that has the snapshot.
pub struct Giving {
    pub folder: TempDir,
    pub store: Store,
    pub authority: Authority,
    pub address: SocketAddr,
    pub digest: [u8; 32],
    /// Frozen disks.
    pub shelf: Arc<Shelf>,
    /// Names of the disk's image and of the kernel, below [`images`].
    pub images: [String; 2],
    pub image_digest: String,
}

/// RAM: 8 MiB, with 1.2 MB of data in three places.
pub const RAM_BYTES: u64 = 8 << 20;

impl Giving {
    /// With `per_second` bytes at most.
    pub async fn start(per_second: Option<u64>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let (base, kernel) = (format!("base-{count}"), format!("kernel-{count}"));
        fs::write(images().join(&base), qcow2(700_000, 77, None, None)).unwrap();
        fs::write(images().join(&kernel), noise(90_000, 78)).unwrap();
        let image_digest = files::digest(&images().join(&base)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Limits::default()).unwrap();
        let authority = Authority::new();
        let trust = authority.trust("h1.host.unasnap");
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), trust.clone()).unwrap();
        let address = listener.local_addr().unwrap();
        let known = Images::new(folder.path());
        let shelf = Arc::new(Shelf::default());
        tokio::spawn(Giver::new(store.clone(), known, shelf.clone(), trust, per_second).listen(listener));
        let images = [base, kernel];
        let mut giving =
            Self { folder, store, authority, address, digest: [0; 32], shelf, images, image_digest };
        giving.digest = giving.snapshot("s", "a");
        giving.store.commit(&name("s")).unwrap();
        giving
    }

    /// Saves a snapshot of this VM; not committed.
    pub fn snapshot(&self, snapshot: &str, vm: &str) -> [u8; 32] {
        self.snapshot_of(snapshot, vm, &qcow2(600_001, 6, Some("base"), None), |_| ())
    }

    /// With this layer, and some of it changed.
    pub fn snapshot_of(
        &self,
        snapshot: &str,
        vm: &str,
        layer: &[u8],
        change: impl FnOnce(&mut Saved),
    ) -> [u8; 32] {
        let draft = self.store.begin(&name(snapshot), &name(vm)).unwrap();
        let ram = File::create(draft.folder().join("ram")).unwrap();
        ram.set_len(RAM_BYTES).unwrap();
        for (at, length) in [(4096, 4096), (1 << 20, 1_000_000), (6 << 20, 200_000)] {
            ram.write_all_at(&noise(length, at), at).unwrap();
        }
        fs::write(draft.folder().join("devices"), noise(1234, 5)).unwrap();
        fs::write(draft.folder().join("disk0-0000.qcow2"), layer).unwrap();
        fs::write(draft.folder().join("empty"), "").unwrap();
        let file = |name: &str, role| SavedFile { name: name.to_owned(), role, blake3: None };
        let base = BaseImage {
            path: PathBuf::from(&self.images[0]),
            size: 700_000,
            modified: 1_700_000_000_123_456_789,
            blake3: self.image_digest.clone(),
        };
        let mut saved = Saved {
            hypervisor: facts(),
            files: vec![
                file("ram", FileRole::Ram),
                file("devices", FileRole::DeviceState),
                file("disk0-0000.qcow2", FileRole::DiskLayer(0)),
                file("empty", FileRole::Nvram),
            ],
            bases: vec![base],
        };
        change(&mut saved);
        let [image, kernel] = &self.images;
        let text = format!(
            "name='{vm}'\ndeployment='d'\nmemory_mb=128\nkernel='{kernel}'\n[[disk]]\nimage='{image}'"
        );
        let definition: VmDefinition = toml::from_str(&text).unwrap();
        let identity = Of { snapshot: name(snapshot), deployment: name("d"), epoch: 7, definition };
        let stored = self.store.finish(&draft, identity, saved).unwrap();
        *blake3::Hash::from_hex(&stored.digest).unwrap().as_bytes()
    }

    pub fn source(&self) -> Source {
        self.source_at(self.address)
    }

    pub fn source_at(&self, address: SocketAddr) -> Source {
        Source { host: name("h1"), address: address.to_string(), digest: self.digest }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("snapshots/s/a").join(name)
    }
}

/// The host that needs it.
pub struct Taking {
    pub folder: TempDir,
    pub receiver: Receiver,
}

impl Taking {
    pub fn new(giving: &Giving) -> Self {
        Self::with(giving, Limits::default())
    }

    pub fn with(giving: &Giving, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let receiver = receiver(&giving.authority, folder.path(), limits);
        Self { folder, receiver }
    }

    /// With another disk below it.
    pub fn opened_again(self, giving: &Giving, limits: Limits) -> Self {
        let receiver = receiver(&giving.authority, self.folder.path(), limits);
        Self { receiver, ..self }
    }

    /// As after a new start of the agent.
    pub fn start_anew(&mut self) {
        self.receiver.store.remove_partial().unwrap();
        self.receiver.store.remove_old_incoming().unwrap();
        let store = Store::open(self.folder.path(), Limits::default()).unwrap();
        self.receiver.store = store;
    }

    pub async fn fetch(&self, source: &Source) -> Result<Moved, Failure> {
        self.fetch_of("s", source).await
    }

    pub async fn fetch_of(&self, snapshot: &str, source: &Source) -> Result<Moved, Failure> {
        let envelope = Envelope { snapshot: name(snapshot), ..envelope() };
        self.receiver.fetch(&envelope, source, &watch::channel(Moved::default()).0).await
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("snapshots/s/a").join(name)
    }

    /// Has nothing that could be restored, or that is in somebody's way?
    pub fn has_nothing(&self) -> bool {
        self.receiver.store.list().unwrap().iter().all(|entry| entry.vms.is_empty())
    }

    /// All that came is as it was.
    pub fn compare(&self, giving: &Giving) {
        for file in ["ram", "devices", "disk0-0000.qcow2", "empty", MANIFEST_FILE] {
            let same = fs::read(self.file(file)).unwrap() == fs::read(giving.file(file)).unwrap();
            assert!(same, "{file} is another");
        }
        self.receiver.store.verify_with_bases(&name("s"), &name("a")).unwrap();
        assert!(self.receiver.store.is_committed(&name("s")));
    }
}

/// A host that has both hypervisors.
struct Runs;

impl Runners for Runs {
    fn facts(&self, virtualbox: bool) -> Pending<'_, Facts> {
        Box::pin(async move { Ok(if virtualbox { virtualbox_facts() } else { facts() }) })
    }
}

pub fn receiver(authority: &Authority, state_dir: &Path, limits: Limits) -> Receiver {
    Receiver {
        store: Store::open(state_dir, limits).unwrap(),
        images: Images::new(state_dir),
        trust: authority.trust("h2.host.unasnap"),
        runners: Arc::new(Runs),
        believes: Vec::new(),
    }
}

/// Stands between two hosts and cuts every connection after so many bytes from the source.
pub struct Cutter {
    pub address: SocketAddr,
    pub passed: Arc<AtomicU64>,
}

impl Cutter {
    pub async fn new(to: SocketAddr, after: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, passed) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&passed);
        tokio::spawn(async move {
            while let Ok((target, _)) = listener.accept().await {
                tokio::spawn(between(target, to, after, Arc::clone(&counted)));
            }
        });
        Self { address, passed }
    }
}

async fn between(target: TcpStream, to: SocketAddr, after: u64, passed: Arc<AtomicU64>) {
    let source = TcpStream::connect(to).await.unwrap();
    let (mut from_target, mut to_target) = target.into_split();
    let (mut from_source, mut to_source) = source.into_split();
    let up = tokio::spawn(async move { tokio::io::copy(&mut from_target, &mut to_source).await });
    let (mut left, mut buffer) = (after, vec![0; 8192]);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let Ok(count @ 1..) = from_source.read(&mut buffer[..most]).await else { break };
        if to_target.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        left -= count as u64;
        passed.fetch_add(count as u64, Ordering::Relaxed);
    }
    up.abort();
}
