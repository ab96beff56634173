//! Debian packages.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::process::{run, text};

/// A mirror can be slow; a hang must still end.
const PATIENCE: Duration = Duration::from_secs(900);

/// For programs that only look at something.
const QUICK: Duration = Duration::from_secs(60);

/// Of the release itself.
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";

/// Oldest QEMU whose snapshots were tried.
const QEMU_MAJOR: u32 = 10;

/// A program that must be found, and the package that has it.
const PROGRAMS: [(&str, &str); 13] = [
    ("cc", "gcc"),
    ("c++", "g++"),
    ("dpkg-deb", "dpkg"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    // What the benchmark compares with.
    ("iptables-legacy", "iptables"),
    ("nft", "nftables"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Whether a program is found the way a root shell finds it.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(program).exists())
}

/// Packages whose programs are not found.
pub fn missing_packages() -> Vec<&'static str> {
    let mut packages: Vec<_> =
        PROGRAMS.iter().filter(|(program, _)| !on_path(program)).map(|(_, package)| *package).collect();
    if !Path::new("/usr/lib/x86_64-linux-gnu/libc.a").exists() {
        packages.push("libc6-dev"); // the guest programs are static
    }
    packages.dedup();
    packages
}

/// Makes sure of debootstrap, which only what has a Debian of its own wants.
///
/// # Errors
/// It is not here, and cannot be installed.
pub fn provide_debootstrap(layout: &Layout) -> Result<()> {
    if on_path("debootstrap") {
        return Ok(());
    }
    let apt = Apt::new(layout)?;
    apt.update()?;
    apt.install(&["debootstrap"], None)
}

/// Whether QEMU and its image tool are here and new enough.
pub fn qemu_is_new_enough() -> bool {
    if !on_path("qemu-img") {
        return false;
    }
    let version = text("qemu", Command::new("qemu-system-x86_64").arg("--version"), QUICK);
    version.is_ok_and(|text| qemu_major(&text).is_some_and(|major| major >= QEMU_MAJOR))
}

fn qemu_major(version: &str) -> Option<u32> {
    let (_, number) = version.lines().next()?.split_once("version ")?;
    number.split('.').next()?.parse().ok()
}

/// The upstream major number of a Debian version: `1:10.0.2+ds-2` is 10.
fn package_major(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// apt with a cache of its own: packages vanish from the system's cache when two runs overlap.
#[derive(Debug)]
pub struct Apt {
    cache: PathBuf,
}

impl Apt {
    /// Finds apt.
    ///
    /// # Errors
    /// This is no Debian, or the user may not install packages.
    pub fn new(layout: &Layout) -> Result<Self> {
        if !on_path("apt-get") {
            bail!(
                "apt-get is not here: install what is listed above by this system's own means, then try again"
            );
        }
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "installing needs root: run `cargo xtask setup` as root, or install what is listed above by hand"
            );
        }
        let cache = layout.downloads.join("apt");
        std::fs::create_dir_all(cache.join("archives/partial")).context("making apt's cache directory")?;
        Ok(Self { cache })
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
        command
            .args(["-o", "Acquire::Retries=3"])
            .arg("-o")
            .arg(format!("Dir::Cache={}", self.cache.display()));
        command
    }

    /// Reads the mirrors' package lists.
    ///
    /// # Errors
    /// No mirror answered.
    pub fn update(&self) -> Result<()> {
        run("apt-get update", self.get().arg("update"), PATIENCE)
    }

    /// Installs packages, from `suite` where one is given.
    ///
    /// # Errors
    /// What apt says.
    pub fn install(&self, packages: &[&str], suite: Option<&str>) -> Result<()> {
        let mut command = self.get();
        command.args(["install", "-y", "--no-install-recommends"]);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        run("apt-get install", command.args(packages), PATIENCE)
    }

    /// Installs QEMU from the first source that has one new enough.
    ///
    /// # Errors
    /// No source has.
    pub fn install_qemu(&self) -> Result<()> {
        const PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-utils"];
        if self.candidate("qemu-system-x86", None)? >= Some(QEMU_MAJOR) {
            return self.install(&PACKAGES, None);
        }
        let suite = format!("{}-backports", codename()?);
        if self.candidate("qemu-system-x86", Some(&suite))? < Some(QEMU_MAJOR) {
            self.add_source(&suite)?;
            self.update()?;
        }
        self.install(&PACKAGES, Some(&suite))
    }

    /// Major version that an installation would get.
    fn candidate(&self, package: &str, suite: Option<&str>) -> Result<Option<u32>> {
        let mut command = Command::new("apt-cache");
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        let output = crate::process::output("apt-cache", command.args(["policy", package]), QUICK)?;
        // An unknown suite is an error of apt-cache and means: no candidate.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(line.and_then(package_major))
    }

    /// Adds a suite in a file of its own, on the mirror and with the keys that the release itself uses.
    fn add_source(&self, suite: &str) -> Result<()> {
        let text = sources().with_context(|| format!("add the suite {suite} by hand"))?;
        let source = source_like(&text, suite).with_context(|| format!("{SOURCES} names no mirror"))?;
        let path = format!("/etc/apt/sources.list.d/unasnap-{suite}.sources");
        eprintln!("setup: adding {suite} in {path}");
        std::fs::write(&path, source).with_context(|| format!("writing {path}"))
    }

    /// Names of packages that match a regular expression.
    ///
    /// # Errors
    /// What apt-cache says.
    pub fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let found = text(
            "apt-cache search",
            Command::new("apt-cache").args(["search", "--names-only", pattern]),
            QUICK,
        )?;
        Ok(found.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Downloads a package and unpacks it below `into`, without installing it.
    ///
    /// # Errors
    /// What apt or dpkg say.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        std::fs::create_dir_all(into).with_context(|| format!("making {}", into.display()))?;
        let mut download = self.get();
        // Its own directory is not apt's user's: download as root without a word about it.
        download.args(["-o", "APT::Sandbox::User=root", "download", package]).current_dir(into);
        run(&format!("downloading {package}"), &mut download, PATIENCE)?;
        let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
        let files =
            std::fs::read_dir(into)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        let file =
            files.into_iter().find(is_package).with_context(|| format!("{package} was not downloaded"))?;
        run(&format!("unpacking {package}"), Command::new("dpkg-deb").arg("-x").arg(&file).arg(into), QUICK)?;
        std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
    }
}

/// This machine's release.
///
/// # Errors
/// It is no Debian that says so.
pub fn codename() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

fn sources() -> Result<String> {
    std::fs::read_to_string(SOURCES).with_context(|| format!("reading {SOURCES}"))
}

/// Where this release's packages come from.
///
/// # Errors
/// Its source has another form than Debian's own.
pub fn mirror() -> Result<String> {
    let text = sources()?;
    Ok(field(&text, "URIs:").with_context(|| format!("{SOURCES} names no mirror"))?.to_owned())
}

/// The first in a deb822 file.
fn field<'a>(sources: &'a str, name: &str) -> Option<&'a str> {
    sources.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// A deb822 source for `suite` with the mirror and key of the first stanza in `sources`.
fn source_like(sources: &str, suite: &str) -> Option<String> {
    let mirror = field(sources, "URIs:")?;
    let key = field(sources, "Signed-By:").map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
    Some(format!("Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n{key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(qemu_major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n"), Some(10));
        assert_eq!(qemu_major("something else"), None);
        assert_eq!(package_major("1:7.2+dfsg-7+deb12u18"), Some(7));
        assert_eq!(package_major("(none)"), None);
    }

    #[test]
    fn the_added_source_uses_the_mirror_of_the_release() {
        let sources = "Types: deb\n# comment\nURIs: http://mirror.example/debian\nSuites: bookworm\n\
                       Components: main\nSigned-By: /keys.gpg\n\nTypes: deb\nURIs: http://other.example\n";
        let expected = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n\
                        Components: main\nSigned-By: /keys.gpg\n";
        assert_eq!(source_like(sources, "bookworm-backports").unwrap(), expected);
        assert_eq!(source_like("", "x"), None);
    }
}
