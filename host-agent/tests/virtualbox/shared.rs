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
    made: u32,
}

#[derive(Clone)]
pub struct Machine {
    pub vbox: PathBuf,
    pub settings: Vec<String>,
    pub state: &'static str,
    pub controller: bool,
    pub disk: Option<String>,
}

#[derive(Clone)]
pub struct Medium {
    pub location: PathBuf,
    pub parent: Option<String>,
    pub shared: bool,
    /// The machines with which it is registered, the first of which lists it.
    pub machines: Vec<String>,
}

/// A VDI with a UUID of this number.
pub fn image(number: u32, parent: Option<&str>, content: &str) -> Vec<u8> {
    image_of(&uuid(number), parent, content)
}

/// A VDI with this UUID.
pub fn image_of(uuid: &str, parent: Option<&str>, content: &str) -> Vec<u8> {
    let bytes = |uuid: &str| {
        let digits = uuid.replace('-', "");
        let mut bytes: Vec<u8> =
            (0..16).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    };
    let mut image = vec![0; 512];
    image[64..72].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe, 1, 0, 1, 0]);
    image[76] = if parent.is_some() { 4 } else { 1 };
    image[368..376].copy_from_slice(&(8_u64 << 20).to_le_bytes());
    image[392..408].copy_from_slice(&bytes(uuid));
    if let Some(parent) = parent {
        image[424..440].copy_from_slice(&bytes(parent));
    }
    image.extend(content.as_bytes());
    image
}

/// A `.vbox`.
fn settings(uuid: &str, name: &str, registry: &str, device: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<VirtualBox xmlns=\"http://www.virtualbox.org/\" version=\"1.19-linux\"><Machine uuid=\"{{{uuid}}}\" name=\"{name}\" \
         snapshotFolder=\"Snapshots\">{registry}<Hardware><StorageControllers><StorageController name=\"SATA\">{device}</StorageController>\
         </StorageControllers></Hardware></Machine></VirtualBox>"
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
        known.next().map(|(uuid, _)| uuid.clone())
    }

    /// Of a machine whose settings tell of a base. One that is known without a machine stays so.
    fn register(&mut self, machine: &str, base: &str) {
        if let Some(uuid) = self.known(base) {
            let machines = &mut self.media.get_mut(&uuid).unwrap().machines;
            machines.extend((!machines.is_empty()).then(|| machine.to_owned()));
            return;
        }
        let header = vdi::read(base.as_ref()).unwrap().unwrap();
        let machines = vec![machine.to_owned()];
        let medium = Medium { location: base.into(), parent: header.parent(), shared: true, machines };
        self.media.insert(header.uuid().unwrap(), medium);
    }

    fn children(&self, uuid: &str) -> usize {
        self.media.values().filter(|medium| medium.parent.as_deref() == Some(uuid)).count()
    }

    fn attached(&self, uuid: &str) -> bool {
        self.machines.values().any(|machine| machine.disk.as_deref() == Some(uuid))
    }

    fn attach(&mut self, machine: &str, path: &str) -> Result<(), Answer> {
        assert!(self.machines[machine].controller && self.machines[machine].state == "poweroff");
        let mut uuid = self.known(path).unwrap();
        if self.attached(&uuid) {
            return Err(answer("04a-multiattach-refused/029-attach-same-again"));
        }
        if self.media[&uuid].shared {
            // Of no machine.
            if self.media[&uuid].machines.is_empty() {
                return Err(answer("04c-multiattach-mtype/005-attach-mb1"));
            }
            self.made += 1;
            let (own, parent) = (0xd000_0000 + self.made, uuid);
            uuid = self::uuid(own);
            let folder = self.machines[machine].vbox.with_file_name("Snapshots");
            std::fs::create_dir_all(&folder).unwrap();
            let location = folder.join(format!("{{{uuid}}}.vdi"));
            std::fs::write(&location, image(own, Some(&parent), "")).unwrap();
            let machines = vec![machine.to_owned()];
            let base = self.media.get_mut(&parent).unwrap();
            if !base.machines.iter().any(|known| known == machine) {
                base.machines.push(machine.to_owned());
            }
            self.media
                .insert(uuid.clone(), Medium { location, parent: Some(parent), shared: false, machines });
        }
        self.machines.get_mut(machine).unwrap().disk = Some(uuid);
        Ok(())
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
                std::fs::write(vbox, settings(uuid, name, "", "")).unwrap();
            }
            ["registervm", vbox] => {
                let text = std::fs::read_to_string(vbox).unwrap();
                let uuid = vbox::machine_uuid(vbox.as_ref()).unwrap();
                let (_, base) = text.split_once("location=\"").unwrap();
                let (base, rest) = base.split_once('"').unwrap();
                assert!(rest.starts_with(" format=\"VDI\" type=\"MultiAttach\"/>"), "{text}");
                self.register(&uuid, base);
                let machine = Machine {
                    vbox: vbox.into(),
                    settings: Vec::new(),
                    state: "poweroff",
                    controller: false,
                    disk: None,
                };
                assert!(self.machines.insert(uuid, machine).is_none());
            }
            ["closemedium", "disk", path] => {
                let uuid = self.known(path).unwrap();
                if self.attached(&uuid) || self.children(&uuid) > 0 {
                    return Err(answer("04a-multiattach-refused/025-closemedium-base"));
                }
                self.media.remove(&uuid);
            }
            [verb, uuid, rest @ ..] => {
                let Some(machine) = self.machines.get_mut(*uuid) else { return Err(unknown()) };
                match (*verb, rest) {
                    ("showvminfo", _) => return Ok(machine.shown()),
                    ("modifyvm", settings) => {
                        machine.settings.extend(settings.iter().map(|text| (*text).to_owned()))
                    }
                    ("storagectl", _) => machine.controller = true,
                    ("storageattach", [.., "--medium", path]) => self.attach(uuid, path)?,
                    ("startvm", _) => machine.state = "running",
                    ("controlvm", ["poweroff"]) => machine.state = "poweroff",
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

    /// What belongs to the machine alone is closed; a base stays known, even without a machine.
    fn unregister(&mut self, uuid: &str) {
        self.machines.remove(uuid);
        for medium in self.media.values_mut() {
            medium.machines.retain(|machine| machine != uuid);
        }
        self.media.retain(|_, medium| medium.shared || !medium.machines.is_empty());
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
        for (uuid, machine) in &self.machines {
            let mut disks = String::new();
            let first = |medium: &Medium| medium.machines.first() == Some(uuid);
            for (base, medium) in
                self.media.iter().filter(|(_, medium)| medium.parent.is_none() && first(medium))
            {
                let kind = if medium.shared { "MultiAttach" } else { "Normal" };
                write!(
                    disks,
                    "<HardDisk uuid=\"{{{base}}}\" location=\"{}\" format=\"VDI\" type=\"{kind}\">",
                    medium.location.display()
                )
                .unwrap();
                for (own, child) in self.media.iter().filter(|(_, child)| child.parent.as_ref() == Some(base))
                {
                    write!(
                        disks,
                        "<HardDisk uuid=\"{{{own}}}\" location=\"{}\" format=\"VDI\"/>",
                        child.location.display()
                    )
                    .unwrap();
                }
                disks += "</HardDisk>";
            }
            let image = machine.disk.as_ref().map(|disk| {
                format!("<AttachedDevice type=\"HardDisk\" port=\"0\" device=\"0\"><Image uuid=\"{{{disk}}}\"/></AttachedDevice>")
            });
            let name = machine.vbox.file_stem().unwrap().to_string_lossy();
            let registry = format!("<MediaRegistry><HardDisks>{disks}</HardDisks></MediaRegistry>");
            let text = settings(uuid, &name, &registry, &image.unwrap_or_default());
            std::fs::write(&machine.vbox, text).unwrap();
        }
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
        let session = if self.state == "running" { "SessionName=\"headless\"\n" } else { "" };
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
