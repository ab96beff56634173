//! What one node does with a token: pure, no sockets.

use super::wire::{Frame, Kind};

/// The value that node 0 starts with.
pub const SEED: f64 = 0.5;

/// The computation one hop does: `iterations` steps of a chaotic map, kicked by the token's number.
///
/// Only additions, multiplications and one division: these round the same way on every machine. The map is chaotic, so
/// a hop that is skipped or done twice changes every digit of what follows. A value within (0, 1) stays there, and is
/// never clamped: a clamp would forget what came before.
pub fn hop(value: f64, token: u64, iterations: u32) -> f64 {
    let kick = 1.0 / (token as f64 + 2.0);
    let mut x = 0.5 * (value + kick);
    for _ in 0..iterations {
        x = 3.999 * x * (1.0 - x);
    }
    x
}

/// The value that the last token of a run of `tokens` must carry.
pub fn expected_value(tokens: u64, iterations: u32) -> f64 {
    (1..=tokens).fold(SEED, |value, token| hop(value, token, iterations))
}

/// One node's place in a run.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// 0-based position in the ring; node 0 sends the first token.
    pub position: u64,
    /// Nodes in the ring.
    pub nodes: u64,
    /// Tokens of the run; the token with this number is the last one.
    pub tokens: u64,
    /// Steps of floating-point work per token.
    pub work: u32,
}

/// A node's state: which frame must come next.
#[derive(Debug)]
pub struct Walk {
    place: Place,
    next: u64,
    /// I received the last token and sent the exit round; when it is back it has gone round once.
    sent_exit: bool,
}

/// What a node does after a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// Send this to the successor and go on.
    Pass(Frame),
    /// Send this to the successor; the run is over for this node.
    PassAndEnd(Frame),
    /// The exit round came back to the node that began it: the run is over, nothing is sent.
    End,
}

/// A frame that cannot be right: a token was lost, doubled, reordered or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

impl Walk {
    /// A walk at its start. Node 0 sends token 1 of its own accord and first receives token N.
    pub fn new(place: Place) -> Self {
        let next = if place.position == 0 { place.nodes } else { place.position };
        Self { place, next, sent_exit: false }
    }

    /// The frame that node 0 sends at START; no other node sends one.
    pub fn opening(&self) -> Option<Frame> {
        let frame = Frame { kind: Kind::Token, number: 1, value: hop(SEED, 1, self.place.work) };
        (self.place.position == 0).then_some(frame)
    }

    /// Takes a frame from the predecessor.
    ///
    /// # Errors
    /// [`Violation`] if it is not the one frame that must come next.
    pub fn receive(&mut self, frame: Frame) -> Result<Step, Violation> {
        match frame.kind {
            Kind::Token => self.token(frame),
            Kind::Exit => self.exit(frame),
            Kind::Hello => Err(Violation("a greeting in the middle of the run".into())),
        }
    }

    fn token(&mut self, frame: Frame) -> Result<Step, Violation> {
        let Place { tokens, nodes, work, .. } = self.place;
        if frame.number != self.next || frame.number > tokens {
            let how = if frame.number < self.next { "doubled or late" } else { "lost before this one" };
            return Err(Violation(format!(
                "expected token {}, got {}: a token was {how}",
                self.next, frame.number
            )));
        }
        self.next += nodes;
        if frame.number == tokens {
            self.sent_exit = true;
            return Ok(Step::Pass(Frame { kind: Kind::Exit, ..frame }));
        }
        let number = frame.number + 1;
        Ok(Step::Pass(Frame { kind: Kind::Token, number, value: hop(frame.value, number, work) }))
    }

    fn exit(&mut self, frame: Frame) -> Result<Step, Violation> {
        let Place { tokens, .. } = self.place;
        if frame.number != tokens {
            return Err(Violation(format!("exit round at token {}, expected {tokens}", frame.number)));
        }
        if self.next <= tokens {
            return Err(Violation(format!("exit round before token {} came by", self.next)));
        }
        Ok(if self.sent_exit { Step::End } else { Step::PassAndEnd(frame) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(position: u64) -> Place {
        Place { position, nodes: 3, tokens: 7, work: 10 }
    }

    /// Three walks in one thread.
    fn round() -> Vec<Frame> {
        let mut walks: Vec<_> = (0..3).map(|position| Walk::new(place(position))).collect();
        let mut frame = walks[0].opening().unwrap();
        let mut seen = vec![frame];
        for at in (0..3).cycle().skip(1).take(50) {
            match walks[at].receive(frame).unwrap() {
                Step::Pass(next) | Step::PassAndEnd(next) => frame = next,
                Step::End => return seen,
            }
            seen.push(frame);
        }
        panic!("the exit round never came back");
    }

    #[test]
    fn the_numbers_run_up_and_the_exit_goes_round_once() {
        let seen = round();
        let numbers: Vec<_> = seen.iter().map(|f| (f.kind, f.number)).collect();
        let tokens = (1..=7).map(|n| (Kind::Token, n));
        assert_eq!(numbers, tokens.chain(std::iter::repeat_n((Kind::Exit, 7), 3)).collect::<Vec<_>>());
        assert_eq!(seen[9].value.to_bits(), expected_value(7, 10).to_bits());
    }

    #[test]
    fn lost_doubled_and_early_frames_are_named() {
        let frame = |kind, number| Frame { kind, number, value: 0.5 };
        let mut walk = Walk::new(place(1));
        walk.receive(frame(Kind::Token, 1)).unwrap();
        let doubled = walk.receive(frame(Kind::Token, 1)).unwrap_err();
        assert!(doubled.0.contains("expected token 4, got 1: a token was doubled"), "{doubled}");
        let lost = walk.receive(frame(Kind::Token, 7)).unwrap_err();
        assert!(lost.0.contains("lost"), "{lost}");
        let early = walk.receive(frame(Kind::Exit, 7)).unwrap_err();
        assert!(early.0.contains("before token 4"), "{early}");
        assert!(walk.receive(frame(Kind::Exit, 6)).is_err());
        assert!(walk.receive(frame(Kind::Hello, 0)).is_err());
    }

    #[test]
    fn a_skipped_hop_changes_the_value() {
        let right = expected_value(100, 50);
        let skipped = (1..=100).filter(|n| *n != 40).fold(SEED, |value, token| hop(value, token, 50));
        assert_ne!(right.to_bits(), skipped.to_bits());
        assert!((0.0..1.0).contains(&right), "{right}");
    }
}
