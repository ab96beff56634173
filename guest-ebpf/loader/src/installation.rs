//! Programs, links and maps together.

use anyhow::Result;
use aya_log::EbpfLogger;
use log::Log;
use unasnap_guest_ebpf::StateWord;
use unasnap_protocol::guest::{AttachKind, SetMembers};

use crate::{
    attach::{self, Attached, Site},
    check,
    maps::Maps,
    programs::Programs,
};

/// The programs where they hang, and their maps.
pub struct Installation {
    programs: Programs,
    attached: Attached,
    maps: Maps,
}

impl Installation {
    /// Loads the programs and hangs them on `interfaces`, in the place of an earlier agent's. Its maps, the state
    /// word included, are taken over if they are of this build's shape. With `logging` the programs log every drop.
    ///
    /// # Errors
    /// Not root, a kernel without what is needed, or an interface that does not exist; the interfaces before it stay
    /// attached.
    pub fn install(site: &Site, interfaces: &[String], logging: bool) -> Result<Self> {
        let pins = &site.pins;
        pins.prepare()?;
        pins.discard_foreign_maps();
        let mut programs = Programs::load(pins, logging)?;
        // Before the programs meet their first packet: opening the maps fills in what they are to read.
        let maps = Maps::open(pins)?;
        let attached = attach::attach(&mut programs, site, interfaces)?;
        Ok(Self { programs, attached, maps })
    }

    /// What the programs log from now on, as lines of `logger`.
    ///
    /// # Errors
    /// The programs were loaded without logging.
    pub fn log<L: Log + 'static>(&mut self, logger: L) -> Result<EbpfLogger<L>> {
        self.programs.log(logger)
    }

    /// The maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Names of the interfaces on which the programs hang.
    #[must_use]
    pub fn interfaces(&self) -> Vec<String> {
        self.attached.names()
    }

    /// How they hang.
    #[must_use]
    pub fn kind(&self) -> AttachKind {
        self.attached.kind()
    }

    /// Replaces configuration and members. A prefix of both lists is a member throughout.
    ///
    /// # Errors
    /// Code points or a prefix are out of range, there are too many prefixes, or a system call fails.
    pub fn set_members(&mut self, members: &SetMembers) -> Result<()> {
        self.maps.set_members(members)
    }

    /// Sets the word whatever it was; the lease counts from the first drop under it.
    ///
    /// # Errors
    /// A system call fails.
    pub fn set_word(&mut self, word: StateWord) -> Result<()> {
        self.maps.set_word(word)
    }

    /// The lease counts from the next drop.
    ///
    /// # Errors
    /// A system call fails.
    pub fn forget_first_drop(&mut self) -> Result<()> {
        self.maps.forget_first_drop()
    }

    /// Hangs the programs on those of `present` that are new, and forgets interfaces that are gone.
    ///
    /// # Errors
    /// The kernel refuses; the interfaces before that one are attached.
    pub fn follow(&mut self, present: &[String]) -> Result<()> {
        self.attached.follow(&mut self.programs, present)
    }

    /// Is everything in place that a snapshot will need? Problems in words; none means healthy.
    ///
    /// A program that somebody else's has displaced is put back in its place first. One made-up packet runs through
    /// the egress program and shows up in its counters; it reaches no network.
    #[must_use]
    pub fn problems(&mut self) -> Vec<String> {
        check::problems(&mut self.programs, &self.attached, &self.maps)
    }
}
