//! The image catalogue: which images there are, in which versions, and which hosts have them.
//!
//! ```text
//! operator's command          coordinator                       host agent
//!   Image(Add) ----------------->
//!                                  Task(Preload) ------------------->     it becomes a base, its digest is computed
//!                                        <------------------- Preloaded(base)
//!                                  name, version and digest become durable
//!        <----------- Image
//!
//!   Image(Preload) ------------->
//!                                  Task(Bases) --------------------->     who has it?
//!                                  Task(Bring) --------------------->     whoever has it not gets it from who has
//!                                        <------------------- Preloaded(base)
//!        <--------- Household
//! ```
//!
//! An image is what its digest says, wherever it lies: a name with a version stands for one digest, and hosts have it whose bases
//! have that digest.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::Name;

/// Longest version, bytes.
pub const MAX_VERSION_BYTES: usize = 63;
/// Most versions of all images together.
pub const MAX_VERSIONS: usize = 1000;
/// Most hosts to which an image is brought by one command.
pub const MAX_HOSTS: usize = 256;
/// Longest time that bringing an image may take, seconds: a day.
pub const MAX_WITHIN_S: u32 = 24 * 3600;

/// Version of an image: `[a-z0-9][a-z0-9.-]*`, 1 to [`MAX_VERSION_BYTES`] bytes. It is never a part of a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(Arc<str>);

/// A text that is not a [`Version`], or no image with one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadImage {
    /// The version is not one.
    #[error(
        "{0:?} is not a valid version: use 1 to {MAX_VERSION_BYTES} characters of a-z, 0-9, '.' and '-', beginning with a letter or a digit"
    )]
    Version(String),
    /// The name is not one.
    #[error(transparent)]
    Name(#[from] crate::name::BadName),
}

impl Version {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`BadImage::Version`] with the text, shortened, and the rule.
    pub fn new(text: &str) -> Result<Self, BadImage> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        let fits = (1..=MAX_VERSION_BYTES).contains(&text.len());
        if fits && text.bytes().all(allowed) && !text.starts_with(['.', '-']) {
            Ok(Self(text.into()))
        } else {
            Err(BadImage::Version(text.chars().take(MAX_VERSION_BYTES + 1).collect()))
        }
    }

    /// What an image without a version is.
    #[must_use]
    pub fn latest() -> Self {
        Self("latest".into())
    }
}

impl TryFrom<String> for Version {
    type Error = BadImage;
    fn try_from(text: String) -> Result<Self, BadImage> {
        Self::new(&text)
    }
}

impl FromStr for Version {
    type Err = BadImage;
    fn from_str(text: &str) -> Result<Self, BadImage> {
        Self::new(text)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0.as_ref().to_owned()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// An image in one of its versions: `NAME:VERSION`, or `NAME` for its version `latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageRef {
    /// Of the image.
    pub name: Name,
    /// One of them.
    pub version: Version,
}

impl FromStr for ImageRef {
    type Err = BadImage;
    fn from_str(text: &str) -> Result<Self, BadImage> {
        let (name, version) = match text.split_once(':') {
            Some((name, version)) => (name, Version::new(version)?),
            None => (text, Version::latest()),
        };
        Ok(Self { name: Name::new(name)?, version })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.name, self.version)
    }
}

/// An operator's wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRequest {
    /// All versions, or those of one image: one `Image` each, `End`.
    List(Option<Name>),
    /// Enter a file of a host; it becomes a base there. `Progress`, then `Image`.
    Add {
        /// How it is called.
        image: ImageRef,
        /// Where it lies.
        host: Name,
        /// The file there; absolute.
        path: String,
    },
    /// Give what is called `image` another version as well. `Image`.
    Tag {
        /// What there is.
        image: ImageRef,
        /// One that the image does not have, or has for the same digest.
        version: Version,
    },
    /// Forget a version. Its files stay, and stay bases. `End`.
    Remove(ImageRef),
    /// Bring a version to hosts, as a base. `Progress`, then `Household` with one answer for each host.
    Preload {
        /// What there is.
        image: ImageRef,
        /// Who is to have it, 1 to [`MAX_HOSTS`].
        hosts: Vec<Name>,
        /// What each transfer may take, bytes per second.
        per_second: Option<u64>,
        /// How long it may take, seconds, at most [`MAX_WITHIN_S`].
        within_s: u32,
    },
}

/// One version of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Of the image.
    pub name: Name,
    /// Of which this is told.
    pub version: Version,
    /// BLAKE3 of the file, 64 hex digits: what the image is.
    pub blake3: String,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Size of the disk that a VM sees, bytes.
    pub virtual_bytes: u64,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// When this version was entered, RFC 3339, UTC.
    pub added: String,
    /// Every host that has it, or had it when last seen, in the order of their names.
    pub copies: Vec<ImageCopy>,
}

/// An image on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCopy {
    /// The host.
    pub host: Name,
    /// The base that it is there.
    pub base: Name,
    /// The file.
    pub path: String,
    /// VMs that have it below a disk.
    pub users: Vec<Name>,
    /// Why no VM can be made on it now; `None` when one can.
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_name_and_a_version() {
        for (text, shown) in
            [("debian", "debian:latest"), ("debian:12.5", "debian:12.5"), ("d:0-rc.1", "d:0-rc.1")]
        {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), shown);
        }
        let long = format!("a:{}", "1".repeat(64));
        for bad in ["", ":", "a:", ":1", "a:.1", "a:-1", "a:B", "a:1:2", "a:../x", "a:1 ", "A:1", &long] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?}");
        }
    }
}
