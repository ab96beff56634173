//! `unasnap image inject-agent`: everything is done to a copy, and the copy takes the image's name at the end, when it was found right.
//! Until then the image is as it was.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use unasnap_files::qcow2::{self, Needs};

use super::disk::Disk;
use super::form::{Form, Format};
use super::payload::Payload;
use super::root;
use crate::cli::output;
use crate::failure::{CliError, Kind, Result};

/// QEMU holds locks on bytes from here on, of every image that it has open, also of those below a disk (`block/file-posix.c`).
const QEMU_LOCKS: (libc::off_t, libc::off_t) = (100, 200);

#[derive(Serialize)]
struct Injected {
    inject_agent: Outcome,
}

#[derive(Serialize)]
struct Outcome {
    image: PathBuf,
    version: String,
    /// False when all of it was there.
    changed: bool,
}

/// `image inject-agent`.
#[derive(Args)]
pub struct InjectAgent {
    /// A raw, qcow2 or VDI image with systemd on an ext4 file system, in a partition or on the whole disk
    image: PathBuf,
    /// Take the agent from its Debian package [default: the unasnap-guest beside this program]
    #[arg(long, value_name = "DEB", conflicts_with = "agent")]
    pub package: Option<PathBuf>,
    /// Take this agent, which is statically linked
    #[arg(long, value_name = "BINARY")]
    pub agent: Option<PathBuf>,
}

/// Puts the agent into the image, or says that it is there.
///
/// # Errors
/// What was refused, and why; the image is then as it was.
pub async fn run(wanted: InjectAgent, json: bool) -> Result<()> {
    let interrupted = || CliError::new(Kind::Refused, "interrupted; the image is as it was");
    let listen = |kind| signal(kind).map_err(|error| CliError::internal(format!("signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let outcome = tokio::select! {
        outcome = inject(&wanted) => outcome?,
        _ = interrupt.recv() => return Err(interrupted()),
        _ = terminate.recv() => return Err(interrupted()),
    };
    if json {
        return output::json(&Injected { inject_agent: outcome });
    }
    let (image, version) = (outcome.image.display(), &outcome.version);
    output::line(&match outcome.changed {
        true => format!("{image}: unasnap-guest {version} is in it, and runs from the next boot on"),
        false => format!("{image}: already has unasnap-guest {version}"),
    })
}

async fn inject(wanted: &InjectAgent) -> Result<Outcome> {
    let image = Image::claim(&wanted.image)?;
    let work = Work::begin(&image.path)?;
    let payload = Payload::load(wanted, &work.0).await?;
    let form = Form::unfold(&image.path, image.format, &work.0).await?;
    let disk = Disk::open(&work.0, &image.path)?;
    let system = root::only(&disk).await?;
    let changed = !system.has(&payload).await?;
    if changed {
        system.settle().await?;
        system.put(&payload).await?;
        let new = form.fold(&work.0).await?;
        image.replace(&work.0.join(new))?;
    }
    Ok(Outcome { image: image.path, version: payload.version, changed })
}

/// An image that nobody else uses while this value lives.
struct Image {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    format: Format,
}

impl Image {
    fn claim(path: &Path) -> Result<Self> {
        let refuse = |why: String| Err(CliError::new(Kind::Refused, format!("{}: {why}", path.display())));
        let unusable = |error| CliError::usage(format!("cannot open {}: {error}", path.display()));
        let path = path.canonicalize().map_err(unusable)?;
        let metadata = path.metadata().map_err(unusable)?;
        if !metadata.is_file() {
            return refuse("it is no file".to_owned());
        }
        if metadata.permissions().mode() & 0o222 == 0 {
            let why = "it is read-only, as bases of VMs are; make the change to a copy, and that a new base";
            return refuse(why.to_owned());
        }
        let file = File::options().read(true).write(true).open(&path).map_err(unusable)?;
        lock(&file).map_err(|error| {
            let why = match error {
                Errno::EAGAIN | Errno::EACCES => {
                    "it is in use: a VM or another program has it open".to_owned()
                }
                error => format!("cannot lock it: {error}"),
            };
            CliError::new(Kind::Refused, format!("{}: {why}", path.display()))
        })?;
        if let Some(device) = loop_device(&path) {
            return refuse(format!("it is in use: {device} is made of it"));
        }
        let needs = qcow2::needs(&path)?;
        if matches!(needs, Some(Needs { backing: true, .. })) {
            let why = "it holds only the differences from another image; `qemu-img convert` makes a whole one of it";
            return refuse(why.to_owned());
        }
        if matches!(needs, Some(Needs { data_file: true, .. })) {
            return refuse("it keeps its data in another file".to_owned());
        }
        if let Some(above) = qcow2::built_on(&path)? {
            return refuse(format!("{} is built on it, and would be spoilt by a change", above.display()));
        }
        let format = Format::of(&path)?;
        Ok(Self { path, file, metadata, format })
    }

    /// Gives the image's name, owner and mode to the file at `new`.
    fn replace(&self, new: &Path) -> Result<()> {
        let failed = |error| CliError::usage(format!("cannot replace {}: {error}", self.path.display()));
        let now = self.file.metadata().map_err(failed)?;
        let named = self.path.metadata().map_err(failed)?;
        let of =
            |metadata: &Metadata| (metadata.dev(), metadata.ino(), metadata.len(), metadata.modified().ok());
        if of(&now) != of(&self.metadata) || of(&named) != of(&self.metadata) {
            let text = format!("{} was changed meanwhile; nothing was done", self.path.display());
            return Err(CliError::new(Kind::Refused, text));
        }
        let file = File::open(new).map_err(failed)?;
        std::os::unix::fs::fchown(&file, Some(now.uid()), Some(now.gid())).map_err(failed)?;
        file.set_permissions(now.permissions()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(new, &self.path).map_err(failed)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

/// A folder beside the image, so that a rename puts the result into its place. It goes with this value; one that was left by
/// a run that was killed goes before: the image's lock says that nobody works in it.
struct Work(PathBuf);

impl Work {
    fn begin(image: &Path) -> Result<Self> {
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let path = image.with_file_name(format!(".{name}.inject-agent"));
        let failed = |error| CliError::usage(format!("cannot work in {}: {error}", path.display()));
        if path.exists() {
            fs::remove_dir_all(&path).map_err(failed)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("unasnap: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Fails while QEMU has the image open, and keeps it from opening it until the file is closed.
fn lock(file: &File) -> std::result::Result<(), Errno> {
    let (start, length) = QEMU_LOCKS;
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(|_| ())
}

/// The loop device that somebody made of the image, and mounted perhaps.
fn loop_device(image: &Path) -> Option<String> {
    let devices = fs::read_dir("/sys/block").ok()?;
    let made_of = |device: &fs::DirEntry| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (Path::new(file.trim_end_matches('\n')) == image)
            .then(|| device.file_name().to_string_lossy().into_owned())
    };
    devices.flatten().find_map(|device| made_of(&device))
}
