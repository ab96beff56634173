//! The real VirtualBox, for the tests of its driver: in a folder with a Debian of its own. It interprets its machines, for its
//! kernel module is not there: what they do is real, how fast they are is not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt::{mirror, provide_debootstrap};
use crate::layout::Layout;
use crate::process::run as run_program;

const SCRIPT: &str = include_str!("virtualbox.sh");
/// Some 250 MB come from the mirror.
const PATIENCE: Duration = Duration::from_secs(1200);

/// A VirtualBox that can be called.
#[derive(Debug, Clone)]
pub struct VirtualBox {
    /// Its VBoxManage.
    pub vboxmanage: PathBuf,
    /// A folder that it sees under the same path.
    pub machines: PathBuf,
}

/// Finds it, or installs it below `target/`.
///
/// # Errors
/// It cannot be installed.
pub fn install(layout: &Layout) -> Result<VirtualBox> {
    let folder = layout.virtualbox();
    let (root, machines) = (folder.join("root"), folder.join("machines"));
    fs::create_dir_all(&machines).with_context(|| format!("making {}", machines.display()))?;
    if !root.exists() {
        let half = folder.join("half");
        if half.exists() {
            fs::remove_dir_all(&half).with_context(|| format!("removing {}", half.display()))?;
        }
        eprintln!("setup: installing VirtualBox into {}", root.display());
        provide_debootstrap(layout)?;
        let mut script = Command::new("unshare");
        script.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]);
        run_program("installing VirtualBox", script.arg(&half).arg(mirror()?), PATIENCE)?;
        fs::rename(&half, &root).with_context(|| format!("renaming {}", half.display()))?;
    }
    let vboxmanage = folder.join("VBoxManage");
    fs::write(&vboxmanage, wrapper(&root, &machines))
        .and_then(|()| fs::set_permissions(&vboxmanage, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", vboxmanage.display()))?;
    Ok(VirtualBox { vboxmanage, machines })
}

/// Each call has mounts of its own, which end with it, or with the machine that it starts.
fn wrapper(root: &Path, machines: &Path) -> String {
    let (root, machines) = (root.display(), machines.display());
    format!(
        r#"#!/bin/sh
exec unshare --mount --propagation private sh -euc '
    root=$1 machines=$2
    shift 2
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mkdir -p "$root$machines"
    mount --bind "$machines" "$root$machines"
    exec chroot "$root" /usr/lib/virtualbox/VBoxManage "$@"' sh '{root}' '{machines}' "$@"
"#
    )
}
