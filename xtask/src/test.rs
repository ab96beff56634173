//! `cargo xtask test`: every check there is, one line of verdict each, and a last line that counts.
//!
//! Each step has a time limit. A step that reaches it is killed with all its children, and the line names the test that was
//! running: tests run one after the other, because those with VMs would slow each other until they fail.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{self, Artifacts};
use crate::layout::Layout;
use crate::package;
use crate::process::Group;
use crate::setup::{self, virtualbox::VirtualBox};

const MINUTE: Duration = Duration::from_secs(60);

/// VMs slow each other, and the test that hangs is to be named.
const ONE_BY_ONE: [&str; 3] = ["--format", "pretty", "--test-threads=1"];

/// What has passed and failed; steps that are not `cargo test` count as one each.
#[derive(Debug, Default)]
struct Score {
    passed: u32,
    failed: u32,
    ignored: u32,
}

/// Runs all steps; later ones run although an earlier one failed, as far as they can.
///
/// # Errors
/// Something failed; the lines above the last one say what.
pub fn run(layout: &Layout) -> Result<()> {
    let mut score = Score::default();
    score.verdict("setup", Instant::now(), setup::run(layout, false));
    score.step("format", cargo(layout, &["fmt", "--all", "--check"]), 2 * MINUTE);
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    score.step("clippy", cargo(layout, &clippy), 30 * MINUTE);
    let start = Instant::now();
    let built = build::build(layout);
    let artifacts = built.as_ref().ok().cloned();
    score.verdict("build", start, built.map(|_| ()));
    let virtualbox = score.virtualbox(layout);
    let debian = score.debian(layout);
    if let Some(artifacts) = artifacts {
        let mut tests = cargo(layout, &["test", "--quiet", "--workspace", "--no-fail-fast", "--"]);
        tests.args(ONE_BY_ONE);
        environment(&mut tests, &artifacts);
        tests.envs(virtualbox).envs(debian);
        // Half of it where nothing else runs.
        score.step("tests", tests, 50 * MINUTE);
        let own = std::env::current_exe().context("this program's own path")?;
        let experiments = [
            ("prove", &["prove", "--runs", "20000"][..]),
            ("fuzz", &["fuzz"]),
            ("demo", &["demo", "--json"]),
            ("control", &["control"]),
            ("bank", &["bank", "--snapshots", "2", "--fault", "all"]),
            ("moves", &["bank", "--snapshots", "2", "--colouring", "mixed", "--migrate"]),
            ("chaos", &["chaos", "--sample"]),
            ("bench", &["bench", "--quick", "--json"]),
        ];
        for (name, arguments) in experiments {
            let mut command = Command::new(&own);
            command.args(arguments).env("CARGO_TARGET_DIR", &layout.target);
            score.step(name, command, 20 * MINUTE);
        }
    }
    score.end()
}

/// Runs the tests of the VirtualBox driver only.
///
/// # Errors
/// As of [`run`].
pub fn run_virtualbox(layout: &Layout) -> Result<()> {
    let mut score = Score::default();
    let virtualbox = score.virtualbox(layout);
    let mut tests = cargo(layout, &["test", "--quiet", "-p", "unasnap-host", "--test", "virtualbox", "--"]);
    tests.args(ONE_BY_ONE).envs(virtualbox);
    score.step("tests", tests, 30 * MINUTE);
    score.end()
}

fn cargo(layout: &Layout, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&layout.root).env("CARGO_TARGET_DIR", &layout.target).args(arguments);
    command
}

/// Tells VM tests where everything is.
fn environment(command: &mut Command, artifacts: &Artifacts) {
    command.env("UNASNAP_TEST_KERNEL", &artifacts.kernel);
    command.env("UNASNAP_TEST_INITRD", &artifacts.initramfs);
    command.env("UNASNAP_TEST_BIN", &artifacts.programs);
}

impl Score {
    /// The variables by which tests find VirtualBox; none if it could not be installed, and then they fail.
    fn virtualbox(&mut self, layout: &Layout) -> Vec<(&'static str, PathBuf)> {
        let start = Instant::now();
        let (found, result) = match setup::virtualbox::install(layout) {
            Ok(VirtualBox { vboxmanage, machines }) => (
                vec![("UNASNAP_TEST_VIRTUALBOX", vboxmanage), ("UNASNAP_TEST_VIRTUALBOX_DIR", machines)],
                Ok(()),
            ),
            Err(error) => (Vec::new(), Err(error)),
        };
        self.verdict("virtualbox", start, result);
        found
    }

    /// The variables by which tests find a Debian to make images of, and the agent's package.
    fn debian(&mut self, layout: &Layout) -> Vec<(&'static str, PathBuf)> {
        let start = Instant::now();
        let agent = layout.programs().join("unasnap-guest");
        let found = setup::debian::install(layout).and_then(|debian| {
            let package = package::write(layout, &agent)?;
            Ok(vec![("UNASNAP_TEST_DEBIAN", debian), ("UNASNAP_TEST_PACKAGE", package)])
        });
        let (found, result) = found.map_or_else(|error| (Vec::new(), Err(error)), |found| (found, Ok(())));
        self.verdict("debian", start, result);
        found
    }

    fn end(&self) -> Result<()> {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.ignored);
        if self.failed > 0 {
            bail!("{} failed; see above", self.failed);
        }
        Ok(())
    }

    fn verdict(&mut self, name: &str, start: Instant, result: Result<()>) {
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("step {name:<10} ok      {seconds:6.1} s");
            }
            Err(error) => {
                self.failed += 1;
                println!("step {name:<10} FAILED  {seconds:6.1} s  {error:#}");
            }
        }
    }

    fn step(&mut self, name: &str, mut command: Command, limit: Duration) {
        let start = Instant::now();
        let result = self.watched(name, &mut command, limit);
        self.verdict(name, start, result);
    }

    /// Runs a command, shows and counts what it prints.
    fn watched(&mut self, name: &str, command: &mut Command, limit: Duration) -> Result<()> {
        command.stdout(Stdio::piped());
        let mut group = Group::spawn(name, command)?;
        let pipe = group.child().stdout.take().context("piped")?;
        let seen = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&seen);
        let reader = std::thread::spawn(move || copy(pipe, &shared));
        let status = group.wait(limit);
        if status.is_ok() {
            // The pipe ends with the last process that has it. One that a test left behind would keep it for ever:
            // the group's end, by drop, comes first.
            drop(group);
            let _ = reader.join();
        }
        let text = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.count(&text);
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("{status}{}", failures(&text)),
            Err(error) => bail!("{error:#}, while it ran {}", running(&text)),
        }
    }

    /// Adds up the lines with which libtest ends.
    fn count(&mut self, text: &str) {
        for line in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            let number = |what: &str| {
                let (before, _) = line.split_once(what)?;
                before.split_whitespace().next_back()?.parse::<u32>().ok()
            };
            self.passed += number(" passed").unwrap_or(0);
            self.failed += number(" failed").unwrap_or(0);
            self.ignored += number(" ignored").unwrap_or(0);
        }
    }
}

/// Shows what comes through a pipe and keeps it.
fn copy(mut pipe: impl Read, seen: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        let _ = std::io::stdout().write_all(&buffer[..length]).and_then(|()| std::io::stdout().flush());
        let text = String::from_utf8_lossy(&buffer[..length]);
        seen.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
    }
}

/// Names of the tests that failed: the indented lines before each `test result: FAILED`.
fn failures(text: &str) -> String {
    let lists = text.match_indices("\ntest result: FAILED").filter_map(|(end, _)| {
        let (_, list) = text[..end].rsplit_once("\nfailures:\n")?;
        Some(list)
    });
    let names = lists.flat_map(str::lines).map(str::trim).filter(|name| !name.is_empty());
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() { names } else { format!(": {names}") }
}

/// The test whose verdict is missing: libtest prints a test's name before it runs it.
fn running(text: &str) -> &str {
    let last = text.lines().rev().find_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
    last.map_or("no test", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "running 2 tests\ntest a::good ... ok\ntest a::bad ... noise\nFAILED\n\n\
                          failures:\n\n---- a::bad stdout ----\npanic\n\nfailures:\n    a::bad\n\n\
                          test result: FAILED. 1 passed; 1 failed; 3 ignored; 0 measured\n\ntest vm::hangs ... talk\n";

    #[test]
    fn results_are_counted_and_failures_named() {
        let mut score = Score::default();
        score.count(OUTPUT);
        score.count("test result: ok. 20 passed; 0 failed; 0 ignored; 0 measured\n");
        assert_eq!((score.passed, score.failed, score.ignored), (21, 1, 3));
        assert_eq!(failures(OUTPUT), ": a::bad");
    }

    #[test]
    fn a_hanging_step_is_killed_and_its_test_named() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test vm::slow ... '; sleep 60"]);
        let error = Score::default().watched("tests", &mut command, Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().ends_with("while it ran vm::slow"), "{error}");
    }
}
