//! Where it was measured.

use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use crate::process::text;

const QUICK: Duration = Duration::from_secs(30);

/// What figures depend on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Processors.
    pub cores: usize,
    /// RAM, MiB.
    pub memory_mb: u64,
    /// The kernel's release.
    pub kernel: String,
    /// First line of QEMU's version.
    pub qemu: String,
    /// UTC, to the minute.
    pub date: String,
    /// Runnable processes per processor in the last minute before the run: others' load falsifies figures.
    pub load: f64,
}

/// What can be found out; a fact that cannot is empty.
pub fn facts() -> Machine {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let ask = |program: &str, arguments: &[&str]| {
        text(program, Command::new(program).args(arguments), QUICK).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load: f64 = file("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let qemu = ask("qemu-system-x86_64", &["--version"]);
    Machine {
        cpu: after_colon(&file("/proc/cpuinfo"), "model name"),
        cores,
        memory_mb: after_colon(&file("/proc/meminfo"), "MemTotal").split(' ').next().map_or(0, kib_to_mib),
        kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
        qemu: qemu.lines().next().unwrap_or_default().trim_start_matches("QEMU emulator version ").to_owned(),
        date: ask("date", &["-u", "+%Y-%m-%d %H:%M"]).trim().to_owned(),
        load: load / cores as f64,
    }
}

fn kib_to_mib(kib: &str) -> u64 {
    kib.parse::<u64>().map_or(0, |kib| kib / 1024)
}

/// The value of the first line `name : value`.
fn after_colon(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found() {
        assert_eq!(after_colon("a : 1\nmodel name\t: Some CPU\n", "model name"), "Some CPU");
        let machine = facts();
        assert!(machine.cores > 0 && machine.memory_mb > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }
}
