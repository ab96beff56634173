//! Which files a VM of this host consists of, now or at a snapshot.

use std::fs;
use std::path::{Path, PathBuf};

use unasnap_protocol::files::{FileReport, FileRole, NeededFile, OtherFile, SnapshotNode, StoreKind, Totals};
use unasnap_protocol::household::Outcome;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{RequestError, RequestErrorKind};

use super::Result;
use crate::members::Members;
use crate::registry::{no_vm, refused};
use crate::store::manifest::{FileRole as Role, MANIFEST_FILE, Manifest};
use crate::store::{Store, StoreError};
use crate::works::chain;

/// A VM as it is now.
pub(super) fn present_files(members: &Members, vm: &Name) -> Result<Outcome> {
    let Some(member) = members.get(vm) else {
        return Err(no_vm(vm));
    };
    let works = member.works();
    if let Some(machine) = &works.definition().machine {
        let report = unasnap_files::vbox::track(machine, None);
        return report
            .map(|report| Outcome::Files(Box::new(report)))
            .map_err(|error| refused(error.to_string()));
    }
    let disks = works.disk_files().map_err(|failure| refused(failure.text))?;
    let own = disks.iter().find_map(|files| files.last()?.parent());
    let mut list = List::new(vm, StoreKind::Qcow2, own.unwrap_or(Path::new("/")));
    for files in &disks {
        let mut parent = None;
        for (position, file) in files.iter().enumerate() {
            let role = if position == 0 { FileRole::BaseDisk } else { FileRole::DifferenceDisk };
            parent = Some(list.add(file, role, parent));
        }
    }
    Ok(list.report())
}

/// A VM at a snapshot: what its local snapshot holds, and the images that no snapshot holds.
pub(super) fn saved_files(store: &Store, vm: &Name, snapshot: &Name) -> Result<Outcome> {
    let manifest = store.manifest(snapshot, vm).map_err(|error| match error {
        StoreError::Absent { .. } => RequestError::new(RequestErrorKind::NotFound, error.to_string()),
        other => refused(chain(&other)),
    })?;
    let kind =
        if manifest.hypervisor.kind == "virtualbox" { StoreKind::Virtualbox } else { StoreKind::Qcow2 };
    let folder = store.vm_folder(snapshot, vm);
    let mut list = List::new(vm, kind, &folder);
    list.add(&folder.join(MANIFEST_FILE), FileRole::Settings, None);
    let here = store.here(&manifest).map_err(|error| refused(chain(&error)))?;
    let bases: Vec<_> = here.bases.iter().map(|path| list.add(path, FileRole::BaseDisk, None)).collect();
    for (file, parent) in manifest.files.iter().zip(parents(&manifest, &bases)) {
        list.add(&folder.join(&file.name), role(file.role), parent);
    }
    list.target = Some(snapshot.clone());
    Ok(list.report())
}

/// Of each file of a local snapshot: a layer's is the one before it of the same disk, the first one's is the image.
fn parents(manifest: &Manifest, bases: &[String]) -> Vec<Option<String>> {
    let mut newest = bases.to_vec();
    let of = |file: &crate::store::manifest::ManifestFile| match file.role {
        Role::DiskLayer(disk) => {
            newest.get_mut(disk).map(|below| std::mem::replace(below, file.name.clone()))
        }
        _ => None,
    };
    manifest.files.iter().map(of).collect()
}

fn role(role: Role) -> FileRole {
    match role {
        Role::MigrationStream | Role::Ram | Role::DeviceState | Role::SavedState => FileRole::SavedState,
        Role::DiskLayer(_) | Role::DifferenceDisk => FileRole::DifferenceDisk,
        Role::Settings => FileRole::Settings,
        Role::Nvram => FileRole::Nvram,
        Role::Layout => FileRole::Other,
    }
}

/// Files as they are found.
struct List {
    vm: Name,
    kind: StoreKind,
    folder: PathBuf,
    target: Option<Name>,
    needed: Vec<NeededFile>,
    missing: Vec<OtherFile>,
}

impl List {
    fn new(vm: &Name, kind: StoreKind, folder: &Path) -> Self {
        let (needed, missing) = (Vec::new(), Vec::new());
        Self { vm: vm.clone(), kind, folder: folder.to_owned(), target: None, needed, missing }
    }

    /// How the report calls it.
    fn add(&mut self, file: &Path, role: FileRole, parent: Option<String>) -> String {
        let path = file.strip_prefix(&self.folder).unwrap_or(file).to_string_lossy().into_owned();
        match fs::metadata(file) {
            Ok(meta) => {
                self.needed.push(NeededFile { path: path.clone(), role, bytes: meta.len(), parent });
            }
            Err(error) => {
                let why = error.to_string();
                self.missing.push(OtherFile { path: path.clone(), role, bytes: None, parent, why });
            }
        }
        path
    }

    fn report(self) -> Outcome {
        let node = |id: &Name| SnapshotNode {
            id: id.to_string(),
            name: id.to_string(),
            parent: None,
            taken: None,
            ram: true,
        };
        Outcome::Files(Box::new(FileReport {
            vm: self.vm.to_string(),
            kind: self.kind,
            folder: self.folder.to_string_lossy().into_owned(),
            current: None,
            snapshots: self.target.iter().map(node).collect(),
            target: self.target.map(|id| id.to_string()),
            totals: Totals::of(&self.needed, &[], &self.missing),
            needed: self.needed,
            not_needed: Vec::new(),
            missing: self.missing,
        }))
    }
}
