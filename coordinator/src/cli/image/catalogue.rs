//! `unasnap image add|list|tag|preload|remove`: the catalogue, which the coordinator keeps.

use std::str::FromStr;

use clap::Subcommand;
use serde::Serialize;
use unasnap_protocol::image::{ImageCopy, ImageRecord, ImageRef, ImageRequest, Version};
use unasnap_protocol::name::{BadName, Name};
use unasnap_protocol::operator::{Reply, Request};

use super::preload;
use crate::cli::{output, progress};
use crate::config::ClientConfig;
use crate::failure::Result;

/// What is done to the catalogue.
#[derive(Subcommand)]
pub enum Catalogue {
    /// Enter an image that lies on a host: it becomes a read-only base there
    Add {
        /// How it is called [default version: latest]
        #[arg(value_name = "NAME[:VERSION]")]
        image: ImageRef,
        /// The host, and where the image is there
        #[arg(value_name = "HOST:PATH")]
        place: Place,
    },
    /// List versions, digests, and which hosts have them
    List {
        /// Only of this image
        name: Option<Name>,
    },
    /// Give an image one more version
    Tag {
        /// The image as it is called
        #[arg(value_name = "NAME:VERSION")]
        image: ImageRef,
        /// The other version
        version: Version,
    },
    /// Bring a version to hosts, where it becomes a base; those that have it already are left alone
    Preload(preload::Preload),
    /// Forget a version; its files stay bases of their hosts
    Remove {
        /// The image
        #[arg(value_name = "NAME:VERSION")]
        image: ImageRef,
    },
}

/// `HOST:PATH`.
#[derive(Debug, Clone)]
pub struct Place {
    host: Name,
    path: String,
}

/// A text that is no [`Place`].
#[derive(Debug, thiserror::Error)]
pub enum BadPlace {
    #[error("{0:?} is not HOST:PATH, e.g. alpha:/srv/images/debian.qcow2")]
    Form(String),
    #[error(transparent)]
    Host(#[from] BadName),
}

impl FromStr for Place {
    type Err = BadPlace;
    fn from_str(text: &str) -> std::result::Result<Self, BadPlace> {
        let split = text.split_once(':').filter(|(_, path)| path.starts_with('/'));
        let (host, path) = split.ok_or_else(|| BadPlace::Form(text.to_owned()))?;
        Ok(Self { host: Name::new(host)?, path: path.to_owned() })
    }
}

#[derive(Serialize)]
struct Listed {
    images: Vec<ImageRecord>,
}

#[derive(Serialize)]
struct One {
    image: ImageRecord,
}

#[derive(Serialize)]
struct Removed {
    removed: String,
}

/// Asks the coordinator, and prints what it says.
pub async fn run(config: &ClientConfig, wanted: Catalogue, json: bool) -> Result<()> {
    match wanted {
        Catalogue::Add { image, place: Place { host, path } } => {
            one(config, ImageRequest::Add { image, host, path }, json).await
        }
        Catalogue::Tag { image, version } => one(config, ImageRequest::Tag { image, version }, json).await,
        Catalogue::Preload(wanted) => preload::run(config, wanted, json).await,
        Catalogue::List { name } => list(config, name, json).await,
        Catalogue::Remove { image } => {
            let removed = image.to_string();
            match progress::ask(config, &Request::Image(ImageRequest::Remove(image))).await? {
                (_, Reply::End(())) => {}
                (exchange, other) => return Err(exchange.unexpected(&other)),
            }
            match json {
                true => output::json(&Removed { removed }),
                false => {
                    output::line(&format!("{removed} is forgotten; its files stay bases of their hosts"))
                }
            }
        }
    }
}

async fn one(config: &ClientConfig, request: ImageRequest, json: bool) -> Result<()> {
    let image = match progress::ask(config, &Request::Image(request)).await? {
        (_, Reply::Image(record)) => *record,
        (exchange, other) => return Err(exchange.unexpected(&other)),
    };
    if json {
        return output::json(&One { image });
    }
    let ImageRecord { name, version, format, virtual_bytes, blake3, copies, .. } = &image;
    let size = output::bytes(Some(*virtual_bytes));
    output::line(&format!("{name}:{version}: {format} disk of {size}, {blake3}"))?;
    let mut copies = copies.iter();
    copies.try_for_each(|copy| output::line(&format!("base {} of {}: {}", copy.base, copy.host, copy.path)))
}

async fn list(config: &ClientConfig, name: Option<Name>, json: bool) -> Result<()> {
    let (mut exchange, mut reply) = progress::ask(config, &Request::Image(ImageRequest::List(name))).await?;
    let mut images = Vec::new();
    loop {
        match reply {
            Reply::Image(record) => images.push(*record),
            Reply::End(()) => break,
            other => return Err(exchange.unexpected(&other)),
        }
        reply = exchange.next().await?;
    }
    for image in &images {
        let problems = image.copies.iter().filter_map(|copy| Some((&copy.host, copy.problem.as_ref()?)));
        for (host, problem) in problems {
            let line = format!("warning: {}:{} on {host}: {problem}", image.name, image.version);
            eprintln!("{}", crate::failure::plain(&line));
        }
    }
    if json {
        return output::json(&Listed { images });
    }
    if images.is_empty() {
        eprintln!("no images yet; `unasnap image add` enters one");
        return Ok(());
    }
    output::table(
        &["IMAGE", "VERSION", "FORMAT", "DISK", "FILE", "DIGEST", "ADDED", "HOSTS", "USED BY"],
        images.iter().map(row),
    )
}

fn row(image: &ImageRecord) -> Vec<String> {
    let host = |copy: &ImageCopy| format!("{}{}", copy.host, if copy.problem.is_some() { "!" } else { "" });
    let hosts: Vec<_> = image.copies.iter().map(host).collect();
    let users = image.copies.iter().flat_map(|copy| copy.users.iter().map(Name::as_str));
    vec![
        image.name.to_string(),
        image.version.to_string(),
        image.format.clone(),
        output::bytes(Some(image.virtual_bytes)),
        output::bytes(Some(image.bytes)),
        image.blake3.chars().take(12).collect(),
        image.added.chars().take(10).collect(),
        hosts.join(" "),
        users.collect::<Vec<_>>().join(" "),
    ]
}
