//! UUIDs, as VirtualBox writes them in XML, in names of files and in headers of disks.

/// 16 bytes in the order of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// Reads `{c69fa955-70a5-48e4-92e3-d35e7d5936bd}`, with or without braces, in either case.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let groups: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        if lengths != [8, 4, 4, 4, 12] {
            return None;
        }
        let digits = groups.concat();
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
        }
        Some(Self(bytes))
    }

    /// From the header of a VDI, whose first three groups are little-endian; all zeros mean none.
    pub fn from_header(mut bytes: [u8; 16]) -> Option<Self> {
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// As it stands in the header of a VDI.
    pub fn header(&self) -> [u8; 16] {
        let mut bytes = self.0;
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }

    /// `{c69fa955-70a5-48e4-92e3-d35e7d5936bd}`: as VirtualBox names files of differences.
    pub fn braced(&self) -> String {
        let mut text = String::from("{");
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        text + "}"
    }

    /// Without braces: as people type it.
    pub fn plain(&self) -> String {
        self.braced().trim_matches(['{', '}']).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_header_are_the_same_uuid() {
        let text = "{dff495c6-945d-457a-b3fe-853c1ab8f5f6}";
        let header =
            [0xc6, 0x95, 0xf4, 0xdf, 0x5d, 0x94, 0x7a, 0x45, 0xb3, 0xfe, 0x85, 0x3c, 0x1a, 0xb8, 0xf5, 0xf6];
        let uuid = Uuid::parse(text).unwrap();
        assert_eq!(Uuid::from_header(header), Some(uuid));
        assert_eq!(uuid.header(), header);
        assert_eq!(uuid.braced(), text);
        assert_eq!(Uuid::parse("DFF495C6-945D-457A-B3FE-853C1AB8F5F6"), Some(uuid));
        assert_eq!(Uuid::from_header([0; 16]), None);
    }

    #[test]
    fn other_texts_are_none() {
        for text in ["", "{}", "dff495c6945d457ab3fe853c1ab8f5f6", "{dff495c6-945d-457a-b3fe-853c1ab8f5fx}"] {
            assert_eq!(Uuid::parse(text), None, "{text}");
        }
        assert_eq!(Uuid::parse("dff495c6-945d-457a-b3fe-85ä1ab8f5f6"), None);
    }
}
