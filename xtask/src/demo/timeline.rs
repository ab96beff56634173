//! A picture of snapshots: who stood where, when.
//!
//! Each snapshot has two panels: the cut (TAKE to CLEAR), where milliseconds show, and the whole (PREPARE to COMMIT). In
//! each panel a VM has one row with its straddle, its pause and its saving; vertical lines are the coordinator's steps.

use std::fmt::Write;

use crate::lab::record::{Member, Snapshot};

const LEFT: f64 = 90.0;
const WIDTH: f64 = 820.0;
const ROW: f64 = 22.0;
const HEAD: f64 = 46.0;
const GAP: f64 = 26.0;

/// Colours: distinguishable for the colour-blind, and in grey.
const STRADDLE: &str = "#e69f00";
const PAUSE: &str = "#b2182b";
const SAVING: &str = "#7fb3d5";

/// The picture, as one SVG document.
pub fn svg(snapshots: &[Snapshot]) -> String {
    let mut body = String::new();
    let mut top = 40.0;
    for snapshot in snapshots {
        let phases = &snapshot.phases;
        let ends = snapshot.members.iter().map(|member| member.receive_flipped_ns);
        let cut_end = ends.fold(phases.clear_ns, u64::max);
        let cut = Panel::new(phases.take_ns, cut_end, top);
        cut.draw(&mut body, snapshot, &format!("{} (epoch {}): the cut", snapshot.id, snapshot.epoch));
        top += cut.height(snapshot) + GAP;
        let saved = snapshot.members.iter().map(|member| member.saved_ns);
        let whole = Panel::new(phases.prepare_ns, saved.fold(phases.commit_ns, u64::max), top);
        whole.draw(&mut body, snapshot, &format!("{}: PREPARE to COMMIT", snapshot.id));
        top += whole.height(snapshot) + GAP;
    }
    let (width, height) = (LEFT + WIDTH + 40.0, top);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}{body}</svg>\n",
        legend()
    )
}

fn legend() -> String {
    let entries = [(STRADDLE, "straddle"), (PAUSE, "pause"), (SAVING, "saving")];
    let mut text = String::new();
    for (index, (colour, name)) in entries.into_iter().enumerate() {
        let x = LEFT + 100.0 * index as f64;
        bar(&mut text, (x, x + 14.0), (12.0, 12.0), colour, name);
        label(&mut text, (x + 20.0, 22.0), "start", name);
    }
    text
}

/// One time axis with its rows.
struct Panel {
    from: u64,
    span: f64,
    top: f64,
}

impl Panel {
    /// A little room on both sides, so that what happens at the ends can be seen.
    fn new(from: u64, to: u64, top: f64) -> Self {
        let room = (to.saturating_sub(from) / 40).max(1);
        let from = from.saturating_sub(room);
        Self { from, span: (to + room).saturating_sub(from) as f64, top }
    }

    fn height(&self, snapshot: &Snapshot) -> f64 {
        HEAD + ROW * snapshot.members.len() as f64 + 20.0
    }

    fn x(&self, at: u64) -> f64 {
        LEFT + (at.saturating_sub(self.from) as f64 / self.span).min(1.0) * WIDTH
    }

    fn draw(&self, out: &mut String, snapshot: &Snapshot, title: &str) {
        let bottom = self.top + HEAD + ROW * snapshot.members.len() as f64;
        label(out, (LEFT, self.top + 12.0), "start", title);
        self.axis(out, snapshot.phases.take_ns, bottom);
        for (row, member) in snapshot.members.iter().enumerate() {
            self.member(out, member, self.top + HEAD + ROW * row as f64);
        }
        self.steps(out, snapshot, bottom);
    }

    fn member(&self, out: &mut String, member: &Member, y: f64) {
        label(out, (LEFT - 8.0, y + 15.0), "end", &format!("{} ({})", member.vm, member.host));
        let mut part = |from: u64, to: u64, inset: f64, colour: &str, name: &str| {
            let ms = to.saturating_sub(from) as f64 / 1e6;
            let title = format!("{} {name} {ms:.2} ms", member.vm);
            bar(out, (self.x(from), self.x(to)), (y + inset, ROW - 2.0 * inset), colour, &title);
        };
        part(member.resumed_ns, member.saved_ns, 6.0, SAVING, "saving");
        part(member.send_flipped_ns, member.receive_flipped_ns, 4.0, STRADDLE, "straddle");
        part(member.stopped_ns, member.resumed_ns, 2.0, PAUSE, "pause");
    }

    /// The coordinator's steps that fall into this panel. ARM stands left of its line, since TAKE follows closely; the instant
    /// for which the cuts were ordered stands a line lower, since it follows TAKE closely.
    fn steps(&self, out: &mut String, snapshot: &Snapshot, bottom: f64) {
        let phases = &snapshot.phases;
        let steps = [
            ("PREPARE", phases.prepare_ns, "start"),
            ("ARM", phases.arm_ns, "end"),
            ("TAKE", phases.take_ns, "start"),
            ("CLEAR", phases.clear_ns, "start"),
            ("COMMIT", phases.commit_ns, "end"),
        ];
        let inside = |at: u64| at >= self.from && at as f64 <= self.from as f64 + self.span;
        if let Some(at) = phases.cut_at_ns.filter(|at| inside(*at)) {
            line(out, self.x(at), (self.top + HEAD - 12.0, bottom), PAUSE);
            label(out, (self.x(at) + 3.0, self.top + HEAD - 2.0), "start", "ordered instant");
        }
        for (name, at, anchor) in steps.into_iter().filter(|(_, at, _)| inside(*at)) {
            let (x, y) = (self.x(at), self.top + 30.0);
            line(out, x, (y, bottom), "#333");
            let aside = if anchor == "end" { -3.0 } else { 3.0 };
            label(out, (x + aside, y + 4.0), anchor, name);
        }
    }

    /// Marks at round times, in milliseconds from TAKE.
    fn axis(&self, out: &mut String, zero: u64, bottom: f64) {
        let step = round_step(self.span / 1e6 / 8.0);
        let first = (self.from as f64 - zero as f64) / 1e6;
        let mut mark = (first / step).ceil() * step;
        while (mark - first) * 1e6 <= self.span {
            let x = LEFT + (mark - first) * 1e6 / self.span * WIDTH;
            line(out, x, (self.top + HEAD, bottom), "#ddd");
            // Not `-0`.
            let mark_shown = if mark.abs() < step / 2.0 { 0.0 } else { mark };
            let shown = if step < 1.0 { format!("{mark_shown:.1}") } else { format!("{mark_shown:.0}") };
            label(out, (x, bottom + 13.0), "middle", &shown);
            mark += step;
        }
        label(out, (LEFT + WIDTH + 4.0, bottom + 13.0), "start", "ms");
    }
}

/// The smallest of 1, 2, 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1e-3).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| *step >= least).unwrap_or(10.0 * power)
}

// Writing to a string cannot fail, so the results are of no interest.

fn bar(out: &mut String, (from, to): (f64, f64), (y, height): (f64, f64), colour: &str, title: &str) {
    let width = (to - from).max(0.7);
    let title = escape(title);
    let _ = writeln!(
        out,
        "<rect x=\"{from:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height:.1}\" fill=\"{colour}\"><title>{title}</title></rect>"
    );
}

fn line(out: &mut String, x: f64, (from, to): (f64, f64), colour: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"{from:.1}\" y2=\"{to:.1}\" stroke=\"{colour}\"/>"
    );
}

fn label(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escape(text);
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::tests::example;

    #[test]
    fn every_part_is_drawn_once_per_panel() {
        let picture = svg(&[example()]);
        let count = |what: &str| picture.matches(what).count();
        assert_eq!(count("vm1 pause 10.00 ms"), 2);
        assert_eq!(count("vm2 straddle 12.00 ms"), 2);
        assert_eq!(count(">TAKE<"), 2);
        assert_eq!(count(">CLEAR<"), 2);
        assert_eq!(count(">COMMIT<"), 1);
        assert_eq!(count(">ordered instant<"), 2);
        assert_eq!(count("NaN"), 0);
        assert_eq!(picture.matches("<rect").count(), picture.matches("</rect>").count() + 1);
    }

    #[test]
    fn steps_are_round() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9 * b;
        assert!(
            close(round_step(0.3), 0.5) && close(round_step(1.1), 2.0) && close(round_step(130.0), 200.0)
        );
    }
}
