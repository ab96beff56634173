//! The text of a `.vbox`: what it says of snapshots, disks and files. One pass, no tree in memory, no entities but XML's
//! own five.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use crate::error::FilesError;
use crate::uuid::Uuid;

/// Largest `.vbox` that is read, bytes: a thousand snapshots, indented as deep as VirtualBox nests them, take 20 MB.
pub const MAX_BYTES: u64 = 64 << 20;
/// Deepest nesting that is followed. VirtualBox refuses more than 250 snapshots and 300 disks in a row, of two elements
/// each.
const MAX_DEPTH: usize = 4096;
/// Oldest settings in which a machine lists its own disks: 1.11, VirtualBox 4.0.
const OLDEST: (u32, u32) = (1, 11);

/// What a `.vbox` says, as far as files go.
#[derive(Debug, Default)]
pub struct Settings {
    /// The machine's UUID.
    pub uuid: Option<Uuid>,
    /// The machine's name.
    pub name: String,
    /// Relative to the `.vbox`, or absolute.
    pub snapshot_folder: String,
    /// UUID of the snapshot that the current state goes on from.
    pub current_snapshot: Option<Uuid>,
    /// Every snapshot, each after its parent.
    pub snapshots: Vec<Snapshot>,
    /// The current state.
    pub current: State,
    /// Every disk of the registry, each after its parent.
    pub media: Vec<Medium>,
}

/// A snapshot.
#[derive(Debug)]
pub struct Snapshot {
    /// Unique.
    pub uuid: Uuid,
    /// Not unique.
    pub name: String,
    /// As it stands there: RFC 3339.
    pub taken: Option<String>,
    /// Index of its parent.
    pub parent: Option<usize>,
    /// What it holds.
    pub state: State,
}

/// What a snapshot or the current state holds.
#[derive(Debug, Default, Clone)]
pub struct State {
    /// RAM and devices; `None` when the VM was off.
    pub saved: Option<String>,
    /// Firmware variables.
    pub nvram: Option<String>,
    /// Is the firmware an EFI? A BIOS has a name for its variables, but no such file.
    pub efi: bool,
    /// Attached disks, and whether they are removable.
    pub images: Vec<(Uuid, bool)>,
}

/// A disk in the registry.
#[derive(Debug)]
pub struct Medium {
    /// Unique.
    pub uuid: Uuid,
    /// Relative to the `.vbox`, or absolute.
    pub location: String,
    /// A CD, DVD or floppy disk.
    pub removable: bool,
    /// Index of its parent.
    pub parent: Option<usize>,
}

/// Where the reader is. The indices are of the snapshot or medium that surrounds it.
#[derive(Debug, Clone, Copy)]
enum Frame {
    Root,
    Machine,
    Registry,
    Disks,
    Removables,
    Medium(usize),
    Snapshot(usize),
    Children(usize),
    Hardware(Option<usize>),
    Device(Option<usize>, bool),
    Other,
}

impl Settings {
    /// Reads a `.vbox`.
    ///
    /// # Errors
    /// It cannot be read, is too large, is none, or is damaged.
    pub fn read(path: &Path) -> Result<Self, FilesError> {
        // Opening a pipe would wait for a writer.
        let metadata = path.metadata().map_err(FilesError::unreadable(path))?;
        if !metadata.is_file() {
            return Err(foreign(path, "it is no regular file"));
        }
        if metadata.len() > MAX_BYTES {
            let what = format!("it has {} bytes, and no .vbox has more than {MAX_BYTES}", metadata.len());
            return Err(foreign(path, what));
        }
        let file = File::open(path).map_err(FilesError::unreadable(path))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(FilesError::unreadable(path))?;
        let text = String::from_utf8(bytes).map_err(|_| foreign(path, "it is not UTF-8 text"))?;
        Parser::new(path).parse(text.trim_start_matches('\u{feff}'))
    }
}

struct Parser<'a> {
    path: &'a Path,
    settings: Settings,
    stack: Vec<Frame>,
    seen: HashSet<Uuid>,
    machines: usize,
}

impl<'a> Parser<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, settings: Settings::default(), stack: Vec::new(), seen: HashSet::new(), machines: 0 }
    }

    fn parse(mut self, text: &str) -> Result<Settings, FilesError> {
        let mut reader = Reader::from_str(text);
        loop {
            let at = reader.buffer_position();
            let event = reader.read_event();
            match event.map_err(|error| self.damaged(format!("at byte {at}: {error}")))? {
                Event::Start(element) => {
                    let frame = self.open(&element)?;
                    self.stack.push(frame);
                    if self.stack.len() > MAX_DEPTH {
                        return Err(self.damaged(format!("its elements are nested deeper than {MAX_DEPTH}")));
                    }
                }
                Event::Empty(element) => drop(self.open(&element)?),
                Event::End(_) => drop(self.stack.pop()),
                Event::DocType(_) => {
                    return Err(foreign(self.path, "it has a document type, which VirtualBox never writes"));
                }
                Event::Eof => break,
                _ => {}
            }
        }
        if !self.stack.is_empty() {
            return Err(self.damaged(format!("it ends in the middle, after {} bytes", text.len())));
        }
        match self.machines {
            1 => Ok(self.settings),
            0 => Err(foreign(self.path, "no machine is in it")),
            several => Err(self.damaged(format!("{several} machines are in it"))),
        }
    }

    /// Takes what an element says and tells where its children are.
    fn open(&mut self, element: &BytesStart<'_>) -> Result<Frame, FilesError> {
        let local = element.local_name();
        let name: &str = local.as_ref();
        let Some(parent) = self.stack.last().copied() else { return self.open_root(element, name) };
        match (parent, name) {
            (Frame::Root, "Machine") => self.open_machine(element),
            (Frame::Root, "MachineEncrypted") => Err(foreign(
                self.path,
                "it is encrypted, and its snapshots cannot be seen (VBoxManage encryptvm VM removeencryption)",
            )),
            (Frame::Root, "Global") => Err(foreign(self.path, "it is VirtualBox's own list of machines")),
            (Frame::Machine, "MediaRegistry") => Ok(Frame::Registry),
            (Frame::Registry, "HardDisks") => Ok(Frame::Disks),
            (Frame::Registry, "DVDImages" | "FloppyImages") => Ok(Frame::Removables),
            (Frame::Disks, "HardDisk") => self.open_medium(element, None, false),
            (Frame::Medium(parent), "HardDisk") => self.open_medium(element, Some(parent), false),
            (Frame::Removables, "Image") => self.open_medium(element, None, true),
            (Frame::Machine, "Snapshot") => self.open_snapshot(element, None),
            (Frame::Children(parent), "Snapshot") => self.open_snapshot(element, Some(parent)),
            (Frame::Snapshot(index), "Snapshots") => Ok(Frame::Children(index)),
            // Settings before 1.15 have the controllers beside the hardware, those from 1.20 on a platform.
            (Frame::Machine, "Hardware" | "StorageControllers" | "Platform") => Ok(Frame::Hardware(None)),
            (Frame::Snapshot(index), "Hardware" | "StorageControllers" | "Platform") => {
                Ok(Frame::Hardware(Some(index)))
            }
            (Frame::Hardware(owner), "AttachedDevice") => {
                let kind = self.attribute(element, "type")?;
                Ok(Frame::Device(owner, kind.is_some_and(|kind| kind != "HardDisk")))
            }
            (Frame::Device(owner, removable), "Image") => {
                let uuid = self.uuid(element, "uuid")?;
                self.state(owner).images.push((uuid, removable));
                Ok(Frame::Other)
            }
            (Frame::Hardware(owner), "NVRAM") => {
                let path = self.attribute(element, "path")?.filter(|path| !path.is_empty());
                self.state(owner).nvram = path;
                Ok(Frame::Other)
            }
            (Frame::Hardware(owner), "Firmware") => {
                let kind = self.attribute(element, "type")?;
                self.state(owner).efi = kind.is_some_and(|kind| kind.starts_with("EFI"));
                Ok(Frame::Hardware(owner))
            }
            (Frame::Hardware(owner), _) => Ok(Frame::Hardware(owner)),
            _ => Ok(Frame::Other),
        }
    }

    fn open_root(&self, element: &BytesStart<'_>, name: &str) -> Result<Frame, FilesError> {
        if name != "VirtualBox" {
            let what = format!("its outermost element is {:?}, not \"VirtualBox\"", shortened(name));
            return Err(foreign(self.path, what));
        }
        let version = self.attribute(element, "version")?.unwrap_or_default();
        let numbers = version.split('-').next().and_then(|numbers| numbers.split_once('.'));
        let numbers = numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        match numbers {
            Some(numbers) if numbers >= OLDEST && numbers.0 == OLDEST.0 => Ok(Frame::Root),
            Some(_) => Err(foreign(
                self.path,
                format!(
                    "its settings are of version {:?}, and 1.11 (VirtualBox 4.0) is the oldest that lists its own disks; \
                     start VirtualBox once to have them converted",
                    shortened(&version)
                ),
            )),
            None => {
                Err(foreign(self.path, format!("it has no settings version ({:?})", shortened(&version))))
            }
        }
    }

    fn open_machine(&mut self, element: &BytesStart<'_>) -> Result<Frame, FilesError> {
        self.machines += 1;
        self.settings.uuid = self.attribute(element, "uuid")?.and_then(|text| Uuid::parse(&text));
        self.settings.name = self.attribute(element, "name")?.unwrap_or_default();
        let folder = self.attribute(element, "snapshotFolder")?;
        self.settings.snapshot_folder = folder.unwrap_or_else(|| "Snapshots".to_owned());
        self.settings.current.saved = self.attribute(element, "stateFile")?.filter(|file| !file.is_empty());
        let current = self.attribute(element, "currentSnapshot")?.filter(|uuid| !uuid.is_empty());
        self.settings.current_snapshot = match current {
            Some(_) => Some(self.uuid(element, "currentSnapshot")?),
            None => None,
        };
        Ok(Frame::Machine)
    }

    fn open_medium(
        &mut self,
        element: &BytesStart<'_>,
        parent: Option<usize>,
        removable: bool,
    ) -> Result<Frame, FilesError> {
        let uuid = self.new_uuid(element)?;
        let location = self.attribute(element, "location")?.filter(|location| !location.is_empty());
        let location =
            location.ok_or_else(|| self.damaged(format!("the disk {} has no location", uuid.braced())))?;
        self.settings.media.push(Medium { uuid, location, removable, parent });
        Ok(Frame::Medium(self.settings.media.len() - 1))
    }

    fn open_snapshot(
        &mut self,
        element: &BytesStart<'_>,
        parent: Option<usize>,
    ) -> Result<Frame, FilesError> {
        let uuid = self.new_uuid(element)?;
        let name = self.attribute(element, "name")?.unwrap_or_default();
        let taken = self.attribute(element, "timeStamp")?;
        let saved = self.attribute(element, "stateFile")?.filter(|file| !file.is_empty());
        let state = State { saved, ..State::default() };
        self.settings.snapshots.push(Snapshot { uuid, name, taken, parent, state });
        Ok(Frame::Snapshot(self.settings.snapshots.len() - 1))
    }

    fn state(&mut self, owner: Option<usize>) -> &mut State {
        match owner {
            Some(index) => &mut self.settings.snapshots[index].state,
            None => &mut self.settings.current,
        }
    }

    fn new_uuid(&mut self, element: &BytesStart<'_>) -> Result<Uuid, FilesError> {
        let uuid = self.uuid(element, "uuid")?;
        if self.seen.insert(uuid) {
            return Ok(uuid);
        }
        Err(self.damaged(format!("two things in it have the UUID {}", uuid.braced())))
    }

    fn uuid(&self, element: &BytesStart<'_>, name: &str) -> Result<Uuid, FilesError> {
        let text = self.attribute(element, name)?.unwrap_or_default();
        Uuid::parse(&text).ok_or_else(|| {
            let local = element.local_name();
            let tag: &str = local.as_ref();
            self.damaged(format!("a {tag} has {:?} where a UUID belongs", shortened(&text)))
        })
    }

    fn attribute(&self, element: &BytesStart<'_>, name: &str) -> Result<Option<String>, FilesError> {
        let found =
            element.try_get_attribute(name).map_err(|error| self.damaged(format!("its XML: {error}")))?;
        let Some(found) = found else { return Ok(None) };
        let value = found.normalized_value(XmlVersion::Implicit1_0);
        let value = value.map_err(|error| self.damaged(format!("its XML: attribute {name}: {error}")))?;
        Ok(Some(value.into_owned()))
    }

    fn damaged(&self, what: impl Into<String>) -> FilesError {
        FilesError::damaged(self.path, what)
    }
}

fn foreign(path: &Path, what: impl Into<String>) -> FilesError {
    FilesError::Foreign {
        path: path.to_owned(),
        format: "VirtualBox machine",
        what: what.into(),
        instead: "the .vbox file of a machine",
    }
}

/// Enough of a foreign text to recognise it.
pub fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}
