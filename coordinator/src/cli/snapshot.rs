//! `unasnap snapshot`.

use serde::Serialize;
use unasnap_protocol::elsewhere::Copies;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{
    DeleteReport, MemberRecord, Reply, Request, SnapshotRecord, SnapshotState, VerifiedMember, VerifyReport,
    ms,
};

use super::output;
use super::progress::{self, Lines};
use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

/// A snapshot, and where its files lie if it is usable and was asked for.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    record: SnapshotRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    copies: Option<Copies>,
}

#[derive(Serialize)]
struct One {
    snapshot: Shown,
}

#[derive(Serialize)]
struct Many {
    snapshots: Vec<Shown>,
}

#[derive(Serialize)]
struct Deleted {
    deleted: DeleteReport,
}

#[derive(Serialize)]
struct Verified {
    verified: VerifyReport,
}

/// `snapshot take`.
pub async fn take(config: &ClientConfig, deployment: Option<Name>, json: bool) -> Result<()> {
    print_one(Shown { record: taken(config, deployment).await?, copies: None }, json)
}

/// Takes one.
pub async fn taken(config: &ClientConfig, deployment: Option<Name>) -> Result<SnapshotRecord> {
    let Shown { record, .. } = single(records(config, Request::Take(deployment)).await?)?;
    if !record.consistent {
        eprintln!(
            "warning: not all VMs were coloured, so this snapshot is not consistent: a restore may hang or lose data"
        );
    }
    Ok(record)
}

/// `snapshot show`.
pub async fn show(config: &ClientConfig, id: Name, json: bool) -> Result<()> {
    print_one(single(records(config, Request::Show(id)).await?)?, json)
}

/// `snapshot list`.
pub async fn list(config: &ClientConfig, all: bool, json: bool) -> Result<()> {
    let snapshots = records(config, Request::List(all)).await?;
    if json {
        return output::json(&Many { snapshots });
    }
    if snapshots.is_empty() {
        eprintln!("no snapshots yet; `unasnap snapshot take` takes one");
        return Ok(());
    }
    let header = [
        "SNAPSHOT",
        "DEPLOYMENT",
        "STATE",
        "CONSISTENT",
        "CREATED",
        "VMS",
        "MAX PAUSE ms",
        "SKEW ms",
        "GLOBAL ms",
        "SIZE",
        "COPIES",
    ];
    output::table(&header, snapshots.iter().map(row))
}

/// `snapshot delete`.
pub async fn delete(config: &ClientConfig, id: Name, json: bool) -> Result<()> {
    let mut exchange = Exchange::begin(config, &Request::Delete(id)).await?;
    let deleted = match exchange.next().await? {
        Reply::Deleted(report) => report,
        other => return Err(exchange.unexpected(&other)),
    };
    for place in &deleted.waiting {
        let (vm, host) = (&place.vm, &place.host);
        eprintln!(
            "warning: host {host} has not yet removed its files of {vm}; it is asked again when it is connected"
        );
    }
    if json {
        return output::json(&Deleted { deleted });
    }
    output::line(&format!("deleted {}", deleted.snapshot))
}

/// `snapshot verify`. Damage is an error, with everything that is damaged in it.
pub async fn verify(config: &ClientConfig, id: Name, json: bool) -> Result<()> {
    let verified = match progress::ask(config, &Request::Verify(id)).await? {
        (_, Reply::Verified(report)) => report,
        (exchange, other) => return Err(exchange.unexpected(&other)),
    };
    let problem = |member: &VerifiedMember| {
        Some(format!("{} on {}: {}", member.vm, member.host, member.problem.as_ref()?))
    };
    let problems: Vec<_> = verified.members.iter().filter_map(problem).collect();
    let (snapshot, members) = (verified.snapshot.clone(), verified.members.len());
    if json {
        output::json(&Verified { verified })?;
    } else if problems.is_empty() {
        output::line(&format!("{snapshot} is whole: every byte of {members} VMs is as it was saved"))?;
    }
    if problems.is_empty() {
        return Ok(());
    }
    let text = format!("{snapshot} is not whole, or not known to be: {}", problems.join("; "));
    Err(CliError::new(Kind::Refused, text))
}

async fn records(config: &ClientConfig, request: Request) -> Result<Vec<Shown>> {
    let mut exchange = Exchange::begin(config, &request).await?;
    let mut lines = Lines::new();
    let mut records: Vec<Shown> = Vec::new();
    loop {
        match exchange.next().await? {
            Reply::Progress(progress) => lines.show(&progress),
            Reply::Record(record) => records.push(Shown { record: *record, copies: None }),
            Reply::Copies(copies) => {
                if let Some(shown) = records.last_mut() {
                    shown.copies = Some(copies);
                }
            }
            Reply::End(()) => break,
            other => return Err(exchange.unexpected(&other)),
        }
    }
    lines.clear();
    Ok(records)
}

fn single(mut records: Vec<Shown>) -> Result<Shown> {
    let missing = "the coordinator ended its answer without a snapshot; install the same release on both";
    records.pop().ok_or_else(|| CliError::internal(missing))
}

fn row(Shown { record, copies }: &Shown) -> Vec<String> {
    let pause = record.members.iter().filter_map(|member| member.pause_ms).max_by(f64::total_cmp);
    let size = record.members.iter().map(|member| member.bytes).sum();
    vec![
        record.id.to_string(),
        record.deployment.to_string(),
        state(record.state).to_owned(),
        yes_no(record.consistent),
        record.created.clone(),
        record.members.len().to_string(),
        output::ms(pause),
        output::ms(record.skew_ms),
        output::ms(record.global_ms),
        output::bytes(size),
        copies
            .as_ref()
            .map_or_else(|| "-".to_owned(), |copies| format!("{}/{}", copies.reached(), copies.wanted)),
    ]
}

fn print_one(snapshot: Shown, json: bool) -> Result<()> {
    if json {
        return output::json(&One { snapshot });
    }
    let Shown { record: snapshot, copies } = snapshot;
    output::line(&format!("snapshot    {} ({})", snapshot.id, state(snapshot.state)))?;
    output::line(&format!("deployment  {}, epoch {}", snapshot.deployment, snapshot.epoch))?;
    output::line(&format!("created     {}", snapshot.created))?;
    output::line(&format!("consistent  {}", yes_no(snapshot.consistent)))?;
    output::line(&format!("RAM         {}", snapshot.ram_way))?;
    let [save, global] = [snapshot.save_ms, snapshot.global_ms].map(output::ms);
    output::line(&format!("times       slowest local {save} ms, global {global} ms"))?;
    let [skew, bound] = [snapshot.skew_ms, snapshot.skew_bound_ms].map(output::fine_ms);
    let how = if snapshot.phases.cut_at_ns.is_some() { "at one instant" } else { "at once" };
    output::line(&format!("skew        {skew} ms ± {bound} ms, cuts ordered {how}"))?;
    if let Some(failure) = &snapshot.failure {
        output::line(&format!("failure     {failure}"))?;
    }
    if let Some(copies) = &copies {
        print_copies(copies)?;
    }
    let header = ["VM", "HOST", "CUT ms", "PAUSE ms", "STRADDLE ms", "LOCAL ms", "SIZE", "OUTSIDE"];
    output::table(&header, snapshot.members.iter().map(member_row))
}

/// Where they are and what is missing; nothing if nobody wants any.
fn print_copies(copies: &Copies) -> Result<()> {
    let (reached, wanted) = (copies.reached(), copies.wanted);
    if wanted > 1 || copies.members.iter().any(|member| member.hosts.len() > 1) {
        output::line(&format!("copies      on {reached} of {wanted} hosts"))?;
        for member in &copies.members {
            let hosts = member.hosts.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
            let missing = member.missing.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
            output::line(&format!("  {}: {hosts}{missing}", member.vm))?;
        }
    }
    Ok(())
}

fn member_row(member: &MemberRecord) -> Vec<String> {
    let straddle = member.send_flipped_ns.zip(member.receive_flipped_ns);
    vec![
        member.vm.to_string(),
        member.host.to_string(),
        output::fine_ms(member.after_first_ms),
        output::ms(member.pause_ms),
        output::ms(straddle.map(|(from, to)| ms(to.saturating_sub(from)))),
        output::ms(member.local_ms),
        output::bytes(member.bytes),
        output::known(member.outside_connections),
    ]
}

fn state(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Open => "open",
        SnapshotState::Committed => "committed",
        SnapshotState::Aborted => "aborted",
        SnapshotState::Deleting => "deleting",
    }
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}
