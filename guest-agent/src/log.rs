//! Lines on stderr, the agent's own and those of the programs.

use log::{LevelFilter, Log, Metadata, Record};

/// Writes `unasnap-guest: level: text` to stderr.
#[derive(Debug, Clone, Copy)]
pub struct StderrLog;

static LOG: StderrLog = StderrLog;

/// Makes stderr the target of every `log` line. Called once, at start; later calls do nothing.
pub fn to_stderr() {
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

impl Log for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("unasnap")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            eprintln!("unasnap-guest: {level}: {}", record.args());
        }
    }

    fn flush(&self) {}
}
