//! An image comes to several hosts: from whom, and what the operator sees meanwhile.

use unasnap_channel::connect;
use unasnap_protocol::control::Moved;
use unasnap_protocol::image::ImageRequest;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request};

use crate::support::host::Host;
use crate::support::{Cluster, within};

/// So many hosts, of which the first `having` have the image that the catalogue knows.
fn hosts(cluster: &Cluster, count: usize, having: usize) -> Vec<Host> {
    let start = |index| {
        let host = format!("h{index}");
        // The others have their certificates from the beginning.
        assert!(index <= 2 || cluster.run(&["pki", "add-host", &host, "--dir", "pki"]).code == 0);
        Host::start(cluster, &host, &[&format!("vm{index}")])
    };
    let hosts: Vec<_> = (1..=count).map(start).collect();
    cluster.wait_for_vms(count);
    assert_eq!(cluster.run(&["image", "add", "debian:1", "h1:/srv/images/debian.qcow2"]).code, 0);
    hosts[having..].iter().for_each(|host| host.house(|house| house.lacks_base = true));
    hosts
}

#[test]
fn the_hosts_that_have_it_share_the_work() {
    let cluster = Cluster::start();
    let hosts = hosts(&cluster, 5, 2);
    assert_eq!(cluster.run(&["image", "preload", "debian:1", "h3", "h4", "h5"]).code, 0);
    let sources = |host: &Host| -> Vec<String> {
        let brought = host.house(|house| house.brought.take()).unwrap();
        brought.sources.iter().map(|source| source.host.to_string()).collect()
    };
    let all: Vec<_> = hosts[2..].iter().map(sources).collect();
    assert_eq!(all, [["h1", "h2"], ["h2", "h1"], ["h1", "h2"]], "who is not there is passed over");
}

#[test]
fn the_operator_sees_how_far_it_is() {
    let cluster = Cluster::start();
    let hosts = hosts(&cluster, 3, 1);
    let moved = Moved { sent: 100 << 20, to_send: 300 << 20, total: 400 << 20 };
    hosts[1].house(|house| house.stuck_at = Some(moved));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = runtime.block_on(async {
        let mut operator = connect(&cluster.address(), &cluster.identity("operator")).await.unwrap();
        let hosts = ["h2", "h3"].map(|host| Name::new(host).unwrap()).to_vec();
        let image = "debian:1".parse().unwrap();
        let request = ImageRequest::Preload { image, hosts, per_second: None, within_s: 60 };
        operator.send(&Request::Image(request).encode(&())).await.unwrap();
        let told = async {
            loop {
                let frame = operator.recv().await.unwrap().expect("no answer comes before it is told");
                if let Reply::Fetching(progress) = Reply::decode(&frame).unwrap().1 {
                    return progress;
                }
            }
        };
        within("progress", told).await
    });
    // The other one got it at once, and has never said how far it was.
    let [member] = told.members.as_slice() else { panic!("{told:?}") };
    assert_eq!((member.vm.as_str(), member.from.as_str(), member.to.as_str()), ("h2", "h1", "h2"));
    assert_eq!((member.sent, member.to_send, member.total), (moved.sent, moved.to_send, moved.total));
    assert!(member.seconds_left.is_some_and(|left| left > 0.0), "{member:?}");
}
