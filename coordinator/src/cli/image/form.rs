//! Raw and qcow2. Before anything looks at what is on an image, it becomes a raw disk; what is to be changed becomes again what it
//! was by its [`Form`].

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde::Deserialize;
use tempfile::TempDir;
use unasnap_files::qcow2::{self, Needs};

use super::{disk, tool};
use crate::failure::{CliError, Kind, Result};

/// A folder for temporary files with the raw disk of `image` in it, to be read only: a raw image is not copied.
pub async fn lay_out(image: &Path) -> Result<TempDir> {
    let internal = |error: std::io::Error| {
        CliError::internal(format!("cannot use the folder for temporary files: {error}"))
    };
    let folder = tempfile::tempdir().map_err(internal)?;
    let unreadable = |error| CliError::usage(format!("{} cannot be read: {error}", image.display()));
    let source = image.canonicalize().map_err(unreadable)?;
    let link = |name: &str| symlink(&source, folder.path().join(name)).map_err(internal);
    match qcow2::needs(image)? {
        None => link(disk::NAME)?,
        Some(Needs { backing: false, data_file: false }) => {
            link("image")?;
            unpack(folder.path(), "image", image).await?;
        }
        // One that names another file could make `qemu-img` read any file of this machine.
        Some(_) => {
            return Err(CliError::usage(format!(
                "{} is only a part of an image: make it one file, `qemu-img convert -O qcow2`",
                image.display()
            )));
        }
    }
    Ok(folder)
}

/// Makes the raw disk of the qcow2 image `from` in `folder`; an error calls it `image`.
async fn unpack(folder: &Path, from: &str, image: &Path) -> Result<()> {
    let convert = ["convert", "-f", "qcow2", "-O", "raw", from, disk::NAME];
    let converted = tool::output(folder, "qemu-img", &convert, tool::LONG).await?;
    if converted.status.success() {
        return Ok(());
    }
    let said = tool::said(&converted);
    Err(CliError::usage(format!("{} cannot be unpacked: {said}", image.display())))
}

/// How the image was, and is to be again.
pub enum Form {
    Raw,
    Qcow2 { info: Info, compressed: bool },
}

impl Form {
    /// Makes a raw disk in `folder` that may be written to.
    pub async fn unfold(image: &Path, qcow2: bool, folder: &Path) -> Result<Self> {
        let to = if qcow2 { "copy" } else { disk::NAME };
        let copy =
            ["--reflink=auto", "--sparse=always", "--", &image.to_string_lossy(), to].map(str::to_owned);
        tool::text(folder, "cp", &copy, tool::LONG).await?;
        if !qcow2 {
            return Ok(Self::Raw);
        }
        let info =
            tool::text(folder, "qemu-img", &["info", "-f", "qcow2", "--output=json", "copy"], tool::SHORT);
        let info: Info = parse(&info.await?)?;
        if let Some(why) = info.would_be_lost() {
            return Err(CliError::new(Kind::Refused, format!("{}: {why}", image.display())));
        }
        // Its exit code tells of leaks as well, which do no harm.
        let check = ["check", "-f", "qcow2", "--output=json", "copy"];
        let check = tool::output(folder, "qemu-img", &check, tool::LONG).await?;
        let check: Check = parse(&String::from_utf8_lossy(&check.stdout))?;
        unpack(folder, "copy", image).await?;
        let _ = fs::remove_file(folder.join("copy"));
        Ok(Self::Qcow2 { info, compressed: check.compressed_clusters > 0 })
    }

    /// Makes the image of the raw disk; answers its name.
    pub async fn fold(&self, folder: &Path) -> Result<&'static str> {
        let Self::Qcow2 { info, compressed } = self else { return Ok(disk::NAME) };
        let options = info.options();
        let mut convert = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &options];
        convert.extend(compressed.then_some("-c"));
        convert.extend([disk::NAME, "new"]);
        tool::text(folder, "qemu-img", &convert, tool::LONG).await?;
        let compare = ["compare", "-f", "raw", "-F", "qcow2", disk::NAME, "new"];
        tool::text(folder, "qemu-img", &compare, tool::LONG).await?;
        Ok("new")
    }
}

/// What `qemu-img info` says.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    cluster_size: u64,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    snapshots: Vec<serde::de::IgnoredAny>,
    format_specific: Specific,
}

#[derive(Deserialize)]
struct Specific {
    data: Qcow2,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Qcow2 {
    compat: String,
    compression_type: Option<String>,
    #[serde(default)]
    extended_l2: bool,
    #[serde(default)]
    bitmaps: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Check {
    #[serde(default)]
    compressed_clusters: u64,
}

impl Info {
    /// What a new image would not have.
    fn would_be_lost(&self) -> Option<&'static str> {
        if self.encrypted {
            return Some("it is encrypted");
        }
        if !self.snapshots.is_empty() {
            return Some(
                "it has internal snapshots, which would be lost; delete them, or use a copy without them",
            );
        }
        (!self.format_specific.data.bitmaps.is_empty()).then_some("it has dirty bitmaps, which would be lost")
    }

    fn options(&self) -> String {
        let Qcow2 { compat, compression_type, extended_l2, .. } = &self.format_specific.data;
        let mut options = format!("compat={compat},cluster_size={}", self.cluster_size);
        // An older form knows neither.
        if compat != "0.10" {
            options += &compression_type
                .as_ref()
                .map_or_else(String::new, |kind| format!(",compression_type={kind}"));
            options += if *extended_l2 { ",extended_l2=on" } else { "" };
        }
        options
    }
}

fn parse<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| CliError::usage(format!("qemu-img said {text:?}: {error}")))
}
