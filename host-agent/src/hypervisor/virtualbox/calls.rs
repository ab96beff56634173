//! Calls of VBoxManage: run, bounded, and understood.
//!
//! The exit code alone does not tell: `discardstate` fails with 0. Progress goes to stderr beside the errors. So an answer is an
//! error when its code says so or an error stands on stderr.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::process::Command;
use unasnap_fault_points::points;

use super::super::{HypervisorError, Pending};
use super::VirtualBoxConfig;
use crate::fault_point;

/// Most bytes of an answer: what guests say may be among them.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// How often it is looked how much there is.
const MEASURE_EVERY: Duration = Duration::from_millis(100);
/// How VBoxManage begins each line of an error.
const ERROR: &str = "VBoxManage: error: ";

/// What one call answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Exit code; -1 for a death by signal.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// Progress and errors.
    pub stderr: String,
}

/// Makes calls of VBoxManage.
pub trait Calls: Send + Sync {
    /// Makes one for `vm` and returns what it answered, whatever that is.
    ///
    /// # Errors
    /// The program cannot be run, or does not end within `limit`.
    fn call<'a>(&'a self, vm: &'a str, arguments: &'a [&'a str], limit: Duration) -> Pending<'a, Answer>;
}

impl Answer {
    /// What went wrong, in VBoxManage's own words; `None` when nothing did.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        // Where in VirtualBox's source it was called from helps nobody.
        let told = |line: &&str| !line.starts_with("Details: ") && !line.starts_with("Context: ");
        let lines = self.stderr.lines().filter_map(|line| line.strip_prefix(ERROR)).filter(told);
        let words: Vec<&str> = lines.collect();
        match words.as_slice() {
            [] if self.code == 0 => None,
            [] => {
                let said = [&self.stderr, &self.stdout].map(|text| text.trim());
                let said: Vec<&str> = said.into_iter().filter(|text| !text.is_empty()).collect();
                Some(format!("exit code {}: {}", self.code, said.join("; ")))
            }
            words => Some(words.join("; ")),
        }
    }

    /// Is it the error of this code (`VBOX_E_OBJECT_NOT_FOUND`)?
    #[must_use]
    pub fn has_code(&self, code: &str) -> bool {
        self.stderr.lines().any(|line| line.contains("Details: code ") && line.contains(code))
    }

    /// Itself, if nothing went wrong.
    ///
    /// # Errors
    /// `Refused` with VBoxManage's words.
    pub fn success(self, vm: &str, command: &[&str]) -> Result<Self, HypervisorError> {
        match self.error() {
            None => Ok(self),
            Some(reason) => {
                Err(HypervisorError::Refused { vm: vm.to_owned(), command: shown(command), reason })
            }
        }
    }
}

/// A call as an operator would type it.
#[must_use]
pub fn shown(arguments: &[&str]) -> String {
    format!("VBoxManage {}", arguments.join(" "))
}

/// The host's VBoxManage.
#[derive(Debug)]
pub struct VBoxManage {
    program: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
    folder: PathBuf,
    calls: AtomicU64,
}

impl VBoxManage {
    /// As the configuration has it; `folder` is for its answers while a call is made.
    #[must_use]
    pub fn new(config: &VirtualBoxConfig, folder: &Path) -> Self {
        let home = config.user_home.clone().map(|home| ("VBOX_USER_HOME", home));
        let socket = config.ipc_socket_id.clone().map(|id| ("VBOX_IPC_SOCKETID", id.into()));
        Self {
            program: config.vboxmanage.clone(),
            environment: home.into_iter().chain(socket).collect(),
            folder: folder.to_owned(),
            calls: AtomicU64::new(0),
        }
    }

    async fn run(&self, vm: &str, arguments: &[&str], limit: Duration) -> Result<Answer, HypervisorError> {
        let failed = |reason: String| HypervisorError::Tool { command: shown(arguments), reason };
        let (mut stdout, mut stderr) = (self.nameless()?, self.nameless()?);
        let handle = |file: &File| file.try_clone().map_err(HypervisorError::file("open", &self.folder));
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        // No pipes: the service that VBoxManage starts where none runs would keep them open.
        command.stdin(Stdio::null()).stdout(handle(&stdout)?).stderr(handle(&stderr)?).kill_on_drop(true);
        let ended = tokio::select! {
            ended = tokio::time::timeout(limit, command.status()) => ended,
            () = too_long([&stdout, &stderr]) => {
                return Err(failed(format!("it printed more than {MAX_ANSWER_BYTES} bytes, and was killed")));
            }
        };
        let status = match ended {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => {
                return Err(failed(format!("{error} (is {} VirtualBox's?)", self.program.display())));
            }
            Err(_) => {
                let what = shown(arguments);
                return Err(HypervisorError::TimedOut { vm: vm.to_owned(), what, after: limit });
            }
        };
        let text = |file: &mut File| {
            let mut bytes = Vec::new();
            let read = file.rewind().and_then(|()| file.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes));
            read.map_err(HypervisorError::file("read an answer in", &self.folder))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let code = status.code().unwrap_or(-1);
        Ok(Answer { code, stdout: text(&mut stdout)?, stderr: text(&mut stderr)? })
    }

    /// A file without a name.
    fn nameless(&self) -> Result<File, HypervisorError> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("vboxmanage-{}-{number}", std::process::id()));
        let made = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = made.map_err(HypervisorError::file("create", &path))?;
        std::fs::remove_file(&path).map_err(HypervisorError::file("delete", &path))?;
        Ok(file)
    }
}

/// Until one of the files is longer than an answer may be.
async fn too_long(files: [&File; 2]) {
    let is_too_long = |file: &File| file.metadata().is_ok_and(|found| found.len() > MAX_ANSWER_BYTES);
    while !files.into_iter().any(is_too_long) {
        tokio::time::sleep(MEASURE_EVERY).await;
    }
}

impl Calls for VBoxManage {
    fn call<'a>(&'a self, vm: &'a str, arguments: &'a [&'a str], limit: Duration) -> Pending<'a, Answer> {
        Box::pin(async move {
            let step = arguments.first().and_then(|verb| points::find("vbox", verb));
            // What is asked of no machine and no disk is no point.
            let Some(step) = step else { return self.run(vm, arguments, limit).await };
            let failed = |error: std::io::Error| HypervisorError::Tool {
                command: shown(arguments),
                reason: error.to_string(),
            };
            fault_point::before("vbox", step).await.map_err(failed)?;
            let answer = self.run(vm, arguments, limit).await?;
            fault_point::after("vbox", step).await.map_err(failed)?;
            Ok(answer)
        })
    }
}
