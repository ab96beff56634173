//! Folders of machines, made of what was recorded or made up.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use unasnap_files::FilesError;
use unasnap_files::vbox::track;
use unasnap_protocol::files::{FileReport, FileRole};

/// A folder that goes away with the test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A file of this length that takes no space.
    pub fn sparse(&self, name: &str, bytes: u64) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap().set_len(bytes).unwrap();
    }

    /// The files of a recorded tree.
    pub fn lay_out(&self, tree: &str) {
        for line in data(&format!("{tree}.tree")).lines() {
            let (name, bytes) = line.rsplit_once(' ').unwrap();
            self.sparse(name, bytes.parse().unwrap());
        }
    }

    pub fn track(&self, file: &str, snapshot: Option<&str>) -> Result<FileReport, FilesError> {
        track(&self.path(file), snapshot)
    }
}

/// A recorded file.
pub fn data(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

/// A recorded machine with all its files.
pub fn recorded(name: &str, file: &str) -> Folder {
    let folder = Folder::new();
    folder.lay_out(name);
    folder.write(file, data(&format!("{name}.vbox")));
    folder
}

/// Paths of a list, sorted.
macro_rules! paths {
    ($files:expr) => {{
        let mut paths: Vec<String> = $files.iter().map(|file| file.path.clone()).collect();
        paths.sort_unstable();
        paths
    }};
}
pub(crate) use paths;

/// A machine as VirtualBox would write it.
pub struct Made {
    pub disks: usize,
    /// Index of each snapshot's parent.
    pub parents: Vec<Option<usize>>,
    /// Do the snapshots hold RAM?
    pub ram: bool,
}

impl Made {
    /// One snapshot after the other.
    pub fn line(disks: usize, snapshots: usize) -> Self {
        let parents = (0..snapshots).map(|index| index.checked_sub(1)).collect();
        Self { disks, parents, ram: true }
    }

    /// File of the disk that was written to after this snapshot; of the base without one.
    pub fn disk(disk: usize, after: Option<usize>) -> String {
        match after {
            None => format!("disk{disk}.vdi"),
            Some(snapshot) => format!("Snapshots/{}.vdi", uuid(1 + disk, snapshot)),
        }
    }

    pub fn saved(snapshot: usize) -> String {
        format!("Snapshots/{snapshot}.sav")
    }

    /// The text, with the current state after the last snapshot.
    pub fn settings(&self) -> String {
        let last = self.parents.len().checked_sub(1);
        let mut text = String::from("<?xml version=\"1.0\"?>\n<VirtualBox version=\"1.19-linux\">");
        let current = last.map_or(String::new(), |last| format!(" currentSnapshot=\"{}\"", uuid(0, last)));
        write!(
            text,
            "<Machine uuid=\"{}\" name=\"made\"{current} snapshotFolder=\"Snapshots\">",
            uuid(99, 0)
        )
        .unwrap();
        text.push_str("<MediaRegistry><HardDisks>");
        for disk in 0..self.disks {
            self.nest(
                None,
                &mut |at, text: &mut String| {
                    let location = Self::disk(disk, at);
                    let own = at.map_or(uuid(50, disk), |snapshot| uuid(1 + disk, snapshot));
                    write!(text, "<HardDisk uuid=\"{own}\" location=\"{location}\" format=\"VDI\">").unwrap();
                },
                "</HardDisk>",
                &mut text,
            );
        }
        text.push_str("</HardDisks></MediaRegistry>");
        self.nest_snapshots(&mut text);
        text.push_str(&self.hardware(last));
        text.push_str("</Machine></VirtualBox>\n");
        text
    }

    fn nest(
        &self,
        at: Option<usize>,
        open: &mut impl FnMut(Option<usize>, &mut String),
        close: &str,
        text: &mut String,
    ) {
        open(at, text);
        for child in (0..self.parents.len()).filter(|child| self.parents[*child] == at) {
            self.nest(Some(child), open, close, text);
        }
        text.push_str(close);
    }

    fn nest_snapshots(&self, text: &mut String) {
        let mut open = |at: Option<usize>, text: &mut String| {
            let Some(index) = at else { return };
            let saved = Self::saved(index);
            let saved = if self.ram { format!(" stateFile=\"{saved}\"") } else { String::new() };
            write!(text, "<Snapshot uuid=\"{}\" name=\"S{index}\"{saved}>", uuid(0, index)).unwrap();
            text.push_str(&self.hardware(self.parents[index]));
            text.push_str("<Snapshots>");
        };
        let mut nested = String::new();
        self.nest(None, &mut open, "</Snapshots></Snapshot>", &mut nested);
        text.push_str(nested.strip_suffix("</Snapshots></Snapshot>").unwrap());
    }

    fn hardware(&self, after: Option<usize>) -> String {
        let mut text = String::from("<Hardware>");
        // What VirtualBox writes besides, indented as it is, so that the length is true.
        let depth = std::iter::successors(after, |index| self.parents[*index]).count();
        for _ in 0..40 {
            write!(text, "\n{:1$}<Adapter slot=\"0\" MACAddress=\"080027A8CA4E\"/>", "", 4 * depth).unwrap();
        }
        text.push_str("<StorageControllers>");
        for disk in 0..self.disks {
            let image = after.map_or(uuid(50, disk), |snapshot| uuid(1 + disk, snapshot));
            write!(text, "<AttachedDevice type=\"HardDisk\"><Image uuid=\"{image}\"/></AttachedDevice>")
                .unwrap();
        }
        text + "</StorageControllers></Hardware>"
    }

    /// All files, with these lengths.
    pub fn lay_out(&self, bytes: impl Fn(FileRole, Option<usize>) -> u64) -> Folder {
        let folder = Folder::new();
        folder.write("made.vbox", self.settings());
        let states: Vec<_> = std::iter::once(None).chain((0..self.parents.len()).map(Some)).collect();
        for at in states {
            for disk in 0..self.disks {
                let role = if at.is_none() { FileRole::BaseDisk } else { FileRole::DifferenceDisk };
                folder.sparse(&Self::disk(disk, at), bytes(role, at));
            }
            if let Some(index) = at.filter(|_| self.ram) {
                folder.sparse(&Self::saved(index), bytes(FileRole::SavedState, at));
            }
        }
        folder
    }
}

pub fn uuid(kind: usize, index: usize) -> String {
    format!("{{{kind:08x}-0000-4000-8000-{index:012x}}}")
}
