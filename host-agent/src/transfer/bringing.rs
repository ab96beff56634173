//! An image comes to this host that another one has as a base.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;
use unasnap_protocol::control::{FailureKind, Phase, Source};
use unasnap_protocol::household::Bring;
use unasnap_protocol::transfer::{Ask, Item};

use super::conversation::{Conversation, Result, Wish, blocking, failure, missing};
use super::images::hex;
use super::receiving::Receiver;
use super::telling::{Far, Mark, told};
use crate::store::manifest::BaseImage;
use crate::store::{Store, files};
use crate::works::store_failure;

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brought {
    /// Where it lies.
    pub path: PathBuf,
    /// As it was when it was read and its digest was right; `None` when it was here before.
    pub read: Option<BaseImage>,
}

/// Room that is kept for an image while it comes.
struct Room<'a> {
    store: &'a Store,
    gathering: &'a Path,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.store.settle_image(self.gathering);
    }
}

impl Receiver {
    /// Gets an image. One that is here is not fetched. While it comes, `tell` hears every second how far it is.
    ///
    /// # Errors
    /// No source gave it, or it did not come in time: what has come is kept. Or it cannot be kept here.
    pub async fn bring(&self, bring: &Bring, tell: impl Fn(Far)) -> Result<Brought> {
        let limit = Duration::from_secs(bring.within_s.into());
        let came =
            told(tell, |far| timeout(limit, async move { self.bring_from_any(bring, &far).await })).await;
        came.unwrap_or_else(|_| {
            let text = format!(
                "image {} was not here after {} s; what has come is kept, and the next `unasnap image preload` goes on there",
                bring.name, bring.within_s
            );
            Err(failure(FailureKind::TimedOut, text))
        })
    }

    async fn bring_from_any(&self, bring: &Bring, far: &Mark) -> Result<Brought> {
        let mut last = failure(FailureKind::BadRequest, format!("no host was named that has {}", bring.name));
        for source in &bring.sources {
            match self.bring_from(source, bring, far).await {
                Ok(brought) => return Ok(brought),
                // Another source changes nothing.
                Err(full) if full.kind == FailureKind::NoSpace => return Err(full),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn bring_from(&self, source: &Source, bring: &Bring, far: &Mark) -> Result<Brought> {
        if let Some(here) = self.here(source.digest).await? {
            return Ok(here);
        }
        let name = &bring.name;
        let wish = Wish {
            kind: "the image",
            what: format!("image {name}"),
            cure: "put the image back there, or forget it with `unasnap disk remove`".to_owned(),
        };
        let tell = |moved| drop(far.send_replace(Some(Far { from: source.host.clone(), moved })));
        let first = (&Ask::Base(source.digest), wish);
        let (mut talk, offer) =
            Conversation::open(source, &self.trust, first, bring.per_second, &tell).await?;
        let image = match offer.images.as_slice() {
            [image] if image.digest == source.digest => image.clone(),
            _ => return Err(talk.odd("its offer is not the image that was asked for")),
        };
        let _no_other = self.images.lock(&image).await;
        if let Some(here) = self.here(source.digest).await? {
            talk.close().await;
            return Ok(here);
        }
        let gathering = self.images.gathering(&image);
        let gathering = gathering.map_err(|error| talk.unwritten(&error, Path::new(&image.path)))?;
        let to_send = missing(&gathering, image.data_bytes.min(image.size));
        talk.expect(to_send, image.size);
        let room = self.store.promise_image(&gathering, to_send);
        room.map_err(|error| store_failure(&error, Phase::Fetch))?;
        let _room = Room { store: &self.store, gathering: &gathering };
        match talk.whole(Item::Image(0), &gathering, image.size, &hex(&image.digest)).await {
            Ok(read) => {
                let kept = self.images.keep(&image, None);
                let path = kept.map_err(|error| talk.unwritten(&error, &gathering))?;
                talk.close().await;
                Ok(Brought { read: Some(BaseImage { path: path.clone(), ..read }), path })
            }
            Err(full) if full.kind == FailureKind::NoSpace => {
                files::remove_if_there(&gathering).map_err(|error| talk.unwritten(&error, &gathering))?;
                Err(full)
            }
            Err(failure) => Err(failure),
        }
    }

    /// If it is here. What lies at the source's place counts for nothing: it would become read-only.
    async fn here(&self, digest: [u8; 32]) -> Result<Option<Brought>> {
        let images = self.images.clone();
        blocking(move || Ok(images.known(&digest).map(|path| Brought { path, read: None }))).await
    }
}
