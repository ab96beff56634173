//! Is a file an image on which VMs can be made?

use std::fs;
use std::path::Path;

use serde::Deserialize;
use unasnap_files::vdi::{self, Header, Kind};
use unasnap_protocol::operator::RequestError;

use crate::definition::ImageFormat;
use crate::hypervisor::qemu::tool::run;
use crate::registry::{cannot, internal, refused};
use crate::works::chain;

/// A disk consists of these, bytes.
const SECTOR: u64 = 512;

/// What `qemu-img info` says of an image.
#[derive(Debug, Deserialize)]
struct Info {
    format: String,
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "backing-filename")]
    backing: Option<String>,
    #[serde(rename = "format-specific")]
    specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
struct Data {
    #[serde(rename = "data-file")]
    file: Option<String>,
}

/// Format and size of an image on which VMs can be made. Its locks are respected: one that a VM writes is refused.
pub(super) async fn inspect(path: &Path) -> Result<(ImageFormat, u64), RequestError> {
    // A host of VirtualBox need not have QEMU's programs.
    if let Some(header) = vdi::read(path).map_err(|error| refused(error.to_string()))? {
        return judge_vdi(&header, path);
    }
    let text = run("qemu-img", &["info", "--output=json", &path.to_string_lossy()]).await;
    let text =
        text.map_err(|error| refused(format!("{} cannot be a base: {}", path.display(), chain(&error))))?;
    let info: Info = serde_json::from_str(&text).map_err(|error| {
        internal(format!("what qemu-img says of {} is not understood: {error}", path.display()))
    })?;
    judge(&info, path)
}

fn judge_vdi(header: &Header, path: &Path) -> Result<(ImageFormat, u64), RequestError> {
    let shown = path.display();
    if header.kind == Kind::Difference || header.parent().is_some() {
        let rest = header.parent().unwrap_or_default();
        return Err(refused(format!(
            "{shown} is only a part of an image, the rest is the disk {rest}: make it one file, `VBoxManage clonemedium`"
        )));
    }
    match header.kind {
        Kind::Dynamic | Kind::Fixed => Ok((ImageFormat::Vdi, header.virtual_bytes)),
        other => Err(refused(format!("{shown} is a VDI of a kind that is not known here: {other:?}"))),
    }
}

fn judge(info: &Info, path: &Path) -> Result<(ImageFormat, u64), RequestError> {
    let shown = path.display();
    let data = info.specific.as_ref().and_then(|specific| specific.data.file.as_ref());
    if let Some(other) = info.backing.as_ref().or(data) {
        let text = format!(
            "{shown} is only a part of an image, the rest is {other:?}: make it one file, `qemu-img convert -O qcow2`"
        );
        return Err(refused(text));
    }
    match info.format.as_str() {
        "qcow2" => Ok((ImageFormat::Qcow2, info.virtual_size)),
        // What nothing recognises is raw to QEMU, a text file too.
        "raw" => {
            let bytes = fs::metadata(path).map_err(|error| cannot("read", path, &error))?.len();
            if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
                return Err(refused(format!(
                    "{shown} is no disk image: it has {bytes} bytes, and a raw one consists of sectors of {SECTOR}"
                )));
            }
            Ok((ImageFormat::Raw, info.virtual_size))
        }
        other => Err(refused(format!(
            "{shown} is a {other} image: QEMU's VMs are made of qcow2 and raw ones, `qemu-img convert -O qcow2`"
        ))),
    }
}
