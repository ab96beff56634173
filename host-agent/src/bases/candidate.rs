//! Files on their way to be bases: what has not been read yet cannot be entered, and what was read is not read again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use unasnap_protocol::name::Name;
use unasnap_protocol::operator::RequestError;

use super::Known;
use crate::definition::ImageFormat;
use crate::hypervisor::base_image::{describe, digest};
use crate::registry::{cannot, refused};
use crate::works::chain;

/// Bits of a file's mode by which anybody may write it.
const WRITABLE: u32 = 0o222;

/// A file that may become a base, once its digest is computed.
#[derive(Debug)]
pub struct Unread {
    pub(super) name: Name,
    pub(super) known: Known,
}

/// A file that may become a base, and its digest.
#[derive(Debug)]
pub struct Candidate {
    pub(super) name: Name,
    pub(super) known: Known,
}

/// What is found when a file is to become a base.
#[derive(Debug)]
pub enum Considered {
    /// It may become one when its digest is known.
    New(Unread),
    /// It may become one, and its digest is known.
    Read(Candidate),
    /// It is one already, of this name.
    Known(Name),
}

impl Considered {
    /// Of the file; `None` when it is known.
    #[must_use]
    pub fn format(&self) -> Option<ImageFormat> {
        match self {
            Self::New(Unread { known, .. }) | Self::Read(Candidate { known, .. }) => Some(known.format),
            Self::Known(_) => None,
        }
    }
}

impl Unread {
    /// Makes it read-only and computes the digest, which takes some seconds for each gigabyte.
    ///
    /// # Errors
    /// It cannot be read, or somebody has written it meanwhile.
    pub async fn read(self) -> Result<Candidate, RequestError> {
        let Self { name, mut known } = self;
        let image = &mut known.image;
        make_read_only(&image.path)?;
        image.blake3 = digest(&image.path).await.map_err(|error| refused(chain(&error)))?;
        let now = describe(&image.path).map_err(|error| refused(chain(&error)))?;
        if (now.size, now.modified) != (image.size, image.modified) {
            return Err(refused(format!(
                "{} was written while it was read; who writes it?",
                image.path.display()
            )));
        }
        Ok(Candidate { name, known })
    }
}

/// Whoever opens it from now on cannot write it.
pub(super) fn make_read_only(path: &Path) -> Result<(), RequestError> {
    let mode = fs::metadata(path).map_err(|error| cannot("read", path, &error))?.permissions().mode();
    if mode & WRITABLE == 0 {
        // Only its owner may change that, who need not be the agent.
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & !WRITABLE))
        .map_err(|error| cannot("make read-only", path, &error))
}
