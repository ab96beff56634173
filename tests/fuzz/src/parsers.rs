//! What lies on disks, and what QEMU says.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::definition::VmDefinition;
use crate::line::Line;
use crate::records::{Counters, KnownHost, KnownVm, Stored};
use crate::store::manifest::Manifest;
use crate::stream::{Block, Pages, Parser};

fn json<T: Serialize + DeserializeOwned>(input: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(input) {
        let text = serde_json::to_vec(&value).expect("what was read can be written");
        let again: T = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(serde_json::to_vec(&again).expect("as above"), text);
    }
}

pub fn manifest(input: &[u8]) {
    json::<Manifest>(input);
}

pub fn journal(input: &[u8]) {
    json::<Stored>(input);
    json::<Counters>(input);
    json::<KnownVm>(input);
    json::<KnownHost>(input);
}

pub fn definition(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(vm) = toml::from_str::<VmDefinition>(text) {
        let _ = vm.prefixes();
        let written = toml::to_string(&vm).expect("what was read can be written");
        let again: VmDefinition = toml::from_str(&written).expect("what was written can be read");
        assert_eq!(again, vm);
    }
}

pub fn qmp(input: &[u8]) {
    if let Ok(line) = Line::read(input) {
        // As the monitor's task looks at it.
        let _ = (line.id, line.event.as_deref(), line.data["status"].as_str());
        let _ = line.error.map_or(Ok(line.value), |refusal| Err(refusal.desc));
    }
}

/// Remembers what came, as far as that is small, and that all of it lies in a block.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    blocks: Vec<Block>,
    pages: Vec<(usize, u64, Option<u8>)>,
}

impl Pages for Seen {
    fn blocks(&mut self, blocks: &[Block]) -> io::Result<()> {
        assert!(self.blocks.is_empty(), "the blocks are told once");
        blocks.clone_into(&mut self.blocks);
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, content: Option<&[u8]>) -> io::Result<()> {
        let bytes = self.blocks[block].bytes;
        assert!(offset.is_multiple_of(4096) && offset.checked_add(4096).is_some_and(|end| end <= bytes));
        assert!(content.is_none_or(|content| content.len() == 4096));
        self.pages.push((block, offset, content.map(|content| content[0])));
        Ok(())
    }
}

/// Reads a stream that arrives in pieces; how far, and whether it was understood.
fn read(input: &[u8], size: usize) -> (Seen, usize, bool) {
    let (mut parser, mut seen, mut buffer) = (Parser::new(), Seen::default(), Vec::new());
    let mut used = 0;
    for piece in input.chunks(size) {
        buffer.extend_from_slice(piece);
        match parser.read(&buffer, &mut seen) {
            Ok(count) => {
                buffer.drain(..count);
                used += count;
            }
            Err(_) => return (seen, 0, false),
        }
    }
    (seen, used, true)
}

pub fn migration(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else { return };
    let whole = read(stream, usize::MAX);
    let pieces = read(stream, usize::from(*size) * 16 + 1);
    assert_eq!(whole, pieces, "it does not matter how the bytes arrive");
}
