//! What each request does. Pure bookkeeping over the maps: no port, no threads.

use anyhow::{Context, Result, ensure};
use log::{info, warn};
use nix::sys::utsname::uname;
use unasnap_guest_ebpf::{Late, StateWord};
use unasnap_protocol::guest::{
    Epoch, Flip, GuestReply, GuestRequest, Identity, MAX_EPOCH, RequestHead, SetMembers, StartHooks,
    WordState,
};

use unasnap_loader::Installation;

use crate::{
    access::Access,
    announce, hooks,
    interfaces::{self, Choice},
    locate, outside,
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Everything that a request may touch.
pub struct Agent {
    installation: Installation,
    choice: Choice,
    /// Highest incarnation seen.
    incarnation: u64,
    /// The straddle completed last. A repeated FlipReceive finds the word where it also stands after a
    /// self-advance; only this tells that the flip did happen.
    completed: Option<Flip>,
    access: Access,
}

impl Agent {
    /// An agent that has seen no request yet.
    #[must_use]
    pub fn new(installation: Installation, choice: Choice, access: Access) -> Self {
        Self { installation, choice, incarnation: 0, completed: None, access }
    }

    /// Carries out one request. Never fails: what goes wrong is the reply.
    pub fn answer(&mut self, head: RequestHead, request: GuestRequest) -> GuestReply {
        if head.incarnation < self.incarnation {
            return GuestReply::OldIncarnation(self.incarnation);
        }
        if head.incarnation > self.incarnation {
            self.access.end_before(head.incarnation);
        }
        self.incarnation = head.incarnation;
        let name = request.name();
        self.carry_out(request).unwrap_or_else(|error| {
            warn!("{name}: {error:#}");
            GuestReply::Failed(format!("{error:#}"))
        })
    }

    fn carry_out(&mut self, request: GuestRequest) -> Result<GuestReply> {
        match request {
            GuestRequest::Identify(()) => Ok(GuestReply::Identity(self.identity()?)),
            GuestRequest::CountOutside(()) => {
                Ok(GuestReply::Outside(outside::count(&self.installation.maps().members()?)?))
            }
            GuestRequest::SetMembers(members) => self.set_members(&members),
            GuestRequest::SetWord(word) => self.set_word(word),
            GuestRequest::SetStrict(epoch) => Ok(self.change(|word| word.set_strict(epoch))),
            GuestRequest::FlipSend(flip) => {
                check_flip(flip)?;
                // A guest that is restored from this cut has a whole lease to be told that it is.
                self.installation.forget_first_drop()?;
                Ok(self.change(|word| word.flip_send(flip.from, flip.to)))
            }
            GuestRequest::FlipReceive(flip) => self.flip_receive(flip),
            GuestRequest::ReadCounters(()) => self.read_counters(),
            GuestRequest::SelfCheck(()) => Ok(GuestReply::Health(self.problems())),
            GuestRequest::StartHooks(hooks) => self.start_hooks(&hooks),
            GuestRequest::LocateWord(()) => {
                Ok(GuestReply::Located(locate::locate(&self.installation.maps().word)?))
            }
            GuestRequest::Access(turn) => Ok(GuestReply::Access(self.access.answer(self.incarnation, turn))),
        }
    }

    fn identity(&self) -> Result<Identity> {
        let system = uname()?;
        Ok(Identity {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: system.release().to_string_lossy().into_owned(),
            boot_id: std::fs::read_to_string(BOOT_ID)
                .with_context(|| format!("cannot read {BOOT_ID}: is proc mounted?"))?
                .trim_end()
                .to_owned(),
            hostname: system.nodename().to_string_lossy().into_owned(),
            interfaces: interfaces::describe(&self.installation.interfaces())?,
            attach: self.installation.kind(),
            word: unpack(self.installation.maps().word.load()),
        })
    }

    /// A network card may have been plugged in since the last time.
    fn problems(&mut self) -> Vec<String> {
        let followed = self.choice.interfaces().and_then(|present| self.installation.follow(&present));
        let mut problems: Vec<String> =
            followed.err().map(|error| format!("{error:#}")).into_iter().collect();
        problems.extend(self.installation.problems());
        problems
    }

    fn set_members(&mut self, members: &SetMembers) -> Result<GuestReply> {
        self.installation.set_members(members)?;
        info!("{} member prefixes", members.prefixes.len());
        Ok(GuestReply::Done(()))
    }

    fn set_word(&mut self, word: WordState) -> Result<GuestReply> {
        check_epoch(word.send)?;
        check_epoch(word.receive)?;
        self.completed = None;
        self.installation.set_word(StateWord::new(word.send, word.receive, word.colouring, word.strict))?;
        Ok(GuestReply::Word(word))
    }

    fn flip_receive(&mut self, flip: Flip) -> Result<GuestReply> {
        check_flip(flip)?;
        let reply = self.change(|word| word.flip_receive(flip.from, flip.to));
        match reply {
            GuestReply::Word(_) => self.completed = Some(flip),
            GuestReply::Late(word) if self.completed == Some(flip) && word.receive == flip.to => {
                return Ok(GuestReply::Word(word));
            }
            _ => {}
        }
        Ok(reply)
    }

    fn change(&self, transition: impl Fn(StateWord) -> Result<StateWord, Late>) -> GuestReply {
        match self.installation.maps().word.change(transition) {
            Ok(word) => GuestReply::Word(unpack(word)),
            Err(Late { found }) => GuestReply::Late(unpack(found)),
        }
    }

    fn read_counters(&self) -> Result<GuestReply> {
        let counters = self.installation.maps().counters()?;
        Ok(GuestReply::Counters(
            counters.into_iter().map(|(counter, value)| (counter.name().to_owned(), value)).collect(),
        ))
    }

    /// Tries everything, whatever fails, and names what did.
    fn start_hooks(&self, start: &StartHooks) -> Result<GuestReply> {
        let mut outcomes = vec![hooks::step_wall_clock(start.unix_ns), hooks::add_entropy(start.entropy)];
        let interfaces = interfaces::describe(&self.installation.interfaces())?;
        outcomes.extend(interfaces.iter().map(announce::announce));
        let failures: Vec<String> =
            outcomes.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(GuestReply::Done(()))
    }
}

fn check_epoch(epoch: Epoch) -> Result<()> {
    ensure!(epoch <= MAX_EPOCH, "epoch {epoch} is above {MAX_EPOCH}");
    Ok(())
}

fn check_flip(flip: Flip) -> Result<()> {
    check_epoch(flip.to)?;
    ensure!(flip.from.checked_add(1) == Some(flip.to), "epoch {} does not follow {}", flip.to, flip.from);
    Ok(())
}

fn unpack(word: StateWord) -> WordState {
    WordState {
        send: word.send(),
        receive: word.receive(),
        colouring: word.colouring(),
        strict: word.strict(),
    }
}
