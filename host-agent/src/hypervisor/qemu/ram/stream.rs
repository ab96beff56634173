//! QEMU's migration stream as far as RAM is in it, read byte by byte as it arrives.
//!
//! ```text
//!   magic "QEVM"  version 3
//!   0x08 command:  u16 number, u16 length, bytes                       skipped
//!   0x01 start:    u32 id, name "ram", u32 instance, u32 version, records
//!   0x02 part, 0x03 end:  u32 id, records
//!   0x7e footer:   u32 id
//!
//!   record: u64 = offset of a page + flags, then unless CONTINUE the name of its block, then
//!     MEM_SIZE  (the "offset" is the sum of all blocks) for each block: name, u64 bytes
//!     ZERO      u8 0
//!     PAGE      4096 bytes
//!     EOS       nothing: the records of this section end
//! ```
//! All numbers are big-endian; a name is its length in one byte and the bytes. Source: QEMU's
//! `migration/savevm.c` and `migration/ram.c`, stable since QEMU 2.4. No option that adds anything else is ever
//! switched on here, so whatever else comes is an error.

use bytes::{Buf, TryGetError};

/// Bytes of a page of an x86 guest.
pub(super) const PAGE_BYTES: usize = 4096;

const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;
const NAME: &str = "ram";
/// Most blocks of RAM of one VM; it has about ten.
const MAX_BLOCKS: usize = 256;

const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const COMMAND: u8 = 0x08;
const FOOTER: u8 = 0x7e;

const FLAG_ZERO: u64 = 0x02;
const FLAG_MEM_SIZE: u64 = 0x04;
const FLAG_PAGE: u64 = 0x08;
const FLAG_EOS: u64 = 0x10;
const FLAG_CONTINUE: u64 = 0x20;
const FLAGS: u64 = PAGE_BYTES as u64 - 1;

/// A block of RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// QEMU's name for it.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// Who takes the pages; block numbers count [`Parser::blocks`].
pub(super) trait Pages {
    /// The blocks are known; called once, before any page.
    fn blocks(&mut self, blocks: &[Block]) -> std::io::Result<()>;

    /// A page as it was at some moment since the last time it came; `None` is all zeros. `offset` lies within the
    /// block, and is a multiple of [`PAGE_BYTES`].
    fn page(&mut self, block: usize, offset: u64, content: Option<&[u8]>) -> std::io::Result<()>;
}

/// Why a stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// It is not what QEMU sends.
    #[error("QEMU's migration stream is not understood: {0}")]
    Unknown(String),
    /// The page could not be kept.
    #[error("a page cannot be kept")]
    Sink(#[from] std::io::Error),
}

/// How far the stream has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the magic.
    Beginning,
    /// Between sections.
    Section,
    /// Between records.
    Record,
    /// In the list of blocks, of which this many bytes are still to be named.
    Blocks(u64),
}

/// What identifies the RAM's section to a QEMU that loads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Section {
    id: u32,
    instance: u32,
    version: u32,
}

/// A parser without input or output of its own.
#[derive(Debug)]
pub(super) struct Parser {
    place: Place,
    section: Option<Section>,
    blocks: Vec<Block>,
    current: usize,
    marks: u64,
}

/// Enough bytes were not there yet.
#[derive(Debug)]
enum Stop {
    Hungry,
    Failed(StreamError),
}

impl From<TryGetError> for Stop {
    fn from(_: TryGetError) -> Self {
        Self::Hungry
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

fn unknown<T>(what: String) -> Result<T, Stop> {
    Err(Stop::Failed(StreamError::Unknown(what)))
}

impl Parser {
    /// At the beginning of a stream.
    pub(super) fn new() -> Self {
        Self { place: Place::Beginning, section: None, blocks: Vec::new(), current: 0, marks: 0 }
    }

    /// How many times QEMU has said "that is all for now": once per iteration over its dirty pages.
    pub(super) fn marks(&self) -> u64 {
        self.marks
    }

    /// Is nothing half said? QEMU keeps back the footer behind the records until it has more to say.
    pub(super) fn is_between_sections(&self) -> bool {
        self.place == Place::Section
    }

    /// Section and blocks, once they have been named.
    pub(super) fn layout(&self) -> Option<(Section, &[Block])> {
        self.section.map(|section| (section, self.blocks.as_slice()))
    }

    /// Reads what is whole, and returns how many bytes that was.
    ///
    /// # Errors
    /// The stream is not understood, or a page could not be kept; what follows then makes no sense.
    pub(super) fn read(&mut self, input: &[u8], pages: &mut impl Pages) -> Result<usize, StreamError> {
        let mut rest = input;
        while !rest.is_empty() {
            let mut ahead = rest;
            match self.step(&mut ahead, pages) {
                Ok(()) => rest = ahead,
                Err(Stop::Hungry) => break,
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
        Ok(input.len() - rest.len())
    }

    /// One item; nothing of `self` changes before all of its bytes are there.
    fn step(&mut self, input: &mut &[u8], pages: &mut impl Pages) -> Result<(), Stop> {
        match self.place {
            Place::Beginning => self.beginning(input),
            Place::Section => self.section(input),
            Place::Record => self.record(input, pages),
            Place::Blocks(left) => self.block(left, input, pages),
        }
    }

    fn beginning(&mut self, input: &mut &[u8]) -> Result<(), Stop> {
        let (magic, version) = (input.try_get_u32()?, input.try_get_u32()?);
        if (magic, version) != (MAGIC, VERSION) {
            return unknown(format!("it begins with {magic:#x}, version {version}"));
        }
        self.place = Place::Section;
        Ok(())
    }

    fn section(&mut self, input: &mut &[u8]) -> Result<(), Stop> {
        match input.try_get_u8()? {
            COMMAND => {
                let _number = input.try_get_u16()?;
                let length = input.try_get_u16()?;
                take(input, usize::from(length)).map(drop)
            }
            SECTION_START => {
                let id = input.try_get_u32()?;
                let name = name(input)?;
                let section = Section { id, instance: input.try_get_u32()?, version: input.try_get_u32()? };
                if name != NAME || self.section.is_some() {
                    return unknown(format!("\"{name}\" wants to be saved piece by piece, like RAM"));
                }
                self.section = Some(section);
                self.place = Place::Record;
                Ok(())
            }
            SECTION_PART | SECTION_END => {
                self.same_section(input.try_get_u32()?)?;
                self.place = Place::Record;
                Ok(())
            }
            FOOTER => self.same_section(input.try_get_u32()?),
            other => unknown(format!("a section of type {other:#x}")),
        }
    }

    fn same_section(&self, id: u32) -> Result<(), Stop> {
        match self.section {
            Some(section) if section.id == id => Ok(()),
            _ => unknown(format!("a piece of the unknown section {id}")),
        }
    }

    fn record(&mut self, input: &mut &[u8], pages: &mut impl Pages) -> Result<(), Stop> {
        let word = input.try_get_u64()?;
        let (offset, flags) = (word & !FLAGS, word & FLAGS);
        match flags {
            FLAG_EOS => {
                self.place = Place::Section;
                self.marks += 1;
                return Ok(());
            }
            FLAG_MEM_SIZE if self.blocks.is_empty() => {
                self.place = Place::Blocks(offset);
                return Ok(());
            }
            _ => {}
        }
        let block = if flags & FLAG_CONTINUE == 0 { self.find(name(input)?)? } else { self.current };
        let Some(bytes) = self.blocks.get(block).map(|block| block.bytes) else {
            return unknown("a page before the first block".to_owned());
        };
        if bytes.checked_sub(PAGE_BYTES as u64).is_none_or(|last| offset > last) {
            return unknown(format!("a page at {offset} of a block of {bytes} bytes"));
        }
        match flags & !FLAG_CONTINUE {
            FLAG_ZERO => {
                let fill = input.try_get_u8()?;
                if fill != 0 {
                    return unknown(format!("a page filled with {fill}"));
                }
                pages.page(block, offset, None)?;
            }
            FLAG_PAGE => pages.page(block, offset, Some(take(input, PAGE_BYTES)?))?,
            other => return unknown(format!("a record with the flags {other:#x}")),
        }
        self.current = block;
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize, Stop> {
        match self.blocks.iter().position(|block| block.name == name) {
            Some(found) => Ok(found),
            None => unknown(format!("a page of the unknown block \"{name}\"")),
        }
    }

    fn block(&mut self, left: u64, input: &mut &[u8], pages: &mut impl Pages) -> Result<(), Stop> {
        let name = name(input)?.to_owned();
        let bytes = input.try_get_u64()?;
        let Some(left) = left.checked_sub(bytes) else {
            return unknown(format!("block \"{name}\" has {bytes} bytes, more than all together"));
        };
        if self.blocks.len() == MAX_BLOCKS {
            return unknown(format!("more than {MAX_BLOCKS} blocks"));
        }
        self.blocks.push(Block { name, bytes });
        self.place = Place::Blocks(left);
        if left == 0 {
            pages.blocks(&self.blocks)?;
            self.place = Place::Record;
        }
        Ok(())
    }
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8], Stop> {
    let (taken, rest) = input.split_at_checked(count).ok_or(Stop::Hungry)?;
    *input = rest;
    Ok(taken)
}

fn name<'a>(input: &mut &'a [u8]) -> Result<&'a str, Stop> {
    let length = input.try_get_u8()?;
    let bytes = take(input, usize::from(length))?;
    std::str::from_utf8(bytes).or_else(|_| unknown("a name that is not text".to_owned()))
}

/// Makes of device state that was saved alone a stream that a waiting QEMU loads: in front of the devices stand the
/// blocks of RAM, and `pages` of those that are not mapped from a file.
///
/// # Errors
/// `devices` is not what QEMU saves.
pub(super) fn with_ram<'a>(
    (section, blocks): (Section, &[Block]),
    pages: impl Iterator<Item = (usize, u64, &'a [u8])>,
    devices: &[u8],
) -> Result<Vec<u8>, StreamError> {
    let mut header = MAGIC.to_be_bytes().to_vec();
    header.extend(VERSION.to_be_bytes());
    let Some(devices) = devices.strip_prefix(header.as_slice()) else {
        return Err(StreamError::Unknown("the state of the devices has another header".to_owned()));
    };
    let mut stream = header;
    stream.push(SECTION_START);
    stream.extend(section.id.to_be_bytes());
    push_name(&mut stream, NAME);
    stream.extend(section.instance.to_be_bytes());
    stream.extend(section.version.to_be_bytes());
    let total: u64 = blocks.iter().map(|block| block.bytes).sum();
    stream.extend((total | FLAG_MEM_SIZE).to_be_bytes());
    for block in blocks {
        push_name(&mut stream, &block.name);
        stream.extend(block.bytes.to_be_bytes());
    }
    stream.extend(FLAG_EOS.to_be_bytes());
    stream.push(FOOTER);
    stream.extend(section.id.to_be_bytes());
    stream.push(SECTION_END);
    stream.extend(section.id.to_be_bytes());
    for (block, offset, content) in pages {
        stream.extend((offset | FLAG_PAGE).to_be_bytes());
        push_name(&mut stream, &blocks[block].name);
        stream.extend(content);
    }
    stream.extend(FLAG_EOS.to_be_bytes());
    stream.push(FOOTER);
    stream.extend(section.id.to_be_bytes());
    stream.extend(devices);
    Ok(stream)
}

fn push_name(stream: &mut Vec<u8>, name: &str) {
    // Names come from a stream in which their length was one byte.
    stream.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    stream.extend(name.as_bytes());
}

// The path is written out because `tests/fuzz` reads this file, too.
#[cfg(test)]
#[path = "stream/tests.rs"]
mod tests;
