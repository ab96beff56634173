//! What a member's jobs do to its VM, its word and its part of the store, one action at a time: between two of them anything may
//! happen. (As `host-agent/src/works.rs` does it.) The order of a cut is the shared one.

use std::sync::Arc;

use unasnap_guest_ebpf::layout::DropStamp;
use unasnap_guest_ebpf::{Late, StateWord};
use unasnap_protocol::control::{CutReport, Failure, FailureKind, Phase, SavedReport};
use unasnap_protocol::cut::{Half, Moment, flips};
use unasnap_protocol::guest::{Epoch, WordState};
use unasnap_protocol::participant::{Event, Outcome, Step};

use super::{Context, Draft, Image, Local, Todo, Vm, World};
use crate::setup::{Mistake, Setup, snapshot_epoch};
use crate::step::EARLY_NS;

/// One indivisible part of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    SetEpoch,
    Ready,
    Strict,
    Flip(Half),
    Pause,
    Resume,
    Idle,
    Mark,
    GiveUp,
    Remove,
    Verify,
    Destroy,
    Load,
    Start,
    Wake,
    Drain,
    SetRestored,
}

/// The parts of a step, in order.
fn script(setup: &Setup, member: usize, step: &Step) -> Vec<Action> {
    let way = setup.ways[member];
    match step {
        Step::Prepare(_) => vec![Action::SetEpoch, Action::Ready],
        Step::Arm => vec![Action::Strict],
        Step::Cut(_) => {
            let at = |wanted| {
                let of =
                    move |(moment, half): &(Moment, Half)| (*moment == wanted).then_some(Action::Flip(*half));
                flips(way, setup.agents_fault()).iter().filter_map(of)
            };
            let mut parts: Vec<_> = at(Moment::Before).collect();
            parts.extend([Action::Pause, Action::Resume]);
            parts.extend(at(Moment::Resumed));
            if setup.mistake == Mistake::Published {
                parts.push(Action::Idle);
            }
            parts
        }
        Step::Clear => vec![Action::Idle],
        Step::Commit => vec![Action::Mark, Action::Idle],
        Step::Undo => vec![Action::GiveUp, Action::Remove],
        Step::Poll | Step::Verify => vec![Action::Verify],
        Step::Restore => vec![Action::Destroy, Action::Load],
        // Programs on the host are told before the VM runs, those in the guest as soon as they answer.
        Step::Start(_) if setup.by_host(member) => vec![Action::SetRestored, Action::Start],
        Step::Start(_) if setup.mistake == Mistake::IdleAtOnce => vec![Action::Start, Action::SetRestored],
        Step::Start(_) => vec![Action::Start, Action::Wake, Action::Drain, Action::SetRestored],
        Step::Delete => vec![Action::Remove],
        Step::Evict(_) => vec![Action::Destroy],
        // Refused while anything is under way; no world orders it.
        Step::Control(_) => Vec::new(),
    }
}

/// The words of the next part of a step, for people.
#[must_use]
pub fn next_part(setup: &Setup, member: usize, step: &Step, next: usize) -> String {
    script(setup, member, step).get(next).map_or_else(String::new, |action| format!("{action:?}"))
}

fn phase(step: &Step) -> Phase {
    match step {
        Step::Prepare(_) => Phase::Prepare,
        Step::Arm => Phase::Arm,
        Step::Cut(_) => Phase::Take,
        Step::Clear => Phase::Clear,
        Step::Commit => Phase::Commit,
        Step::Undo => Phase::Abort,
        Step::Poll => Phase::Poll,
        Step::Restore => Phase::Restore,
        Step::Start(_) => Phase::Start,
        Step::Delete => Phase::Delete,
        Step::Verify => Phase::Verify,
        Step::Evict(_) => Phase::Evict,
        Step::Control(_) => Phase::Control,
    }
}

fn word_of(word: WordState) -> StateWord {
    StateWord::new(word.send, word.receive, word.colouring, word.strict)
}

impl Vm {
    /// As `Installation::set_word`: the lease counts from the first drop under it.
    fn set_word(&mut self, word: WordState) {
        self.image.word = word_of(word);
        self.image.stamp = DropStamp::default();
    }

    fn flip(&mut self, mistake: Mistake, half: Half, from: Epoch) -> Result<(), Late> {
        let (word, to) = (self.image.word, from + 1);
        if half == Half::Send {
            self.image.stamp = DropStamp::default();
        }
        self.image.word = match half {
            _ if mistake == Mistake::LateCut => StateWord::new(to, to, true, false),
            Half::Send => word.flip_send(from, to)?,
            Half::Receive => word.flip_receive(from, to)?,
            Half::Both => word.flip(from, to)?,
        };
        Ok(())
    }
}

impl World {
    /// The next part of a member's job is done; with `unheard` it is done, but the job fails for want of an answer.
    pub(crate) fn act(&mut self, cx: &mut Context<'_>, index: usize, unheard: bool) -> bool {
        let Some(running) = &self.members[index].job else { return false };
        let (step, next) = (running.job.step.clone(), running.next);
        let parts = script(cx.setup, index, &step);
        let mut result = self.perform(cx, index, parts[next]);
        if unheard && result.is_ok() {
            result = Err(FailureKind::TimedOut);
        }
        let Some(running) = &mut self.members[index].job else { return false };
        running.next += 1;
        match result {
            Ok(()) if running.next < parts.len() => cx.todo.push(Todo::Act(index)),
            Ok(()) => {
                let outcome = match step {
                    Step::Cut(_) => Outcome::Cut(no_times(cx.setup, index)),
                    _ => Outcome::Done,
                };
                self.job_ends(cx, index, Ok(outcome));
            }
            Err(kind) => self.job_ends(cx, index, Err(Failure::new(kind, phase(&step), ""))),
        }
        true
    }

    /// The job reaches its limit before its next part.
    pub(crate) fn job_fails(&mut self, cx: &mut Context<'_>, index: usize) -> bool {
        let Some(running) = &self.members[index].job else { return false };
        let failure = Failure::new(FailureKind::TimedOut, phase(&running.job.step), "");
        self.job_ends(cx, index, Err(failure));
        true
    }

    fn job_ends(&mut self, cx: &mut Context<'_>, index: usize, result: Result<Outcome, Failure>) {
        let ended = self.members[index].job.take();
        if ended.is_some_and(|running| running.job.step == Step::Undo) {
            self.members[index].undo_failed = result.is_err();
        }
        self.member_event(cx, index, Event::JobDone(result));
    }

    /// The saving beside the jobs ends.
    pub(crate) fn save_ends(&mut self, cx: &mut Context<'_>, index: usize, good: bool) -> bool {
        let member = &mut self.members[index];
        let Some(envelope) = member.saving.take() else { return false };
        let draft = member.draft.take_if(|draft| draft.snapshot == envelope.epoch);
        let image = draft.and_then(|draft| draft.image).filter(|_| good && member.vm.is_some());
        let result = match image {
            Some(image) => {
                let durable = cx.setup.mistake != Mistake::SavedFirst;
                member.locals.insert(envelope.epoch, Local { image, committed: false, durable });
                Ok(SavedReport { digest: [0; 32], bytes: 0, saved_ns: 0 })
            }
            None => Err(Failure::new(FailureKind::Hypervisor, Phase::Save, "")),
        };
        self.member_event(cx, index, Event::SaveDone(result));
        true
    }

    fn perform(&mut self, cx: &mut Context<'_>, index: usize, action: Action) -> Result<(), FailureKind> {
        let mistake = cx.setup.mistake;
        let member = &mut self.members[index];
        let Some(running) = &mut member.job else { return Err(FailureKind::Internal) };
        let (epoch, incarnation) = (running.job.envelope.epoch, running.job.envelope.incarnation);
        let snapshot = snapshot_epoch(&running.job.envelope.snapshot);
        let vm = member.vm.as_mut().ok_or(FailureKind::VmNotRunning);
        match action {
            Action::SetEpoch => vm?.set_word(WordState::idle(epoch)),
            Action::Ready => {
                let vm = vm?;
                if !vm.running {
                    return Err(FailureKind::VmNotRunning);
                }
                if member.locals.contains_key(&snapshot) {
                    return Err(FailureKind::Files);
                }
                member.draft = Some(Draft { snapshot, image: None });
                vm.set_word(WordState::colouring(epoch));
            }
            Action::Strict if !cx.setup.is_strict() => {}
            Action::Strict => {
                let vm = vm?;
                vm.image.word = vm.image.word.set_strict(epoch).map_err(|_| FailureKind::LateCut)?;
            }
            Action::Flip(half) => vm?.flip(mistake, half, epoch).map_err(|_| FailureKind::LateCut)?,
            Action::Pause => {
                let (vm, draft) = (vm?, member.draft.as_mut().ok_or(FailureKind::Stale)?);
                vm.running = false;
                let order = flips(cx.setup.ways[index], cx.setup.agents_fault());
                let mut flip = |vm: &mut Vm, now: Moment| {
                    for (_, half) in order.iter().filter(|(moment, _)| *moment == now) {
                        running.late |= vm.flip(mistake, *half, epoch).is_err();
                    }
                };
                flip(vm, Moment::Stopped);
                draft.image = Some(Arc::new(vm.image.clone()));
                flip(vm, Moment::Fixed);
            }
            Action::Resume => {
                let vm = vm?;
                if running.late && mistake == Mistake::LeftStanding {
                    return Err(FailureKind::LateCut);
                }
                vm.running = true;
                let late = running.late;
                self.release(cx, index);
                if late {
                    return Err(FailureKind::LateCut);
                }
            }
            Action::Idle => vm?.set_word(WordState::idle(epoch + 1)),
            Action::Mark => {
                member.locals.get_mut(&snapshot).ok_or(FailureKind::Files)?.committed = true;
            }
            Action::GiveUp => {
                if let Ok(vm) = vm {
                    vm.running |= !vm.awaits_start && mistake != Mistake::LeftStanding;
                    vm.set_word(WordState::idle(epoch + 1));
                    self.release(cx, index);
                }
            }
            Action::Remove => {
                member.draft = None;
                if member.locals.get(&snapshot).is_some_and(|local| local.committed) {
                    return Err(FailureKind::Stale);
                }
                if mistake != Mistake::FilesLeft {
                    member.locals.remove(&snapshot);
                }
            }
            Action::Verify => {
                member.locals.get(&snapshot).ok_or(FailureKind::Files)?;
            }
            Action::Destroy => {
                member.locals.get(&snapshot).ok_or(FailureKind::Files)?;
                member.vm = None;
            }
            Action::Load => {
                let image = member.locals.get(&snapshot).ok_or(FailureKind::Files)?.image.as_ref();
                let word = if cx.setup.by_host(index) { StateWord::default() } else { image.word };
                // The guest's clock has stood still, so no lease is over: it was begun by the send flip, just before the cut.
                let image = Image { word, stamp: DropStamp::default(), ..image.clone() };
                member.vm =
                    Some(Vm { incarnation, running: false, awaits_start: true, image, held: Vec::new() });
            }
            Action::Start => {
                let vm = vm?;
                (vm.running, vm.awaits_start) = (true, false);
                for _ in &vm.image.ring {
                    cx.todo.push(Todo::Judge(index));
                }
                self.release(cx, index);
            }
            Action::Wake => vm?.set_word(WordState::waking(epoch)),
            Action::Drain => {
                vm?.image.stamp = DropStamp::default();
                while self.judge(cx, index, 0, EARLY_NS).is_some() {}
                // All within one lease, but this moment is not on the clock of whoever looks next.
                if let Some(vm) = &mut self.members[index].vm {
                    vm.image.stamp = DropStamp::default();
                }
            }
            Action::SetRestored => vm?.set_word(WordState::idle(epoch)),
        }
        Ok(())
    }
}

/// Times have no part in safety.
fn no_times(setup: &Setup, member: usize) -> CutReport {
    CutReport {
        colouring: setup.ways[member],
        send_flipped_ns: 0,
        stopped_ns: 0,
        instant_ns: 0,
        resumed_ns: 0,
        receive_flipped_ns: 0,
        parts: Vec::new(),
        outside_connections: None,
    }
}
