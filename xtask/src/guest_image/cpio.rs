//! A writer of `newc` cpio archives, the kernel's initramfs format (Documentation/driver-api/early-userspace).

/// File types, from `stat(2)`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive in the making. Owner is root and the time 0 everywhere, so that the same content gives the same bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory; its parents must have been added before it.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, REGULAR | mode, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.entry(path, LINK | 0o777, (0, 0), to.as_bytes());
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let fields: [usize; 13] = [
            self.inode as usize,
            mode as usize,
            0, // user
            0, // group
            links,
            0, // time
            content.len(),
            0, // device the file lies on
            0,
            device.0 as usize,
            device.1 as usize,
            path.len() + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_these_bytes() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.file("d/f", 0o644, b"hello");
        archive.link("l", "d/f");
        let expected = "\
            07070100000001000041ed00000000000000000000000200000000000000000000000000000000000000000000000000000002\
            00000000d\0\
            07070100000002000081a400000000000000000000000100000000000000050000000000000000000000000000000000000004\
            00000000d/f\0\0\0hello\0\0\0\
            070701000000030000a1ff00000000000000000000000100000000000000030000000000000000000000000000000000000002\
            00000000l\0d/f\0\
            070701000000010000000000000000000000000000000100000000000000000000000000000000000000000000000000000\
            00b00000000TRAILER!!!\0\0\0\0";
        assert_eq!(String::from_utf8(archive.finish()).unwrap(), expected);
    }
}
