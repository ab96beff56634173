//! What is said to `debugfs`, and what it says. Names and targets of links are the image's own words.

/// What kind of thing is at a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Regular,
    /// A symbolic link that is short enough to be told at once, and its target.
    Link(String),
    Other,
}

/// What is at a path.
#[derive(Debug)]
pub struct Stat {
    pub kind: Kind,
    pub mode: u32,
    pub owned_by_root: bool,
}

/// A command about a path; `None` if it would not be that one command.
pub fn request(command: &str, path: &str) -> Option<String> {
    // Commands are split at spaces and quotes.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@:,=~".contains(&byte);
    path.bytes().all(plain).then(|| format!("{command} {path}"))
}

/// The answer to `stat`.
pub fn stat(said: &[u8]) -> Stat {
    let shown = String::from_utf8_lossy(said);
    let after = |key: &str| shown.split_once(key)?.1.split_whitespace().next();
    let target = || shown.split_once("Fast link dest: \"")?.1.split('"').next();
    let kind = match (after("Type: "), target()) {
        (Some("directory"), _) => Kind::Directory,
        (Some("regular"), _) => Kind::Regular,
        (Some("symlink"), Some(target)) => Kind::Link(target.to_owned()),
        _ => Kind::Other,
    };
    let mode = after("Mode:").and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0);
    let owned_by_root = after("User:") == Some("0") && after("Group:") == Some("0");
    Stat { kind, mode, owned_by_root }
}

/// Names in the answer to `ls -p`.
pub fn names(said: &[u8]) -> Vec<String> {
    // /inode/mode/uid/gid/name/size/
    let listed = String::from_utf8_lossy(said);
    let names = listed.lines().filter_map(|line| line.split('/').nth(5));
    names.filter(|name| !matches!(*name, "" | "." | "..")).map(str::to_owned).collect()
}
