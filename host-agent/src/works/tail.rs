//! The end of a log that begins anew when it is large.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

/// The last `lines` lines of the log at `path`, and of what came before it began anew, but at most `bytes` bytes.
pub(super) fn last_lines(path: &Path, lines: usize, bytes: usize) -> io::Result<Vec<u8>> {
    let mut text = end(path, bytes)?;
    if count(&text) < lines && text.len() < bytes {
        let before = end(&path.with_extension("log.old"), bytes - text.len())?;
        text.splice(0..0, before);
    }
    // The last line break ends the last line and begins none.
    let body = text.strip_suffix(b"\n").unwrap_or(&text);
    let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let start = match lines.checked_sub(1) {
        Some(others) => breaks.map(|(at, _)| at + 1).nth(others).unwrap_or(0),
        None => text.len(),
    };
    Ok(text.split_off(start))
}

fn count(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

fn end(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        // A VM that has never run has said nothing.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_whole_lines_of_both_files_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let last = |lines, bytes| String::from_utf8(last_lines(&path, lines, bytes).unwrap()).unwrap();
        assert_eq!(last(5, 100), "");
        std::fs::write(&path, "c\nd\ne").unwrap();
        assert_eq!(last(1, 100), "e");
        assert_eq!(last(2, 100), "d\ne");
        assert_eq!(last(9, 100), "c\nd\ne");
        std::fs::write(folder.path().join("console.log.old"), "a\nb\n").unwrap();
        assert_eq!(last(4, 100), "b\nc\nd\ne");
        assert_eq!(last(9, 7), "b\nc\nd\ne");
        assert_eq!(last(9, 3), "d\ne");
        assert_eq!(last(0, 100), "");
        std::fs::write(&path, "c\nd\n").unwrap();
        assert_eq!(last(1, 100), "d\n");
    }
}
