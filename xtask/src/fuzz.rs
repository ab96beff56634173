//! `cargo xtask fuzz`: every decoder against inputs that a fuzzer makes up, guided by which code they reach.
//!
//! libFuzzer, with the counters that rustc's LLVM can put in: no other toolchain is needed. What is found new lies below
//! `target/fuzz`; `--keep` takes it into the corpus, as far as it reaches anything new.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::layout::{GUEST_TARGET, Layout};
use crate::process::{Group, run as run_program};

/// The compiler puts counters at every edge and comparison, and checks arithmetic.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";
/// Largest input, bytes: some pages of a migration stream.
const MAX_INPUT: u32 = 16 * 1024;

/// An input that takes longer than a minute is a finding. libFuzzer counts time on the wall: on a busy machine less would find its neighbours.
const SLOWEST: &str = "-timeout=60";

/// What is fuzzed, and for how long.
#[derive(Debug, Args)]
pub struct Options {
    /// Only this target [default: all]
    target: Option<String>,
    /// For how long each target
    #[arg(long, default_value_t = 5, value_name = "N")]
    seconds: u64,
    /// Take inputs that reach something new into the corpus
    #[arg(long)]
    keep: bool,
}

/// Builds the fuzzer and runs it, target by target.
///
/// # Errors
/// A target failed; its input is named.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    let (corpora, folder) = (layout.root.join("tests/fuzz/corpus"), layout.target.join("fuzz"));
    let mut targets = names(&corpora)?;
    if let Some(wanted) = &options.target {
        if !targets.contains(wanted) {
            bail!("there is no fuzz target {wanted}; there are {}", targets.join(", "));
        }
        targets = vec![wanted.clone()];
    }
    let program = build(layout, &folder)?;
    let mut failed = Vec::new();
    for target in targets {
        let (kept, found) = (corpora.join(&target), folder.join("found").join(&target));
        std::fs::create_dir_all(&found).with_context(|| format!("making {}", found.display()))?;
        let start = Instant::now();
        let done = fuzz(&program, &folder, &target, &[&found, &kept], options.seconds);
        let inputs = std::fs::read_dir(&found).map_or(0, Iterator::count);
        match done {
            Ok(runs) => println!(
                "fuzz {target:<13} ok      {:6.1} s  {runs} inputs tried, {inputs} reached something new",
                start.elapsed().as_secs_f64()
            ),
            Err(error) => {
                println!("fuzz {target:<13} FAILED  {error:#}");
                failed.push(target);
                continue;
            }
        }
        if options.keep {
            keep(&program, &target, &kept, &found)?;
        }
    }
    if !failed.is_empty() {
        bail!("{} failed; the inputs lie in {}", failed.join(", "), folder.join("findings").display());
    }
    Ok(())
}

/// A target has its corpus, or it is none.
fn names(corpora: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(corpora).with_context(|| format!("reading {}", corpora.display()))?;
    let mut names: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn build(layout: &Layout, folder: &Path) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command
        .current_dir(&layout.root)
        .env("CARGO_TARGET_DIR", folder)
        .env("RUSTFLAGS", FLAGS)
        .args(["build", "--quiet", "--release", "--package", "unasnap-fuzz", "--features", "libfuzzer"])
        // With a target of its own, build scripts are spared the flags.
        .args(["--target", GUEST_TARGET]);
    run_program("building the fuzzer", &mut command, Duration::from_secs(1200))?;
    Ok(folder.join(GUEST_TARGET).join("release/unasnap-fuzz"))
}

fn fuzzer(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    command.env("UNASNAP_FUZZ_TARGET", target);
    command.args([format!("-max_len={MAX_INPUT}"), SLOWEST.into(), "-rss_limit_mb=1024".into()]);
    command
}

/// How many inputs were tried.
fn fuzz(program: &Path, folder: &Path, target: &str, corpora: &[&Path], seconds: u64) -> Result<u64> {
    let (findings, log) = (folder.join("findings"), folder.join(format!("{target}.log")));
    std::fs::create_dir_all(&findings).with_context(|| format!("making {}", findings.display()))?;
    let mut command = fuzzer(program, target);
    command.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1").args(corpora);
    command.arg(format!("-artifact_prefix={}/{target}-", findings.display()));
    let file = std::fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
    command.stdout(Stdio::null()).stderr(file);
    let status = Group::spawn(target, &mut command)?.wait(Duration::from_secs(seconds + 120))?;
    let said = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    if !status.success() {
        let why = said.lines().find(|line| line.contains("panicked at") || line.contains("ERROR"));
        bail!("{}; see {}", why.unwrap_or("it ended with an error"), log.display());
    }
    let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    runs.and_then(|text| text.trim().parse().ok()).context("the fuzzer did not say how many inputs it tried")
}

/// Adds to the corpus what reaches code that nothing in it reaches.
fn keep(program: &Path, target: &str, kept: &Path, found: &Path) -> Result<()> {
    let mut command = fuzzer(program, target);
    // By edges alone: how often each was taken would multiply the files.
    command.args(["-merge=1", "-use_counters=0"]).args([kept, found]).stderr(Stdio::null());
    run_program("merging the corpus", &mut command, Duration::from_secs(600))
}
