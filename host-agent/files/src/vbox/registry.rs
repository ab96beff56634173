//! A `.vbox` whose registry tells of one disk that several machines share (multiattach), and of no other.

use super::parts::{self, Part};

/// The text of a `.vbox` with this disk in its registry: a VDI, by its UUID without braces and its absolute path.
///
/// # Errors
/// It is no text of a machine, in words.
pub fn with_shared_base(text: &str, uuid: &str, path: &str) -> Result<String, String> {
    let machine = parts::machine(text)?;
    let location = parts::escaped(path);
    let registry = format!(
        "<MediaRegistry>\n      <HardDisks>\n        \
         <HardDisk uuid=\"{{{uuid}}}\" location=\"{location}\" format=\"VDI\" type=\"MultiAttach\"/>\n      \
         </HardDisks>\n    </MediaRegistry>"
    );
    let (place, registry) = match machine.child("MediaRegistry") {
        Some(Part { whole, .. }) => (whole.clone(), registry),
        // It stands before all others.
        None => (machine.begin.end..machine.begin.end, format!("\n    {registry}")),
    };
    Ok(parts::replaced(text, vec![(place, registry)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "20d1e9a4-523c-4243-a6bd-635926e1d6f9";

    #[test]
    fn the_registry_has_that_disk_and_no_other() {
        let around = |registry: &str| {
            format!(
                "<VirtualBox><Machine uuid=\"x\">{registry}<Hardware><MediaRegistry/></Hardware></Machine></VirtualBox>"
            )
        };
        let expected = format!(
            "<MediaRegistry>\n      <HardDisks>\n        <HardDisk uuid=\"{{{BASE}}}\" location=\"/i/a&amp;b.vdi\" format=\"VDI\" type=\"MultiAttach\"/>\n      </HardDisks>\n    </MediaRegistry>"
        );
        for earlier in [
            "<MediaRegistry/>",
            "<MediaRegistry><HardDisks><HardDisk/><HardDisk></HardDisk></HardDisks></MediaRegistry>",
        ] {
            let made = with_shared_base(&around(earlier), BASE, "/i/a&b.vdi").unwrap();
            assert_eq!(made, around(&expected));
        }
        let made = with_shared_base(&around(""), BASE, "/i/a&b.vdi").unwrap();
        assert_eq!(made, around(&format!("\n    {expected}")), "there was none");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "<VirtualBox><Global><MediaRegistry/></Global></VirtualBox>",
            "<VirtualBox><Machine></x>",
            "<VirtualBox><Machine/></VirtualBox>",
        ] {
            assert!(with_shared_base(text, BASE, "/b").is_err(), "{text}");
        }
    }
}
