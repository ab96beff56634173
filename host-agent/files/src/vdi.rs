//! The header of a VDI, VirtualBox's format of disks: version 1.x, as VirtualBox's `VDICore.h` defines it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::FilesError;
use crate::uuid::Uuid;

/// Signature of a VDI at byte 64, little-endian.
const SIGNATURE: u32 = 0xbeda_107f;
/// Bytes of the header that are read.
const HEADER_BYTES: usize = 440;
/// Where the UUID of the image stands.
const UUID_AT: usize = 392;
/// Where the UUID of the image below it stands.
const PARENT_AT: usize = 424;
/// Where the length of the disk stands.
const DISK_BYTES_AT: usize = 368;

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Whether all of it lies in the file, or it grows.
    pub kind: Kind,
    /// Length of the disk, bytes.
    pub virtual_bytes: u64,
    pub(crate) uuid: Option<Uuid>,
    pub(crate) parent: Option<Uuid>,
}

/// How an image holds its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It grows as the disk is written.
    Dynamic,
    /// All of it lies in the file.
    Fixed,
    /// Only what differs from another image.
    Difference,
    /// Anything else.
    Other(u32),
}

impl Header {
    /// Its UUID, without braces.
    #[must_use]
    pub fn uuid(&self) -> Option<String> {
        self.uuid.map(|uuid| uuid.plain())
    }

    /// The UUID of the image whose differences it holds, without braces.
    #[must_use]
    pub fn parent(&self) -> Option<String> {
        self.parent.map(|uuid| uuid.plain())
    }
}

/// The header of the VDI `path`; `None` for a file of another format.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> Result<Option<Header>, FilesError> {
    // Opening a pipe would wait for a writer.
    if !path.metadata().map_err(FilesError::unreadable(path))?.is_file() {
        return Ok(None);
    }
    let file = File::open(path).map_err(FilesError::unreadable(path))?;
    let mut header = [0; HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other.map_err(FilesError::unreadable(path))?,
    }
    Ok(parse(&header))
}

fn parse(header: &[u8; HEADER_BYTES]) -> Option<Header> {
    let number = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    let major = u16::from_le_bytes([header[70], header[71]]);
    if number(64)? != SIGNATURE || major != 1 {
        return None;
    }
    let uuid = |at: usize| Uuid::from_header(header[at..at + 16].try_into().ok()?);
    let kind = match number(76)? {
        1 => Kind::Dynamic,
        2 => Kind::Fixed,
        4 => Kind::Difference,
        other => Kind::Other(other),
    };
    let virtual_bytes = u64::from_le_bytes(header[DISK_BYTES_AT..DISK_BYTES_AT + 8].try_into().ok()?);
    Some(Header { kind, virtual_bytes, uuid: uuid(UUID_AT), parent: uuid(PARENT_AT) })
}

/// Gives the open VDI `file` another UUID.
///
/// # Errors
/// It is none, or cannot be written.
pub fn rename(file: &File, uuid: &str) -> io::Result<()> {
    let uuid = Uuid::parse(uuid).ok_or_else(|| io::Error::other(format!("{uuid:?} is no UUID")))?;
    file.write_all_at(&uuid.header(), UUID_AT as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "20d1e9a4-523c-4243-a6bd-635926e1d6f9";
    const OTHER: &str = "7a5049af-1ef8-43d1-8d59-ee424ef7fce2";

    fn image(kind: u8) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[64..72].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe, 1, 0, 1, 0]);
        header[76] = kind;
        header[368..376].copy_from_slice(&(8_u64 << 20).to_le_bytes());
        header[392..408].copy_from_slice(&Uuid::parse(OWN).unwrap().header());
        header
    }

    #[test]
    fn an_image_tells_what_it_is_and_can_be_another() {
        let path = std::env::temp_dir().join(format!("unasnap-vdi-{}", std::process::id()));
        std::fs::write(&path, image(4)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let before = read(&path).unwrap().unwrap();
        rename(&file, OTHER).unwrap();
        let after = read(&path).unwrap().unwrap();
        assert!(rename(&file, "x").is_err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!((before.kind, before.virtual_bytes, before.parent()), (Kind::Difference, 8 << 20, None));
        assert_eq!((before.uuid().as_deref(), after.uuid().as_deref()), (Some(OWN), Some(OTHER)));
    }

    #[test]
    fn other_files_are_none() {
        let path = std::env::temp_dir().join(format!("unasnap-no-vdi-{}", std::process::id()));
        let mut later = image(1);
        later[70] = 2;
        for content in
            [Vec::new(), b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec(), vec![0; 512], later]
        {
            std::fs::write(&path, content).unwrap();
            assert_eq!(read(&path).unwrap(), None);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&std::env::temp_dir()).unwrap(), None, "a folder");
        assert!(read(&path).is_err());
    }
}
