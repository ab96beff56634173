//! `unasnap image check` on small images made by `mke2fs`.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::UNASNAP;

const MIB: u64 = 1 << 20;
const WANTS: &str = "etc/systemd/system/multi-user.target.wants";

/// Files of a system that meets all conditions.
fn system() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let agent = format!("\x7fELF unasnap-guest/src \0 unasnap-guest/{};Run", env!("CARGO_PKG_VERSION"));
    for (path, text) in [
        ("usr/lib/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
        ("usr/lib/modules/6.1.0-18-amd64/modules.dep", ""),
        ("usr/lib/modules/5.4.0/modules.dep", ""),
        ("etc/network/interfaces", "iface lo inet loopback\niface ens3 inet dhcp\n"),
        ("usr/bin/unasnap-guest", &agent),
        (&format!("{WANTS}/unasnap-guest.service"), ""),
        (&format!("{WANTS}/ssh.service"), ""),
        ("usr/sbin/sshd", "x"),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
        ("etc/shadow", "root:$y$j9T$x:19000::::::\n"),
    ] {
        write(folder.path(), path, text);
    }
    symlink("../usr/lib/os-release", folder.path().join("etc/os-release")).unwrap();
    symlink("usr/lib", folder.path().join("lib")).unwrap();
    folder
}

fn write(folder: &Path, path: &str, text: &str) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn tool(name: &str, arguments: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let ended = Command::new(name).args(arguments).env("PATH", path).stdout(Stdio::null()).status().unwrap();
    assert!(ended.success(), "{name} {arguments:?}");
}

/// A raw disk of 17 MiB with the file system at `offset`.
fn image(system: &Path, to: &Path, offset: u64) {
    File::create(to).unwrap().set_len(17 * MIB).unwrap();
    let (offset, system) = (format!("offset={offset}"), system.to_str().unwrap());
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", system, "-E", &offset, to.to_str().unwrap(), "16000k"]);
}

/// An MBR with one partition of 16 MiB at 1 MiB.
fn mbr(path: &Path, entries: &[(u8, u32, u32)]) {
    let file = File::options().write(true).open(path).unwrap();
    for (at, (kind, first, sectors)) in entries.iter().enumerate() {
        let at = 446 + 16 * at as u64;
        file.write_all_at(&[*kind], at + 4).unwrap();
        file.write_all_at(&[first.to_le_bytes(), sectors.to_le_bytes()].concat(), at + 8).unwrap();
    }
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
}

/// A GPT with one partition, the second, of 32000 sectors at 1 MiB.
fn gpt(path: &Path) {
    mbr(path, &[(0xee, 1, u32::MAX)]);
    let file = File::options().write(true).open(path).unwrap();
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
    put(512, b"EFI PART");
    put(512 + 72, &2_u64.to_le_bytes());
    put(512 + 80, &[128, 0, 0, 0, 128, 0, 0, 0]);
    put(1024 + 128, &[7; 16]);
    put(1024 + 128 + 32, &[2048_u64.to_le_bytes(), 34047_u64.to_le_bytes()].concat());
}

fn check(path: &Path, json: bool) -> (i32, String, String) {
    let mut command = Command::new(UNASNAP);
    command.args(["image", "check"]).arg(path);
    if json {
        command.arg("--json");
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The conditions that do not hold, with why; the exit code says the same.
fn amiss(path: &Path) -> Vec<(String, String, String)> {
    let (code, stdout, stderr) = check(path, true);
    let said: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{code} {stdout} {stderr}"));
    let conditions = said["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 5);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all =
        conditions.iter().map(|one| (text(&one["condition"]), text(&one["verdict"]), text(&one["why"])));
    let amiss: Vec<_> = all.filter(|(_, verdict, _)| verdict != "holds").collect();
    assert_eq!((code == 0, &said["holds"]), (amiss.is_empty(), &amiss.is_empty().into()));
    assert_eq!(code == 1, !amiss.is_empty());
    amiss
}

#[test]
fn a_good_system_holds_wherever_it_lies_on_the_disk() {
    let (system, folder) = (system(), tempfile::tempdir().unwrap());
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    image(system.path(), &at("whole ? -x"), 0);
    assert_eq!(amiss(&at("whole ? -x")), []);
    image(system.path(), &at("mbr"), MIB);
    mbr(&at("mbr"), &[(0x83, 2048, 32768)]);
    image(system.path(), &at("gpt"), MIB);
    gpt(&at("gpt"));
    assert_eq!(amiss(&at("gpt")), []);
    let before = fs::read(at("mbr")).unwrap();
    assert_eq!(amiss(&at("mbr")), []);
    assert!(fs::read(at("mbr")).unwrap() == before, "nothing is written");
    let (raw, qcow2) = (at("mbr"), at("q.qcow2"));
    tool("qemu-img", &["convert", "-O", "qcow2", raw.to_str().unwrap(), qcow2.to_str().unwrap()]);
    assert_eq!(amiss(&qcow2), []);
    let (code, stdout, _) = check(&qcow2, false);
    assert!(code == 0 && stdout.contains("Debian GNU/Linux 12 with Linux 6.1.0-18-amd64"), "{stdout}");
}

#[test]
fn each_condition_that_fails_is_named() {
    let cases: [(&str, Option<&str>, &str, &str, &str); 10] = [
        (
            "usr/lib/modules/6.1.0-18-amd64",
            None,
            "operating system",
            "fails",
            "Linux 5.4.0: 5.12 or later is needed",
        ),
        ("usr/lib/modules", None, "operating system", "unknown", "without a kernel"),
        ("usr/lib/os-release", None, "operating system", "fails", "no /etc/os-release"),
        (
            "etc/network/interfaces",
            Some("#iface ens3 inet dhcp\n"),
            "network",
            "fails",
            "no card gets an address",
        ),
        ("usr/bin/unasnap-guest", None, "guest agent", "fails", "there is no unasnap-guest"),
        (
            "usr/bin/unasnap-guest",
            Some("unasnap-guest/0.0.9;"),
            "guest agent",
            "fails",
            "is of version 0.0.9",
        ),
        ("usr/bin/unasnap-guest", Some("x"), "guest agent", "unknown", "does not tell its version"),
        (
            "etc/systemd/system/multi-user.target.wants/unasnap-guest.service",
            None,
            "guest agent",
            "fails",
            "not started at boot",
        ),
        ("etc/shadow", Some("root:*:1::::::\n"), "superuser", "fails", "neither a password nor a key"),
        ("usr/sbin/sshd", None, "remote access", "fails", "neither /usr/sbin/sshd"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (path, text, condition, verdict, words) in cases {
        let (system, disk) = (system(), folder.path().join("disk"));
        match (text, system.path().join(path)) {
            (Some(text), path) => fs::write(path, text).unwrap(),
            (None, path) if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            (None, path) => fs::remove_file(path).unwrap(),
        }
        image(system.path(), &disk, 0);
        let amiss = amiss(&disk);
        assert_eq!(amiss.len(), 1, "{path}: {amiss:?}");
        let (found, said, why) = &amiss[0];
        assert_eq!((found.as_str(), said.as_str()), (condition, verdict), "{path}: {why}");
        assert!(why.contains(words), "{path}: {why}");
    }
}

#[test]
fn what_cannot_be_looked_into_is_said_in_a_sentence() {
    let (system, folder) = (system(), tempfile::tempdir().unwrap());
    let disk = folder.path().join("disk");
    let refused = |words: &str| {
        let (code, stdout, stderr) = check(&disk, false);
        assert!(
            code == 2 && stdout.is_empty() && stderr.contains(words),
            "{words}: {code} {stdout} {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    };
    refused("cannot be read");
    fs::write(&disk, "").unwrap();
    refused("it ends before byte");
    fs::write(&disk, vec![0; 4 << 20]).unwrap();
    refused("there is nothing that is known");
    mbr(&disk, &[(0x83, 2048, 32768)]);
    refused("it is truncated");
    // A table of logical partitions that comes back to itself.
    mbr(&disk, &[(0x05, 1, 8)]);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&[5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 512 + 446 + 16 + 4).unwrap();
    refused("go in a circle");
    for (mark, words) in
        [(&b"LUKS\xba\xbe"[..], "encrypted (LUKS) in partition 1"), (b"XFSB", "XFS in partition 1")]
    {
        fs::write(&disk, vec![0; 4 << 20]).unwrap();
        mbr(&disk, &[(0x83, 2048, 2048)]);
        File::options().write(true).open(&disk).unwrap().write_all_at(mark, MIB).unwrap();
        refused(words);
    }
    image(system.path(), &disk, 0);
    File::options().write(true).open(&disk).unwrap().set_len(8 * MIB).unwrap();
    refused("it is truncated");
    image(system.path(), &disk, 0);
    File::options().write(true).open(&disk).unwrap().write_all_at(&[0xff; 8192], 2048).unwrap();
    refused("is damaged");
    // More than a name, to debugfs.
    let release = system.path().join("etc/os-release");
    fs::remove_file(&release).unwrap();
    symlink("x /etc/passwd", &release).unwrap();
    image(system.path(), &disk, 0);
    refused("none that a system has there");
    fs::write(&disk, [&b"QFI\xfb"[..], &[0xff; 100]].concat()).unwrap();
    refused("version");
    fs::remove_file(&disk).unwrap();
    tool("qemu-img", &["create", "-q", "-f", "raw", folder.path().join("base").to_str().unwrap(), "4M"]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", disk.to_str().unwrap()]);
    refused("is only a part of an image");
}
