//! A small stream as QEMU would send it, whole, in single bytes, and broken.

use super::*;

/// Remembers everything.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kept {
    blocks: Vec<Block>,
    pages: Vec<(usize, u64, Option<u8>)>,
}

impl Pages for Kept {
    fn blocks(&mut self, blocks: &[Block]) -> std::io::Result<()> {
        self.blocks = blocks.to_vec();
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, content: Option<&[u8]>) -> std::io::Result<()> {
        self.pages.push((block, offset, content.map(|bytes| bytes[0])));
        Ok(())
    }
}

fn blocks() -> Vec<Block> {
    let block = |name: &str, pages: u64| Block { name: name.to_owned(), bytes: pages * 4096 };
    vec![block("ram0", 4), block("pc.rom", 1)]
}

/// Command, blocks, one iteration with three pages, and the footer that QEMU keeps back left out.
fn stream() -> Vec<u8> {
    let mut stream = MAGIC.to_be_bytes().to_vec();
    stream.extend(VERSION.to_be_bytes());
    stream.extend([COMMAND, 0, 3, 0, 4, 0, 0, 0, 1]);
    stream.push(SECTION_START);
    stream.extend(7_u32.to_be_bytes());
    push_name(&mut stream, "ram");
    stream.extend([0, 0, 0, 0, 0, 0, 0, 4]);
    stream.extend(((5 * 4096) | FLAG_MEM_SIZE).to_be_bytes());
    for block in blocks() {
        push_name(&mut stream, &block.name);
        stream.extend(block.bytes.to_be_bytes());
    }
    stream.extend(FLAG_EOS.to_be_bytes());
    stream.push(FOOTER);
    stream.extend(7_u32.to_be_bytes());
    stream.push(SECTION_PART);
    stream.extend(7_u32.to_be_bytes());
    stream.extend((4096 | FLAG_PAGE).to_be_bytes());
    push_name(&mut stream, "ram0");
    stream.extend([1; 4096]);
    stream.extend((8192 | FLAG_ZERO | FLAG_CONTINUE).to_be_bytes());
    stream.push(0);
    stream.extend(FLAG_PAGE.to_be_bytes());
    push_name(&mut stream, "pc.rom");
    stream.extend([2; 4096]);
    stream.extend(FLAG_EOS.to_be_bytes());
    stream
}

fn expected() -> Kept {
    Kept { blocks: blocks(), pages: vec![(0, 4096, Some(1)), (0, 8192, None), (1, 0, Some(2))] }
}

#[test]
fn pages_arrive_however_the_bytes_are_cut() {
    for size in [1, 2, 3, 7, 100, 4095, 4097, 100_000] {
        let (mut parser, mut kept, mut buffer) = (Parser::new(), Kept::default(), Vec::new());
        for piece in stream().chunks(size) {
            buffer.extend_from_slice(piece);
            let read = parser.read(&buffer, &mut kept).unwrap();
            buffer.drain(..read);
        }
        assert!(buffer.is_empty() && parser.is_between_sections());
        assert_eq!((parser.marks(), &kept), (2, &expected()), "in pieces of {size}");
    }
}

#[test]
fn a_stream_that_is_cut_off_is_noticed() {
    let whole = stream();
    let (mut parser, mut kept) = (Parser::new(), Kept::default());
    let read = parser.read(&whole[..whole.len() - 1], &mut kept).unwrap();
    assert!(read < whole.len() - 1 && !parser.is_between_sections());
}

#[test]
fn nothing_outside_a_block_is_believed() {
    let name_of = |at: usize, from: &[u8], to: &[u8]| {
        let mut broken = stream();
        let found = broken.windows(from.len()).enumerate().filter(|(_, window)| *window == from).nth(at);
        let position = found.unwrap().0;
        broken[position..position + to.len()].copy_from_slice(to);
        broken
    };
    let page = (4096 | FLAG_PAGE).to_be_bytes();
    let cases = [
        (name_of(0, &MAGIC.to_be_bytes(), b"ELF!"), "it begins with"),
        (name_of(0, &page, &((4 * 4096) | FLAG_PAGE).to_be_bytes()), "a page at 16384 of a block of 16384"),
        (name_of(0, &page, &((u64::MAX - 4095) | FLAG_PAGE).to_be_bytes()), "a page at"),
        (name_of(0, &page, &(4096 | 0x100_u64).to_be_bytes()), "flags 0x100"),
        (name_of(1, b"pc.rom", b"pc.rum"), "unknown block \"pc.rum\""),
        (name_of(0, b"\x03ram", b"\x03vga"), "\"vga\" wants"),
        (name_of(0, &[FOOTER, 0, 0, 0, 7], &[FOOTER, 0, 0, 0, 8]), "unknown section 8"),
        (
            name_of(0, &((5 * 4096) | FLAG_MEM_SIZE).to_be_bytes(), &(4096 | FLAG_MEM_SIZE).to_be_bytes()),
            "more than",
        ),
    ];
    for (broken, words) in cases {
        let error = Parser::new().read(&broken, &mut Kept::default()).unwrap_err().to_string();
        assert!(error.contains(words), "{error} instead of {words}");
    }
}

#[test]
fn what_is_made_for_loading_reads_the_same() {
    let (mut parser, mut kept) = (Parser::new(), Kept::default());
    parser.read(&stream(), &mut kept).unwrap();
    let rom = [2; 4096];
    let mut devices = MAGIC.to_be_bytes().to_vec();
    devices.extend(VERSION.to_be_bytes());
    devices.extend(b"DEVICES");
    let made = with_ram(parser.layout().unwrap(), [(1, 0, &rom[..])].into_iter(), &devices).unwrap();
    let made = made.strip_suffix(b"DEVICES").unwrap();
    let (mut again, mut loaded) = (Parser::new(), Kept::default());
    assert_eq!(again.read(made, &mut loaded).unwrap(), made.len());
    assert_eq!(again.layout(), parser.layout());
    assert_eq!(loaded, Kept { blocks: blocks(), pages: vec![(1, 0, Some(2))] });
    assert!(with_ram(parser.layout().unwrap(), std::iter::empty(), b"ELF").is_err());
}
