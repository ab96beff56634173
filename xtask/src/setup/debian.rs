//! A stock Debian as a folder, for the tests that put the guest agent into one and boot it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt;
use crate::layout::Layout;
use crate::process::run;

const SCRIPT: &str = include_str!("debian.sh");
/// Some 80 MB come from the mirror.
const PATIENCE: Duration = Duration::from_secs(900);

/// Finds it, or installs it below `target/`.
///
/// # Errors
/// It cannot be installed.
pub fn install(layout: &Layout) -> Result<PathBuf> {
    let (root, half) = (layout.debian(), layout.debian().with_extension("half"));
    if root.exists() {
        return Ok(root);
    }
    if half.exists() {
        fs::remove_dir_all(&half).with_context(|| format!("removing {}", half.display()))?;
    }
    eprintln!("setup: installing a Debian into {}", root.display());
    apt::provide_debootstrap(layout)?;
    let mut script = Command::new("sh");
    script.args(["-c", SCRIPT, "sh"]).arg(&half).args([apt::codename()?, apt::mirror()?]);
    run("installing a Debian", &mut script, PATIENCE)?;
    fs::rename(&half, &root).with_context(|| format!("renaming {}", half.display()))?;
    Ok(root)
}
