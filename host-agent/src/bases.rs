//! Bases: read-only images of this host that VMs share, each with a digest that was computed once.
//!
//! ```text
//! <state_dir>/bases/<name>.toml      what the file was when it was registered
//! ```
//!
//! A base stands alone: an image with a backing file of its own would be only a part of what VMs see, and could name any
//! file of the host.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use unasnap_protocol::household::Base;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{RequestError, RequestErrorKind};

use self::candidate::make_read_only;
pub use self::candidate::{Candidate, Considered, Unread};
use self::inspection::inspect;
use crate::definition::ImageFormat;
use crate::hypervisor::base_image::{describe, digest};
use crate::registry::{cannot, internal, refused};
use crate::store::files;
use crate::store::manifest::BaseImage;
use crate::transfer::bringing::Brought;
use crate::works::chain;

mod candidate;
mod inspection;

/// What is known of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// What the file is.
    pub format: ImageFormat,
    /// Size of the disk that a VM sees, bytes.
    pub virtual_bytes: u64,
    /// The file, with its digest.
    pub image: BaseImage,
}

/// All bases of this host.
#[derive(Debug)]
pub struct Bases {
    folder: PathBuf,
    image_dirs: Vec<PathBuf>,
    state_dir: PathBuf,
    known: BTreeMap<Name, Known>,
}

impl Bases {
    /// Reads what was registered; what cannot be understood is named in the log and left out.
    ///
    /// # Errors
    /// The folder cannot be made or listed.
    pub fn open(state_dir: &Path, image_dirs: &[PathBuf]) -> Result<Self> {
        let folder = state_dir.join("bases");
        let cannot = |what: &str| format!("cannot {what} {}", folder.display());
        fs::create_dir_all(&folder).with_context(|| cannot("create"))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&folder).with_context(|| cannot("list"))? {
            let path = entry.with_context(|| cannot("list"))?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".toml"));
            let Some(name) = name.and_then(|name| Name::new(name).ok()) else { continue };
            let read = || -> Result<Known> { Ok(toml::from_str(&fs::read_to_string(&path)?)?) };
            match read() {
                Ok(base) => drop(known.insert(name, base)),
                Err(error) => tracing::error!("base {name} is left out: {}: {error:#}", path.display()),
            }
        }
        let image_dirs = image_dirs.to_vec();
        let state_dir = state_dir.canonicalize().with_context(|| cannot("resolve"))?;
        Ok(Self { folder, image_dirs, state_dir, known })
    }

    /// What this host keeps of its VMs.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// All, by name.
    #[must_use]
    pub fn known(&self) -> &BTreeMap<Name, Known> {
        &self.known
    }

    /// The file itself, wherever links lead, if VMs may be made of it.
    ///
    /// # Errors
    /// It is no file, or lies where no images are.
    pub fn resolve(&self, path: &str) -> Result<PathBuf, RequestError> {
        let path = Path::new(path);
        if !path.is_absolute() {
            return Err(refused(format!("{} is not an absolute path of the host", path.display())));
        }
        let real = path.canonicalize().map_err(|error| not_found(path, &error))?;
        let allowed = self.image_dirs.iter().filter_map(|folder| folder.canonicalize().ok());
        if !allowed.into_iter().any(|folder| real.starts_with(folder)) || real.starts_with(&self.state_dir) {
            let places: Vec<_> = self.image_dirs.iter().map(|folder| folder.display().to_string()).collect();
            let text = format!(
                "{} is not below {}, where this host has its images: move it there, or add its folder to image_dirs in host.toml",
                real.display(),
                places.join(" or ")
            );
            return Err(refused(text));
        }
        if !real.is_file() {
            return Err(refused(format!("{} is not a file", real.display())));
        }
        if real.to_str().is_none() {
            return Err(refused(format!("{}: use a path in UTF-8", real.display())));
        }
        Ok(real)
    }

    /// Looks at a file that is to become a base.
    ///
    /// # Errors
    /// It cannot become one.
    pub async fn consider(&self, path: &str, name: Option<Name>) -> Result<Considered, RequestError> {
        self.consider_file(self.resolve(path)?, name).await
    }

    /// As [`Self::consider`], for an image that lies where this host keeps what comes from others. One that was read when it
    /// came, and is as it was then, is not read again.
    ///
    /// # Errors
    /// It cannot become one.
    pub async fn consider_brought(&self, brought: Brought, name: Name) -> Result<Considered, RequestError> {
        let Brought { path, read } = brought;
        Ok(match (self.consider_file(path, Some(name)).await?, read) {
            (Considered::New(Unread { name, mut known }), Some(read))
                if (known.image.size, known.image.modified) == (read.size, read.modified) =>
            {
                make_read_only(&known.image.path)?;
                known.image.blake3 = read.blake3;
                Considered::Read(Candidate { name, known })
            }
            (considered, _) => considered,
        })
    }

    async fn consider_file(&self, path: PathBuf, name: Option<Name>) -> Result<Considered, RequestError> {
        if let Some((known, _)) = self.known.iter().find(|(_, base)| base.image.path == path) {
            let is_meant = name.is_none_or(|name| name == *known);
            if is_meant && self.problem(known).await.is_none() {
                return Ok(Considered::Known(known.clone()));
            }
            let text =
                format!("{} is base {known} already; `unasnap disk remove {known}` first", path.display());
            return Err(refused(text));
        }
        let name = name.map_or_else(|| name_of(&path), Ok)?;
        if let Some(other) = self.known.get(&name) {
            let text = format!("base {name} is {}; choose another name", other.image.path.display());
            return Err(refused(text));
        }
        let (format, virtual_bytes) = inspect(&path).await?;
        let image = describe(&path).map_err(|error| refused(chain(&error)))?;
        Ok(Considered::New(Unread { name, known: Known { format, virtual_bytes, image } }))
    }

    /// Registers a file whose digest is known.
    ///
    /// # Errors
    /// The name was taken meanwhile, or it cannot be written.
    pub fn enter(&mut self, candidate: Candidate) -> Result<Name, RequestError> {
        let Candidate { name, known } = candidate;
        if self.known.get(&name).is_some_and(|other| *other != known) {
            return Err(refused(format!("base {name} was registered meanwhile; choose another name")));
        }
        self.write(&name, &known)?;
        self.known.insert(name.clone(), known);
        Ok(name)
    }

    fn write(&self, name: &Name, known: &Known) -> Result<(), RequestError> {
        let path = self.folder.join(format!("{name}.toml"));
        let text = toml::to_string(known).map_err(|error| internal(error.to_string()))?;
        files::write_durably(&path, text.as_bytes()).map_err(|error| cannot("write", &path, &error))
    }

    /// Forgets a base; the file stays as it is.
    ///
    /// # Errors
    /// There is none of this name, or it cannot be deleted.
    pub fn remove(&mut self, name: &Name) -> Result<(), RequestError> {
        if !self.known.contains_key(name) {
            return Err(unknown(name));
        }
        let path = self.folder.join(format!("{name}.toml"));
        files::remove_if_there(&path)
            .and_then(|()| files::sync_folder(&self.folder))
            .map_err(|error| cannot("delete", &path, &error))?;
        self.known.remove(name);
        Ok(())
    }

    /// A base that is as it was registered.
    ///
    /// # Errors
    /// There is none of this name, or it is missing or changed.
    pub async fn sound(&self, name: &Name) -> Result<&Known, RequestError> {
        let known = self.known.get(name).ok_or_else(|| unknown(name))?;
        match self.problem(name).await {
            None => Ok(known),
            Some(problem) => Err(refused(format!("base {name} cannot be used: {problem}"))),
        }
    }

    /// Why a base is not what was registered. Its digest is computed again only if the file was touched.
    async fn problem(&self, name: &Name) -> Option<String> {
        let known = &self.known.get(name)?.image;
        let path = known.path.display();
        let now = match describe(&known.path) {
            Ok(now) => now,
            Err(error) => return Some(chain(&error)),
        };
        if now.size == known.size && now.modified == known.modified {
            return None;
        }
        if now.size != known.size {
            return Some(format!("{path} has {} bytes and had {}: put the image back", now.size, known.size));
        }
        match digest(&known.path).await {
            Ok(digest) if digest == known.blake3 => None,
            Ok(_) => Some(format!("{path} was changed: put the image back")),
            Err(error) => Some(chain(&error)),
        }
    }

    /// As operators are told of it.
    pub async fn tell(&self, name: &Name, users: Vec<Name>) -> Option<Base> {
        let Known { format, virtual_bytes, image } = self.known.get(name)?;
        Some(Base {
            name: name.clone(),
            path: image.path.to_string_lossy().into_owned(),
            format: format.label().to_owned(),
            virtual_bytes: *virtual_bytes,
            bytes: image.size,
            blake3: image.blake3.clone(),
            users,
            problem: self.problem(name).await,
        })
    }
}

fn unknown(name: &Name) -> RequestError {
    let text = format!("this host has no base {name}; `unasnap disk list` shows those it has");
    RequestError::new(RequestErrorKind::NotFound, text)
}

fn not_found(path: &Path, error: &io::Error) -> RequestError {
    let text = format!("{} cannot be found on the host: {error}", path.display());
    RequestError::new(RequestErrorKind::NotFound, text)
}

/// `/srv/images/Debian 12.qcow2` is `debian-12`.
fn name_of(path: &Path) -> Result<Name, RequestError> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let text: String = stem.chars().map(letter).collect();
    let bad = |_| refused(format!("{} makes no name: give one with --name", path.display()));
    Name::new(text.trim_matches('-')).map_err(bad)
}

#[cfg(test)]
mod tests;
