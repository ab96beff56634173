//! A host that is cut off stops its VMs, if it is told to.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use unasnap_host::members::Members;
use unasnap_host::{fence, member};
use unasnap_protocol::name::Name;

use super::{Bench, Guest, Machine, bench};

fn fences(log: &[String]) -> usize {
    log.iter().filter(|line| *line == "fence").count()
}

#[tokio::test]
async fn a_vm_goes_on_only_under_the_incarnation_that_runs_now() {
    let Bench { works, log, .. } = bench(Guest::Healthy, Machine::Healthy, 0).await;
    works.lift_fence(4).await;
    assert_eq!(log.taken(), [] as [String; 0], "it was not fenced");
    works.fence().await;
    works.fence().await;
    assert_eq!(log.taken(), ["fence"]);
    works.lift_fence(5).await;
    assert_eq!(log.taken(), [] as [String; 0], "it was restored elsewhere");
    works.lift_fence(4).await;
    assert_eq!(log.taken(), ["lift"]);
}

#[tokio::test]
async fn silence_stops_the_vms_and_a_word_in_time_does_not() {
    let Bench { works, log, folder: _folder, .. } = bench(Guest::Healthy, Machine::Healthy, 0).await;
    let (answers, _kept) = mpsc::unbounded_channel();
    let handle = member::start(Arc::new(works), answers).await;
    let name = Name::new("vm1").unwrap();
    let members = Members::default();
    members.enter(name, handle);
    let heard = fence::start(Duration::from_millis(1500), members.clone());
    for _ in 0..10 {
        sleep(Duration::from_millis(60)).await;
        heard.send_replace(Instant::now());
    }
    assert_eq!(fences(&log.taken()), 0);
    let mut seen = 0;
    for _ in 0..100 {
        sleep(Duration::from_millis(50)).await;
        seen += fences(&log.taken());
        if seen > 0 {
            break;
        }
    }
    assert_eq!(seen, 1);
    fence::lift(members, vec![(Name::new("ring").unwrap(), 4)]).await;
    assert!(log.taken().contains(&"lift".to_owned()));
}
