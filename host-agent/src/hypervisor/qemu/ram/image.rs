//! The file that RAM becomes: page N of the guest at page N, holes for zeros, so that a new QEMU maps it privately
//! and begins at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use unasnap_fault_points::around;

use super::stream::{Block, PAGE_BYTES, Pages};

/// Pages that follow each other are written together up to this many bytes.
const RUN_BYTES: usize = 1 << 20;
/// After this many bytes the kernel is told to begin writing them to the disk, so that the last flush finds little.
const WRITEBACK_BYTES: u64 = 32 << 20;
/// Most bytes in blocks beside the guest's RAM (firmware, video memory); they are kept in memory.
const MAX_OTHER_BYTES: u64 = 64 << 20;

/// The file while pages arrive.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    bytes: u64,
    /// Number of the block that is the guest's RAM.
    main: Option<usize>,
    /// Which pages of the file have been written, one bit each: the others are holes.
    written: Vec<u64>,
    run: Vec<u8>,
    run_at: u64,
    since_writeback: u64,
    others: BTreeMap<(usize, u64), Vec<u8>>,
}

impl Image {
    /// `file` is empty; the guest has `bytes` of RAM.
    pub(super) fn new(file: File, bytes: u64) -> io::Result<Self> {
        file.set_len(bytes)?;
        let pages = usize::try_from(bytes).map_err(io::Error::other)? / PAGE_BYTES;
        Ok(Self {
            file,
            bytes,
            main: None,
            written: vec![0; pages.div_ceil(64)],
            run: Vec::with_capacity(RUN_BYTES),
            run_at: 0,
            since_writeback: 0,
            others: BTreeMap::new(),
        })
    }

    /// Pages of the other blocks that are not all zeros: block, offset, content.
    pub(super) fn others(&self) -> impl Iterator<Item = (usize, u64, &[u8])> {
        self.others.iter().map(|(&(block, offset), content)| (block, offset, content.as_slice()))
    }

    /// Everything that came is in the file and on the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.write_run()?;
        self.file.sync_all()
    }

    fn keep(&mut self, offset: u64, content: &[u8]) -> io::Result<()> {
        let follows = self.run_at + self.run.len() as u64 == offset;
        if !follows || self.run.len() + content.len() > RUN_BYTES {
            self.write_run()?;
            self.run_at = offset;
        }
        self.run.extend_from_slice(content);
        Ok(())
    }

    fn write_run(&mut self) -> io::Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        around("file", "ram", || self.file.write_all_at(&self.run, self.run_at))?;
        self.since_writeback += self.run.len() as u64;
        self.run.clear();
        if self.since_writeback >= WRITEBACK_BYTES {
            self.since_writeback = 0;
            begin_writeback(&self.file)?;
        }
        Ok(())
    }

    /// Marks a page of the file and says whether it was marked before.
    fn mark(&mut self, offset: u64, now: bool) -> bool {
        let page = usize::try_from(offset).unwrap_or(usize::MAX) / PAGE_BYTES;
        let (word, bit) = (&mut self.written[page / 64], 1 << (page % 64));
        let before = *word & bit != 0;
        if now {
            *word |= bit;
        }
        before
    }
}

impl Pages for Image {
    fn blocks(&mut self, blocks: &[Block]) -> io::Result<()> {
        self.main = blocks.iter().position(|block| block.bytes == self.bytes);
        let others: u64 = blocks.iter().map(|block| block.bytes).sum::<u64>().saturating_sub(self.bytes);
        if self.main.is_none() || others > MAX_OTHER_BYTES {
            let text = format!(
                "the guest's RAM is to have {} bytes, and other blocks {MAX_OTHER_BYTES} at most; QEMU has {blocks:?}",
                self.bytes
            );
            return Err(io::Error::other(text));
        }
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, content: Option<&[u8]>) -> io::Result<()> {
        if Some(block) != self.main {
            match content {
                Some(content) => drop(self.others.insert((block, offset), content.to_vec())),
                None => drop(self.others.remove(&(block, offset))),
            }
            return Ok(());
        }
        let was_written = self.mark(offset, content.is_some());
        match content {
            Some(content) => self.keep(offset, content),
            None if was_written => self.keep(offset, &[0; PAGE_BYTES]),
            None => Ok(()),
        }
    }
}

/// `sync_file_range(2)` over the whole file: starts, and does not wait.
fn begin_writeback(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` lives, and no memory is handed over.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const PAGE: u64 = PAGE_BYTES as u64;

    #[test]
    fn the_last_content_of_a_page_counts_and_zeros_are_holes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut image = Image::new(file.reopen().unwrap(), 1024 * PAGE).unwrap();
        let block = |name: &str, bytes| Block { name: name.to_owned(), bytes };
        image.blocks(&[block("rom", 4 * PAGE), block("ram", 1024 * PAGE)]).unwrap();
        for (page, content) in
            [(0, Some(1)), (1, Some(2)), (700, Some(3)), (1, None), (0, Some(4)), (9, None)]
        {
            let content = content.map(|byte| [byte; PAGE_BYTES]);
            image.page(1, page * PAGE, content.as_ref().map(|page| &page[..])).unwrap();
        }
        image.page(0, PAGE, Some(&[5; PAGE_BYTES])).unwrap();
        image.page(0, 0, Some(&[6; PAGE_BYTES])).unwrap();
        image.page(0, 0, None).unwrap();
        image.sync().unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        let first = |page: usize| bytes[page * PAGE_BYTES];
        assert_eq!((bytes.len(), first(0), first(1), first(700)), (1024 * PAGE_BYTES, 4, 0, 3));
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 2 * PAGE_BYTES);
        assert!(file.as_file().metadata().unwrap().blocks() * 512 < 100 * PAGE);
        assert_eq!(
            image.others().map(|(block, at, page)| (block, at, page[0])).collect::<Vec<_>>(),
            [(0, PAGE, 5)]
        );
    }

    #[test]
    fn ram_of_another_size_is_refused() {
        let mut image = Image::new(tempfile::tempfile().unwrap(), 2 * PAGE).unwrap();
        assert!(image.blocks(&[Block { name: "ram".to_owned(), bytes: PAGE }]).is_err());
    }
}
