//! What the guests' consoles say, and the words by which a guest is told what to run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use unasnap_tests::ring::manager::RunResult;

/// Lines with these words are the end of all hope.
const FAILURES: [&str; 5] = ["RING-FAILED", "STREAM-FAILED", "BANK-FAILED", "DISK-FAILED", "Kernel panic"];

/// Address of a VM, counted from 1.
pub fn address(vm: u32) -> String {
    format!("10.77.1.{vm}")
}

/// Percent-encodes a command for the kernel's command line, as the guests' `/init` wants it.
pub fn encode(command: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./:-_".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    command.bytes().map(one).collect()
}

/// The console of one VM.
#[derive(Debug, Clone)]
pub struct Console {
    /// The VM's name.
    pub vm: String,
    /// Its log, to which QEMU appends.
    pub path: PathBuf,
    from: u64,
}

#[derive(Deserialize)]
struct Progress {
    token: u64,
}

#[derive(Deserialize)]
struct Blocks {
    blocks: u64,
}

impl Console {
    /// The console that QEMU writes to `path`.
    pub fn new(vm: String, path: &Path) -> Self {
        Self { vm, path: path.to_owned(), from: 0 }
    }

    /// Forgets what was written so far.
    pub fn skip(&mut self) {
        self.from = std::fs::metadata(&self.path).map_or(0, |data| data.len());
    }

    /// What was written since. Before QEMU has made the file that is nothing.
    fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let from = usize::try_from(self.from).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    /// JSON after `tag`, in whole lines.
    fn tagged(&self, tag: &str) -> Vec<String> {
        let text = self.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .filter_map(|line| line.split_once(tag))
            .map(|(_, rest)| rest.trim().to_owned())
            .collect()
    }

    /// Numbers of the tokens that the node's progress lines named.
    pub fn tokens(&self) -> Vec<u64> {
        let lines = self.tagged("RING-PROGRESS ");
        let progress = lines.iter().filter_map(|line| serde_json::from_str::<Progress>(line).ok());
        progress.map(|progress| progress.token).collect()
    }

    /// How many blocks the stream had passed at each of its progress lines.
    pub fn blocks(&self) -> Vec<u64> {
        let lines = self.tagged("STREAM-PROGRESS ");
        let progress = lines.iter().filter_map(|line| serde_json::from_str::<Blocks>(line).ok());
        progress.map(|progress| progress.blocks).collect()
    }

    /// Is there a line with this tag?
    pub fn tells(&self, tag: &str) -> bool {
        !self.tagged(tag).is_empty()
    }

    /// The ring's result, once the manager has printed it.
    ///
    /// # Errors
    /// The line is not what the manager writes.
    pub fn result(&self) -> Result<Option<RunResult>> {
        let lines = self.tagged("RING-RESULT ");
        lines.last().map(|line| serde_json::from_str(line).context("the ring's result")).transpose()
    }

    /// The first line that says that something is broken.
    pub fn failure(&self) -> Option<String> {
        let text = self.text();
        let line = text.lines().find(|line| FAILURES.iter().any(|word| line.contains(word)))?;
        Some(format!("{}: {}", self.vm, line.trim()))
    }

    /// Resident memory of the guest agent in KiB, once the ring has ended.
    pub fn agent_kib(&self) -> Option<u64> {
        self.tagged("VmRSS:").last()?.split_whitespace().next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_kernel_command_line() {
        assert_eq!(encode("a --b 1; c & d"), "a%20--b%201%3B%20c%20%26%20d");
        let words = encode("x=\"$(y)\"\n");
        assert!(!words.contains([' ', '$', '&', '"', '=', '\n']), "{words}");
    }

    #[test]
    fn consoles_are_read_from_where_they_were_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::new("vm1".into(), &path);
        assert!(console.tokens().is_empty());
        let first = "boot\r\nRING-PROGRESS {\"name\":\"a\",\"token\":7,\"longest_gap_ms\":1.0}\r\nRING-PROG";
        std::fs::write(&path, first).unwrap();
        assert_eq!(console.tokens(), [7]);
        assert_eq!(console.failure(), None);
        assert!(console.tells("RING-PROGRESS ") && !console.tells("STREAM-PROGRESS "));
        console.skip();
        let more = format!(
            "{first}RESS {{\"token\":9}}\nRING-PROGRESS {{\"token\":11}}\nDISK-FAILED {{}}\nVmRSS:\t 512 kB\n"
        );
        std::fs::write(&path, more).unwrap();
        assert_eq!(console.tokens(), [11]);
        assert_eq!(console.failure().unwrap(), "vm1: DISK-FAILED {}");
        assert_eq!(console.agent_kib(), Some(512));
    }
}
