//! The `.vbox` of a machine that another host's unasnap has made, for the VirtualBox of this one.
//!
//! VirtualBox opens every file that its settings name, and obeys the rest: what another host has written is not given to it. It gets a
//! text written anew, of nothing but the elements and attributes that VirtualBox 7.2 writes for such a machine (settings versions
//! 1.19 and 1.20), with this host's places in it. Anything else is refused by its name, so that nothing is lost silently: a machine
//! that has been changed by hand would be another one here. Of a host that is believed a machine comes as it is, but for the places
//! that are this host's.

use std::fmt::Write;

use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use self::allowed::{ALLOWED, Allowed, LEFT_OUT, May};
use super::parts::{attributes, escaped};
use super::settings::shortened;

mod allowed;

/// What is this host's of a machine that comes.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// The VM's name, which is the machine's.
    pub name: &'a str,
    /// The bridges of its cards.
    pub bridges: &'a [&'a str],
    /// The socket of its guest channel.
    pub guest_channel: &'a str,
    /// The socket of its serial console, whose name says that it is one.
    pub console: &'a str,
    /// Is the other host believed? Its machine keeps what is not on the list, too.
    pub believed: bool,
}

/// The text of a machine, written anew, without a registry of disks.
///
/// # Errors
/// What is in it that no machine of unasnap's has, in words; or it is no text of a machine.
pub fn written_anew(text: &str, own: &Own<'_>) -> Result<String, String> {
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut copy = Copy {
        own,
        text: "<?xml version=\"1.0\"?>\n".to_owned(),
        inside: Vec::new(),
        machines: 0,
        card: false,
    };
    loop {
        let at = reader.buffer_position();
        let damaged = |error: quick_xml::Error| format!("at byte {at}: {error}");
        match reader.read_event().map_err(damaged)? {
            Event::Start(element) if copy.leaves_out(&element) => {
                reader.read_to_end(element.name()).map_err(damaged)?;
            }
            Event::Empty(element) if copy.leaves_out(&element) => {}
            Event::Start(element) => {
                let name = copy.element(&element, ">")?;
                copy.inside.push(name);
            }
            Event::Empty(element) => drop(copy.element(&element, "/>")?),
            Event::End(_) => copy.end(),
            Event::Text(text) if AsRef::<str>::as_ref(&text).trim().is_empty() => {}
            Event::Decl(_) | Event::Comment(_) => {}
            Event::Eof => break,
            _ => return Err(format!("at byte {at} stands what VirtualBox does not write there")),
        }
    }
    if copy.machines == 1 && copy.inside.is_empty() {
        return Ok(copy.text);
    }
    Err("it is not the text of one machine".to_owned())
}

/// What was written so far.
struct Copy<'a> {
    own: &'a Own<'a>,
    text: String,
    /// The elements around the next one.
    inside: Vec<String>,
    machines: usize,
    /// Is the last network card there for the guest?
    card: bool,
}

impl Copy<'_> {
    fn parent(&self) -> &str {
        self.inside.last().map(String::as_str).unwrap_or_default()
    }

    fn leaves_out(&self, element: &BytesStart<'_>) -> bool {
        LEFT_OUT.iter().any(|(parent, name)| *parent == self.parent() && *name == name_of(element))
    }

    /// Writes the begin of an element, and answers its name.
    fn element(&mut self, element: &BytesStart<'_>, end: &str) -> Result<String, String> {
        let (name, parent, believed) = (name_of(element), self.parent(), self.own.believed);
        let foreign = || Err(format!("it has {} in {}", shortened(&tag(element)), self.path()));
        let is_it = |allowed: &&Allowed| allowed.0 == name && allowed.1.contains(&parent);
        let allowed = match ALLOWED.iter().find(is_it) {
            Some((_, _, allowed)) => *allowed,
            None if believed => &[],
            None => return foreign(),
        };
        if name == "NAT" && self.card && !believed {
            return foreign();
        }
        let all = attributes(element).map_err(|why| format!("its XML: {why}"))?;
        let has = |key: &str, value: &str| all.iter().any(|one| one.0 == key && one.1 == value);
        let is_socket = has("server", "true") && has("hostMode", "HostPipe");
        let mut written = format!("{}<{name}", "  ".repeat(self.inside.len()));
        for (key, value) in &all {
            let odd = || Err(format!("it has {key}={:?} in {}/{name}", shortened(value), self.path()));
            let value = match allowed.iter().find(|(name, _)| name == key).map(|(_, may)| may) {
                Some(May::Socket) if is_socket || !believed => {
                    match file_name(value) == file_name(self.own.console) {
                        true => self.own.console,
                        false => self.own.guest_channel,
                    }
                }
                Some(may) if self.own.allows(may, value) => value,
                _ if believed => value,
                _ => return odd(),
            };
            // Writing into a text does not fail.
            let _ = write!(written, " {key}=\"{}\"", escaped(value));
        }
        self.machines += usize::from(name == "Machine");
        if name == "Adapter" {
            self.card = has("enabled", "true");
        }
        self.text += &written;
        self.text += end;
        self.text.push('\n');
        Ok(name.to_owned())
    }

    fn end(&mut self) {
        if let Some(name) = self.inside.pop() {
            let _ = writeln!(self.text, "{}</{name}>", "  ".repeat(self.inside.len()));
        }
    }

    fn path(&self) -> String {
        if self.inside.is_empty() { "no element".to_owned() } else { self.inside.join("/") }
    }
}

impl Own<'_> {
    fn allows(&self, may: &May, value: &str) -> bool {
        match may {
            May::Differ | May::Socket => true,
            May::Be(values) => values.contains(&value),
            May::Begin(begin) => value.starts_with(begin),
            May::Name => value == self.name,
            May::Bridge => self.bridges.contains(&value),
            May::SavedState => is_saved_state(value),
        }
    }
}

/// `Snapshots/2026-11-21T02-18-59-952097000Z.sav`.
fn is_saved_state(place: &str) -> bool {
    let name = place.strip_prefix("Snapshots/").and_then(|file| file.strip_suffix(".sav"));
    name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn name_of<'a>(element: &'a BytesStart<'_>) -> &'a str {
    element.name().into_inner()
}

fn tag(element: &BytesStart<'_>) -> String {
    format!("<{}>", AsRef::<str>::as_ref(element))
}

#[cfg(test)]
mod tests;
