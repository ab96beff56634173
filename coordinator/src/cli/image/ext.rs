//! An ext2, ext3 or ext4 file system on a raw disk, read by its own tool `debugfs` (e2fsprogs): without root, a mount or a loop
//! device, and nothing is written. What is written into one stands in `ext/write.rs`.

mod talk;
mod write;

use std::path::Path;

pub use self::talk::{Kind, Stat};
use super::disk::{Disk, NAME, Part};
use super::tool;
use crate::failure::{CliError, Result};

/// Longest chain of symbolic links.
const MAX_LINKS: u32 = 8;

/// The file system, wherever it lies on its disk.
#[derive(Debug)]
pub struct Ext<'a> {
    folder: &'a Path,
    /// The disk and where the file system begins on it, the way libext2fs wants to be told.
    device: String,
    shown: &'a Path,
}

impl<'a> Ext<'a> {
    /// The one in this part.
    pub fn new(disk: &Disk<'a>, part: Part) -> Self {
        let device = format!("{NAME}?offset={}", part.start);
        Self { folder: disk.folder, device, shown: disk.shown }
    }

    /// What is at this path, a link at its end not followed.
    pub async fn stat(&self, path: &str) -> Result<Option<Stat>> {
        let Some(shown) = self.ask("stat", path).await? else { return Ok(None) };
        Ok(Some(talk::stat(&shown)))
    }

    /// Is anything called so, a link that leads nowhere too?
    pub async fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.stat(path).await?.is_some())
    }

    /// A regular file, wherever links lead, up to [`tool::MAX_OUTPUT`] bytes of it; `None` if there is none.
    pub async fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match self.stat(&path).await?.map(|stat| stat.kind) {
                Some(Kind::Regular) => return self.ask("cat", &path).await,
                Some(Kind::Link(target)) if target.starts_with('/') => path = target,
                Some(Kind::Link(target)) => {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                    path = format!("{folder}/{target}");
                }
                _ => return Ok(None),
            }
        }
        Err(CliError::usage(format!("{}: {path} is a circle of symbolic links", self.shown.display())))
    }

    /// A text, with what is no UTF-8 replaced.
    pub async fn text(&self, path: &str) -> Result<Option<String>> {
        Ok(self.read(path).await?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Names in a folder; none if there is no such folder.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let listed = self.ask("ls -p", folder).await?.unwrap_or_default();
        Ok(talk::names(&listed))
    }

    /// What a command says about a path; `None` if nothing is there.
    async fn ask(&self, command: &str, path: &str) -> Result<Option<Vec<u8>>> {
        let image = self.shown.display();
        let Some(request) = talk::request(command, path) else {
            return Err(CliError::usage(format!(
                "{image}: the name {path:?} is none that a system has there"
            )));
        };
        let asked =
            tool::output(self.folder, "debugfs", &["-R", &request, &self.device], tool::SHORT).await?;
        let talk = String::from_utf8_lossy(&asked.stderr);
        // The first line is the program's version.
        let complaint: Vec<_> = talk.lines().filter(|line| !line.starts_with("debugfs ")).collect();
        if complaint.is_empty() {
            return Ok(Some(asked.stdout));
        }
        if complaint.iter().any(|line| line.contains("File not found") || line.contains("not a directory")) {
            return Ok(None);
        }
        let words = complaint.join("; ").replace(&self.device, "it");
        Err(CliError::usage(format!("the file system of {image} is damaged: {words}")))
    }
}
