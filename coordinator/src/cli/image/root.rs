//! The files of the system that is on a disk image, read by `debugfs` (e2fsprogs): without root, without a mount, and nothing is
//! written. A qcow2 image is unpacked into the folder for temporary files first.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::disk::{Content, Disk, Part};
use crate::failure::{CliError, Result};

/// Longest file that is read, bytes.
const MAX_FILE: u64 = 64 << 20;
/// Longest chain of symbolic links.
const MAX_LINKS: u32 = 8;
/// For one look into the file system.
const LOOK: Duration = Duration::from_secs(30);
/// For unpacking a qcow2 image.
const UNPACK: Duration = Duration::from_secs(1800);

/// The file system that has `/etc`.
pub struct Root {
    shown: String,
    device: String,
    _folder: TempDir,
}

impl Root {
    /// Finds it.
    pub fn open(image: &Path) -> Result<Self> {
        let shown = image.display().to_string();
        let internal = |error: std::io::Error| {
            CliError::internal(format!("cannot use the folder for temporary files: {error}"))
        };
        let folder = tempfile::tempdir().map_err(internal)?;
        // A name of ours: one that the tools would understand as an option or an offset is only a name.
        let link = folder.path().join("image");
        let raw = if is_qcow2(image)? {
            unpack(image, folder.path())?
        } else {
            image.canonicalize().map_err(|error| unreadable(image, &error))?
        };
        symlink(&raw, &link).map_err(internal)?;
        let disk = Disk::open(&raw)?;
        let mut seen = Vec::new();
        for part in disk.parts()? {
            let content = disk.content(part)?;
            if content == Content::Ext {
                let device = format!("{}?offset={}", link.display(), part.start);
                let root = Self { shown: shown.clone(), device, _folder: folder };
                if root.list("/")?.iter().any(|name| name == "etc") {
                    return Ok(root);
                }
                return Err(CliError::usage(format!("{shown}: the first ext file system has no /etc")));
            }
            seen.push(words(part, content));
        }
        let seen = if seen.is_empty() { "no partition".to_owned() } else { seen.join(", ") };
        Err(CliError::usage(format!(
            "{shown} has no ext2, ext3 or ext4 file system that can be looked into: there is {seen}. Boot it in a VM to see what it is"
        )))
    }

    /// A regular file, wherever links lead; `None` if there is none.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Some(stat) = self.ask("stat", &path)? else { return Ok(None) };
            let stat = String::from_utf8_lossy(&stat).into_owned();
            if stat.contains("Type: regular") {
                return self.ask("cat", &path);
            }
            let Some((_, rest)) = stat.split_once("Fast link dest: \"") else { return Ok(None) };
            let target = rest.split('"').next().unwrap_or_default();
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            path = if target.starts_with('/') { target.to_owned() } else { format!("{folder}/{target}") };
        }
        Err(CliError::usage(format!("{}: {path} is a circle of symbolic links", self.shown)))
    }

    /// A text, with what is no UTF-8 replaced.
    pub fn text(&self, path: &str) -> Result<Option<String>> {
        Ok(self.read(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Is anything called so, a link that leads nowhere too?
    pub fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.ask("stat", path)?.is_some())
    }

    /// Names in a folder; none if there is no such folder.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let listed = self.ask("ls -p", folder)?.unwrap_or_default();
        // /inode/mode/uid/gid/name/size/
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let names = listed.lines().filter_map(|line| line.split('/').nth(5));
        Ok(names.filter(|name| !matches!(*name, "" | "." | "..")).map(str::to_owned).collect())
    }

    fn ask(&self, command: &str, path: &str) -> Result<Option<Vec<u8>>> {
        // debugfs splits its commands at spaces and quotes.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@:,=~".contains(&byte);
        if !path.bytes().all(plain) {
            return Err(CliError::usage(format!(
                "{}: the name {path:?} is none that a system has there",
                self.shown
            )));
        }
        let request = format!("{command} {path}");
        let (bytes, talk) = run("debugfs", "e2fsprogs", &["-R", &request, &self.device], LOOK)?;
        // The first line is the program's version.
        let complaint: Vec<_> = talk.lines().filter(|line| !line.starts_with("debugfs ")).collect();
        if complaint.is_empty() {
            return Ok(Some(bytes));
        }
        if complaint.iter().any(|line| line.contains("File not found") || line.contains("not a directory")) {
            return Ok(None);
        }
        let words = complaint.join("; ").replace(&self.device, "it");
        Err(CliError::usage(format!("the file system of {} is damaged: {words}", self.shown)))
    }
}

fn words(Part { number, .. }: Part, content: Content) -> String {
    let holds = match content {
        Content::Other(name) => name,
        Content::Ext | Content::Unknown => "nothing that is known",
    };
    if number == 0 { holds.to_owned() } else { format!("{holds} in partition {number}") }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::usage(format!("{} cannot be read: {error}", path.display()))
}

fn is_qcow2(path: &Path) -> Result<bool> {
    if !path.metadata().map_err(|error| unreadable(path, &error))?.is_file() {
        return Err(CliError::usage(format!("{} is no regular file", path.display())));
    }
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| unreadable(path, &error))?;
    file.take(4).read_to_end(&mut start).map_err(|error| unreadable(path, &error))?;
    Ok(start == *b"QFI\xfb")
}

/// An image that names another file could make `qemu-img` read any file of this machine.
fn unpack(image: &Path, folder: &Path) -> Result<PathBuf> {
    let report = unasnap_files::qcow2::track(image, None)?;
    if report.needed.len() != 1 || !report.missing.is_empty() {
        return Err(CliError::usage(format!(
            "{} is only a part of an image: make it one file, `qemu-img convert -O qcow2`",
            image.display()
        )));
    }
    let (source, raw) =
        (image.canonicalize().map_err(|error| unreadable(image, &error))?, folder.join("raw"));
    let paths = [source.to_string_lossy(), raw.to_string_lossy()];
    let (_, talk) = run(
        "qemu-img",
        "qemu-utils",
        &["convert", "-f", "qcow2", "-O", "raw", &paths[0], &paths[1]],
        UNPACK,
    )?;
    if raw.exists() && talk.is_empty() {
        return Ok(raw);
    }
    Err(CliError::usage(format!("{} cannot be unpacked: {}", image.display(), talk.trim())))
}

/// What a tool says on stdout and stderr.
fn run(tool: &str, package: &str, arguments: &[&str], limit: Duration) -> Result<(Vec<u8>, String)> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(tool);
    command.args(arguments).env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command
        .env("DEBUGFS_PAGER", "__none__")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let broken = |error| {
        CliError::internal(format!("{tool} cannot be used: {error}; is the package {package} installed?"))
    };
    let mut child = command.spawn().map_err(broken)?;
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // A child that is killed has said what it has said. What it says beyond this ends it: nobody reads on.
            let _ = pipe.map(|pipe| pipe.take(MAX_FILE).read_to_end(&mut bytes));
            bytes
        })
    };
    let out = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let talk = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let began = Instant::now();
    while child.try_wait().map_err(broken)?.is_none() {
        if began.elapsed() > limit {
            // It may have ended at this moment.
            let _ = child.kill();
            child.wait().map_err(broken)?;
            return Err(CliError::usage(format!(
                "{tool} has not understood the image in {} s",
                limit.as_secs()
            )));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let joined = |thread: thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok((joined(out), String::from_utf8_lossy(&joined(talk)).into_owned()))
}
