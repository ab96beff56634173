//! What operators do in guests: their turns are handed on to the VMs' hosts, and what comes back to them. Nothing of it is
//! kept, and no snapshot waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::access::{AccessAnswer, AccessOrder, AccessReply, Ask, ConsoleReport, MAX_VMS, Turn};
use unasnap_protocol::control::{Envelope, Failure, FailureKind, Phase};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Place, Reply, RequestError, RequestErrorKind};

use super::access_link::Opening;
use super::owner::{Owner, tell};
use super::registry::LinkId;

/// For a host's answer: longer than a host gives itself, shorter than an operator waits.
const LIMIT: Duration = Duration::from_secs(13);

/// The guests that one operator uses on one connection.
pub struct Accessing {
    id: Name,
    session: u64,
    replies: mpsc::Sender<Reply>,
    vms: BTreeMap<Name, Conversation>,
}

/// With one VM.
struct Conversation {
    place: Place,
    deployment: Name,
    incarnation: u64,
    /// When the turn that is under way is given up.
    due: Option<Instant>,
}

impl Accessing {
    /// When the first of its turns is given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.vms.values().filter_map(|conversation| conversation.due).min()
    }

    fn say(&self, reply: Reply) {
        tell(&vec![self.replies.clone()], &reply);
    }

    fn fail(&mut self, vm: &Name, kind: FailureKind, text: String) {
        if self.vms.remove(vm).is_some() {
            let failure = Failure::new(kind, Phase::Access, text);
            self.say(Reply::Access(AccessReply::Failed(vm.clone(), failure)));
        }
    }

    fn envelope(&self, vm: &Name, term: u64) -> Option<Envelope> {
        let conversation = self.vms.get(vm)?;
        Some(Envelope {
            vm: vm.clone(),
            deployment: conversation.deployment.clone(),
            snapshot: self.id.clone(),
            epoch: 0,
            term,
            incarnation: conversation.incarnation,
        })
    }
}

impl Owner {
    /// An operator begins.
    pub(super) fn open_guests(
        &mut self,
        link: LinkId,
        operator: &Name,
        opening: Opening,
        replies: mpsc::Sender<Reply>,
    ) {
        tracing::info!("operator {operator} uses guests: {opening:?}");
        let named = match &opening {
            Opening::Conversations(patterns, _) => self.meant(patterns),
            Opening::Console(request) => vec![request.vm.clone().into()]
                .try_into()
                .map_err(|_| RequestError::new(RequestErrorKind::Internal, "one VM is none"))
                .and_then(|one| self.meant(&one)),
        };
        let vms = named.and_then(|vms| {
            let text = format!("{} VMs are meant; a command is run in {MAX_VMS} at once at most", vms.len());
            if vms.len() <= MAX_VMS {
                Ok(vms)
            } else {
                Err(RequestError::new(RequestErrorKind::Refused, text))
            }
        });
        let vms = match vms {
            Ok(vms) => vms,
            Err(error) => return tell(&vec![replies], &Reply::Failed(error)),
        };
        let term = self.journal.term();
        // No snapshot is called so.
        let Ok(id) = Name::new(&format!("access-{term}-{link}-vm")) else { return };
        let conversations = vms.into_iter().filter_map(|vm| {
            let known = self.journal.vms().get(&vm)?;
            let conversation = Conversation {
                place: Place { vm: vm.clone(), host: known.host.clone() },
                deployment: known.deployment.clone(),
                incarnation: self.journal.counters(&known.deployment).incarnation,
                due: None,
            };
            Some((vm, conversation))
        });
        // Unlike any of another coordinator, or of this one.
        let session = (term << 32) | (link & u64::from(u32::MAX));
        let accessing = Accessing { id, session, replies, vms: conversations.collect() };
        let names: Vec<Name> = accessing.vms.keys().cloned().collect();
        if matches!(opening, Opening::Conversations(..)) {
            let places = accessing.vms.values().map(|conversation| conversation.place.clone());
            accessing.say(Reply::Access(AccessReply::Begun(places.collect())));
        }
        self.accessings.insert(link, accessing);
        for vm in names {
            let order = match &opening {
                Opening::Conversations(_, ask) => {
                    AccessOrder::Turn(Turn { session, number: 1, ask: ask.clone() })
                }
                Opening::Console(request) => AccessOrder::Console(request.lines),
            };
            self.hand_on(link, &vm, &order);
        }
    }

    /// An operator goes on.
    pub(super) fn ask_guest(&mut self, link: LinkId, vm: &Name, number: u32, ask: Ask) {
        let Some(accessing) = self.accessings.get_mut(&link) else { return };
        match accessing.vms.get(vm) {
            // It has failed, and the operator does not know yet.
            None => {}
            Some(conversation) if conversation.due.is_some() => {
                let text = "another question came before the last one was answered".to_owned();
                accessing.fail(vm, FailureKind::BadRequest, text);
            }
            Some(_) => {
                let turn = Turn { session: accessing.session, number, ask };
                self.hand_on(link, vm, &AccessOrder::Turn(turn));
            }
        }
    }

    fn hand_on(&mut self, link: LinkId, vm: &Name, order: &AccessOrder) {
        let term = self.journal.term();
        let Some(accessing) = self.accessings.get_mut(&link) else { return };
        let Some(envelope) = accessing.envelope(vm, term) else { return };
        let Some(conversation) = accessing.vms.get_mut(vm) else { return };
        let host = conversation.place.host.clone();
        if self.registry.hand_on(&host, &envelope, order) {
            conversation.due = Some(Instant::now() + LIMIT);
        } else {
            let text = format!("its host {host} is not connected; start the host agent there");
            accessing.fail(vm, FailureKind::HostLost, text);
        }
    }

    /// A host answers.
    pub(super) fn on_guest_answer(&mut self, host: &Name, envelope: &Envelope, answer: AccessAnswer) {
        let vm = &envelope.vm;
        let found = self.accessings.iter_mut().find(|(_, accessing)| accessing.id == envelope.snapshot);
        let Some((link, accessing)) = found.filter(|_| envelope.term == self.journal.term()) else { return };
        let link = *link;
        let Some(conversation) = accessing.vms.get_mut(vm) else { return };
        if conversation.place.host != *host || conversation.due.take().is_none() {
            return;
        }
        match answer {
            AccessAnswer::Said(said) => accessing.say(Reply::Access(AccessReply::Said(vm.clone(), said))),
            AccessAnswer::Console(bytes) => {
                let place = conversation.place.clone();
                accessing.say(Reply::Console(ConsoleReport { place, bytes }));
                // Which ends the connection.
                self.accessings.remove(&link);
            }
            AccessAnswer::Failed(failure) => {
                tracing::warn!("{vm} on {host}: {failure}");
                accessing.fail(vm, failure.kind, failure.text);
            }
        }
    }

    /// An operator has gone: nobody wants any more what was begun.
    pub(super) fn leave_guests(&mut self, link: LinkId) {
        let Some(accessing) = self.accessings.remove(&link) else { return };
        let term = self.journal.term();
        for (vm, conversation) in &accessing.vms {
            let turn = Turn { session: accessing.session, number: 0, ask: Ask::Close };
            if let Some(envelope) = accessing.envelope(vm, term) {
                // A host that does not hear it lets the guest find out by itself.
                self.registry.hand_on(&conversation.place.host, &envelope, &AccessOrder::Turn(turn));
            }
        }
    }

    /// A host's connection has ended.
    pub(super) fn accessings_lose(&mut self, host: &Name) {
        let text = format!(
            "the connection to its host {host} broke; a command that runs in the guest is killed within a minute"
        );
        self.give_up_guests(FailureKind::HostLost, &text, |conversation| conversation.place.host == *host);
    }

    /// Whoever has not answered is not waited for any more.
    pub(super) fn on_accessing_deadline(&mut self) {
        let (now, seconds) = (Instant::now(), LIMIT.as_secs());
        let text =
            format!("its host has not answered in {seconds} s; look at the log of the host agent there");
        self.give_up_guests(FailureKind::TimedOut, &text, |conversation| {
            conversation.due.is_some_and(|due| due <= now)
        });
    }

    fn give_up_guests(&mut self, kind: FailureKind, text: &str, is_meant: impl Fn(&Conversation) -> bool) {
        for accessing in self.accessings.values_mut() {
            let meant = accessing.vms.iter().filter(|(_, conversation)| is_meant(conversation));
            for vm in meant.map(|(vm, _)| vm.clone()).collect::<Vec<_>>() {
                accessing.fail(&vm, kind, text.to_owned());
            }
        }
    }
}
