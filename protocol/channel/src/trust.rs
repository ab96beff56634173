//! Whom we trust now: an identity that is read again when one of its files changes.
//!
//! So a certificate that the CA has revoked or we have replaced counts within [`LOOK_EVERY`] on every machine that has the
//! new file: for new connections by their handshake, for open ones by [`Trust::lost`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{interval, timeout};

use crate::error::ChannelError;
use crate::identity::{Identity, IdentityError, TlsFiles};
use crate::peer::PeerCertificate;

/// Time between two looks at the files.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks at a certificate that nothing has changed about: it may have expired.
const JUDGE_EVERY: Duration = Duration::from_secs(60);

/// The identity of this program as its files say now.
#[derive(Debug, Clone)]
pub struct Trust(watch::Receiver<Identity>);

/// What tells that a file is another one or was changed: inode, length, time of the last change.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

impl Trust {
    /// Reads the files, and reads them again whenever they change, as long as there is a clone of what is returned. Files
    /// that cannot be used then are named in the log, and what was read before stays. Needs a tokio runtime.
    ///
    /// # Errors
    /// As of [`Identity::load`].
    pub fn follow(files: TlsFiles) -> Result<Self, IdentityError> {
        let seen = stamp(&files);
        let (sender, receiver) = watch::channel(Identity::load(&files)?);
        tokio::spawn(look(files, seen, sender));
        Ok(Self(receiver))
    }

    /// The identity to connect or to be connected with.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.borrow().clone()
    }

    /// Waits until this peer is not trusted any more, and says why. Cancel-safe.
    pub async fn lost(&self, shown: &PeerCertificate) -> ChannelError {
        let mut identity = self.0.clone();
        loop {
            if let Err(error) = identity.borrow_and_update().trusts(shown) {
                return error;
            }
            if let Ok(Err(_)) = timeout(JUDGE_EVERY, identity.changed()).await {
                // Nobody looks at files: only time passes.
                tokio::time::sleep(JUDGE_EVERY).await;
            }
        }
    }
}

/// An identity that stays as it is.
impl From<Identity> for Trust {
    fn from(identity: Identity) -> Self {
        Self(watch::channel(identity).1)
    }
}

async fn look(files: TlsFiles, mut seen: Stamp, sender: watch::Sender<Identity>) {
    let mut tick = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = sender.closed() => return,
            _ = tick.tick() => {}
        }
        let now = stamp(&files);
        if now == seen {
            continue;
        }
        seen = now;
        match Identity::load(&files) {
            Ok(identity) if identity.peer() == sender.borrow().peer() => {
                let paths: Vec<PathBuf> = files.paths().map(PathBuf::from).collect();
                tracing::info!("the certificates were read again: {paths:?}");
                sender.send_replace(identity);
            }
            Ok(identity) => tracing::error!(
                "{} is now the certificate of {}; the one before stays in use until the program is started again",
                files.cert.display(),
                identity.peer()
            ),
            Err(error) => tracing::error!("the certificates are used as they were before: {error}"),
        }
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let one = |path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    };
    files.paths().map(one).collect()
}
