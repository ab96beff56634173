//! A VirtualBox in memory with one machine, whose files are real: settings as they were recorded, disks of a few bytes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use unasnap_host::hypervisor::Pending;
use unasnap_host::hypervisor::virtualbox::calls::{Answer, Calls};

use crate::recorded::{answer, fixtures};

pub const UUID: &str = "e21aff55-075a-48d2-97a4-ef0c56e67c2d";
/// The snapshots' UUIDs.
pub const BASE: &str = "0a539479-8887-43b2-889e-8e350aa4129f";
pub const CUT: &str = "01123c97-4061-40ef-9ff5-4b99e046d756";
const SAVED: &str = "Snapshots/2026-11-21T02-13-09-063971000Z.sav";
/// The disk that stands on the base, and the one above the cut.
pub const LOWER: &str = "f36878e9-4366-4e89-981e-f40e822299f7";
const UPPER: &str = "d6869b71-e99d-40dc-b52b-576a1c900dd4";
const DISK: &str = "51368c82-07b4-4ddb-a68d-92d0b8e2b3c4";

pub struct Simulated {
    pub vbox: PathBuf,
    pub state: Mutex<State>,
}

#[derive(Clone)]
pub struct State {
    pub name: &'static str,
    pub registered: bool,
    pub has_base: bool,
    pub has_cut: bool,
    /// For so many more questions after its end.
    pub locked: u32,
    pub channel: Option<String>,
    /// A call that contains this is answered so, with nothing done.
    pub fails: Option<(&'static str, Answer)>,
    /// A snapshot that is taken takes for ever.
    pub hangs: bool,
    pub calls: Vec<String>,
}

impl Simulated {
    /// A machine that is off and was never snapshotted.
    pub fn new(vbox: &Path) -> Self {
        let state = State {
            name: "poweroff",
            registered: false,
            has_base: false,
            has_cut: false,
            locked: 0,
            channel: None,
            fails: None,
            hangs: false,
            calls: Vec::new(),
        };
        let simulated = Self { vbox: vbox.to_owned(), state: Mutex::new(state) };
        simulated.put("run.vdi", "the operating system");
        simulated.write_settings();
        simulated
    }

    fn folder(&self) -> &Path {
        self.vbox.parent().unwrap()
    }

    pub fn put(&self, name: &str, content: &str) {
        let path = self.folder().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn disk(uuid: &str) -> String {
        format!("Snapshots/{{{uuid}}}.vdi")
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.write_settings();
    }

    /// What was asked since the last time, without questions.
    pub fn taken(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.state.lock().unwrap().calls);
        calls.into_iter().filter(|call| !call.starts_with("showvminfo") && call != "--version").collect()
    }

    /// Settings as VirtualBox would have them.
    fn write_settings(&self) {
        let state = self.state.lock().unwrap().clone();
        let text = std::fs::read_to_string(fixtures().join("running.vbox")).unwrap();
        let text = text
            .replace("name=\"S1\"", "name=\"unasnap base\"")
            .replace("name=\"S2\"", "name=\"unasnap cut\"");
        let text = match (state.has_base, state.has_cut) {
            (_, true) => text,
            (true, false) => {
                let text = without(&text, "      <Snapshots>", "      </Snapshots>\n");
                current(
                    &without(&text, &format!("            <HardDisk uuid=\"{{{UPPER}}}\""), "/>\n"),
                    BASE,
                    LOWER,
                )
            }
            (false, false) => {
                let text = without(&text, "    <Snapshot uuid", "\n    </Snapshot>\n");
                let text = without(
                    &text,
                    &format!("          <HardDisk uuid=\"{{{LOWER}}}\""),
                    "          </HardDisk>\n",
                );
                current(&text, "", DISK).replace("currentSnapshot=\"{}\"", "")
            }
        };
        std::fs::write(&self.vbox, text).unwrap();
    }

    fn answer_to(&self, arguments: &[&str]) -> Answer {
        let refused = |name: &str| answer(name);
        let mut state = self.state.lock().unwrap().clone();
        let line = arguments.join(" ");
        state.calls.push(line.replace(UUID, "M").replace(CUT, "CUT"));
        if let Some((_, failure)) = state.fails.clone().filter(|(part, _)| line.contains(part)) {
            self.state.lock().unwrap().calls = state.calls;
            return failure;
        }
        let mut stdout = String::new();
        match arguments {
            ["--version"] => stdout = answer("00-global/001-version").stdout,
            ["registervm", path] => {
                assert_eq!(Path::new(path), self.vbox);
                state.registered = true;
                // What it finds there it takes for its own.
                state.has_cut = std::fs::read_to_string(&self.vbox).unwrap().contains("unasnap cut");
                state.has_base = true & (state.has_cut || state.has_base);
            }
            _ if !state.registered => return refused("00-global/008-showvminfo-unknown"),
            ["showvminfo", ..] => {
                stdout = shown(&state);
                state.locked = state.locked.saturating_sub(1);
            }
            ["unregistervm", _] if state.name == "running" => {
                return refused("06-running-vm/014-unregister-running");
            }
            ["unregistervm", _] => state.registered = false,
            ["modifyvm", _, settings @ ..] => {
                assert_eq!(state.name, "poweroff");
                if let ["--uart2", _, _, "--uart-mode2", "server", path] = settings {
                    state.channel = Some((*path).to_owned());
                }
            }
            ["startvm", ..] if !matches!(state.name, "poweroff" | "saved") => {
                return refused("06-running-vm/013-startvm-already-running");
            }
            ["startvm", ..] => state.name = "running",
            ["controlvm", _, "pause"] if state.name == "running" => state.name = "paused",
            ["controlvm", _, "pause"] => return refused("06-running-vm/009-pause-again"),
            ["controlvm", _, "resume"] => {
                assert!(matches!(state.name, "running" | "paused"), "resume while {}", state.name);
                state.name = "running";
            }
            ["controlvm", _, "poweroff"] => (state.name, state.locked) = ("poweroff", 3),
            ["discardstate", _] if state.name != "saved" => {
                return refused("01-one-disk-no-snapshots/023-discardstate-none");
            }
            ["discardstate", _] => state.name = "poweroff",
            ["snapshot", _, "take", "unasnap base"] => {
                state.has_base = true;
                self.put(&Self::disk(LOWER), "what the guest wrote");
            }
            ["snapshot", _, "take", _] => {
                assert_eq!(state.name, "paused", "the instant is nowhere");
                state.has_cut = true;
                self.put(&Self::disk(UPPER), "");
                self.put(SAVED, "what the guest thought");
                self.put("Snapshots/2026-11-21T02-13-05-932510000Z.sav", "");
            }
            ["snapshot", _, "delete", uuid] => {
                assert_eq!(*uuid, CUT);
                assert!(matches!(state.name, "running" | "paused"));
                state.has_cut = false;
                // It may merge downwards: what a snapshot shared with this file would be damaged.
                self.put(&Self::disk(LOWER), "merged");
                std::fs::remove_file(self.folder().join(SAVED)).unwrap();
                std::fs::remove_file(self.folder().join(Self::disk(UPPER))).unwrap();
            }
            ["snapshot", _, "restore", uuid] => {
                assert_eq!((*uuid, state.name), (CUT, "poweroff"));
                let read = |name: &str| std::fs::read_to_string(self.folder().join(name)).unwrap();
                assert_eq!(read(SAVED), "what the guest thought");
                assert_eq!(read(&Self::disk(LOWER)), "what the guest wrote");
                self.put(&Self::disk(UPPER), "");
                state.name = "saved";
            }
            other => panic!("{other:?}"),
        }
        let writes = !matches!(arguments[0], "showvminfo" | "registervm" | "unregistervm" | "--version");
        *self.state.lock().unwrap() = state;
        if writes {
            self.write_settings();
        }
        Answer { code: 0, stdout, stderr: "0%...50%...100%\n".to_owned() }
    }
}

impl Calls for Simulated {
    fn call<'a>(&'a self, _vm: &'a str, arguments: &'a [&'a str], _limit: Duration) -> Pending<'a, Answer> {
        Box::pin(async move {
            if self.state.lock().unwrap().hangs && arguments.get(2) == Some(&"take") {
                self.change(|state| state.name = "onlinesnapshotting");
                std::future::pending::<()>().await;
            }
            Ok(self.answer_to(arguments))
        })
    }
}

/// `showvminfo`, as it was recorded.
fn shown(state: &State) -> String {
    let text = answer("06-running-vm/002-showvminfo-running").stdout;
    let text = text
        .replace("VMState=\"running\"", &format!("VMState=\"{}\"", state.name))
        .replace("memory=16", "memory=64");
    let text = match &state.channel {
        Some(path) => {
            text.replace("uart2=\"off\"", &format!("uart2=\"0x02f8,3\"\nuartmode2=\"server,{path}\""))
        }
        None => text,
    };
    let is_alive = !matches!(state.name, "poweroff" | "saved" | "aborted");
    if is_alive || state.locked > 0 { text } else { text.replace("SessionName=\"GUI/Qt\"\n", "") }
}

/// The text without what is from `begin` to `end`, inclusive.
fn without(text: &str, begin: &str, end: &str) -> String {
    let from = text.find(begin).unwrap();
    let to = from + text[from..].find(end).unwrap() + end.len();
    text[..from].to_owned() + &text[to..]
}

/// The text with another current snapshot and disk.
fn current(text: &str, snapshot: &str, disk: &str) -> String {
    let text = text
        .replace(&format!("currentSnapshot=\"{{{CUT}}}\""), &format!("currentSnapshot=\"{{{snapshot}}}\""));
    text.replace(&format!("<Image uuid=\"{{{UPPER}}}\"/>"), &format!("<Image uuid=\"{{{disk}}}\"/>"))
}
