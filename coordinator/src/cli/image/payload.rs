//! What goes into an image: the agent, its unit, and the link that has it started.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::inject::InjectAgent;
use super::tool;
use crate::failure::{CliError, Kind, Result};

const AGENT: &str = "/usr/bin/unasnap-guest";
const UNIT: &str = "/usr/lib/systemd/system/unasnap-guest.service";
const UNIT_TEXT: &[u8] = include_bytes!("../../../../docs/units/unasnap-guest.service");
/// What `systemctl enable` makes of the unit's `[Install]`.
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/unasnap-guest.service";
/// More than a package of ours will ever hold.
const MAX_FILES: usize = 64;
/// Nor a file of it; what is longer could not be read back from the image.
const MAX_BYTES: u64 = tool::MAX_OUTPUT;

/// A file of the guest.
#[derive(Debug)]
pub struct File {
    pub path: String,
    pub mode: u32,
    pub content: Vec<u8>,
}

#[derive(Debug)]
pub struct Payload {
    pub version: String,
    pub files: Vec<File>,
    /// Path and target of the link that enables the service.
    pub link: (&'static str, &'static str),
}

impl Payload {
    /// Reads it; what is unpacked goes into `folder`.
    ///
    /// # Errors
    /// There is no agent, or it is none that runs in any guest.
    pub async fn load(wanted: &InjectAgent, folder: &Path) -> Result<Self> {
        let payload = match &wanted.package {
            Some(package) => Self::unpack(package, folder).await?,
            None => Self::of_binary(wanted.agent.as_deref(), folder).await?,
        };
        let agent = payload.files.iter().find(|file| file.path == AGENT);
        let agent = agent.ok_or_else(|| CliError::usage(format!("the package has no {AGENT}")))?;
        if !payload.files.iter().any(|file| file.path == UNIT) {
            return Err(CliError::usage(format!("the package has no {UNIT}")));
        }
        check_program(&agent.content)?;
        Ok(payload)
    }

    async fn of_binary(agent: Option<&Path>, folder: &Path) -> Result<Self> {
        let agent = match agent {
            Some(agent) => absolute(agent)?,
            None => beside_us()?,
        };
        let content = read(&agent)?;
        check_program(&content)?;
        let said = tool::text(folder, &agent.to_string_lossy(), &["--version"], tool::SHORT).await?;
        let version = said.trim().strip_prefix("unasnap-guest ").ok_or_else(|| {
            CliError::usage(format!("{} is no guest agent: it calls itself {said:?}", agent.display()))
        })?;
        let files = vec![
            File { path: AGENT.to_owned(), mode: 0o755, content },
            File { path: UNIT.to_owned(), mode: 0o644, content: UNIT_TEXT.to_vec() },
        ];
        Ok(Self { version: version.to_owned(), files, link: (WANTED, UNIT) })
    }

    async fn unpack(package: &Path, folder: &Path) -> Result<Self> {
        let package = absolute(package)?;
        read(&package)?;
        let shown = package.to_string_lossy();
        let field =
            async |name: &str| tool::text(folder, "dpkg-deb", &["-f", &shown, name], tool::SHORT).await;
        if field("Package").await?.trim() != "unasnap-guest" {
            return Err(CliError::usage(format!("{shown} is not the package unasnap-guest")));
        }
        let version = field("Version").await?.trim().to_owned();
        let tree = folder.join("package");
        tool::text(folder, "dpkg-deb", &["-x", &shown, &tree.to_string_lossy()], tool::SHORT).await?;
        let mut files = Vec::new();
        collect(&tree, &tree, &mut files)?;
        Ok(Self { version, files, link: (WANTED, UNIT) })
    }
}

/// The regular files below `folder`; the package has no others.
fn collect(tree: &Path, folder: &Path, files: &mut Vec<File>) -> Result<()> {
    let unreadable =
        |error: std::io::Error| CliError::usage(format!("cannot read {}: {error}", folder.display()));
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let metadata = fs::symlink_metadata(&path).map_err(unreadable)?;
        if metadata.is_dir() {
            collect(tree, &path, files)?;
            continue;
        }
        let name = path.strip_prefix(tree).unwrap_or(&path).to_string_lossy();
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "./_+-".contains(letter);
        if !metadata.is_file() || !name.chars().all(plain) || files.len() == MAX_FILES {
            return Err(CliError::usage(format!("the package has {name:?}: it is not one of ours")));
        }
        let mode = metadata.permissions().mode() & 0o777;
        files.push(File { path: format!("/{name}"), mode, content: read(&path)? });
    }
    Ok(())
}

/// In a guest there are other libraries, or other versions of them.
fn check_program(program: &[u8]) -> Result<()> {
    const PT_INTERP: u32 = 3;
    const X86_64: u16 = 62;
    let half = |at: usize| Some(u16::from_le_bytes(program.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(program.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(program.get(at..at + 8)?.try_into().ok()?));
    let no_program = || CliError::usage("the guest agent is no program for Linux on x86-64");
    if !program.starts_with(b"\x7fELF\x02\x01") || half(18) != Some(X86_64) {
        return Err(no_program());
    }
    let header = || {
        let (table, size, count) = (usize::try_from(long(32)?).ok()?, half(54)?, half(56)?);
        let entry = |at: u16| word(table.checked_add(usize::from(at) * usize::from(size))?);
        (0..count).map(entry).collect::<Option<Vec<_>>>()
    };
    if header().ok_or_else(no_program)?.contains(&PT_INTERP) {
        return Err(CliError::usage(
            "the guest agent needs this machine's libraries: give one that is statically linked, as `cargo xtask \
             package` builds it",
        ));
    }
    Ok(())
}

fn beside_us() -> Result<PathBuf> {
    let own =
        std::env::current_exe().map_err(|error| CliError::internal(format!("our own path: {error}")))?;
    let agent = own.with_file_name("unasnap-guest");
    if agent.exists() {
        return Ok(agent);
    }
    let text = format!("there is no {}: say --package DEB or --agent BINARY", agent.display());
    Err(CliError::new(Kind::NotFound, text))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let unreadable = |error| CliError::usage(format!("cannot read {}: {error}", path.display()));
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_BYTES {
        return Err(CliError::usage(format!("{} has {bytes} bytes: it is not one of ours", path.display())));
    }
    fs::read(path).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_of_this_architecture_pass() {
        let program = |machine: u16, segment: u32| {
            let mut bytes = vec![0; 120];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[18..20].copy_from_slice(&machine.to_le_bytes());
            bytes[32] = 64;
            bytes[54] = 56;
            bytes[56] = 1;
            bytes[64..68].copy_from_slice(&segment.to_le_bytes());
            bytes
        };
        assert!(check_program(&program(62, 1)).is_ok());
        let fails = |bytes: &[u8]| check_program(bytes).unwrap_err().to_string();
        assert!(fails(&program(62, 3)).contains("statically linked"));
        assert!(fails(&program(183, 1)).contains("no program"));
        assert!(fails(b"#!/bin/sh\n").contains("no program"));
        assert!(fails(&program(62, 1)[..64]).contains("no program"));
    }
}
