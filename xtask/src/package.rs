//! `cargo xtask package`: the guest agent as a Debian package. Installed, it runs; there is nothing to configure.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::build;
use crate::layout::Layout;
use crate::process::run as run_program;

const NAME: &str = "unasnap-guest";
/// Of the whole workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const QUICK: Duration = Duration::from_secs(120);

/// What dpkg runs when it installs and removes the package.
const SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("package/postinst")),
    ("prerm", include_str!("package/prerm")),
    ("postrm", include_str!("package/postrm")),
];

/// Builds the agent and its package, and prints the package's path.
///
/// # Errors
/// Something is missing on this machine (the error says which command to run), or does not compile.
pub fn run(layout: &Layout) -> Result<()> {
    let agent = build::guest_agent(layout)?;
    let package = write(layout, &agent)?;
    println!("{}", package.display());
    Ok(())
}

/// Makes the package of this agent, and returns its path.
///
/// # Errors
/// A file cannot be read or written, or what dpkg-deb says.
pub fn write(layout: &Layout, agent: &Path) -> Result<PathBuf> {
    let folder = layout.target.join("package");
    let tree = folder.join(NAME);
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("emptying {}", tree.display()))?;
    }
    fill(layout, agent, &tree)?;
    let package = folder.join(format!("{NAME}_{VERSION}_amd64.deb"));
    let new = folder.join("new.deb");
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&new);
    run_program("dpkg-deb", &mut command, QUICK)?;
    fs::rename(&new, &package).with_context(|| format!("writing {}", package.display()))?;
    fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    Ok(package)
}

fn fill(layout: &Layout, agent: &Path, tree: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let unit = read(&layout.root.join("docs/units/unasnap-guest.service"))?;
    let licences = ["LICENSE-MIT", "LICENSE-APACHE", "LICENSE-GPL-2.0-only"];
    let licences = licences.map(|name| read(&layout.root.join(name)));
    let agent = read(agent)?;
    let installed_kib = agent.len().div_ceil(1024);
    put(tree, "usr/bin/unasnap-guest", 0o755, &agent)?;
    put(tree, "usr/lib/systemd/system/unasnap-guest.service", 0o644, &unit)?;
    let mut copyright = COPYRIGHT.as_bytes().to_vec();
    for licence in licences {
        copyright.extend_from_slice(b"\n----\n\n");
        copyright.extend_from_slice(&licence?);
    }
    put(tree, "usr/share/doc/unasnap-guest/copyright", 0o644, &copyright)?;
    let mut sums = Command::new("sh");
    sums.args(["-euc", "mkdir DEBIAN; find usr -type f -exec md5sum {} + >DEBIAN/md5sums"]).current_dir(tree);
    run_program("md5sum", &mut sums, QUICK)?;
    put(tree, "DEBIAN/control", 0o644, control(installed_kib).as_bytes())?;
    for (script, text) in SCRIPTS {
        put(tree, &format!("DEBIAN/{script}"), 0o755, text.as_bytes())?;
    }
    Ok(())
}

const COPYRIGHT: &str = "unasnap-guest, the guest agent of unasnap\n\nCopyright (c) 2026 The unasnap authors\n\n\
     MIT or Apache-2.0, at your choice. The programs that it loads into the kernel are in addition under\n\
     GPL-2.0-only. The texts follow.\n";

fn control(installed_kib: usize) -> String {
    format!(
        "Package: {NAME}\nVersion: {VERSION}\nArchitecture: amd64\nMaintainer: The unasnap authors <unasnap@localhost>\n\
         Installed-Size: {installed_kib}\nSection: admin\nPriority: optional\n\
         Description: guest agent of unasnap's global snapshots\n \
         Runs in a virtual machine and colours its packets, so that all machines of a\n \
         distributed application can be snapshotted together while they run.\n .\n \
         There is nothing to configure. It needs Linux 5.12 or later and systemd, and no\n \
         other package.\n"
    )
}

/// Writes a file of the tree. The modes are what the guest gets, whatever the umask here.
fn put(tree: &Path, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let path = tree.join(name);
    let context = || format!("writing {}", path.display());
    let folders: Vec<_> = path.ancestors().skip(1).take_while(|folder| folder.starts_with(tree)).collect();
    for folder in folders.into_iter().rev() {
        fs::create_dir_all(folder).with_context(context)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).with_context(context)?;
    }
    fs::write(&path, content).with_context(context)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::text;

    #[test]
    fn the_package_holds_agent_unit_and_scripts_with_their_modes() {
        let scratch = tempfile::tempdir().unwrap();
        let layout = Layout { target: scratch.path().to_owned(), ..Layout::find().unwrap() };
        let agent = scratch.path().join("agent");
        fs::write(&agent, "an agent").unwrap();
        let package = write(&layout, &agent).unwrap();
        assert_eq!(package, scratch.path().join(format!("package/unasnap-guest_{VERSION}_amd64.deb")));

        let dpkg = |option: &str| {
            text("dpkg-deb", Command::new("dpkg-deb").arg(option).arg(&package), QUICK).unwrap()
        };
        let listed = dpkg("-c");
        for (mode, file) in [
            ("-rwxr-xr-x root/root", "./usr/bin/unasnap-guest"),
            ("-rw-r--r-- root/root", "./usr/lib/systemd/system/unasnap-guest.service"),
            ("-rw-r--r-- root/root", "./usr/share/doc/unasnap-guest/copyright"),
        ] {
            let found = listed.lines().any(|line| line.starts_with(mode) && line.ends_with(file));
            assert!(found, "{mode} {file} in:\n{listed}");
        }
        let info = dpkg("-I");
        for words in ["Package: unasnap-guest\n", "postinst", "prerm", "postrm", "md5sums"] {
            assert!(info.contains(words), "{words} in:\n{info}");
        }
        assert!(!scratch.path().join("package/unasnap-guest").exists(), "the tree is left");
    }
}
