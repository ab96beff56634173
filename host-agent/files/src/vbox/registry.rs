//! The registry of a `.vbox`, written anew: a machine on a base that others share, which tells of its own disks itself.
//!
//! VirtualBox writes such a base, with the differences of all machines, into the settings of one of them. Settings that come back later
//! would miss the base, or tell of differences that others have no longer. VirtualBox 7.2 takes it well when each tells of the
//! base and of its own.

use std::fmt::Write;

use quick_xml::escape::escape;
use quick_xml::events::Event;
use quick_xml::reader::Reader;

/// How deep `Machine` and `MediaRegistry` are.
const MACHINE: usize = 1;

/// A disk as it is to stand in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Without braces.
    pub uuid: String,
    /// The disk whose differences it holds, without braces; `None` for a base.
    pub parent: Option<String>,
    /// Its file: absolute, or relative to the `.vbox`.
    pub location: String,
}

/// The text of a `.vbox` with these disks in its registry and no others; the bases are shared (multiattach).
///
/// # Errors
/// It is no text of a machine, in words.
pub fn with_registry(text: &str, disks: &[Listed]) -> Result<String, String> {
    let (begin, end) = place(text)?;
    let mut registry = "<MediaRegistry>\n      <HardDisks>\n".to_owned();
    for base in disks.iter().filter(|disk| disk.parent.is_none()) {
        list(base, disks, 4, &mut registry);
    }
    registry += "      </HardDisks>\n    </MediaRegistry>";
    let before = if begin == end { "\n    " } else { "" };
    Ok(format!("{}{before}{registry}{}", &text[..begin], &text[end..]))
}

fn list(disk: &Listed, disks: &[Listed], depth: usize, text: &mut String) {
    let (indent, location) = ("  ".repeat(depth), escape(disk.location.as_str()));
    let kind = if disk.parent.is_none() { " type=\"MultiAttach\"" } else { "" };
    // Writing into a text does not fail.
    let _ = write!(
        text,
        "{indent}<HardDisk uuid=\"{{{}}}\" location=\"{location}\" format=\"VDI\"{kind}",
        disk.uuid
    );
    let children: Vec<_> = disks.iter().filter(|child| child.parent.as_ref() == Some(&disk.uuid)).collect();
    if children.is_empty() {
        *text += "/>\n";
        return;
    }
    *text += ">\n";
    for child in children {
        list(child, disks, depth + 1, text);
    }
    let _ = writeln!(text, "{indent}</HardDisk>");
}

/// From where to where the registry stands; where none does, both are where one belongs.
fn place(text: &str) -> Result<(usize, usize), String> {
    let mut reader = Reader::from_str(text);
    let (mut depth, mut inside, mut begun) = (0_usize, None, None);
    loop {
        let at = position(&reader);
        match reader.read_event().map_err(|error| format!("at byte {at}: {error}"))? {
            Event::Start(element) => {
                match (depth, AsRef::<str>::as_ref(&element.local_name())) {
                    (MACHINE, "Machine") => inside = Some(position(&reader)),
                    (2, "MediaRegistry") if inside.is_some() => begun = Some(at),
                    _ => {}
                }
                depth += 1;
            }
            Event::Empty(element)
                if (depth, inside.is_some()) == (2, true)
                    && AsRef::<str>::as_ref(&element.local_name()) == "MediaRegistry" =>
            {
                return Ok((at, position(&reader)));
            }
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                if let Some(begun) = begun.filter(|_| depth == 2) {
                    return Ok((begun, position(&reader)));
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    inside.map(|at| (at, at)).ok_or_else(|| "no machine is in it".to_owned())
}

fn position(reader: &Reader<&[u8]>) -> usize {
    usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "20d1e9a4-523c-4243-a6bd-635926e1d6f9";
    const LOWER: &str = "7a5049af-1ef8-43d1-8d59-ee424ef7fce2";
    const UPPER: &str = "832eeb46-94ae-4436-be49-a277c304cee4";

    fn disks() -> Vec<Listed> {
        let disk = |uuid: &str, parent: Option<&str>, location: &str| Listed {
            uuid: uuid.to_owned(),
            parent: parent.map(str::to_owned),
            location: location.to_owned(),
        };
        vec![disk(UPPER, Some(LOWER), "b"), disk(BASE, None, "/i/a&b.vdi"), disk(LOWER, Some(BASE), "a")]
    }

    fn expected() -> String {
        format!(
            "<MediaRegistry>\n      <HardDisks>\n        <HardDisk uuid=\"{{{BASE}}}\" location=\"/i/a&amp;b.vdi\" format=\"VDI\" type=\"MultiAttach\">\n          \
             <HardDisk uuid=\"{{{LOWER}}}\" location=\"a\" format=\"VDI\">\n            <HardDisk uuid=\"{{{UPPER}}}\" location=\"b\" format=\"VDI\"/>\n          \
             </HardDisk>\n        </HardDisk>\n      </HardDisks>\n    </MediaRegistry>"
        )
    }

    #[test]
    fn a_machine_tells_of_its_own_disks_only() {
        let around = |registry: &str| {
            format!(
                "<VirtualBox><Machine uuid=\"x\">{registry}<Snapshot><MediaRegistry/></Snapshot></Machine></VirtualBox>"
            )
        };
        for earlier in [
            "<MediaRegistry/>",
            "<MediaRegistry><HardDisks><HardDisk/><HardDisk></HardDisk></HardDisks></MediaRegistry>",
        ] {
            assert_eq!(with_registry(&around(earlier), &disks()).unwrap(), around(&expected()));
        }
        let made = with_registry(&around(""), &disks()).unwrap();
        assert_eq!(made, around(&format!("\n    {}", expected())), "there was none");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "<VirtualBox><Global><MediaRegistry/></Global></VirtualBox>", "<VirtualBox><Machine></x>"]
        {
            assert!(with_registry(text, &disks()).is_err(), "{text}");
        }
    }
}
