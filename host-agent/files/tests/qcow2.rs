//! qcow2 chains: headers of every kind, made by hand so that they can be wrong, and some by qemu-img.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use unasnap_files::FilesError;
use unasnap_files::qcow2::track;
use unasnap_protocol::files::{FileReport, FileRole};

const DATA_FILE: u32 = 0x4441_5441;
const BACKING_FORMAT: u32 = 0xe279_2aca;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn track(&self, name: &str) -> Result<FileReport, FilesError> {
        track(&self.path(name), None)
    }

    fn needs(&self, name: &str) -> Vec<String> {
        let report = self.track(name).unwrap();
        assert!(report.missing.is_empty(), "{:?}", report.missing);
        report.needed.iter().map(|file| file.path.clone()).collect()
    }

    fn refuses(&self, name: &str) -> String {
        self.track(name).unwrap_err().to_string()
    }
}

/// One cluster of 64 KiB: a version 3 header, extensions, the backing file's name.
fn image(backing: Option<&str>, extensions: &[(u32, &str)], features: u64) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(72, &features.to_be_bytes());
    put(100, &112u32.to_be_bytes());
    let mut at = 112;
    for (kind, text) in extensions {
        put(at, &kind.to_be_bytes());
        put(at + 4, &u32::try_from(text.len()).unwrap().to_be_bytes());
        put(at + 8, text.as_bytes());
        at += 8 + text.len().next_multiple_of(8);
    }
    if let Some(name) = backing {
        put(8, &(at as u64 + 8).to_be_bytes());
        put(16, &u32::try_from(name.len()).unwrap().to_be_bytes());
        put(at + 8, name.as_bytes());
    }
    bytes
}

fn backed(name: &str) -> Vec<u8> {
    image(Some(name), &[(BACKING_FORMAT, "qcow2")], 0)
}

#[test]
fn a_chain_is_followed_to_its_base() {
    let folder = Folder::new();
    fs::create_dir(folder.path("base dir")).unwrap();
    folder.write("base dir/bäse \"1\".qcow2", image(None, &[], 0));
    folder.write("base dir/one.qcow2", backed("bäse \"1\".qcow2"));
    folder.write("two.qcow2", backed("./base dir/one.qcow2"));
    folder.write("three.qcow2", backed(folder.path("two.qcow2").to_str().unwrap()));
    assert_eq!(
        folder.needs("three.qcow2"),
        ["three.qcow2", "two.qcow2", "base dir/one.qcow2", "base dir/bäse \"1\".qcow2"]
    );
    let report = folder.track("two.qcow2").unwrap();
    let roles: Vec<_> = report.needed.iter().map(|file| file.role).collect();
    assert_eq!(roles, [FileRole::DifferenceDisk, FileRole::DifferenceDisk, FileRole::BaseDisk]);
    assert_eq!(report.totals.needed_bytes - report.totals.needed_without_base_bytes, 1 << 16);
    assert_eq!(report.not_needed.len(), 1);
    assert_eq!(report.not_needed[0].why, "holds later differences from two.qcow2");
}

#[test]
fn other_branches_and_all_above_them_are_left_out() {
    let folder = Folder::new();
    folder.write("base", image(None, &[], 0));
    folder.write("a", backed("c"));
    folder.write("c", backed("base"));
    folder.write("mine", backed("base"));
    folder.write("stranger", backed("elsewhere"));
    folder.write("notes.txt", "no image");
    let report = folder.track("mine").unwrap();
    let left: Vec<_> = report.not_needed.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(left, ["c", "a"]);
}

#[test]
fn the_data_may_be_in_another_file() {
    let folder = Folder::new();
    folder.write("raw", [7; 1000]);
    folder.write("vm.qcow2", image(None, &[(DATA_FILE, "raw")], 1 << 2));
    let report = folder.track("vm.qcow2").unwrap();
    assert_eq!((report.needed[1].role, report.needed[1].bytes), (FileRole::DiskData, 1000));
    // Without the feature bit the name means nothing.
    folder.write("vm.qcow2", image(None, &[(DATA_FILE, "raw")], 0));
    assert_eq!(folder.needs("vm.qcow2"), ["vm.qcow2"]);
    folder.write("vm.qcow2", image(None, &[], 1 << 2));
    assert_eq!(folder.track("vm.qcow2").unwrap().missing[0].role, FileRole::DiskData);
}

/// A guest can write what it likes to a raw disk, also a header that names a file of the host.
#[test]
fn the_content_of_a_raw_base_is_not_believed() {
    let folder = Folder::new();
    folder.write("base.raw", backed("/etc/passwd"));
    folder.write("vm.qcow2", image(Some("base.raw"), &[(BACKING_FORMAT, "raw")], 0));
    assert_eq!(folder.needs("vm.qcow2"), ["vm.qcow2", "base.raw"]);
}

#[test]
fn what_is_not_there_is_missing() {
    let folder = Folder::new();
    folder.write("vm.qcow2", backed("gone.qcow2"));
    let report = folder.track("vm.qcow2").unwrap();
    assert_eq!(
        (report.missing[0].path.as_str(), report.missing[0].why.as_str()),
        ("gone.qcow2", "it is not there")
    );
    folder.write("vm.qcow2", image(Some("nbd://server/disk"), &[], 0));
    let report = folder.track("vm.qcow2").unwrap();
    assert_eq!(report.missing[0].path, "nbd://server/disk");
    assert!(report.missing[0].why.contains("no file of this machine"));
    assert_eq!(report.needed[0].role, FileRole::DifferenceDisk);
}

#[test]
fn circles_and_endless_chains_are_refused() {
    let folder = Folder::new();
    folder.write("a", backed("b"));
    folder.write("b", backed("c"));
    folder.write("c", backed("./a"));
    assert!(folder.refuses("a").contains("in a circle"), "{}", folder.refuses("a"));
    folder.write("self", backed("self"));
    assert!(folder.refuses("self").contains("rebase -u -b"));
    // By another name it is the same file.
    folder.write("top", backed("link"));
    symlink(folder.path("top"), folder.path("link")).unwrap();
    assert!(folder.refuses("top").contains("in a circle"));
    let deep = Folder::new();
    for layer in 0..=2048 {
        deep.write(&layer.to_string(), &backed(&(layer + 1).to_string())[..1024]);
    }
    assert!(deep.refuses("0").contains("more than 2048 disks"), "{}", deep.refuses("0"));
}

#[test]
fn wrong_headers_are_named() {
    let folder = Folder::new();
    let whole = backed("base.qcow2");
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, &str); 9] = [
        (|bytes| bytes.truncate(3), "does not begin with the bytes"),
        (|bytes| bytes.truncate(60), "ends in its header"),
        (|bytes| bytes.truncate(90), "ends in its header"),
        (|bytes| bytes.truncate(140), "ends in its name of its backing file"),
        (|bytes| bytes[7] = 9, "version 9"),
        (|bytes| bytes[23] = 60, "clusters of 2^60"),
        (|bytes| bytes[16] = 0xff, "name of its backing file has"),
        (|bytes| bytes[100] = 0xff, "a header of"),
        (|bytes| bytes[116] = 0xff, "header extension of"),
    ];
    for (change, what) in cases {
        let mut bytes = whole.clone();
        change(&mut bytes);
        folder.write("vm.qcow2", bytes);
        let refusal = folder.refuses("vm.qcow2");
        assert!(refusal.contains(what), "{what}: {refusal}");
        assert!(
            refusal.contains("; take an intact copy") || refusal.contains("; give the newest"),
            "{refusal}"
        );
    }
    let mut table = whole;
    table[60..64].copy_from_slice(&u32::MAX.to_be_bytes());
    folder.write("vm.qcow2", &table);
    assert!(folder.refuses("vm.qcow2").contains("4294967295 internal snapshots"));
    table[60..72].copy_from_slice(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    folder.write("vm.qcow2", &table);
    assert!(folder.refuses("vm.qcow2").contains("table of internal snapshots"));
}

#[test]
fn no_change_of_a_byte_does_harm() {
    let folder = Folder::new();
    folder.write("base.qcow2", image(None, &[], 0));
    let whole = backed("base.qcow2");
    for at in 0..160 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            folder.write("vm.qcow2", bytes);
            let _ = folder.track("vm.qcow2");
        }
    }
}

#[test]
fn nobody_waits_for_a_pipe() {
    let folder = Folder::new();
    assert!(Command::new("mkfifo").arg(folder.path("pipe")).status().unwrap().success());
    folder.write("vm.qcow2", backed("pipe"));
    assert_eq!(folder.track("vm.qcow2").unwrap().missing[0].why, "it is no regular file");
    assert!(folder.refuses("pipe").contains("no regular file"));
}

/// As QEMU's own tool makes and lists them.
#[test]
fn images_of_qemu_img() {
    let folder = Folder::new();
    let run = |arguments: &[&str]| {
        let status = Command::new("qemu-img").current_dir(folder.0.path()).args(arguments).status();
        assert!(status.unwrap().success(), "{arguments:?}");
    };
    run(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "8M"]);
    run(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "extended_l2=on",
        "-b",
        "old.qcow2",
        "-F",
        "qcow2",
        "vm.qcow2",
    ]);
    run(&["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "other.qcow2", "8M"]);
    assert_eq!(folder.needs("vm.qcow2"), ["vm.qcow2", "old.qcow2"]);
    assert_eq!(folder.needs("other.qcow2"), ["other.qcow2", "data.raw"]);
    for name in ["erster \"Stand\"", "2", "zwei"] {
        run(&["snapshot", "-c", name, "vm.qcow2"]);
    }
    let report = track(&folder.path("vm.qcow2"), Some("zwei")).unwrap();
    let names: Vec<_> = report.snapshots.iter().map(|node| (node.id.as_str(), node.name.as_str())).collect();
    assert_eq!(names, [("1", "erster \"Stand\""), ("2", "2"), ("3", "zwei")]);
    assert_eq!(report.target.as_deref(), Some("3"));
    assert!(report.snapshots.iter().all(|node| !node.ram && node.taken.is_some()));
    assert_eq!(report.needed.len(), 2);
    let text = track(&folder.path("vm.qcow2"), Some("drei")).unwrap_err().to_string();
    assert!(text.contains("no snapshot \"drei\"") && text.contains("\"zwei\""), "{text}");
    run(&["snapshot", "-c", "zwei", "vm.qcow2"]);
    let text = track(&folder.path("vm.qcow2"), Some("zwei")).unwrap_err().to_string();
    assert!(text.contains("3, 4"), "{text}");
}

#[test]
fn a_chain_of_a_thousand_takes_no_time() {
    let folder = Folder::new();
    folder.write("0", &image(None, &[], 0)[..1024]);
    for layer in 1..=1000 {
        folder.write(&layer.to_string(), &backed(&(layer - 1).to_string())[..1024]);
    }
    let start = processor_ns();
    assert_eq!(folder.track("1000").unwrap().totals.needed_files, 1001);
    // The same folder from its other end: a thousand later layers, listed in the order of their names.
    assert_eq!(folder.track("0").unwrap().not_needed.len(), 1000);
    let took = Duration::from_nanos(processor_ns() - start);
    println!("a chain of 1001 images took {took:?} from both ends");
    let limit = if cfg!(debug_assertions) { 3000 } else { 200 };
    assert!(took.as_millis() <= limit, "{took:?}");
}

/// What this thread has had of a processor: other tests on the machine take nothing of it.
fn processor_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
