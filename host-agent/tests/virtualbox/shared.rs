//! A VirtualBox in memory with any number of machines, which share bases as VirtualBox 7.2 lets them: settings and disks are files
//! as VirtualBox writes them, refusals are recorded ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use unasnap_files::{vbox, vdi};
use unasnap_host::hypervisor::virtualbox::calls::{Answer, Calls};
use unasnap_host::hypervisor::{HypervisorError, Pending};

use crate::recorded::answer;
use crate::vdi_header::header;

#[derive(Default)]
pub struct Sharing {
    pub state: Mutex<State>,
}

#[derive(Default, Clone)]
pub struct State {
    pub machines: BTreeMap<String, Machine>,
    pub media: BTreeMap<String, Medium>,
    pub calls: Vec<String>,
    /// The call of this number fails; in truth it is carried out if this says so.
    pub fails: Option<(usize, bool)>,
    /// Settings of machines that were unregistered: in truth they stand in the `.vbox`.
    remembered: BTreeMap<String, Vec<String>>,
    made: u32,
}

#[derive(Clone, Default)]
pub struct Machine {
    pub vbox: PathBuf,
    pub settings: Vec<String>,
    pub state: &'static str,
    pub controller: bool,
    pub disk: Option<String>,
    /// The disk of its only snapshot.
    pub cut: Option<String>,
}

#[derive(Clone)]
pub struct Medium {
    pub location: PathBuf,
    pub parent: Option<String>,
    pub shared: bool,
    /// The machine that lists it; none after `showmediuminfo`.
    pub lister: Option<String>,
}

/// The UUID of every snapshot, and where its RAM is.
pub const CUT: &str = "01123c97-4061-40ef-9ff5-4b99e046d756";
const SAVED: &str = "Snapshots/cut.sav";

/// A VDI with a UUID of this number.
pub fn image(number: u32, parent: Option<&str>, content: &str) -> Vec<u8> {
    image_of(&uuid(number), parent, content)
}

/// A VDI with this UUID.
pub fn image_of(uuid: &str, parent: Option<&str>, content: &str) -> Vec<u8> {
    [&header(uuid, parent), content.as_bytes()].concat()
}

/// A `.vbox`.
fn settings(uuid: &str, name: &str, registry: &str, machine: &Machine) -> String {
    let hardware = |disk: &Option<String>| {
        let image = disk.as_ref().map(|disk| {
            format!("<AttachedDevice type=\"HardDisk\" port=\"0\" device=\"0\"><Image uuid=\"{{{disk}}}\"/></AttachedDevice>")
        });
        let device = image.unwrap_or_default();
        let controller = format!(
            "<StorageControllers><StorageController name=\"SATA\">{device}</StorageController></StorageControllers>"
        );
        format!("<Hardware>{}</Hardware>", if machine.controller { controller } else { String::new() })
    };
    let (mut from, mut snapshot) = (String::new(), String::new());
    if machine.cut.is_some() {
        from = format!(" currentSnapshot=\"{{{CUT}}}\"");
        let state = hardware(&machine.cut);
        snapshot = format!(
            "<Snapshot uuid=\"{{{CUT}}}\" name=\"unasnap cut\" stateFile=\"{SAVED}\">{state}</Snapshot>"
        );
    }
    if machine.state == "saved" {
        from += &format!(" stateFile=\"{SAVED}\"");
    }
    let state = hardware(&machine.disk);
    format!(
        "<?xml version=\"1.0\"?>\n<VirtualBox xmlns=\"http://www.virtualbox.org/\" version=\"1.19-linux\"><Machine uuid=\"{{{uuid}}}\" name=\"{name}\"{from} \
         snapshotFolder=\"Snapshots\">{registry}{snapshot}{state}</Machine></VirtualBox>"
    )
}

fn uuid(number: u32) -> String {
    format!("{number:08x}-1111-4222-8333-444455556666")
}

impl Sharing {
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// What was changed since the last time, machines by `M`.
    pub fn taken(&self) -> Vec<String> {
        let calls = self.change(|state| std::mem::take(&mut state.calls));
        let changes =
            |call: &String| !["showvminfo", "list", "--version"].iter().any(|ask| call.starts_with(ask));
        calls.into_iter().filter(changes).collect()
    }
}

impl State {
    fn known(&self, path: &str) -> Option<String> {
        let mut known = self.media.iter().filter(|(_, medium)| medium.location == Path::new(path));
        known
            .next()
            .map(|(uuid, _)| uuid.clone())
            .or_else(|| self.media.contains_key(path).then(|| path.to_owned()))
    }

    /// What the settings of a machine say.
    fn register(&mut self, vbox: &str) -> Result<(), Answer> {
        let text = std::fs::read_to_string(vbox).unwrap();
        let between = |begin: &str| text.split_once(begin).map(|(_, rest)| rest.split_once('"').unwrap());
        let uuid = vbox::machine_uuid(vbox.as_ref()).unwrap();
        if let Some((base, rest)) = between("location=\"") {
            assert!(rest.starts_with(" format=\"VDI\" type=\"MultiAttach\"/>"), "{text}");
            assert!(self.known(base).is_none(), "it stays known without a machine");
            let header = vdi::read(base.as_ref()).unwrap().unwrap();
            let medium =
                Medium { location: base.into(), parent: None, shared: true, lister: Some(uuid.clone()) };
            self.media.insert(header.uuid().unwrap(), medium);
        }
        let disk = between("<Image uuid=\"").map(|(disk, _)| disk.trim_matches(['{', '}']).to_owned());
        assert!(!text.contains("<Snapshot "), "its newest disk is not there");
        if disk.as_ref().is_some_and(|disk| !self.media.contains_key(disk)) {
            return Err(answer("10a-migrate-multiattach-without-holder/001-registervm"));
        }
        let state = if text.contains("stateFile") { "saved" } else { "poweroff" };
        let known = self.machines.get(&uuid).map(|machine| machine.state);
        assert!(known.is_none(), "it is registered");
        let settings = self.remembered.get(&uuid).cloned().unwrap_or_default();
        let controller = text.contains("<StorageController ");
        let machine = Machine { vbox: vbox.into(), settings, state, controller, disk, cut: None };
        self.machines.insert(uuid, machine);
        Ok(())
    }

    /// UUIDs of all that are or were registered.
    pub fn known_machines(&self) -> Vec<String> {
        self.machines.keys().chain(self.remembered.keys()).cloned().collect()
    }

    fn children(&self, uuid: &str) -> usize {
        self.media.values().filter(|medium| medium.parent.as_deref() == Some(uuid)).count()
    }

    fn attached(&self, uuid: &str) -> bool {
        let has =
            |machine: &Machine| [&machine.disk, &machine.cut].into_iter().flatten().any(|disk| disk == uuid);
        self.machines.values().any(has)
    }

    /// A new difference, listed where the disk below it is.
    fn difference(&mut self, machine: &str, parent: String) -> String {
        self.made += 1;
        let own = 0xd000_0000 + self.made;
        let uuid = self::uuid(own);
        let folder = self.machines[machine].vbox.with_file_name("Snapshots");
        std::fs::create_dir_all(&folder).unwrap();
        let location = folder.join(format!("{{{uuid}}}.vdi"));
        std::fs::write(&location, image(own, Some(&parent), "")).unwrap();
        let lister = self.media[&parent].lister.clone();
        self.media.insert(uuid.clone(), Medium { location, parent: Some(parent), shared: false, lister });
        uuid
    }

    fn attach(&mut self, machine: &str, path: &str) -> Result<(), Answer> {
        assert!(self.machines[machine].controller && self.machines[machine].state == "poweroff");
        if path == "none" {
            self.machines.get_mut(machine).unwrap().disk = None;
            return Ok(());
        }
        let mut uuid = self.known(path).unwrap();
        if self.attached(&uuid) {
            return Err(answer("04a-multiattach-refused/029-attach-same-again"));
        }
        if self.media[&uuid].shared {
            // Of no machine.
            if self.media[&uuid].lister.is_none() {
                return Err(answer("04c-multiattach-mtype/005-attach-mb1"));
            }
            uuid = self.difference(machine, uuid);
        } else {
            let mut next = Some(uuid.clone());
            while let Some(medium) = next.and_then(|uuid| self.media.get_mut(&uuid)) {
                medium.lister.get_or_insert_with(|| machine.to_owned());
                next = medium.parent.clone();
            }
        }
        self.machines.get_mut(machine).unwrap().disk = Some(uuid);
        Ok(())
    }

    fn show(&mut self, path: &str) -> Result<(), Answer> {
        let header = vdi::read(path.as_ref()).unwrap().unwrap();
        let parent = header.parent();
        if parent.as_ref().is_some_and(|parent| !self.media.contains_key(parent)) {
            return Err(answer("10a-migrate-multiattach-without-holder/001-registervm"));
        }
        let medium = Medium { location: path.into(), parent, shared: false, lister: None };
        self.media.entry(header.uuid().unwrap()).or_insert(medium);
        Ok(())
    }

    fn take(&mut self, machine: &str) {
        let cut = self.machines[machine].disk.clone().unwrap();
        let disk = self.difference(machine, cut.clone());
        let machine = self.machines.get_mut(machine).unwrap();
        std::fs::write(machine.vbox.with_file_name(SAVED), "what the guest thought").unwrap();
        (machine.disk, machine.cut) = (Some(disk), Some(cut));
    }

    /// The newest disk is merged into the one of the snapshot.
    fn delete(&mut self, machine: &str) {
        let machine = self.machines.get_mut(machine).unwrap();
        let newest = std::mem::replace(&mut machine.disk, machine.cut.take()).unwrap();
        std::fs::remove_file(machine.vbox.with_file_name(SAVED)).unwrap();
        std::fs::remove_file(self.media.remove(&newest).unwrap().location).unwrap();
    }

    /// Its service ends: what no settings tell of is forgotten.
    pub fn end_service(&mut self) {
        self.media.retain(|_, medium| medium.lister.is_some());
        for machine in self.machines.values_mut() {
            let disks = [&machine.disk, &machine.cut].into_iter().flatten();
            if disks.into_iter().any(|disk| !self.media.contains_key(disk)) {
                machine.state = "inaccessible";
            }
        }
    }

    fn carry_out(&mut self, arguments: &[&str]) -> Result<String, Answer> {
        let unknown = || answer("00-global/008-showvminfo-unknown");
        match arguments {
            ["--version"] => return Ok(answer("00-global/001-version").stdout),
            ["list", "hdds"] => return Ok(self.list()),
            ["createvm", "--name", name, "--uuid", uuid, "--ostype", "Linux_64", "--basefolder", above] => {
                let vbox = Path::new(above).join(name).join(format!("{name}.vbox"));
                if vbox.exists() {
                    return Err(answer("01-one-disk-no-snapshots/002-createvm-duplicate"));
                }
                std::fs::create_dir_all(vbox.parent().unwrap()).unwrap();
                std::fs::write(vbox, settings(uuid, name, "", &Machine::default())).unwrap();
            }
            ["registervm", vbox] => self.register(vbox)?,
            ["showmediuminfo", "disk", path] => self.show(path)?,
            ["closemedium", "disk", path] => {
                let uuid = self.known(path).unwrap();
                if self.attached(&uuid) || self.children(&uuid) > 0 {
                    return Err(answer("04a-multiattach-refused/025-closemedium-base"));
                }
                self.media.remove(&uuid);
            }
            [verb, uuid, rest @ ..] => {
                let Some(machine) = self.machines.get_mut(*uuid) else { return Err(unknown()) };
                if machine.state == "inaccessible" && *verb != "unregistervm" {
                    let stderr = "VBoxManage: error: The object functionality is limited\n".to_owned();
                    return Err(Answer { code: 1, stdout: String::new(), stderr });
                }
                match (*verb, rest) {
                    ("showvminfo", _) => return Ok(machine.shown()),
                    ("modifyvm", settings) => {
                        machine.settings.extend(settings.iter().map(|text| (*text).to_owned()))
                    }
                    ("storagectl", _) => machine.controller = true,
                    ("storageattach", [.., "--medium", path]) => self.attach(uuid, path)?,
                    ("startvm", _) => machine.state = "running",
                    ("controlvm", ["poweroff"]) => machine.state = "poweroff",
                    ("controlvm", ["pause"]) => machine.state = "paused",
                    ("controlvm", ["resume"]) => machine.state = "running",
                    ("discardstate", []) => machine.state = "poweroff",
                    ("snapshot", ["take", _]) => self.take(uuid),
                    ("snapshot", ["delete", CUT]) => self.delete(uuid),
                    ("unregistervm", []) => {
                        if machine.state == "running" {
                            return Err(answer("06-running-vm/014-unregister-running"));
                        }
                        self.unregister(uuid);
                    }
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        }
        self.write_settings();
        Ok(String::new())
    }

    /// Its differences go with it; a base that it lists stays known, without a machine.
    fn unregister(&mut self, uuid: &str) {
        let machine = self.machines.remove(uuid).unwrap();
        self.remembered.insert(uuid.to_owned(), machine.settings);
        let mut next = machine.disk.filter(|_| machine.state != "inaccessible");
        while let Some(disk) = next {
            next = self.media[&disk].parent.clone();
            if next.is_some() {
                self.media.remove(&disk);
            }
        }
        for medium in self.media.values_mut() {
            medium.lister.take_if(|lister| lister == uuid);
        }
    }

    fn list(&self) -> String {
        let mut text = String::new();
        for (uuid, medium) in &self.media {
            let kind = match &medium.parent {
                Some(_) => "normal (differencing)",
                None if medium.shared => "multiattach",
                None => "normal (base)",
            };
            let (parent, location) = (medium.parent.as_deref().unwrap_or("base"), medium.location.display());
            write!(text, "UUID:           {uuid}\nParent UUID:    {parent}\nState:          created\nType:           {kind}\nLocation:       {location}\nStorage format: VDI\n\n").unwrap();
        }
        text
    }

    fn write_settings(&self) {
        for (uuid, machine) in self.machines.iter().filter(|(_, machine)| machine.state != "inaccessible") {
            let mut registry = String::new();
            let bases = self.media.iter().filter(|(_, medium)| medium.parent.is_none());
            for (base, _) in bases.filter(|(_, medium)| medium.lister.as_ref() == Some(uuid)) {
                self.write_disk(base, &mut registry);
            }
            if !registry.is_empty() {
                registry = format!("<MediaRegistry><HardDisks>{registry}</HardDisks></MediaRegistry>");
            }
            let name = machine.vbox.file_stem().unwrap().to_string_lossy();
            std::fs::write(&machine.vbox, settings(uuid, &name, &registry, machine)).unwrap();
        }
    }

    fn write_disk(&self, uuid: &str, text: &mut String) {
        let medium = &self.media[uuid];
        let kind = if medium.shared { " type=\"MultiAttach\"" } else { "" };
        let location = medium.location.display();
        write!(text, "<HardDisk uuid=\"{{{uuid}}}\" location=\"{location}\" format=\"VDI\"{kind}>").unwrap();
        for (child, _) in self.media.iter().filter(|(_, child)| child.parent.as_deref() == Some(uuid)) {
            self.write_disk(child, text);
        }
        *text += "</HardDisk>";
    }

    /// Files of bases that machines write themselves.
    pub fn written(&self) -> BTreeSet<&Path> {
        let disks = self.machines.values().filter_map(|machine| machine.disk.as_ref());
        let bases = disks.map(|uuid| &self.media[uuid]).filter(|medium| medium.parent.is_none());
        bases.map(|medium| medium.location.as_path()).collect()
    }
}

impl Machine {
    /// The value of a setting.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let mut all = self.settings.iter().filter_map(|text| text.strip_prefix(name)?.strip_prefix('='));
        all.next_back()
    }

    fn shown(&self) -> String {
        let port = self.settings.iter().skip_while(|text| *text != "server").nth(1);
        let port = port.map(|path| format!("uartmode2=\"server,{path}\"\n")).unwrap_or_default();
        let session =
            if matches!(self.state, "running" | "paused") { "SessionName=\"headless\"\n" } else { "" };
        let number = |name: &str| self.setting(name).unwrap_or("1").to_owned();
        format!(
            "memory={}\ncpus={}\nVMState=\"{}\"\n{session}{port}",
            number("--memory"),
            number("--cpus"),
            self.state
        )
    }
}

impl Calls for Sharing {
    fn call<'a>(&'a self, vm: &'a str, arguments: &'a [&'a str], limit: Duration) -> Pending<'a, Answer> {
        Box::pin(async move {
            self.change(|state| {
                state.calls.push(arguments.join(" "));
                let fails = state.fails.filter(|(number, _)| state.calls.len() == number + 1);
                if fails != Some((state.calls.len() - 1, false)) {
                    let done = state.carry_out(arguments);
                    if fails.is_none() {
                        let good = |stdout| Answer { code: 0, stdout, stderr: String::new() };
                        return Ok(done.map_or_else(|refused| refused, good));
                    }
                }
                let what = arguments.join(" ");
                Err(HypervisorError::TimedOut { vm: vm.to_owned(), what, after: limit })
            })
        })
    }
}
