//! The coordinator is killed at every one of its fault points; what was open is finished or undone by the next one.

use unasnap_fault_points::{GROUPS, Moment, Program};

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, wait_until};

/// What is under way when it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Start,
    Take,
    Refused,
    Restore,
    Delete,
    Verify,
    Control,
    Pause,
    Move,
    Disk,
    Image,
}

/// In which course a step is taken; `None` for the end of a connection and the use of a guest, which are no decisions.
fn course(step: &str) -> Option<Course> {
    Some(match step {
        "Goodbye" | "Turn" | "Console" => return None,
        "term" | "host" | "vms" | "Welcome" | "StillHere" | "Incarnations" => Course::Start,
        "aborted" | "Abort" => Course::Refused,
        "loading" | "Poll" | "Restore" | "Start" => Course::Restore,
        "Verify" => Course::Verify,
        "Control" => Course::Control,
        "paused" => Course::Pause,
        "copies" | "home" | "Fetch" | "Evict" => Course::Move,
        "Household" => Course::Disk,
        "images" => Course::Image,
        "deleting" | "removed" | "Delete" => Course::Delete,
        _ => Course::Take,
    })
}

/// Is this as it must be when nothing is under way? The states of all snapshots.
fn settled(cluster: &Cluster) -> bool {
    let list = cluster.json(&["snapshot", "list", "--all"]);
    let whole = |snapshot: &serde_json::Value| {
        let saved = snapshot["members"].as_array().unwrap().iter().all(|member| !member["digest"].is_null());
        match snapshot["state"].as_str().unwrap() {
            "committed" => saved,
            state => state == "aborted",
        }
    };
    list["snapshots"].as_array().unwrap().iter().all(whole)
}

fn die_and_recover(cluster: &mut Cluster, hosts: &[Host; 2], point: &str, course: Course) {
    let newest = cluster.json(&["status"])["last_snapshot"]["id"].as_str().unwrap().to_owned();
    let lives = cluster.json(&["vm", "show", "vm1"])["vm"]["host"].clone();
    let image = format!("debian:{point}");
    let place = format!("vm1={}", if lives == "h1" { "h2" } else { "h1" });
    cluster.kill_daemon();
    if course == Course::Start {
        // The journal knows them already, and would not write them again.
        std::fs::remove_dir_all(cluster.path("state")).unwrap();
    }
    if course == Course::Refused {
        hosts[1].fault("Take", Fault::Refuse);
    }
    cluster.spawn_daemon(point);
    let command: &[&str] = match course {
        Course::Start => &["status"],
        Course::Take | Course::Refused => &["snapshot", "take"],
        Course::Restore => &["restore", &newest],
        Course::Delete => &["snapshot", "delete", &newest],
        Course::Verify => &["snapshot", "verify", &newest],
        Course::Control => &["vm", "reset", "*"],
        Course::Pause => &["pause", "ring"],
        Course::Move => &["restore", &newest, "--place", &place],
        Course::Disk => &["disk", "list"],
        Course::Image => &["image", "add", &image, "h1:/srv/images/debian.qcow2"],
    };
    wait_until(&format!("the coordinator dies at {point}"), || {
        cluster.has_died() || {
            cluster.run(command);
            cluster.has_died()
        }
    });
    cluster.start_daemon();
    if course == Course::Move {
        // It lives where it was to come, though it may not have come yet.
        wait_until("the restore goes well", || cluster.run(&["restore", &newest]).code == 0);
    }
    cluster.wait_for_vms(2);
    if course == Course::Restore {
        // What was loaded stays paused until then.
        let repeated = cluster.run(&["restore", &newest]);
        assert_eq!(repeated.code, 0, "{point}: {}", repeated.stderr);
    }
    wait_until("what was open is settled", || settled(cluster) && hosts.iter().all(Host::is_idle));
    wait_until(&format!("the next snapshot goes well after {point}"), || {
        cluster.run(&["snapshot", "take"]).code == 0
    });
}

#[test]
fn killed_at_any_point_the_next_one_finishes_or_undoes() {
    let groups = GROUPS.iter().filter(|group| group.program == Program::Coordinator);
    let steps: Vec<_> = groups.flat_map(|group| group.steps.iter().map(|step| (group.name, *step))).collect();
    // A coordinator that begins anew counts its epochs anew: those come last, each with hosts of its own.
    for starts in [false, true] {
        let mut shared: Option<(Cluster, [Host; 2])> = None;
        for (group, step) in &steps {
            let Some(course) = course(step).filter(|course| (*course == Course::Start) == starts) else {
                continue;
            };
            for moment in Moment::ALL {
                let (cluster, hosts) = shared.get_or_insert_with(|| {
                    let cluster = Cluster::start();
                    let hosts =
                        [Host::start(&cluster, "h1", &["vm1"]), Host::start(&cluster, "h2", &["vm2"])];
                    cluster.wait_for_vms(2);
                    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
                    (cluster, hosts)
                });
                die_and_recover(cluster, hosts, &format!("{group}.{step}.{}", moment.label()), course);
                if starts {
                    shared = None;
                }
            }
        }
    }
}
