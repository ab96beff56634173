//! `unasnap image check`: does the system on an image meet the conditions for a guest? It is looked into and not booted.
//!
//! An image is of anybody: nothing of it is run, and what is shown of it passes [`output`], which lets nothing steer a terminal.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::disk::Disk;
use super::ext::Ext;
use super::{form, root};
use crate::cli::output;
use crate::failure::Result;

/// Oldest kernel with the atomic instructions that the guest's programs use.
const OLDEST_KERNEL: (u32, u32) = (5, 12);
/// Before the version, in the agent's help text, of every release that can be told.
const AGENT_MARK: &[u8] = b"unasnap-guest/";
/// Where services are wanted at boot.
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";

/// What is checked.
#[derive(Args)]
pub struct Check {
    /// A qcow2, VDI or raw image here
    file: PathBuf,
}

/// Does a condition hold?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Holds,
    Fails,
    /// It cannot be told from the image.
    Unknown,
}

#[derive(Serialize)]
struct Condition {
    condition: &'static str,
    verdict: Verdict,
    why: String,
}

#[derive(Serialize)]
struct Checked<'a> {
    image: &'a Path,
    holds: bool,
    conditions: Vec<Condition>,
}

type Said = Result<(Verdict, String)>;

fn holds(why: impl Into<String>) -> Said {
    Ok((Verdict::Holds, why.into()))
}

fn fails(why: impl Into<String>) -> Said {
    Ok((Verdict::Fails, why.into()))
}

fn unknown(why: impl Into<String>) -> Said {
    Ok((Verdict::Unknown, why.into()))
}

/// Looks, and says what holds. The exit code is 0 only if all of it does.
pub async fn run(wanted: &Check, json: bool) -> Result<u8> {
    let folder = form::lay_out(&wanted.file).await?;
    let disk = Disk::open(folder.path(), &wanted.file)?;
    let root = root::first(&disk).await?;
    let looks = [
        ("operating system", operating_system(&root).await?),
        ("network", network(&root).await?),
        ("guest agent", agent(&root).await?),
        ("superuser", superuser(&root).await?),
        ("remote access", remote_access(&root).await?),
    ];
    let named = |(condition, (verdict, why))| Condition { condition, verdict, why };
    let conditions: Vec<_> = looks.into_iter().map(named).collect();
    let all = conditions.iter().all(|condition| condition.verdict == Verdict::Holds);
    if json {
        output::json(&Checked { image: &wanted.file, holds: all, conditions })?;
    } else {
        let row = |Condition { condition, verdict, why }: Condition| {
            let verdict = match verdict {
                Verdict::Holds => "holds",
                Verdict::Fails => "FAILS",
                Verdict::Unknown => "cannot be told",
            };
            vec![condition.to_owned(), verdict.to_owned(), why]
        };
        output::table(&["CONDITION", "", "WHY"], conditions.into_iter().map(row))?;
    }
    Ok(u8::from(!all))
}

/// Linux that is new enough.
async fn operating_system(root: &Ext<'_>) -> Said {
    let release = match root.text("/etc/os-release").await? {
        Some(release) => Some(release),
        None => root.text("/usr/lib/os-release").await?,
    };
    let Some(release) = release else {
        return fails("there is no /etc/os-release: it is no Linux that says what it is");
    };
    let name =
        release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("a nameless Linux");
    let name = name.trim_matches('"');
    let mut kernels = root.list("/lib/modules/.").await?;
    let boot = root.list("/boot").await?;
    kernels.extend(boot.iter().filter_map(|file| Some(file.strip_prefix("vmlinuz-")?.to_owned())));
    let newest = kernels.iter().filter_map(|kernel| Some((version(kernel)?, kernel))).max();
    let (major, minor) = OLDEST_KERNEL;
    match newest {
        None => unknown(format!(
            "{name}, without a kernel: the one that the VM is booted with must be {major}.{minor} or later"
        )),
        Some((version, kernel)) if version < OLDEST_KERNEL => {
            fails(format!("{name} with Linux {kernel}: {major}.{minor} or later is needed"))
        }
        Some((_, kernel)) => holds(format!("{name} with Linux {kernel}")),
    }
}

/// `6.1.0-18-amd64` is (6, 1).
fn version(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Something gives a network card an address.
async fn network(root: &Ext<'_>) -> Said {
    let files = async |folder: &str, ending: &str| -> Result<Vec<String>> {
        let names = root.list(folder).await?.into_iter().filter(|name| name.ends_with(ending));
        Ok(names.map(|name| format!("{folder}/{name}")).collect())
    };
    let mut found = Vec::new();
    for path in files("/etc/netplan", ".yaml").await? {
        let text = root.text(&path).await?.unwrap_or_default();
        let says = |key: &str| settings(&text).any(|line| line.starts_with(key));
        if says("dhcp4: true") || says("dhcp4: yes") || says("dhcp6: true") || says("addresses:") {
            found.push(path);
        }
    }
    let networkd = root.exists(&format!("{WANTS}/systemd-networkd.service")).await?;
    for path in files("/etc/systemd/network", ".network").await?.into_iter().filter(|_| networkd) {
        let text = root.text(&path).await?.unwrap_or_default();
        let gives =
            |line: &str| line.starts_with("Address=") || line.starts_with("DHCP=") && !line.ends_with("=no");
        if settings(&text).any(gives) {
            found.push(path);
        }
    }
    let mut interfaces = files("/etc/network/interfaces.d", "").await?;
    interfaces.push("/etc/network/interfaces".to_owned());
    for path in interfaces {
        let text = root.text(&path).await?.unwrap_or_default();
        let gives = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            matches!(words[..], ["iface", card, "inet" | "inet6", "dhcp" | "static" | "auto"] if card != "lo")
        };
        if settings(&text).any(gives) {
            found.push(path);
        }
    }
    if !found.is_empty() {
        return holds(format!("addresses come by {}", found.join(", ")));
    }
    if root.exists("/etc/cloud/cloud.cfg").await? {
        return unknown("cloud-init sets it up, from data that the image does not hold");
    }
    if root.exists("/usr/sbin/NetworkManager").await? {
        return unknown("NetworkManager sets it up; by itself it uses DHCP on every card");
    }
    fails(
        "no card gets an address: neither netplan nor ifupdown says so, nor systemd-networkd while it is enabled",
    )
}

/// Lines that are no comments.
fn settings(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with('#'))
}

/// There, started at boot, of a version that it tells.
async fn agent(root: &Ext<'_>) -> Said {
    let places = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin"];
    let mut found = None;
    for path in places.map(|folder| format!("{folder}/unasnap-guest")) {
        if let Some(bytes) = root.read(&path).await? {
            found = Some((path, bytes));
            break;
        }
    }
    let Some((path, bytes)) = found else {
        return fails(format!("there is no unasnap-guest in {}", places.join(", ")));
    };
    if !root.exists(&format!("{WANTS}/unasnap-guest.service")).await? {
        return fails(format!("{path} is not started at boot: {WANTS} has no unasnap-guest.service"));
    }
    match agent_version(&bytes) {
        Some(version) if version == env!("CARGO_PKG_VERSION") => {
            holds(format!("{path} of version {version}, started at boot"))
        }
        Some(version) => fails(format!(
            "{path} is of version {version}, and this is unasnap {}: install the same release",
            env!("CARGO_PKG_VERSION")
        )),
        None => unknown(format!(
            "{path} is started at boot, and does not tell its version: it is an older release, or none of ours"
        )),
    }
}

fn agent_version(bytes: &[u8]) -> Option<String> {
    let marks = bytes.windows(AGENT_MARK.len()).enumerate().filter(|(_, window)| *window == AGENT_MARK);
    let versions = marks.map(|(at, _)| {
        let rest = bytes[at + AGENT_MARK.len()..].iter().take(32);
        let version = rest.take_while(|byte| byte.is_ascii_digit() || **byte == b'.');
        version.map(|byte| char::from(*byte)).collect::<String>()
    });
    versions.into_iter().find(|version| !version.is_empty())
}

/// Root can come in, by password or key.
async fn superuser(root: &Ext<'_>) -> Said {
    let passwd = root.text("/etc/passwd").await?.unwrap_or_default();
    let Some(line) = passwd.lines().find(|line| line.split(':').nth(2) == Some("0")) else {
        return fails("/etc/passwd has nobody of user id 0");
    };
    let name = line.split(':').next().unwrap_or_default();
    let shell = line.split(':').nth(6).unwrap_or_default();
    if shell.ends_with("/nologin") || shell.ends_with("/false") {
        return fails(format!("{name} cannot log in: the shell is {shell}"));
    }
    let shadow = root.text("/etc/shadow").await?.unwrap_or_default();
    let secret = shadow.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))?.split(':').next());
    if secret.is_some_and(|secret| !secret.is_empty() && !secret.starts_with(['!', '*'])) {
        return holds(format!("{name} has a password"));
    }
    let keys = root.text("/root/.ssh/authorized_keys").await?.unwrap_or_default();
    match settings(&keys).any(|line| !line.is_empty()) {
        true => holds(format!("{name} has keys in /root/.ssh/authorized_keys")),
        false => fails(format!("{name} has neither a password nor a key in /root/.ssh/authorized_keys")),
    }
}

/// An SSH server that starts at boot.
async fn remote_access(root: &Ext<'_>) -> Said {
    let mut server = None;
    for path in ["/usr/sbin/sshd", "/usr/sbin/dropbear"] {
        if root.exists(path).await? {
            server = Some(path);
            break;
        }
    }
    let Some(server) = server else { return fails("there is neither /usr/sbin/sshd nor /usr/sbin/dropbear") };
    for unit in [
        "multi-user.target.wants/ssh.service",
        "multi-user.target.wants/sshd.service",
        "sockets.target.wants/ssh.socket",
        "multi-user.target.wants/dropbear.service",
    ] {
        if root.exists(&format!("/etc/systemd/system/{unit}")).await? {
            return holds(format!("{server}, started at boot"));
        }
    }
    fails(format!("{server} is not started at boot"))
}
