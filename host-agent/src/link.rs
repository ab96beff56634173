//! The connection to the coordinator: made by the host, kept up for ever, lost without harm.
//!
//! Orders go to the members, their answers come back here. While there is no connection answers wait,
//! and go out after the next welcome.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use unasnap_channel::{Connection, Trust, Writer, steady_ns};
use unasnap_protocol::PROTOCOL_VERSION;
use unasnap_protocol::access::{AccessAnswer, AccessOrder};
use unasnap_protocol::control::{
    Answer, ClockReading, CoordinatorSession, Envelope, Failure, FailureKind, Hello, HostSession, Inventory,
    Order, Phase, Standing, ToHost, TransferAddress, Undecided,
};
use unasnap_protocol::frame::Frame;
use unasnap_protocol::household::{HostOrder, HostWord};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{RequestError, RequestErrorKind};

use crate::access::Desk;
use crate::capacity;
use crate::config::Config;
use crate::fault_point;
use crate::fence;
use crate::members::Members;
use crate::moving::Moving;
use crate::store::Store;
use crate::together::Together;
use crate::user;

/// Between two attempts to connect.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// For the coordinator's answer to the hello.
const WELCOME_LIMIT: Duration = Duration::from_secs(5);
/// Silence after which the coordinator counts as gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// What connects this host's members to the coordinator.
pub struct Link {
    /// Of this host.
    pub config: Config,
    /// Who we are to the coordinator, and whether it still is the coordinator.
    pub trust: Trust,
    /// To whom orders go.
    pub members: Members,
    /// To whom orders go that are no member's affair.
    pub household: mpsc::Sender<HostOrder>,
    /// And those about members that come with a restore, leave with one, or are not here.
    pub moving: Arc<Moving>,
    /// Where other hosts get files, if they do.
    pub serves: Option<TransferAddress>,
    /// Whether somebody sits here, if the host has a user.
    pub user: Option<watch::Receiver<bool>>,
    /// Who is told that the coordinator lives, with `self_fence_s`.
    pub fence: Option<watch::Sender<Instant>>,
    /// Where undecided snapshots lie.
    pub store: Store,
    /// What members answer.
    pub answers: mpsc::UnboundedReceiver<(Envelope, Answer)>,
    /// What the household says.
    pub words: mpsc::UnboundedReceiver<HostWord>,
    /// With whom members end their pauses.
    pub together: Together,
    /// Members that stand still.
    pub standing: mpsc::UnboundedReceiver<Standing>,
    /// Where operators' turns go.
    pub desk: Desk,
    /// What comes of them.
    pub said: mpsc::Receiver<(Envelope, AccessAnswer)>,
}

impl Link {
    /// Connects again and again.
    pub async fn run(mut self) {
        let mut told = String::new();
        loop {
            if let Err(error) = self.session().await {
                // The same reason every half second would bury the log.
                let text = format!("{error:#}");
                if text != told {
                    tracing::warn!("no connection to the coordinator: {text}");
                    told = text;
                }
            }
            sleep(RETRY_AFTER).await;
        }
    }

    async fn session(&mut self) -> Result<()> {
        let address = self.config.coordinator.clone();
        let mut connection = unasnap_channel::connect(&address, &self.trust.identity()).await?;
        let hello = HostSession::Hello(self.hello());
        fault_point::before("tell", hello.name()).await?;
        connection.send(&hello.encode(&())).await?;
        fault_point::after("tell", hello.name()).await?;
        let first = timeout(WELCOME_LIMIT, connection.recv())
            .await
            .with_context(|| format!("the coordinator at {address} did not answer the hello in 5 s"))??;
        let welcome = match first.map(|frame| ToHost::decode(&frame)).transpose()? {
            Some(ToHost::Session(CoordinatorSession::Welcome(welcome))) => welcome,
            Some(ToHost::Session(CoordinatorSession::Goodbye(why))) => {
                bail!("the coordinator refuses this host: {why}")
            }
            _ => bail!("the coordinator at {address} closed the connection instead of welcoming this host"),
        };
        tracing::info!(term = welcome.term, "connected to the coordinator at {address}");
        self.serve(connection).await
    }

    async fn serve(&mut self, connection: Connection) -> Result<()> {
        let (trust, shown) = (self.trust.clone(), connection.certificate().clone());
        let distrust = trust.lost(&shown);
        tokio::pin!(distrust);
        let (mut reader, mut writer) = connection.split();
        if let Some(address) = self.serves {
            tell(&mut writer, &HostSession::Serves(address)).await?;
        }
        if let Some(user) = &mut self.user {
            let here = *user.borrow_and_update();
            tell(&mut writer, &HostSession::UserHere(here)).await?;
        }
        let mut tick = interval(Duration::from_secs(1));
        let mut heard = Instant::now();
        // Whoever waited for these has gone with the last connection.
        while self.said.try_recv().is_ok() {}
        loop {
            tokio::select! {
                frame = reader.recv() => {
                    let Some(frame) = frame? else { bail!("the coordinator closed the connection") };
                    heard = Instant::now();
                    if let Some(fence) = &self.fence {
                        fence.send_replace(heard);
                    }
                    match self.dispatch(&frame)? {
                        Some(Reply::Session(message)) => tell(&mut writer, &message).await?,
                        Some(Reply::Access(envelope, refusal)) => reply(&mut writer, &envelope, &refusal).await?,
                        None => {}
                    }
                }
                here = user::change(&mut self.user) => tell(&mut writer, &HostSession::UserHere(here)).await?,
                Some(standing) = self.standing.recv() => tell(&mut writer, &HostSession::Standing(standing)).await?,
                Some((envelope, given)) = self.answers.recv() => {
                    if !self.moving.sees_off(&envelope, &given) {
                        answer(&mut writer, &envelope, &given).await?;
                    }
                }
                Some(word) = self.words.recv() => tell(&mut writer, &HostSession::Household(word)).await?,
                Some((envelope, said)) = self.said.recv() => reply(&mut writer, &envelope, &said).await?,
                _ = tick.tick() => tell(&mut writer, &HostSession::Inventory(self.inventory())).await?,
                error = &mut distrust => bail!("the coordinator is not trusted any more: {error}"),
                () = sleep_until(heard + SILENCE_LIMIT) => bail!("the coordinator was silent for 5 s"),
            }
        }
    }

    /// What is to be replied at once.
    fn dispatch(&self, frame: &Frame) -> Result<Option<Reply>> {
        let received_ns = steady_ns();
        match ToHost::decode(frame)? {
            ToHost::Session(CoordinatorSession::Goodbye(why)) => bail!("the coordinator said goodbye: {why}"),
            ToHost::Session(CoordinatorSession::Welcome(_)) => Ok(None),
            ToHost::Session(CoordinatorSession::Incarnations(current)) => {
                tokio::spawn(fence::lift(self.members.clone(), current));
                Ok(None)
            }
            ToHost::Session(CoordinatorSession::RunOn(snapshot)) => {
                self.together.run_on(snapshot);
                Ok(None)
            }
            ToHost::Session(CoordinatorSession::Household(order)) => {
                Ok(self.entrust(order).map(|word| Reply::Session(HostSession::Household(word))))
            }
            ToHost::Session(CoordinatorSession::StillHere(asked_ns)) => {
                let reading = ClockReading { asked_ns, received_ns, answered_ns: steady_ns() };
                Ok(Some(Reply::Session(HostSession::ClockReading(reading))))
            }
            ToHost::Access(envelope, order) => {
                let refusal = self.begin_access(envelope, order);
                Ok(refusal.map(|(envelope, refusal)| Reply::Access(envelope, refusal)))
            }
            ToHost::Member(envelope, order) => {
                self.deliver(envelope, order);
                Ok(None)
            }
        }
    }

    /// One that finds no place is refused at once.
    fn entrust(&self, order: HostOrder) -> Option<HostWord> {
        match self.household.try_send(order) {
            Err(error) => match error.into_inner() {
                HostOrder::Task { number, task, .. } => {
                    let text = format!(
                        "too much is waiting on host {}; try `{}` again",
                        self.config.name,
                        task.label()
                    );
                    let outcome = Err(RequestError::new(RequestErrorKind::Refused, text));
                    Some(HostWord::Done { number, outcome })
                }
                // It is asked again at the next hello.
                HostOrder::Missing(_) => None,
            },
            Ok(()) => None,
        }
    }

    /// To the member, or to the host: what is to be fetched concerns no instance, and a member may not be here.
    fn deliver(&self, envelope: Envelope, order: Order) {
        tracing::info!(vm = %envelope.vm, snapshot = %envelope.snapshot, epoch = envelope.epoch, order = order.name());
        if order == Order::Delete(()) {
            self.moving.forget_files(&envelope);
        }
        match self.members.get(&envelope.vm) {
            Some(member) if !matches!(order, Order::Fetch(_)) => member.order(envelope, order),
            _ => self.moving.order(envelope, order),
        }
    }

    fn begin_access(&self, envelope: Envelope, order: AccessOrder) -> Option<(Envelope, AccessAnswer)> {
        if let Some(member) = self.members.get(&envelope.vm) {
            self.desk.begin(member.share_works(), envelope, order);
            return None;
        }
        let failure = Failure::new(FailureKind::VmNotRunning, Phase::Access, self.unknown());
        Some((envelope, AccessAnswer::Failed(failure)))
    }

    fn unknown(&self) -> String {
        format!("host {} has no VM of this name; look at its vm_dir", self.config.name)
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: (PROTOCOL_VERSION, PROTOCOL_VERSION),
            host: self.config.name.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            inventory: self.inventory(),
            undecided: self.undecided(),
        }
    }

    fn inventory(&self) -> Inventory {
        let vms = self.members.list().iter().map(|member| member.standing().report).collect();
        Inventory {
            vms,
            free_bytes: self.store.free_bytes().unwrap_or(0),
            capacity: capacity::of_this_host(),
        }
    }

    /// Snapshots that members hold open, and those that an earlier run of this agent left in the store.
    fn undecided(&self) -> Vec<Undecided> {
        let mut open: Vec<_> =
            self.members.list().iter().filter_map(|member| member.standing().undecided).collect();
        for left in self.left_by_predecessor() {
            if !open.iter().any(|known| known.envelope.same_course(&left.envelope)) {
                open.push(left);
            }
        }
        open
    }

    /// Durable local snapshots without the mark of COMMIT. Whoever ordered them has a lower term than
    /// any coordinator that answers now.
    fn left_by_predecessor(&self) -> Vec<Undecided> {
        let listed =
            self.store.list().inspect_err(|error| tracing::warn!("the store cannot be listed: {error}"));
        let entries = listed.unwrap_or_default().into_iter().filter(|entry| !entry.committed);
        let each =
            entries.flat_map(|entry| entry.vms.into_iter().map(move |vm| (entry.snapshot.clone(), vm)));
        let envelope = |(snapshot, vm): (Name, Name)| {
            let manifest = self.store.manifest(&snapshot, &vm).ok()?;
            let member = self.members.get(&vm);
            let incarnation = member.map_or(0, |member| member.standing().report.incarnation);
            let epoch = u32::try_from(manifest.identity.epoch).ok()?;
            Some(Envelope {
                vm,
                deployment: manifest.identity.deployment,
                snapshot,
                epoch,
                term: 0,
                incarnation,
            })
        };
        each.filter_map(envelope).map(|envelope| Undecided { envelope, saved: true }).collect()
    }
}

/// What is said at once.
enum Reply {
    Session(HostSession),
    Access(Envelope, AccessAnswer),
}

async fn tell(writer: &mut Writer, message: &HostSession) -> Result<()> {
    fault_point::before("tell", message.name()).await?;
    writer.send(&message.encode(&())).await?;
    Ok(fault_point::after("tell", message.name()).await?)
}

async fn answer(writer: &mut Writer, envelope: &Envelope, answer: &Answer) -> Result<()> {
    fault_point::before("answer", answer.name()).await?;
    writer.send(&answer.encode(envelope)).await?;
    Ok(fault_point::after("answer", answer.name()).await?)
}

async fn reply(writer: &mut Writer, envelope: &Envelope, answer: &AccessAnswer) -> Result<()> {
    fault_point::before("reply", answer.name()).await?;
    writer.send(&answer.encode(envelope)).await?;
    Ok(fault_point::after("reply", answer.name()).await?)
}
