//! The table of fault points, the page that lists them and the code that reaches them say the same.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::path::{Path, PathBuf};

use unasnap_fault_points::{GROUPS, Group, Program};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All code of a program.
fn code(program: Program) -> String {
    let (mut text, mut folders) = (String::new(), vec![root().join(folder(program)).join("src")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path if path.ends_with("tests.rs") => {}
                path => text += &std::fs::read_to_string(path).unwrap(),
            }
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn folder(program: Program) -> &'static str {
    match program {
        Program::Coordinator => "coordinator",
        Program::Host => "host-agent",
        Program::Guest => "guest-agent",
    }
}

fn name(program: Program) -> &'static str {
    match program {
        Program::Coordinator => "`unasnap coordinator`",
        Program::Host => "`unasnap-host`",
        Program::Guest => "`unasnap-guest`",
    }
}

fn row(group: &Group) -> String {
    let steps: Vec<_> = group.steps.iter().map(|step| format!("`{step}`")).collect();
    format!("| `{}` | {} | {} | {} |", group.name, name(group.program), group.what, steps.join(" "))
}

#[test]
fn the_page_lists_every_point_and_no_other() {
    let page = std::fs::read_to_string(root().join("docs/chaos.md")).unwrap();
    let (_, list) = page.split_once("| group | program |").unwrap();
    let listed: Vec<_> = list.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    let expected: Vec<_> = GROUPS.iter().map(row).collect();
    assert_eq!(listed, expected, "docs/chaos.md should say:\n{}", expected.join("\n"));
}

/// Where a step's name is not known before the program runs (a message, a command), the group's points are reached with
/// what the message or the command is called; everything else stands in the code as it stands in the table.
#[test]
fn every_step_is_in_the_code() {
    for group in GROUPS {
        let code = code(group.program);
        let reached = |points: &[&str], step: &str| {
            points.iter().all(|point| code.contains(&format!("{point}(\"{}\", {step}", group.name)))
        };
        let at_both = |step: &str| reached(&["before", "after"], step) || reached(&["around"], step);
        let by_name =
            ["order.name()", "message.name()", "answer.name()", "name", "command", "program", "step"];
        let generic = by_name.iter().any(|name| at_both(name));
        let of_a_set = ["order", "say", "tell", "answer", "relay", "reply", "ask", "seek", "give", "guest"]
            .contains(&group.name);
        for step in group.steps {
            let literal = format!("\"{step}\"");
            let is_there = at_both(&literal) || (generic && (of_a_set || code.contains(&literal)));
            assert!(is_there, "{}.{step} is never reached: take it off the table", group.name);
        }
    }
}
