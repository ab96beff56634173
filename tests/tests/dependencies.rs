//! What our dependencies may be, as `.ci/deny.toml` says it: tried at every run with what cargo itself knows. `cargo xtask deny`
//! looks closer: at the licences' texts, at duplicates, and at what is known to be unsafe.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq, ParseMode};

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The part of `.ci/deny.toml` about licences.
struct Rules(toml::Value);

impl Rules {
    fn read() -> Self {
        let text = std::fs::read_to_string(root().join(".ci/deny.toml")).unwrap();
        Self(text.parse::<toml::Table>().unwrap()["licenses"].clone())
    }

    /// May this package be used under this licence?
    fn allow(&self, package: &str, licence: &LicenseReq) -> bool {
        let holds = |list: &toml::Value| {
            list.as_array().unwrap().iter().any(|one| one.as_str().unwrap() == licence.to_string())
        };
        let exceptions = self.0["exceptions"].as_array().unwrap().iter();
        let mut own = exceptions.filter(|one| one["crate"].as_str() == Some(package));
        holds(&self.0["allow"]) || own.any(|one| holds(&one["allow"]))
    }

    /// What is wrong with a package of somebody else's.
    fn problem(&self, package: &Value) -> Option<String> {
        let name = package["name"].as_str().unwrap();
        if package["source"] != REGISTRY {
            return Some(format!("{name} comes from {}", package["source"]));
        }
        let Some(licence) = package["license"].as_str() else {
            return Some(format!("{name} names no licence"));
        };
        let Ok(expression) = Expression::parse_mode(licence, ParseMode::LAX) else {
            return Some(format!("the licence of {name} is not understood: {licence}"));
        };
        let allowed = expression.evaluate(|licence| self.allow(name, licence));
        (!allowed).then(|| format!("{name} is under {licence}, which .ci/deny.toml does not allow"))
    }
}

#[test]
fn every_dependency_has_a_licence_and_a_source_that_we_allow() {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version=1", "--locked", "--all-features"]);
    command.args(["--filter-platform", "x86_64-unknown-linux-gnu"]).current_dir(root());
    let said = command.output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let metadata: Value = serde_json::from_slice(&said.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let members = metadata["workspace_members"].as_array().unwrap();
    let foreign: Vec<_> = packages.iter().filter(|package| !members.contains(&package["id"])).collect();
    assert!(foreign.len() > 100, "only {} dependencies were found", foreign.len());
    let rules = Rules::read();
    let problems: Vec<_> = foreign.into_iter().filter_map(|package| rules.problem(package)).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn what_is_not_allowed_is_found() {
    let rules = Rules::read();
    let problem = |name: &str, source: &str, licence: Value| {
        rules.problem(&serde_json::json!({"name": name, "source": source, "license": licence}))
    };
    for licence in ["MIT", "Apache-2.0/MIT", "GPL-3.0-only OR ISC", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
        assert_eq!(problem("a", REGISTRY, licence.into()), None, "{licence}");
    }
    for licence in
        ["GPL-3.0-only", "MIT AND GPL-2.0-only", "NCSA", "Apache-2.0 WITH LLVM-exception", "whatever"]
    {
        assert!(problem("a", REGISTRY, licence.into()).is_some(), "{licence}");
    }
    assert_eq!(problem("libfuzzer-sys", REGISTRY, "(MIT OR Apache-2.0) AND NCSA".into()), None);
    assert!(problem("a", REGISTRY, Value::Null).is_some());
    assert!(problem("a", "git+https://example.org/a", "MIT".into()).is_some());
}
