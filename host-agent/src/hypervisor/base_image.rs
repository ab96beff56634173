//! Images that the operator keeps and no snapshot copies: what they were at the cut, and whether they still are.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::HypervisorError;
use crate::store::files;
use crate::store::manifest::BaseImage;

/// What the file system says about an operator's image; the digest stays empty.
pub(crate) fn describe(path: &Path) -> Result<BaseImage, HypervisorError> {
    let meta = std::fs::metadata(path).map_err(HypervisorError::file("read", path))?;
    let modified = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    Ok(BaseImage { path: path.to_owned(), size: meta.len(), modified, blake3: String::new() })
}

/// A snapshot's layers make sense only above the very image they were written above.
pub(super) async fn check(
    mut found: BaseImage,
    recorded: Option<&BaseImage>,
) -> Result<BaseImage, HypervisorError> {
    let Some(recorded) = recorded else { return Ok(found) };
    let untouched = found.size == recorded.size && found.modified == recorded.modified;
    found.blake3 = if untouched { recorded.blake3.clone() } else { digest(&found.path).await? };
    if found.blake3 == recorded.blake3 {
        return Ok(found);
    }
    let what = format!(
        "the disk image {} is not the one below this snapshot (digest {} instead of {}): \
         put the image back that the VM had then",
        found.path.display(),
        &found.blake3,
        &recorded.blake3
    );
    Err(HypervisorError::Unsupported { what })
}

/// The digest of an image that is `known`, if it is as it was.
pub(super) fn unchanged(now: &BaseImage, known: &BaseImage) -> Result<String, HypervisorError> {
    if now.size == known.size && now.modified == known.modified {
        return Ok(known.blake3.clone());
    }
    let what = format!(
        "the disk image {} was changed while a VM runs above it: its disk is damaged; restore an earlier snapshot \
         after putting the image back",
        now.path.display()
    );
    Err(HypervisorError::Unsupported { what })
}

/// BLAKE3 of a file, on a thread of its own.
pub(crate) async fn digest(path: &Path) -> Result<String, HypervisorError> {
    let owned = path.to_owned();
    let result =
        tokio::task::spawn_blocking(move || files::digest(&owned)).await.map_err(std::io::Error::other);
    result.and_then(|digest| digest).map_err(HypervisorError::file("read", path))
}
