//! `unasnap image`: what VMs are made of.

mod catalogue;
mod check;
mod disk;
mod ext;
mod form;
mod inject;
mod payload;
mod preload;
mod root;
mod tool;

use clap::Subcommand;

use crate::config::ClientConfig;
use crate::failure::Result;

/// What is done with images.
#[derive(Subcommand)]
pub enum Image {
    #[command(flatten)]
    Catalogue(catalogue::Catalogue),
    /// Look into an image and say which conditions for a guest its system meets
    Check(check::Check),
    /// Put the guest agent into an image that nobody uses; it then runs from the first boot
    InjectAgent(inject::InjectAgent),
}

/// `image`; answers the exit code. Whoever needs no coordinator needs no configuration either.
pub fn run(config: impl FnOnce() -> Result<ClientConfig>, wanted: Image, json: bool) -> Result<u8> {
    match wanted {
        Image::Catalogue(wanted) => {
            let config = config()?;
            super::runtime(false)?.block_on(catalogue::run(&config, wanted, json)).map(|()| 0)
        }
        Image::Check(wanted) => super::runtime(false)?.block_on(check::run(&wanted, json)),
        Image::InjectAgent(wanted) => super::runtime(false)?.block_on(inject::run(wanted, json)).map(|()| 0),
    }
}
