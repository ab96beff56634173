//! A machine as it was when a snapshot was taken of it, without that snapshot: off, with its RAM in the snapshot's file.
//!
//! Going back to the snapshot would come to the same. But it needs the disk that the machine wrote after it, and leaves the snapshot
//! to be deleted and its disks to be merged.

use super::parts::{self, Part, escaped};
use crate::uuid::Uuid;

/// What a snapshot has of its own, and the machine as it is now, too.
const STATE: [&str; 2] = ["Hardware", "Platform"];
/// The attributes of a machine that say what it goes on from.
const GOES_ON_FROM: [&str; 3] = ["stateFile", "currentSnapshot", "currentStateModified"];

/// The text of a `.vbox` for that: `snapshot` is the UUID of the machine's newest one. Those before it stay.
///
/// # Errors
/// It is no text of a machine with that snapshot, or others go on from that; in words.
pub fn as_saved(text: &str, snapshot: &str) -> Result<String, String> {
    let machine = parts::machine(text)?;
    let (taken, before) = find(&machine, snapshot)?;
    if taken.child("Snapshots").is_some_and(|others| !others.children.is_empty()) {
        return Err(format!("other snapshots go on from {snapshot}"));
    }
    Ok(rewritten(text, &machine, taken, &[taken], before))
}

/// As [`as_saved`], of any snapshot, and none is left.
///
/// # Errors
/// It is no text of a machine with that snapshot, in words.
pub fn as_saved_alone(text: &str, snapshot: &str) -> Result<String, String> {
    let machine = parts::machine(text)?;
    let (taken, _) = find(&machine, snapshot)?;
    let all: Vec<&Part> = machine.children.iter().filter(|child| child.name == "Snapshot").collect();
    Ok(rewritten(text, &machine, taken, &all, None))
}

/// The snapshot, and the one that it goes on from.
fn find<'a>(machine: &'a Part, snapshot: &str) -> Result<(&'a Part, Option<&'a Part>), String> {
    let found = Uuid::parse(snapshot).and_then(|uuid| machine.snapshot(uuid));
    found.ok_or_else(|| format!("it has no snapshot {snapshot}"))
}

/// The machine as it was in `taken`, without these snapshots; it goes on from `before`.
fn rewritten(text: &str, machine: &Part, taken: &Part, gone: &[&Part], before: Option<&Part>) -> String {
    let mut changes: Vec<_> = gone.iter().map(|part| (part.whole.clone(), String::new())).collect();
    for name in STATE {
        if let Some((now, then)) = machine.child(name).zip(taken.child(name)) {
            changes.push((now.whole.clone(), text[then.whole.clone()].to_owned()));
        }
    }
    let state = taken.attribute("stateFile").map(|file| ("stateFile", file));
    let before = before.and_then(|before| before.attribute("uuid")).map(|uuid| ("currentSnapshot", uuid));
    let mut tag = format!("<{}", machine.name);
    let kept = machine.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in kept.filter(|(key, _)| !GOES_ON_FROM.contains(key)).chain(state).chain(before) {
        tag += &format!(" {key}=\"{}\"", escaped(value));
    }
    changes.push((machine.begin.clone(), tag + ">"));
    parts::replaced(text, changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "11111111-523c-4243-a6bd-635926e1d6f9";
    const CUT: &str = "22222222-523c-4243-a6bd-635926e1d6f9";

    fn machine(attributes: &str, inside: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<VirtualBox version=\"1.20-linux\">\n  <Machine {attributes}>\n    {inside}\n  </Machine>\n</VirtualBox>\n"
        )
    }

    fn taken(uuid: &str, state: &str, inside: &str) -> String {
        format!("<Snapshot uuid=\"{{{uuid}}}\" name=\"s\"{state}>{inside}</Snapshot>")
    }

    #[test]
    fn the_machine_is_what_the_snapshot_was() {
        let (then, now) =
            ("<Hardware><Image uuid=\"lower\"/></Hardware>", "<Hardware><Image uuid=\"upper\"/></Hardware>");
        let cut =
            taken(CUT, " stateFile=\"Snapshots/a&amp;b&#10;c.sav\"", &format!("{then}<Platform p=\"1\"/>"));
        let text = machine(
            &format!(
                "uuid=\"{{m}}\" name=\"a&lt;b\" currentSnapshot=\"{{{CUT}}}\" currentStateModified=\"false\" OSType=\"Other\""
            ),
            &format!("{cut}{now}<Platform p=\"2\"/><Groups/>"),
        );
        let expected = machine(
            "uuid=\"{m}\" name=\"a&lt;b\" OSType=\"Other\" stateFile=\"Snapshots/a&amp;b&#10;c.sav\"",
            &format!("{then}<Platform p=\"1\"/><Groups/>"),
        );
        assert_eq!(as_saved(&text, CUT).unwrap(), expected);
    }

    #[test]
    fn snapshots_before_it_stay() {
        let cut = taken(CUT, "", "<Hardware c=\"\"/>");
        let tree =
            |inside: &str| taken(FIRST, "", &format!("<Hardware f=\"\"/><Snapshots>{inside}</Snapshots>"));
        let text = machine(&format!("currentSnapshot=\"{{{CUT}}}\""), &format!("{}<Hardware/>", tree(&cut)));
        let expected =
            machine(&format!("currentSnapshot=\"{{{FIRST}}}\""), &format!("{}<Hardware c=\"\"/>", tree("")));
        assert_eq!(as_saved(&text, CUT).unwrap(), expected);
        assert!(as_saved(&text, FIRST).unwrap_err().contains("other snapshots go on from"));
        for (snapshot, state) in [(CUT, "c"), (FIRST, "f")] {
            let alone = machine("", &format!("<Hardware {state}=\"\"/>"));
            assert_eq!(as_saved_alone(&text, snapshot).unwrap().replace("<Machine>", "<Machine >"), alone);
        }
        assert!(
            as_saved(&text, "33333333-523c-4243-a6bd-635926e1d6f9").unwrap_err().contains("has no snapshot")
        );
        assert!(as_saved("<VirtualBox><Machine>", CUT).is_err());
    }
}
