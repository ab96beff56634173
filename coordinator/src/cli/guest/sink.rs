//! Where what guests write goes: as it is into files and pipes, harmless on terminals, line by line where several write.

use std::io::{self, IsTerminal, Write};

use crate::failure::steers;

/// What is kept of a line until it ends.
const MAX_LINE_BYTES: usize = 16 << 10;

/// One stream of one guest.
pub struct Sink<W> {
    to: W,
    is_terminal: bool,
    /// Before each line; where there is none, nothing waits for the end of its line.
    prefix: Option<String>,
    /// What is not written yet.
    kept: Vec<u8>,
}

impl<W: Write + IsTerminal> Sink<W> {
    /// Writes to `to`, each line behind `prefix` if there is one.
    pub fn new(to: W, prefix: Option<String>) -> Self {
        Self { is_terminal: to.is_terminal(), to, prefix, kept: Vec::new() }
    }
}

impl<W: Write> Sink<W> {
    /// Takes what the guest wrote.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.kept.extend_from_slice(bytes);
        if self.prefix.is_some() {
            while let Some(length) = line(&self.kept) {
                let line: Vec<u8> = self.kept.drain(..length).collect();
                self.write(&line, true)?;
            }
        } else {
            // A letter whose rest comes with the next bytes must not be torn on a terminal.
            let whole = if self.is_terminal { whole_letters(&self.kept) } else { self.kept.len() };
            let text: Vec<u8> = self.kept.drain(..whole).collect();
            self.write(&text, false)?;
        }
        self.to.flush()
    }

    /// Nothing more comes.
    ///
    /// # Errors
    /// As of [`take`](Self::take).
    pub fn finish(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.kept);
        if !rest.is_empty() {
            self.write(&rest, self.prefix.is_some())?;
        }
        self.to.flush()
    }

    fn write(&mut self, text: &[u8], is_line: bool) -> io::Result<()> {
        let mut piece = self.prefix.clone().unwrap_or_default().into_bytes();
        let text = if is_line { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
        if self.is_terminal {
            piece.extend(harmless(text).into_bytes());
        } else {
            piece.extend_from_slice(text);
        }
        if is_line {
            piece.push(b'\n');
        }
        // In one piece: other streams end on the same terminal.
        self.to.write_all(&piece)
    }
}

/// Length of the first line, or of what is longer than one may be.
fn line(text: &[u8]) -> Option<usize> {
    let end = text.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    end.or_else(|| (text.len() > MAX_LINE_BYTES).then_some(MAX_LINE_BYTES))
}

/// Bytes that are whole letters, or can never become any.
fn whole_letters(text: &[u8]) -> usize {
    let longest = text.len().saturating_sub(3);
    let torn = (longest..text.len()).find(|at| {
        std::str::from_utf8(&text[*at..])
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    });
    torn.unwrap_or(text.len())
}

/// Words of a guest on a terminal, which they must not drive. Tabs and the line ends of a serial console may stay.
fn harmless(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text).replace("\r\n", "\n");
    let text = text.strip_suffix('\r').unwrap_or(&text);
    let shown = |letter: char| {
        let stays = matches!(letter, '\n' | '\t') || !steers(letter);
        if stays { letter.to_string() } else { letter.escape_unicode().to_string() }
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(is_terminal: bool, prefix: Option<&str>, pieces: &[&[u8]]) -> String {
        let prefix = prefix.map(str::to_owned);
        let mut sink = Sink { to: Vec::new(), is_terminal, prefix, kept: Vec::new() };
        for piece in pieces {
            sink.take(piece).unwrap();
        }
        sink.finish().unwrap();
        String::from_utf8(sink.to).unwrap()
    }

    #[test]
    fn pipes_get_every_byte_and_terminals_no_commands() {
        let pieces: [&[u8]; 3] = [b"a\x1b[2J\tb\r\n", &[0xc3], &[0xa9, b'c']];
        assert_eq!(written(false, None, &pieces), "a\x1b[2J\tb\r\néc");
        assert_eq!(written(true, None, &pieces), "a\\u{1b}[2J\tb\néc");
        assert_eq!(written(true, None, &[&[0xff, b'a', 0xc3]]), "\u{fffd}a\u{fffd}");
    }

    #[test]
    fn lines_of_several_guests_are_whole_and_say_whose_they_are() {
        assert_eq!(
            written(false, Some("vm1: "), &[b"a\nb", b"c\n", b"\nd"]),
            "vm1: a\nvm1: bc\nvm1: \nvm1: d\n"
        );
        let long = vec![b'x'; MAX_LINE_BYTES + 1];
        let lines: Vec<usize> = written(false, Some("v "), &[&long]).lines().map(str::len).collect();
        assert_eq!(lines, [MAX_LINE_BYTES + 2, 3]);
    }
}
