//! `unasnap image inject-agent` on file systems that mke2fs makes of a few files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use unasnap_files::vdi::{self, Kind};

const VERSION: &str = "7.8.9";
/// Where the partition begins, bytes.
const START: u64 = 1 << 20;
const AGENT: &str = "/usr/bin/unasnap-guest";
const UNIT: &str = "/usr/lib/systemd/system/unasnap-guest.service";
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/unasnap-guest.service";

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// A folder with a package of an agent that does nothing.
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.package(VERSION);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn package(&self, version: &str) {
        let tree = self.path("tree");
        for (name, mode, content) in [
            ("DEBIAN/control", 0o644, control(version).into_bytes()),
            ("usr/bin/unasnap-guest", 0o755, program(version)),
            ("usr/lib/systemd/system/unasnap-guest.service", 0o644, b"[Service]\n".to_vec()),
        ] {
            fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
            fs::write(tree.join(name), content).unwrap();
            fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        self.run("dpkg-deb", &["--root-owner-group", "--build", "tree", "agent.deb"]);
        fs::remove_dir_all(tree).unwrap();
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// An ext4 file system with what a Debian has, as far as it matters.
    fn ext4(&self, name: &str, systemd: bool) {
        let root = self.path("root");
        for folder in ["etc/systemd/system", "usr/bin", "usr/lib/systemd/system"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("etc/hostname"), "guest\n").unwrap();
        if systemd {
            fs::write(root.join("usr/lib/systemd/systemd"), "the first process").unwrap();
        }
        self.run("/sbin/mke2fs", &["-q", "-t", "ext4", "-d", "root", name, "24M"]);
        fs::remove_dir_all(root).unwrap();
    }

    /// A disk with the file system in its only partition.
    fn partitioned(&self, name: &str) {
        self.ext4("part", true);
        let content = fs::read(self.path("part")).unwrap();
        let disk = File::create(self.path(name)).unwrap();
        disk.write_all_at(&content, START).unwrap();
        let sectors = |bytes: u64| u32::try_from(bytes / 512).unwrap().to_le_bytes();
        // Not active, Linux, first sector, number of sectors.
        let entry =
            [&[0, 0, 0, 0, 0x83, 0, 0, 0][..], &sectors(START), &sectors(content.len() as u64)].concat();
        disk.write_all_at(&entry, 446).unwrap();
        disk.write_all_at(&[0x55, 0xaa], 510).unwrap();
        fs::remove_file(self.path("part")).unwrap();
    }

    fn inject(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unasnap"));
        command.args(["image", "inject-agent"]).args(arguments).current_dir(self.folder.path());
        command.output().unwrap()
    }

    fn injects(&self, image: &str, words: &str) {
        let output = self.inject(&[image, "--package", "agent.deb"]);
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(output.status.success() && said.contains(words), "{output:?}");
    }

    /// It is refused, the image is byte by byte what it was, and nothing else is there.
    fn refuses(&self, image: &str, code: i32, words: &str) {
        let look = || {
            let mut names: Vec<_> =
                fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            (names, fs::read(self.path(image)).ok())
        };
        let before = look();
        let output = self.inject(&[image, "--package", "agent.deb"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && said.contains(words), "{:?} {said}", output.status);
        assert!(look() == before, "something is left, or the image is changed");
    }

    /// What debugfs says about the file system in a raw image.
    fn ask(&self, image: &str, offset: u64, command: &str) -> String {
        self.run("/sbin/debugfs", &["-R", command, &format!("{image}?offset={offset}")])
    }

    fn assert_injected(&self, image: &str, offset: u64, version: &str) {
        let out = self.path("out");
        self.ask(image, offset, &format!("dump {AGENT} {}", out.display()));
        assert_eq!(fs::read(out).unwrap(), program(version));
        let about = |path: &str| self.ask(image, offset, &format!("stat {path}"));
        assert!(about(AGENT).contains("Mode:  0755"), "{}", about(AGENT));
        assert!(about(UNIT).contains("Mode:  0644"), "{}", about(UNIT));
        assert!(about(WANTED).contains(&format!("link dest: \"{UNIT}\"")), "{}", about(WANTED));
        assert!(self.ask(image, offset, "cat /etc/hostname").contains("guest"));
        self.run("/sbin/e2fsck", &["-f", "-n", &format!("{image}?offset={offset}")]);
    }
}

/// QEMU with an image open for writing, and no VM. It ends with this value.
struct Daemon(std::process::Child);

impl Daemon {
    fn start(bench: &Bench, image: &str) -> Self {
        let mut command = Command::new("qemu-nbd");
        let socket = bench.path("elsewhere/socket");
        command.args(["-f", "qcow2", "--persistent", "-k"]).arg(&socket).arg(image);
        let daemon = Self(command.current_dir(bench.folder.path()).spawn().unwrap());
        let begun = std::time::Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed().as_secs() < 60, "qemu-nbd did not start");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn control(version: &str) -> String {
    format!(
        "Package: unasnap-guest\nVersion: {version}\nArchitecture: amd64\nMaintainer: x <x@y>\nDescription: x\n"
    )
}

/// A program for Linux on x86-64 without segments, some hundred kilobytes of it.
fn program(version: &str) -> Vec<u8> {
    let mut bytes = version.as_bytes().repeat(100_000);
    bytes[..64].fill(0);
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    bytes
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn the_agent_is_put_in_once_and_replaced_by_another_version() {
    let bench = Bench::new();
    bench.ext4("disk.raw", true);
    bench.partitioned("part.raw");
    fs::set_permissions(bench.path("part.raw"), fs::Permissions::from_mode(0o640)).unwrap();
    for (image, offset) in [("disk.raw", 0), ("part.raw", START)] {
        bench.injects(image, "unasnap-guest 7.8.9 is in it");
        bench.assert_injected(image, offset, VERSION);
        let before = fs::read(bench.path(image)).unwrap();
        bench.injects(image, "already has unasnap-guest 7.8.9");
        assert!(fs::read(bench.path(image)).unwrap() == before);
    }
    assert_eq!(mode(&bench.path("part.raw")), 0o640);
    bench.package("7.9.0");
    bench.injects("part.raw", "unasnap-guest 7.9.0 is in it");
    bench.assert_injected("part.raw", START, "7.9.0");
    assert_eq!(bench.folder.path().read_dir().unwrap().count(), 4, "disk, partitioned disk, package, out");
}

#[test]
fn a_qcow2_image_stays_what_it_was() {
    let bench = Bench::new();
    bench.partitioned("part.raw");
    let options = "compat=1.1,cluster_size=131072,compression_type=zstd";
    bench.run("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", options, "part.raw", "image.qcow2"]);
    bench.injects("image.qcow2", "is in it");
    bench.injects("image.qcow2", "already has");
    let info: serde_json::Value =
        serde_json::from_str(&bench.run("qemu-img", &["info", "--output=json", "image.qcow2"])).unwrap();
    assert_eq!(info["cluster-size"], 131_072);
    assert_eq!(info["format-specific"]["data"]["compression-type"], "zstd");
    let check = bench.run("qemu-img", &["check", "--output=json", "image.qcow2"]);
    assert!(check.contains("\"compressed-clusters\""), "{check}");
    bench.run("qemu-img", &["convert", "-O", "raw", "image.qcow2", "back.raw"]);
    bench.assert_injected("back.raw", START, VERSION);

    bench.run("qemu-img", &["snapshot", "-c", "one", "image.qcow2"]);
    bench.package("7.9.0");
    bench.refuses("image.qcow2", 5, "internal snapshots");
}

/// VirtualBox knows a disk by its UUID.
#[test]
fn a_vdi_stays_what_it_was() {
    let bench = Bench::new();
    bench.partitioned("part.raw");
    for (kind, options) in [(Kind::Dynamic, "static=off"), (Kind::Fixed, "static=on")] {
        bench.run("qemu-img", &["convert", "-O", "vdi", "-o", options, "part.raw", "image.vdi"]);
        let before = vdi::read(&bench.path("image.vdi")).unwrap().unwrap();
        assert_eq!(before.kind, kind);
        bench.injects("image.vdi", "is in it");
        bench.injects("image.vdi", "already has");
        assert_eq!(vdi::read(&bench.path("image.vdi")).unwrap(), Some(before));
        bench.run("qemu-img", &["convert", "-f", "vdi", "-O", "raw", "image.vdi", "back.raw"]);
        bench.assert_injected("back.raw", START, VERSION);
    }
    // A difference, as its header says at byte 76.
    let image = File::options().write(true).open(bench.path("image.vdi")).unwrap();
    image.write_all_at(&[4], 76).unwrap();
    bench.refuses("image.vdi", 2, "only a part of an image: make it one file, `VBoxManage clonemedium`");
}

#[test]
fn what_is_used_by_others_is_left_alone() {
    let bench = Bench::new();
    bench.partitioned("base.raw");
    bench.run("qemu-img", &["create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "above.qcow2"]);
    bench.refuses("base.raw", 5, "above.qcow2 is built on it");
    bench.refuses("above.qcow2", 5, "only the differences");
    fs::create_dir(bench.path("elsewhere")).unwrap();
    fs::rename(bench.path("above.qcow2"), bench.path("elsewhere/above.qcow2")).unwrap();
    bench.run("qemu-img", &["rebase", "-u", "-b", "../base.raw", "-F", "raw", "elsewhere/above.qcow2"]);

    // QEMU has it open below another image, and so only reads it.
    let daemon = Daemon::start(&bench, "elsewhere/above.qcow2");
    bench.refuses("base.raw", 5, "it is in use");
    drop(daemon);
    // Without it there is nothing against the change, though the image elsewhere is spoilt by it.
    bench.injects("base.raw", "is in it");

    fs::set_permissions(bench.path("base.raw"), fs::Permissions::from_mode(0o444)).unwrap();
    bench.refuses("base.raw", 5, "read-only");
}

#[test]
fn what_cannot_be_done_is_said_and_nothing_is_left() {
    let bench = Bench::new();
    bench.ext4("data.raw", false);
    bench.refuses("data.raw", 2, "ext4 without systemd");
    fs::write(bench.path("random.raw"), [7; 100_000]).unwrap();
    bench.refuses("random.raw", 2, "nothing that is known");
    bench.refuses("missing.raw", 2, "cannot open");
    bench.partitioned("cut.raw");
    File::options().write(true).open(bench.path("cut.raw")).unwrap().set_len(2 * START).unwrap();
    bench.refuses("cut.raw", 2, "it is truncated");

    // Full, but for less than the agent needs.
    bench.ext4("full.raw", true);
    fs::write(bench.path("filling"), vec![1; 40_000_000]).unwrap();
    bench.run("/sbin/debugfs", &["-w", "-R", "write filling filling", "full.raw"]);
    bench.run("sh", &["-c", "/sbin/e2fsck -y -f full.raw; rm filling"]);
    bench.refuses("full.raw", 2, "could not be written");

    bench.ext4("good.raw", true);
    fs::write(bench.path("agent.deb"), "no package").unwrap();
    bench.refuses("good.raw", 2, "dpkg-deb failed");
    let output = bench.inject(&["good.raw", "--agent", "/bin/ls"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("statically linked"), "{output:?}");
}
