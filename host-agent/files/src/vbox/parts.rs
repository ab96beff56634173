//! Where the parts of a machine stand in the text of a `.vbox`, for changing some and leaving every other byte as it is.

use std::ops::Range;

use quick_xml::XmlVersion;
use quick_xml::escape::escape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use crate::uuid::Uuid;

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 4096;

/// An element.
#[derive(Debug, Default)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// All of it, bytes.
    pub whole: Range<usize>,
    /// Its first tag, bytes.
    pub begin: Range<usize>,
    /// Its attributes, unescaped.
    pub attributes: Vec<(String, String)>,
    /// The elements directly inside; only of a machine and of its snapshots.
    pub children: Vec<Part>,
}

impl Part {
    /// The first element of this name directly inside.
    pub fn child(&self, name: &str) -> Option<&Part> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The snapshot with this UUID in the tree that begins here, and the one that it goes on from.
    pub fn snapshot(&self, uuid: Uuid) -> Option<(&Part, Option<&Part>)> {
        for child in &self.children {
            let is_snapshot = child.name == "Snapshot";
            if is_snapshot && child.attribute("uuid").and_then(Uuid::parse) == Some(uuid) {
                return Some((child, None));
            }
            if let Some((found, parent)) = child.snapshot(uuid) {
                return Some((found, parent.or_else(|| is_snapshot.then_some(child))));
            }
        }
        None
    }
}

/// The machine of a `.vbox`.
///
/// # Errors
/// None is in it, or it is no XML; in words.
pub fn machine(text: &str) -> Result<Part, String> {
    let mut reader = Reader::from_str(text);
    // The elements around the reader; only those whose children count have one.
    let mut open: Vec<Option<Part>> = Vec::new();
    loop {
        let at = position(&reader);
        let event = reader.read_event().map_err(|error| format!("at byte {at}: {error}"))?;
        let here = at..position(&reader);
        match event {
            Event::Start(element) => {
                if open.len() == MAX_DEPTH {
                    return Err(format!("more than {MAX_DEPTH} elements stand in each other"));
                }
                let counts = open.last().is_none_or(|around| around.as_ref().is_some_and(has_parts));
                open.push(if counts { Some(part(&element, here)?) } else { None });
            }
            Event::Empty(element) => {
                if let Some(Some(around)) = open.last_mut()
                    && has_parts(around)
                {
                    around.children.push(part(&element, here)?);
                }
            }
            Event::End(_) => {
                let Some(Some(mut ended)) = open.pop() else { continue };
                ended.whole.end = here.end;
                match open.last_mut() {
                    Some(Some(around)) => around.children.push(ended),
                    _ => {
                        let mut all = ended.children.into_iter();
                        let is_it = |child: &Part| child.name == "Machine" && child.begin != child.whole;
                        return all.find(is_it).ok_or_else(|| "no machine is in it".to_owned());
                    }
                }
            }
            Event::Eof => return Err("no machine is in it".to_owned()),
            _ => {}
        }
    }
}

/// The value of an attribute, to stand in double quotes. A reader takes line breaks and tabs that stand there as such for blanks.
pub fn escaped(value: &str) -> String {
    escape(value).replace('\n', "&#10;").replace('\r', "&#13;").replace('\t', "&#9;")
}

/// The text with these ranges, which do not overlap, replaced.
pub fn replaced(text: &str, mut changes: Vec<(Range<usize>, String)>) -> String {
    changes.sort_by_key(|(range, _)| range.start);
    let (mut made, mut at) = (String::with_capacity(text.len()), 0);
    for (range, new) in changes {
        made += &text[at..range.start];
        made += &new;
        at = range.end;
    }
    made + &text[at..]
}

fn has_parts(part: &Part) -> bool {
    matches!(part.name.as_str(), "VirtualBox" | "Machine" | "Snapshot" | "Snapshots")
}

/// The attributes of an element, unescaped.
///
/// # Errors
/// They are no XML, in words.
pub fn attributes(element: &BytesStart<'_>) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for attribute in element.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| error.to_string())?;
        all.push((AsRef::<str>::as_ref(&attribute.key).to_owned(), value.into_owned()));
    }
    Ok(all)
}

fn part(element: &BytesStart<'_>, begin: Range<usize>) -> Result<Part, String> {
    let attributes = attributes(element).map_err(|why| format!("at byte {}: {why}", begin.start))?;
    let name = AsRef::<str>::as_ref(&element.local_name()).to_owned();
    Ok(Part { name, whole: begin.clone(), begin, attributes, children: Vec::new() })
}

fn position(reader: &Reader<&[u8]>) -> usize {
    usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX)
}
