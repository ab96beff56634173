//! Recorded calls, and what plays them back.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use unasnap_host::hypervisor::virtualbox::calls::{Answer, Calls};
use unasnap_host::hypervisor::{HypervisorError, Pending};

/// One recorded call.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    pub arguments: Vec<String>,
    pub answer: Answer,
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/virtualbox/fixtures")
}

/// A recorded session.
pub fn session(path: &Path) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut name = String::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let (mark, text) = line.split_at(2.min(line.len()));
        if let "# " = mark {
            name = format!("{}/{text}", path.file_stem().unwrap().to_string_lossy());
        } else if let "$ " = mark {
            // Of a call with blanks in it all words stand in quotes.
            let quoted = text.starts_with('[').then(|| serde_json::from_str(text).unwrap());
            let arguments = quoted.unwrap_or_else(|| text.split(' ').map(str::to_owned).collect());
            let answer = Answer { code: 0, stdout: String::new(), stderr: String::new() };
            calls.push(Call { name: name.clone(), arguments, answer });
        } else {
            let answer = &mut calls.last_mut().unwrap().answer;
            match mark {
                "= " => answer.code = text.parse().unwrap(),
                "> " => answer.stdout += &format!("{text}\n"),
                "! " => answer.stderr += &format!("{text}\n"),
                _ => panic!("{}: {line:?}", path.display()),
            }
        }
    }
    calls
}

/// Every recorded call.
pub fn all() -> Vec<Call> {
    let files = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .flat_map(|path| session(&path))
        .collect()
}

/// The recorded answer of this name, `06-running-vm/009-pause-again`.
pub fn answer(name: &str) -> Answer {
    let (file, _) = name.split_once('/').unwrap();
    let calls = session(&fixtures().join(format!("{file}.txt")));
    calls.into_iter().find(|call| call.name == name).unwrap_or_else(|| panic!("no {name}")).answer
}

/// Plays answers back in their order; what is asked has to be what was asked then.
#[derive(Debug, Default)]
pub struct Replay {
    pub left: Mutex<Vec<Call>>,
    /// For `showvminfo` when nothing is left.
    pub then: Option<Answer>,
}

impl Replay {
    pub fn of(names: &[&str]) -> Self {
        let calls = all();
        let of = |name: &&str| {
            calls.iter().find(|call| call.name == **name).unwrap_or_else(|| panic!("no {name}")).clone()
        };
        Self { left: Mutex::new(names.iter().rev().map(of).collect()), then: None }
    }
}

impl Calls for Replay {
    fn call<'a>(&'a self, vm: &'a str, arguments: &'a [&'a str], limit: Duration) -> Pending<'a, Answer> {
        Box::pin(async move {
            let next = self.left.lock().unwrap().pop();
            match next {
                Some(call) => {
                    assert_eq!(call.arguments, arguments, "{}", call.name);
                    // The recorder gave up, as the driver would.
                    if call.answer.code == 124 {
                        let what = arguments.join(" ");
                        return Err(HypervisorError::TimedOut { vm: vm.to_owned(), what, after: limit });
                    }
                    Ok(call.answer)
                }
                None => Ok(self.then.clone().unwrap_or_else(|| panic!("unexpected: {arguments:?}"))),
            }
        })
    }
}
