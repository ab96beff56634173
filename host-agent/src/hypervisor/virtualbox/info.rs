//! What `showvminfo --machinereadable` says of a machine.

use std::path::PathBuf;

use super::record::CONSOLE_SOCKET;

/// The parts that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// What the machine is doing.
    pub state: State,
    /// Has somebody locked it? It stays locked for a second or two after its process has been told to end.
    pub locked: bool,
    /// RAM, MiB.
    pub memory_mb: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Its `.vbox`.
    pub settings: Option<PathBuf>,
    /// Unix socket behind the serial port that serves as the guest channel.
    pub guest_channel: Option<PathBuf>,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Off, or its process has died.
    Off,
    /// Off, with its RAM in a file.
    Saved,
    /// Its vCPUs run, perhaps while a snapshot is deleted.
    Running,
    /// Its vCPUs stand still.
    Paused,
    /// It has a process whose guest cannot go on.
    Stuck,
    /// On the way from one state to another.
    Between,
    /// VirtualBox knows it, and cannot read its settings or lacks one of its disks.
    Inaccessible,
}

impl State {
    fn of(name: &str) -> Self {
        match name {
            "poweroff" | "aborted" | "teleported" => Self::Off,
            "saved" | "aborted-saved" => Self::Saved,
            "running" | "deletingsnapshotlive" => Self::Running,
            "paused" | "deletingsnapshotlivepaused" => Self::Paused,
            "gurumeditation" => Self::Stuck,
            _ => Self::Between,
        }
    }

    /// Has it a process?
    #[must_use]
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Off | Self::Saved | Self::Inaccessible)
    }
}

impl Info {
    /// Of a machine of which VirtualBox tells no more.
    pub const INACCESSIBLE: Self = Self {
        state: State::Inaccessible,
        locked: false,
        memory_mb: 0,
        cpus: 0,
        settings: None,
        guest_channel: None,
    };

    /// Can VirtualBox do anything with it but forget it?
    #[must_use]
    pub fn is_accessible(&self) -> bool {
        self.state != State::Inaccessible
    }

    /// Reads `showvminfo --machinereadable`. It escapes nothing, and what a guest can set stands at its end: of each key
    /// the first line counts.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = |key: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            values
                .next()
                .map(|value| value.trim_matches('"'))
                .ok_or_else(|| format!("it does not tell {key}"))
        };
        let number = |key: &str| {
            let value = value(key)?;
            value.parse::<u32>().map_err(|_| format!("its {key} is {value:?}"))
        };
        let server =
            |port: u8| value(&format!("uartmode{port}")).ok()?.strip_prefix("server,").map(PathBuf::from);
        let is_channel = |socket: &PathBuf| !socket.ends_with(CONSOLE_SOCKET);
        Ok(Self {
            state: State::of(value("VMState")?),
            locked: value("SessionName").is_ok_and(|name| !name.is_empty()),
            memory_mb: number("memory")?.into(),
            cpus: number("cpus")?,
            settings: value("CfgFile").ok().map(PathBuf::from),
            guest_channel: (1..=4).filter_map(server).find(is_channel),
        })
    }
}
