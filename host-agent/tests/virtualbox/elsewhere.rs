//! A machine that unasnap has made is restored on another host, with another state folder and another place of its base.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use unasnap_files::vbox;
use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::virtualbox::calls::{Answer, Calls};
use unasnap_host::hypervisor::virtualbox::{VirtualBox, VirtualBoxConfig, coming, own_machine};
use unasnap_host::hypervisor::{Hypervisor, Pending, SavedVm, VmState};
use unasnap_host::store::Placed;
use unasnap_host::store::manifest::{
    Accel, BaseImage, Facts, FileRole, Identity, Manifest, ManifestFile, RamWay,
};

use crate::recorded::answer;
use crate::shared::image_of;
use crate::support::name;

/// As VirtualBox 7.2.22 has written it on the host that the machine comes from.
const SETTINGS: &str = include_str!("../../files/tests/data/own-1.20.vbox");
const MACHINE: &str = "11111111-2222-4333-8444-555555555555";
const CUT: &str = "4fa93c9b-6f63-47f6-90c0-b70cb0f7135d";
const BASE: &str = "0c65fe2a-2e6a-4fe9-864e-55e767dc5422";
const LOWER: &str = "bf812be6-9edb-455f-a1c2-12f4ab7b2f6d";
const STATE: &str = "Snapshots/2026-11-22T13-55-46-595463000Z.sav";

fn settings() -> String {
    SETTINGS.replace("\"br0\"", "\"lo\"")
}

/// A VirtualBox that believes what it is told, and notes what settings it was given.
#[derive(Default)]
pub struct Credulous {
    /// Where the machine's settings are, once it is registered.
    pub registered: Mutex<Option<PathBuf>>,
    given: Mutex<Vec<String>>,
    /// Is the holder of the base registered?
    holds: Mutex<bool>,
}

impl Credulous {
    fn carry_out(&self, arguments: &[&str]) -> Answer {
        let mut registered = self.registered.lock().unwrap();
        let mut holds = self.holds.lock().unwrap();
        let give = |vbox: &str| self.given.lock().unwrap().push(std::fs::read_to_string(vbox).unwrap());
        let stdout = match arguments {
            ["createvm", "--name", name, "--uuid", BASE, .., above] => {
                let folder = Path::new(above).join(name);
                std::fs::create_dir_all(&folder).unwrap();
                let text = format!(
                    "<VirtualBox version=\"1.19-linux\"><Machine uuid=\"{{{BASE}}}\"></Machine></VirtualBox>"
                );
                std::fs::write(folder.join(format!("{name}.vbox")), text).unwrap();
                String::new()
            }
            ["registervm", vbox] => {
                give(vbox);
                match vbox::machine_uuid(vbox.as_ref()).unwrap().as_str() {
                    MACHINE => *registered = Some(vbox.into()),
                    BASE => *holds = true,
                    other => panic!("{other}"),
                }
                String::new()
            }
            ["showvminfo", BASE, ..] if *holds => "memory=4\ncpus=1\nVMState=\"poweroff\"\n".to_owned(),
            ["showvminfo", BASE, ..] => return answer("00-global/008-showvminfo-unknown"),
            ["showvminfo", MACHINE, ..] => match &*registered {
                None => return answer("00-global/008-showvminfo-unknown"),
                Some(vbox) => {
                    let text = std::fs::read_to_string(vbox).unwrap();
                    let (_, rest) = text.rsplit_once("server=\"true\" path=\"").unwrap();
                    let (channel, _) = rest.split_once('"').unwrap();
                    let state = if text.contains("<Snapshot ") { "poweroff" } else { "saved" };
                    format!(
                        "CfgFile=\"{}\"\nmemory=64\ncpus=2\nVMState=\"{state}\"\nuartmode2=\"server,{channel}\"\n",
                        vbox.display()
                    )
                }
            },
            ["unregistervm", BASE] => {
                *holds = false;
                String::new()
            }
            ["unregistervm", MACHINE] => {
                *registered = None;
                String::new()
            }
            ["--version"] => "7.2.22".to_owned(),
            _ => String::new(),
        };
        Answer { code: 0, stdout, stderr: String::new() }
    }
}

impl Calls for Credulous {
    fn call<'a>(&'a self, _: &'a str, arguments: &'a [&'a str], _: Duration) -> Pending<'a, Answer> {
        Box::pin(async move { Ok(self.carry_out(arguments)) })
    }
}

fn definition(state_dir: &Path) -> VmDefinition {
    let machine = own_machine(state_dir, &name("web"));
    let text = format!(
        "name='web'\ndeployment='d'\nmemory_mb=64\ncpus=2\nmachine='{}'\n[[nic]]\nbridge='lo'\nmac='52:54:00:00:00:01'\n",
        machine.display()
    );
    VmDefinition::parse(&text, "test".as_ref()).unwrap()
}

/// The host to which it comes, and what has come.
pub struct There {
    folder: tempfile::TempDir,
    pub virtualbox: std::sync::Arc<Credulous>,
    pub driver: VirtualBox,
    pub vm: VmDefinition,
    pub manifest: Manifest,
    pub bases: Vec<PathBuf>,
}

impl There {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().canonicalize().unwrap();
        let saved = state_dir.join("saved");
        std::fs::create_dir_all(&saved).unwrap();
        std::fs::create_dir(state_dir.join("images")).unwrap();
        let base = state_dir.join("images/5ca1ab1e");
        std::fs::write(&base, image_of(BASE, None, "the operating system")).unwrap();
        std::fs::write(saved.join("machine.vbox"), settings()).unwrap();
        std::fs::write(saved.join("lower.vdi"), image_of(LOWER, Some(BASE), "what was written")).unwrap();
        std::fs::write(saved.join("ram.sav"), "what the guest thought").unwrap();
        let layout = serde_json::json!({
            "snapshot": CUT,
            "places": [["lower.vdi", format!("Snapshots/{{{LOWER}}}.vdi")], ["ram.sav", STATE]],
            "bases": ["/srv/images/debian.vdi"],
        });
        std::fs::write(saved.join("layout.json"), layout.to_string()).unwrap();
        let virtualbox = std::sync::Arc::new(Credulous::default());
        let config = VirtualBoxConfig { state_dir: state_dir.clone(), ..VirtualBoxConfig::default() };
        let driver = VirtualBox::with_calls(config, virtualbox.clone()).await.unwrap();
        let (vm, manifest) = (definition(&state_dir), manifest(&base, &saved));
        Self { folder, virtualbox, driver, vm, manifest, bases: vec![base] }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap()
    }

    pub fn saved(&self) -> PathBuf {
        self.state_dir().join("saved")
    }

    /// How it is to be here.
    pub fn here(&self) -> Placed {
        Placed { definition: self.vm.clone(), bases: self.bases.clone(), believed: false }
    }

    async fn restore(&self) -> Result<VmState, String> {
        self.restore_as(&self.here()).await
    }

    async fn restore_as(&self, here: &Placed) -> Result<VmState, String> {
        let folder = self.saved();
        let saved = SavedVm { folder: &folder, manifest: &self.manifest, here: Some(here) };
        let mut vm = self.driver.restore(&self.vm, saved, 9).await.map_err(|error| error.to_string())?;
        assert_eq!(vm.guest_channel_path(), self.vm.machine.as_ref().unwrap().with_file_name("guest.sock"));
        Ok(vm.state().await.unwrap())
    }
}

/// As the other host wrote it.
fn manifest(base: &Path, saved: &Path) -> Manifest {
    let blake3 = |path: &Path| blake3::hash(&std::fs::read(path).unwrap()).to_hex().to_string();
    let file = |name: &str, role| {
        let path = saved.join(name);
        let size = path.metadata().unwrap().len();
        ManifestFile { name: name.to_owned(), role, size, blake3: blake3(&path) }
    };
    let (blake3, size) = (blake3(base), base.metadata().unwrap().len());
    let there = BaseImage { path: "/srv/images/debian.vdi".into(), size, modified: 2, blake3 };
    Manifest {
        format: 2,
        unasnap: String::new(),
        identity: Identity {
            snapshot: name("s1"),
            deployment: name("d"),
            epoch: 1,
            definition: definition("/srv/alpha".as_ref()),
        },
        hypervisor: Facts {
            kind: "virtualbox".to_owned(),
            version: "7.2.22".to_owned(),
            machine: String::new(),
            accel: Accel::VirtualBox,
            ram_way: RamWay::StopAndSave,
        },
        files: vec![
            file("machine.vbox", FileRole::Settings),
            file("lower.vdi", FileRole::DifferenceDisk),
            file("ram.sav", FileRole::SavedState),
            file("layout.json", FileRole::Layout),
        ],
        bases: vec![there],
    }
}

#[tokio::test]
async fn a_machine_of_another_host_is_laid_out_with_the_places_of_this_one() {
    let there = There::new().await;
    let here = there.here();
    coming::check(&there.manifest, &there.saved(), &here).unwrap();
    assert_eq!(there.restore().await, Ok(VmState::Paused));
    let machine = there.vm.machine.clone().unwrap();
    let given = there.virtualbox.given.lock().unwrap().join("");
    assert!(given.contains(&format!("location=\"{}\"", there.bases[0].display())), "{given}");
    let channel = format!("path=\"{}\"", machine.with_file_name("guest.sock").display());
    assert_eq!(given.matches(&channel).count(), 1, "the machine is the cut: {given}");
    assert!(!given.contains("/srv/"), "{given}");
    let lower = machine.with_file_name("Snapshots").join(format!("{{{LOWER}}}.vdi"));
    assert_eq!(std::fs::read(lower).unwrap(), image_of(LOWER, Some(BASE), "what was written"));
    assert!(machine.with_file_name(STATE).exists());
    // What came stays as it is.
    assert_eq!(std::fs::read_to_string(there.saved().join("machine.vbox")).unwrap(), settings());
    // Once more, over the one that is there.
    assert_eq!(there.restore().await, Ok(VmState::Paused));
    there.driver.forget(&there.vm.name).await.unwrap();
    assert!(!machine.exists() && there.bases[0].exists());
    assert_eq!(*there.virtualbox.registered.lock().unwrap(), None);
    assert!(!*there.virtualbox.holds.lock().unwrap());
}

#[tokio::test]
async fn settings_that_do_more_are_not_laid_out_even_when_they_are_here() {
    let there = There::new().await;
    let odd = settings().replacen("<Clipboard/>", "<USB/>", 1);
    std::fs::write(there.saved().join("machine.vbox"), odd).unwrap();
    let refused = there.restore().await.unwrap_err();
    assert!(refused.contains("it has <USB>"), "{refused}");
    assert!(there.virtualbox.given.lock().unwrap().is_empty());
    assert!(!there.vm.machine.as_ref().unwrap().exists());
}

#[tokio::test]
async fn of_a_host_that_is_believed_they_are_laid_out_as_they_are() {
    let there = There::new().await;
    let own = "<Snapshot uuid=\"{fa5049af-1ef8-43d1-8d59-ee424ef7fce2}\" name=\"own\"><Hardware/></Snapshot>";
    let odd =
        SETTINGS.replace("<Clipboard/>", "<USB/>").replacen("<Snapshot ", &format!("{own}<Snapshot "), 1);
    std::fs::write(there.saved().join("machine.vbox"), odd).unwrap();
    let here = Placed { believed: true, ..there.here() };
    coming::check(&there.manifest, &there.saved(), &here).unwrap();
    assert!(coming::check(&there.manifest, &there.saved(), &there.here()).is_err());
    there.restore_as(&here).await.unwrap();
    let given = there.virtualbox.given.lock().unwrap().join("");
    assert!(given.contains("<USB/>") && !given.contains("<Snapshot") && !given.contains("/srv/"), "{given}");
}

#[tokio::test]
async fn another_base_is_refused() {
    let there = There::new().await;
    std::fs::write(&there.bases[0], image_of(BASE, None, "another system")).unwrap();
    let refused = there.restore().await.unwrap_err();
    assert!(refused.contains("images/5ca1ab1e is not the one below this snapshot"), "{refused}");
}

/// Whoever has sent it has chosen its UUID.
#[tokio::test]
async fn a_machine_that_comes_takes_the_place_of_no_other() {
    let there = There::new().await;
    let other = there.saved().join("machine.vbox");
    *there.virtualbox.registered.lock().unwrap() = Some(other.clone());
    let refused = there.restore().await.unwrap_err();
    assert!(
        refused.contains("has another machine of its UUID") && refused.contains("machine.vbox"),
        "{refused}"
    );
    assert_eq!(*there.virtualbox.registered.lock().unwrap(), Some(other));
}
