//! Files on their way to be bases: what has not been read yet cannot be entered, and what was read is not read again.

use unasnap_protocol::name::Name;
use unasnap_protocol::operator::RequestError;

use super::Known;
use crate::hypervisor::base_image::{describe, digest};
use crate::registry::refused;
use crate::works::chain;

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

impl Unread {
    /// Computes the digest, which takes some seconds for each gigabyte.
    ///
    /// # Errors
    /// It cannot be read, or somebody has written it meanwhile.
    pub async fn read(self) -> Result<Candidate, RequestError> {
        let Self { name, mut known } = self;
        let image = &mut known.image;
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
