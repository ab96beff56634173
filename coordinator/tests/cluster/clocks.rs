//! Hosts whose clocks are minutes apart: TAKE names one instant to all, and the skew is told in one time.

use crate::support::host::{Fault, Host, Timing};
use crate::support::{Cluster, wait_until};
use serde_json::Value;
use unasnap_protocol::control::Colouring;

const MINUTE: i64 = 60_000_000_000;

fn host(cluster: &Cluster, name: &str, vms: &[&str], timing: Timing) -> Host {
    Host::with(cluster, name, vms, Colouring::Guest, timing)
}

/// Takes snapshots until one was ordered for an instant: on a busy machine no reading of a clock may be good enough at first.
fn take_at_one_instant(cluster: &Cluster) -> Value {
    let mut taken = Value::Null;
    wait_until("a snapshot is ordered for one instant", || {
        taken = cluster.json(&["snapshot", "take"])["snapshot"].clone();
        !taken["phases"]["cut_at_ns"].is_null()
    });
    taken
}

/// The instants of a host's last TAKEs by the coordinator's clock lie within the bound around the one that is on record.
fn assert_ordered(host: &Host, ahead_ns: i64, snapshot: &Value, member: usize) {
    let at_ns = snapshot["phases"]["cut_at_ns"].as_u64().unwrap();
    let bound_ms = snapshot["members"][member]["clock_bound_ms"].as_f64().unwrap();
    let told = host.instants().last().copied().flatten().unwrap();
    let apart_ms = told.saturating_add_signed(-ahead_ns).abs_diff(at_ns) as f64 / 1e6;
    assert!(
        apart_ms <= bound_ms,
        "the host was told an instant {apart_ms} ms away, its clock is known to {bound_ms} ms"
    );
}

#[test]
fn hosts_whose_clocks_are_minutes_apart_cut_at_one_instant() {
    let cluster = Cluster::start();
    let behind = host(&cluster, "h1", &["vm1", "vm2"], Timing { ahead_ns: -3 * MINUTE, ..Timing::default() });
    let timing = Timing { ahead_ns: 7 * MINUTE, late_ns: 40_000_000, silent: false };
    let ahead = host(&cluster, "h2", &["vm3"], timing);
    cluster.wait_for_vms(3);
    let snapshot = take_at_one_instant(&cluster);
    assert_ordered(&behind, -3 * MINUTE, &snapshot, 0);
    assert_ordered(&ahead, 7 * MINUTE, &snapshot, 2);
    // The second host cuts 40 ms after the instant, and the skew tells it.
    let (skew, bound) = (snapshot["skew_ms"].as_f64().unwrap(), snapshot["skew_bound_ms"].as_f64().unwrap());
    assert!((skew - 40.0).abs() <= bound, "{skew} ms ± {bound} ms");
    assert_eq!(
        (&snapshot["members"][0]["after_first_ms"], &snapshot["members"][2]["after_first_ms"]),
        (&0.0.into(), &skew.into())
    );
    assert_eq!(snapshot["members"][1]["after_first_ms"], 0.0, "VMs of one host share its clock");
    // All times are the coordinator's: a local snapshot does not take minutes.
    assert!(snapshot["save_ms"].as_f64().unwrap() < 10_000.0, "{snapshot}");
    let shown = cluster.run(&["snapshot", "show", snapshot["id"].as_str().unwrap()]).stdout;
    assert!(
        shown.contains(&format!("skew        {skew:.2} ms ± {bound:.2} ms, cuts ordered at one instant")),
        "{shown}"
    );
}

#[test]
fn a_clock_that_is_set_is_noticed_before_the_next_cut() {
    let cluster = Cluster::start();
    let (_one, two) = (Host::start(&cluster, "h1", &["vm1"]), Host::start(&cluster, "h2", &["vm2"]));
    cluster.wait_for_vms(2);
    assert_ordered(&two, 0, &take_at_one_instant(&cluster), 1);
    for ahead_ns in [10 * MINUTE, -10 * MINUTE] {
        two.set_clock(ahead_ns);
        assert_ordered(&two, ahead_ns, &take_at_one_instant(&cluster), 1);
    }
}

#[test]
fn a_host_that_does_not_tell_its_clock_makes_take_mean_at_once() {
    let cluster = Cluster::start();
    let one = Host::start(&cluster, "h1", &["vm1"]);
    let timing = Timing { ahead_ns: MINUTE, silent: true, ..Timing::default() };
    let two = host(&cluster, "h2", &["vm2"], timing);
    cluster.wait_for_vms(2);
    let snapshot = cluster.json(&["snapshot", "take"])["snapshot"].clone();
    assert_eq!(snapshot["state"], "committed");
    assert_eq!((one.instants(), two.instants()), (vec![None], vec![None]));
    assert!(snapshot["phases"]["cut_at_ns"].is_null() && snapshot["skew_bound_ms"].is_null(), "{snapshot}");
    assert!(snapshot["members"][1]["clock_bound_ms"].is_null() && snapshot["skew_ms"].is_number());
    let shown = cluster.run(&["snapshot", "show", snapshot["id"].as_str().unwrap()]).stdout;
    assert!(shown.contains("± - ms, cuts ordered at once"), "{shown}");
}

/// Members stand still until the last one does; who is late because it is dead is not waited for here, but by its host's patience.
#[test]
fn members_are_told_to_run_on_when_the_last_one_stands() {
    let cluster = Cluster::start();
    let (one, two) = (Host::start(&cluster, "h1", &["vm1"]), Host::start(&cluster, "h2", &["vm2", "vm3"]));
    cluster.wait_for_vms(3);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    let told = || (one.run_ons(), two.run_ons());
    let once = vec!["ring-000001".to_owned()];
    wait_until("both hosts are told", || told() == (once.clone(), once.clone()));
    two.fault("Take", Fault::Refuse);
    assert_ne!(cluster.run(&["snapshot", "take"]).code, 0);
    wait_until("all is undone", || one.is_idle() && two.is_idle());
    assert_eq!(told(), (once.clone(), once), "vm2 never stood");
}
