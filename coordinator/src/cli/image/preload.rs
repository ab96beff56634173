//! `unasnap image preload`: now, or in the maintenance window.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use jiff::civil::Time;
use jiff::{Span, Zoned};
use serde::Serialize;
use unasnap_protocol::household::{Base, HostReport, Outcome};
use unasnap_protocol::image::{ImageRef, ImageRequest};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::Request;

use crate::cli::{household, output};
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result, plain};

/// How long it may take where no window says it, seconds.
const AN_HOUR: u32 = 3600;

/// `image preload`.
#[derive(Args)]
pub struct Preload {
    /// The image
    #[arg(value_name = "NAME:VERSION")]
    image: ImageRef,
    /// Who is to have it
    #[arg(value_name = "HOST", required = true)]
    hosts: Vec<Name>,
    /// Wait until this window of local time opens, and stop when it closes: what has come is kept, and goes on in the next
    /// [default: now, for an hour at most]
    #[arg(long, value_name = "HH:MM-HH:MM")]
    window: Option<Window>,
    /// What each host may receive, MB per second [default: as fast as it goes]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

/// A time of every day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: Time,
    until: Time,
}

/// A text that is no [`Window`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no window: use two different times of day, e.g. 01:00-05:30")]
pub struct BadWindow(String);

impl FromStr for Window {
    type Err = BadWindow;
    fn from_str(text: &str) -> std::result::Result<Self, BadWindow> {
        let bad = || BadWindow(text.to_owned());
        let time = |text: &str| Time::strptime("%H:%M", text).map_err(|_| bad());
        let (from, until) = text.split_once('-').ok_or_else(bad)?;
        let window = Self { from: time(from)?, until: time(until)? };
        if window.from == window.until { Err(bad()) } else { Ok(window) }
    }
}

impl Window {
    /// How long it is until it opens (zero while it is open), and how long it is open then.
    fn seen_from(self, now: &Zoned) -> std::result::Result<(Duration, Duration), jiff::Error> {
        let next = |time: Time, after: &Zoned| {
            let today = after.with().time(time).build()?;
            if today > *after { Ok(today) } else { today.checked_add(Span::new().days(1)) }
        };
        let between = |one: &Zoned, other: &Zoned| one.duration_until(other).unsigned_abs();
        let (opens, closes) = (next(self.from, now)?, next(self.until, now)?);
        if closes < opens {
            return Ok((Duration::ZERO, between(now, &closes)));
        }
        Ok((between(now, &opens), between(&opens, &next(self.until, &opens)?)))
    }
}

#[derive(Serialize)]
struct Preloaded {
    preloaded: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    host: Name,
    base: Option<Base>,
    error: Option<String>,
    ms: f64,
}

/// Waits for the window, has the image brought, and says what became of it on each host.
///
/// # Errors
/// It was refused, or a host did not get it; the others are told of all the same.
pub async fn run(config: &ClientConfig, wanted: Preload, json: bool) -> Result<()> {
    let Preload { image, hosts, window, rate } = wanted;
    let within_s = match window {
        Some(window) => opened(window).await?,
        None => AN_HOUR,
    };
    let per_second = rate.map(|rate| u64::from(rate) * 1_000_000);
    let request = ImageRequest::Preload { image: image.clone(), hosts, per_second, within_s };
    let report = household::ask(config, &Request::Image(request)).await?;
    let line = |report: HostReport| {
        let (base, error) = match report.outcome {
            Ok(Outcome::Preloaded(base)) => (Some(base), None),
            Ok(_) => (None, Some(household::other_answer(&report.host).to_string())),
            Err(error) => (None, Some(error.text)),
        };
        Line { host: report.host, base, error, ms: report.ms }
    };
    let preloaded: Vec<_> = report.hosts.into_iter().map(line).collect();
    let failed: Vec<_> =
        preloaded.iter().filter(|line| line.error.is_some()).map(|line| &line.host).collect();
    let failed = failed.into_iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    if json {
        output::json(&Preloaded { preloaded })?;
    } else {
        for Line { host, base, error, ms } in &preloaded {
            match (base, error) {
                (Some(base), _) => {
                    output::line(&format!("{image} on {host}: base {}, {ms:.0} ms", base.name))?;
                }
                (None, error) => {
                    eprintln!("{}", plain(&format!("{host}: {}", error.as_deref().unwrap_or_default())))
                }
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(CliError::new(Kind::Refused, format!("{image} is not on {failed}")))
}

/// Sleeps until the window is open; seconds until it closes.
async fn opened(window: Window) -> Result<u32> {
    let unknown = |error: jiff::Error| CliError::internal(format!("local time: {error}"));
    let (wait, within) = window.seen_from(&Zoned::now()).map_err(unknown)?;
    if !wait.is_zero() {
        eprintln!("the window opens in {} min", wait.as_secs().div_ceil(60));
        tokio::time::sleep(wait).await;
    }
    Ok(u32::try_from(within.as_secs()).unwrap_or(AN_HOUR).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_open_or_opens_next() {
        let minutes = |window: &str, now: &str| {
            let now: Zoned = format!("2026-03-02T{now}:00[UTC]").parse().unwrap();
            let (wait, within) = window.parse::<Window>().unwrap().seen_from(&now).unwrap();
            (wait.as_secs() / 60, within.as_secs() / 60)
        };
        assert_eq!(minutes("01:00-05:30", "00:10"), (50, 270));
        assert_eq!(minutes("01:00-05:30", "01:00"), (0, 270));
        assert_eq!(minutes("01:00-05:30", "05:00"), (0, 30));
        assert_eq!(minutes("01:00-05:30", "05:30"), (19 * 60 + 30, 270));
        // Over midnight.
        assert_eq!(minutes("22:00-02:00", "23:00"), (0, 180));
        assert_eq!(minutes("22:00-02:00", "01:00"), (0, 60));
        assert_eq!(minutes("22:00-02:00", "12:00"), (600, 240));
        for bad in ["", "1", "01:00", "01:00-", "01:00-01:00", "25:00-26:00", "01:00-02:00-03:00", "a-b"] {
            assert!(bad.parse::<Window>().is_err(), "{bad:?}");
        }
    }
}
