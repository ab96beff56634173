//! A trace as a space-time diagram in text: one column per participant, time downward, messages as arrows in the line in which
//! they arrive.

use std::fmt::Write;

use unasnap_guest_ebpf::{CodePoints, StateWord};
use unasnap_protocol::participant::Step;

use crate::setup::Setup;
use crate::step::{Came, Event};
use crate::world::network::Arrival;
use crate::world::{Body, Context, Packet, World, next_part};

/// Width of a column.
const COLUMN: usize = 34;

/// Draws the events, from the first state on.
#[must_use]
pub fn draw(setup: &Setup, events: &[Event]) -> String {
    let mut world = World::new(setup);
    let mut text = String::new();
    let mut head = vec!["coordinator".to_owned()];
    head.extend((0..setup.members()).map(|member| format!("m{member} ({})", setup.ways[member])));
    line(&mut text, "", &head);
    for (number, event) in events.iter().enumerate() {
        let columns = head.len();
        let before = world.clone();
        let came = world.apply(&mut Context { setup, todo: &mut Vec::new() }, *event);
        let row = match happening(setup, &before, *event) {
            Happening::At(column, words) => at(columns, column, &words),
            Happening::Arrow(from, to, words) => arrow(columns, from, to, &words, ending(came)),
        };
        let _ = writeln!(text, "{:>3}  {}", number + 1, row.trim_end());
        for member in 0..setup.members() {
            let (old, new) = (word(&before, member), word(&world, member));
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                let row = at(columns, member + 1, &format!("word := {new:?}"));
                let _ = writeln!(text, "     {}", row.trim_end());
            }
        }
    }
    text
}

enum Happening {
    At(usize, String),
    Arrow(usize, usize, String),
}

fn word(world: &World, member: usize) -> Option<StateWord> {
    world.members[member].vm.as_ref().map(|vm| vm.image.word)
}

fn ending(came: Came) -> char {
    match came {
        Came::Packet(Arrival::Dropped | Arrival::Advanced | Arrival::Lost) => 'x',
        _ => '>',
    }
}

fn line(text: &mut String, number: &str, cells: &[String]) {
    let row: String = cells.iter().map(|cell| format!("{cell:<COLUMN$}")).collect();
    let _ = writeln!(text, "{number:>3}  {}", row.trim_end());
}

/// Bars in all columns, and words beside one.
fn at(columns: usize, column: usize, words: &str) -> String {
    (0..columns)
        .map(|each| {
            if each == column {
                format!("{:<COLUMN$}", format!("* {words}"))
            } else {
                format!("{:<COLUMN$}", "|")
            }
        })
        .collect()
}

/// A labelled arrow between two columns; it ends in an `x` where it is stopped.
fn arrow(columns: usize, from: usize, to: usize, words: &str, end: char) -> String {
    let (left, right) = (from.min(to), from.max(to));
    let mut row: Vec<char> =
        (0..columns).flat_map(|_| format!("{:<COLUMN$}", "|").chars().collect::<Vec<_>>()).collect();
    let (start, stop) = (left * COLUMN, right * COLUMN);
    for place in &mut row[start + 1..stop] {
        *place = '-';
    }
    let tip = match (from < to, end) {
        (true, end) => (stop - 1, end),
        (false, '>') => (start + 1, '<'),
        (false, end) => (start + 1, end),
    };
    row[tip.0] = tip.1;
    let label = format!(" {words} ");
    let room = stop - start - 5;
    for (place, letter) in row[start + 3..].iter_mut().zip(label.chars().take(room)) {
        *place = letter;
    }
    row.into_iter().collect()
}

fn colour(packet: Packet) -> &'static str {
    match CodePoints::DEFAULT.colour(packet.dscp).map(unasnap_guest_ebpf::Colour::index) {
        Some(0) => "colour 0",
        Some(1) => "colour 1",
        Some(_) => "colour 2",
        None => "uncoloured",
    }
}

fn packet_words(packet: Packet) -> String {
    match packet.body {
        Body::Data { number, .. } => format!("message {number}, {}", colour(packet)),
        Body::Acknowledgement(next) => format!("has {next}, {}", colour(packet)),
    }
}

fn job_words(setup: &Setup, world: &World, member: usize) -> String {
    let Some(running) = &world.members[member].job else { return String::new() };
    let step = match &running.job.step {
        Step::Prepare(_) => "PREPARE",
        Step::Arm => "ARM",
        Step::Cut(_) => "cut",
        Step::Clear => "CLEAR",
        Step::Commit => "COMMIT",
        Step::Undo => "undo",
        Step::Poll => "POLL",
        Step::Restore => "RESTORE",
        Step::Start(_) => "START",
        Step::Delete => "DELETE",
        Step::Verify => "VERIFY",
        Step::Evict(_) => "EVICT",
        Step::Control(_) => "CONTROL",
    };
    format!("{step}: {}", next_part(setup, member, &running.job.step, running.next))
}

/// Host `host` stands in the column of its first member.
fn column(setup: &Setup, host: usize) -> usize {
    setup.on(host).next().map_or(0, |member| member + 1)
}

fn order(setup: &Setup, world: &World, host: usize, how: &str) -> Happening {
    let next = world.hosts[host].link.as_ref().and_then(|link| link.down.front());
    let (to, name) = next.map_or((column(setup, host), ""), |(envelope, order)| {
        (setup.member(&envelope.vm) + 1, order.name())
    });
    Happening::Arrow(0, to, format!("{}{how}", name.to_uppercase()))
}

fn answer(setup: &Setup, world: &World, host: usize, how: &str) -> Happening {
    let next = world.hosts[host].link.as_ref().and_then(|link| link.up.front());
    let (from, name) = next.map_or((column(setup, host), ""), |(envelope, answer)| {
        (setup.member(&envelope.vm) + 1, answer.name())
    });
    Happening::Arrow(from, 0, format!("{}{how}", name.to_uppercase()))
}

fn happening(setup: &Setup, world: &World, event: Event) -> Happening {
    let own = |words: &str| Happening::At(0, words.to_owned());
    let host_at = |host: usize, words: &str| Happening::At(column(setup, host), words.to_owned());
    let packet = |packet: Packet, how: &str| {
        Happening::Arrow(
            packet.from(setup) + 1,
            packet.to(setup) + 1,
            format!("{}{how}", packet_words(packet)),
        )
    };
    match event {
        Event::Take => own("snapshot asked for"),
        Event::Restore(of) => own(&format!("restore of s{of} asked for")),
        Event::Down(host) => order(setup, world, host, ""),
        Event::LoseDown(host) => order(setup, world, host, " (lost)"),
        Event::RepeatDown(host) => order(setup, world, host, " (twice)"),
        Event::Up(host) => answer(setup, world, host, ""),
        Event::LoseUp(host) => answer(setup, world, host, " (lost)"),
        Event::RepeatUp(host) => answer(setup, world, host, " (twice)"),
        Event::Deadline => own("its wait runs out"),
        Event::PollAgain => own("polls again"),
        Event::CoordinatorDies => own("killed"),
        Event::CoordinatorStarts => own("started"),
        Event::WriteLate => own("its decision is durable"),
        Event::Break(host) => host_at(host, "connection breaks"),
        Event::Connect(host) => host_at(host, "host agent connects"),
        Event::AgentDies(host) => host_at(host, "host agent killed"),
        Event::AgentStarts(host) => host_at(host, "host agent started"),
        Event::HostDies(host) => host_at(host, "host loses power"),
        Event::Act(member) => Happening::At(member + 1, job_words(setup, world, member)),
        Event::ActUnheard(member) => {
            Happening::At(member + 1, format!("{}, unheard", job_words(setup, world, member)))
        }
        Event::JobFails(member) => {
            Happening::At(member + 1, format!("{} fails", job_words(setup, world, member)))
        }
        Event::SaveEnds(member) => Happening::At(member + 1, "local snapshot durable".to_owned()),
        Event::SaveFails(member) => Happening::At(member + 1, "saving fails".to_owned()),
        Event::Wake(member) => Happening::At(member + 1, "its lease runs out".to_owned()),
        Event::Send(channel) | Event::SendAgain(channel) => {
            let ends = setup.channels[channel];
            let again = if matches!(event, Event::SendAgain(_)) { " again" } else { "" };
            let vm = world.members[ends.from].vm.as_ref();
            let number = vm.map_or(0, |vm| vm.image.app.sent[ends.out].log.len());
            Happening::At(ends.from + 1, format!("sends message {number}{again} to m{}", ends.to))
        }
        Event::Deliver { packet: which, now_ns } if now_ns == crate::step::late_ns() => {
            packet(which, ", a lease later")
        }
        Event::Deliver { packet: which, .. } => packet(which, ""),
        Event::Repeat { packet: which, .. } => packet(which, ", doubled"),
        Event::Bleach(which) => packet(which, ": mark cleared"),
        Event::Lose(which) => packet(which, ": lost"),
        Event::Judge { member, .. } => Happening::At(member + 1, "frame in the card is judged".to_owned()),
    }
}
