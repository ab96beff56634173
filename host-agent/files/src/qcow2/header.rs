//! The header of a qcow2 image, as QEMU's `docs/interop/qcow2.rst` defines it: which files it needs, and its internal
//! snapshots. Everything is capped as QEMU caps it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::FilesError;

/// First bytes of every image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Longest name of a backing file.
const MAX_NAME: u32 = 1023;
/// Longest format name or data file name that a header extension may hold.
const MAX_EXTENSION: u32 = 64 << 10;
/// Most internal snapshots.
const MAX_SNAPSHOTS: u32 = 65_536;
/// Longest text of an internal snapshot, and longest extra data.
const MAX_SNAPSHOT_EXTRA: u32 = 1024;
/// Header extension: format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Header extension: name of the external data file.
const DATA_FILE: u32 = 0x4441_5441;
/// Incompatible feature: the guest's data is in another file.
const HAS_DATA_FILE: u64 = 1 << 2;

/// What an image needs besides itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Length of the disk, bytes.
    pub virtual_bytes: u64,
    /// The file that holds what this one does not, as its bytes.
    pub backing: Option<Vec<u8>>,
    /// Its format, if the header says so.
    pub backing_format: Option<String>,
    /// The file that holds the guest's data: outer `None` when that is this file itself, inner `None` when the header
    /// does not tell which.
    pub data_file: Option<Option<Vec<u8>>>,
    /// Where the internal snapshots begin, and how many there are.
    table: (u64, u32),
}

/// An internal snapshot.
#[derive(Debug, PartialEq, Eq)]
pub struct Internal {
    /// Unique.
    pub id: String,
    /// Not unique.
    pub name: String,
    /// Unix time, seconds.
    pub taken: u32,
    /// Does it hold RAM?
    pub ram: bool,
}

/// An image that is open.
pub struct Image<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Image<'a> {
    /// Opens an image; `None` when the file is something else.
    ///
    /// # Errors
    /// It cannot be read, or is no regular file.
    pub fn open(path: &'a Path) -> Result<Option<Self>, FilesError> {
        // Opening a pipe would wait for a writer.
        if !path.metadata().map_err(FilesError::unreadable(path))?.is_file() {
            let error = io::Error::new(ErrorKind::InvalidInput, "it is no regular file");
            return Err(FilesError::unreadable(path)(error));
        }
        let file = File::open(path).map_err(FilesError::unreadable(path))?;
        let mut magic = [0; 4];
        match file.read_exact_at(&mut magic, 0) {
            Ok(()) if magic == MAGIC => Ok(Some(Self { path, file })),
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(FilesError::unreadable(path)(error)),
        }
    }

    /// Reads the header.
    ///
    /// # Errors
    /// It is cut off, or of another version, or says what cannot be.
    pub fn header(&self) -> Result<Header, FilesError> {
        let start = self.bytes(0, 72, "header")?;
        let version = be32(&start, 4);
        let (extensions, features) = match version {
            2 => (72, 0),
            3 => {
                let rest = self.bytes(72, 32, "header")?;
                (u64::from(be32(&rest, 28)), be64(&rest, 0))
            }
            other => {
                return Err(
                    self.damaged(format!("version {other} of its header, and 2 and 3 are the only ones"))
                );
            }
        };
        let cluster_bits = be32(&start, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(self.damaged(format!("clusters of 2^{cluster_bits} bytes")));
        }
        let cluster = 1u64 << cluster_bits;
        if extensions < 72 || extensions > cluster {
            return Err(self.damaged(format!("a header of {extensions} bytes")));
        }
        let mut header = Header {
            virtual_bytes: be64(&start, 24),
            table: (be64(&start, 64), be32(&start, 60)),
            ..Header::default()
        };
        let (backing_at, backing_len) = (be64(&start, 8), be32(&start, 16));
        if backing_at != 0 && backing_len != 0 {
            if backing_len > MAX_NAME || backing_at > cluster - u64::from(backing_len).min(cluster) {
                let what = format!("the name of its backing file has {backing_len} bytes at {backing_at}");
                return Err(self.damaged(what));
            }
            header.backing = Some(self.bytes(backing_at, backing_len, "name of its backing file")?);
        }
        let end = if header.backing.is_some() { backing_at } else { cluster };
        self.read_extensions(&mut header, extensions, end)?;
        if features & HAS_DATA_FILE != 0 {
            header.data_file.get_or_insert(None);
        } else {
            header.data_file = None;
        }
        Ok(header)
    }

    fn read_extensions(&self, header: &mut Header, mut at: u64, end: u64) -> Result<(), FilesError> {
        while at + 8 <= end {
            let mut head = [0; 8];
            match self.file.read_exact_at(&mut head, at) {
                // An image that ends with its header has no extensions.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                other => other.map_err(FilesError::unreadable(self.path))?,
            }
            let (kind, length) = (be32(&head, 0), be32(&head, 4));
            at += 8;
            if kind == 0 {
                return Ok(());
            }
            if u64::from(length) > end - at {
                return Err(self.damaged(format!("a header extension of {length} bytes")));
            }
            if matches!(kind, BACKING_FORMAT | DATA_FILE) {
                if length > MAX_EXTENSION {
                    return Err(self.damaged(format!("a header extension of {length} bytes")));
                }
                let bytes = self.bytes(at, length, "header extension")?;
                match kind {
                    BACKING_FORMAT => {
                        header.backing_format = Some(String::from_utf8_lossy(&bytes).into_owned());
                    }
                    _ => header.data_file = Some(Some(bytes)),
                }
            }
            at += u64::from(length).next_multiple_of(8);
        }
        Ok(())
    }

    /// Reads the internal snapshots.
    ///
    /// # Errors
    /// Their table is cut off, or says what cannot be.
    pub fn internal(&self, header: &Header) -> Result<Vec<Internal>, FilesError> {
        let (mut at, count) = header.table;
        if count > MAX_SNAPSHOTS {
            return Err(self.damaged(format!("{count} internal snapshots")));
        }
        let mut snapshots = Vec::new();
        for _ in 0..count {
            let head = self.bytes(at, 40, "table of internal snapshots")?;
            let (id_len, name_len) = (u32::from(be16(&head, 12)), u32::from(be16(&head, 14)));
            let extra_len = be32(&head, 36);
            if extra_len > MAX_SNAPSHOT_EXTRA {
                return Err(self.damaged(format!("{extra_len} bytes of extra data of an internal snapshot")));
            }
            let length = extra_len + id_len + name_len;
            let rest = self.bytes(at.saturating_add(40), length, "table of internal snapshots")?;
            let (extra, texts) = rest.split_at(extra_len as usize);
            let (id, name) = texts.split_at(id_len as usize);
            // A large state has its length in the extra data.
            let ram = be32(&head, 32) != 0 || extra.len() >= 8 && be64(extra, 0) != 0;
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            snapshots.push(Internal { id: text(id), name: text(name), taken: be32(&head, 16), ram });
            at = at.saturating_add((40 + u64::from(length)).next_multiple_of(8));
        }
        Ok(snapshots)
    }

    fn bytes(&self, at: u64, length: u32, what: &str) -> Result<Vec<u8>, FilesError> {
        let mut bytes = vec![0; length as usize];
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(bytes),
            // A position beyond what a file can have is refused as invalid.
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidInput) => {
                let end = at.saturating_add(length.into());
                Err(self.damaged(format!("it ends in its {what}, before byte {end}")))
            }
            Err(error) => Err(FilesError::unreadable(self.path)(error)),
        }
    }

    fn damaged(&self, what: impl Into<String>) -> FilesError {
        FilesError::damaged(self.path, what)
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
