//! Raw, qcow2 and VDI. Before anything looks at what is on an image, it becomes a raw disk; what is to be changed becomes again what it
//! was by its [`Form`].

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde::Deserialize;
use tempfile::TempDir;
use unasnap_files::qcow2::{self, Needs};
use unasnap_files::vdi;

use super::{disk, tool};
use crate::failure::{CliError, Kind, Result};

/// A copy of the image that is to be changed.
const COPY: &str = "copy";
/// What takes its place.
const NEW: &str = "new";

/// A folder for temporary files with the raw disk of `image` in it, to be read only: a raw image is not copied.
pub async fn lay_out(image: &Path) -> Result<TempDir> {
    let internal = |error: std::io::Error| {
        CliError::internal(format!("cannot use the folder for temporary files: {error}"))
    };
    let folder = tempfile::tempdir().map_err(internal)?;
    let unreadable = |error| CliError::usage(format!("{} cannot be read: {error}", image.display()));
    let source = image.canonicalize().map_err(unreadable)?;
    let link = |name: &str| symlink(&source, folder.path().join(name)).map_err(internal);
    match Format::of(image)? {
        Format::Raw => link(disk::NAME)?,
        packed => {
            link("image")?;
            packed.unpack(folder.path(), "image", image).await?;
        }
    }
    Ok(folder)
}

/// What an image is that is one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
    Vdi,
}

impl Format {
    /// Of this image; refused where a part of it lies in another file, which could be any of this machine.
    pub fn of(image: &Path) -> Result<Self> {
        let part = |tool: &str| {
            Err(CliError::usage(format!(
                "{} is only a part of an image: make it one file, `{tool}`",
                image.display()
            )))
        };
        if let Some(header) = vdi::read(image)? {
            let is_whole =
                matches!(header.kind, vdi::Kind::Dynamic | vdi::Kind::Fixed) && header.parent().is_none();
            return if is_whole { Ok(Self::Vdi) } else { part("VBoxManage clonemedium") };
        }
        match qcow2::needs(image)? {
            None => Ok(Self::Raw),
            Some(Needs { backing: false, data_file: false }) => Ok(Self::Qcow2),
            Some(_) => part("qemu-img convert -O qcow2"),
        }
    }

    /// As QEMU's programs call it.
    fn label(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vdi => "vdi",
        }
    }

    /// Makes the raw disk of the image `from` in `folder`; an error calls it `image`.
    async fn unpack(self, folder: &Path, from: &str, image: &Path) -> Result<()> {
        let convert = ["convert", "-f", self.label(), "-O", "raw", from, disk::NAME];
        let converted = tool::output(folder, "qemu-img", &convert, tool::LONG).await?;
        if converted.status.success() {
            return Ok(());
        }
        let said = tool::said(&converted);
        Err(CliError::usage(format!("{} cannot be unpacked: {said}", image.display())))
    }
}

/// How the image was, and is to be again.
pub enum Form {
    Raw,
    Qcow2 { info: Info, compressed: bool },
    Vdi(vdi::Header),
}

impl Form {
    /// Makes a raw disk in `folder` that may be written to.
    pub async fn unfold(image: &Path, format: Format, folder: &Path) -> Result<Self> {
        let to = if format == Format::Raw { disk::NAME } else { COPY };
        let copy =
            ["--reflink=auto", "--sparse=always", "--", &image.to_string_lossy(), to].map(str::to_owned);
        tool::text(folder, "cp", &copy, tool::LONG).await?;
        let form = match (format, vdi::read(&folder.join(to))?) {
            (Format::Raw, _) => return Ok(Self::Raw),
            (Format::Vdi, Some(header)) => Self::Vdi(header),
            _ => Self::qcow2(image, folder).await?,
        };
        format.unpack(folder, COPY, image).await?;
        let _ = fs::remove_file(folder.join(COPY));
        Ok(form)
    }

    async fn qcow2(image: &Path, folder: &Path) -> Result<Self> {
        let info =
            tool::text(folder, "qemu-img", &["info", "-f", "qcow2", "--output=json", COPY], tool::SHORT);
        let info: Info = parse(&info.await?)?;
        if let Some(why) = info.would_be_lost() {
            return Err(CliError::new(Kind::Refused, format!("{}: {why}", image.display())));
        }
        // Its exit code tells of leaks as well, which do no harm.
        let check = ["check", "-f", "qcow2", "--output=json", COPY];
        let check = tool::output(folder, "qemu-img", &check, tool::LONG).await?;
        let check: Check = parse(&String::from_utf8_lossy(&check.stdout))?;
        Ok(Self::Qcow2 { info, compressed: check.compressed_clusters > 0 })
    }

    /// Makes the image of the raw disk; answers its name.
    pub async fn fold(&self, folder: &Path) -> Result<&'static str> {
        let (format, options, compressed) = match self {
            Self::Raw => return Ok(disk::NAME),
            Self::Qcow2 { info, compressed } => (Format::Qcow2, info.options(), *compressed),
            Self::Vdi(header) if header.kind == vdi::Kind::Fixed => {
                (Format::Vdi, "static=on".to_owned(), false)
            }
            Self::Vdi(_) => (Format::Vdi, "static=off".to_owned(), false),
        };
        let mut convert = vec!["convert", "-f", "raw", "-O", format.label(), "-o", &options];
        convert.extend(compressed.then_some("-c"));
        convert.extend([disk::NAME, NEW]);
        tool::text(folder, "qemu-img", &convert, tool::LONG).await?;
        let compare = ["compare", "-f", "raw", "-F", format.label(), disk::NAME, NEW];
        tool::text(folder, "qemu-img", &compare, tool::LONG).await?;
        if let Self::Vdi(header) = self {
            // By that VirtualBox knows it.
            let renamed = |uuid| vdi::rename(&fs::File::options().write(true).open(folder.join(NEW))?, uuid);
            let failed = |error| CliError::internal(format!("cannot give the new image its UUID: {error}"));
            header.uuid().as_deref().map(renamed).transpose().map_err(failed)?;
        }
        Ok(NEW)
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
