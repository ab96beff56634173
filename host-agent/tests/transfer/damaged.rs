//! What is here and was found damaged comes anew from a host that has it whole.

use std::fs;

use unasnap_protocol::control::FailureKind;

use super::support::{Giving, Taking, name};

#[tokio::test]
async fn only_what_is_damaged_comes_anew() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    taking.fetch(&giving.source()).await.unwrap();
    // One was changed, one grew, one is missing; a VM that runs has the second below its disk.
    let (devices, layer) = (taking.file("devices"), taking.file("disk0-0000.qcow2"));
    let mut changed = fs::read(&devices).unwrap();
    changed[7] ^= 1;
    fs::write(&devices, changed).unwrap();
    let below = taking.folder.path().join("below");
    fs::hard_link(&layer, &below).unwrap();
    let grown = [fs::read(&layer).unwrap(), vec![0; 4096]].concat();
    fs::write(&layer, &grown).unwrap();
    fs::remove_file(taking.file("empty")).unwrap();
    assert_eq!(taking.fetch(&giving.source()).await.unwrap().sent, 0, "nobody has compared it yet");
    taking.receiver.store.verify(&name("s"), &name("a")).unwrap_err();

    // Whoever cannot be reached, or has no better, changes nothing.
    let gone = giving.source_at(([127, 0, 0, 1], 1).into());
    assert_eq!(taking.fetch(&gone).await.unwrap_err().kind, FailureKind::HostLost);
    assert_eq!(fs::read(&layer).unwrap(), grown);

    let moved = taking.fetch(&giving.source()).await.unwrap();
    let needed = 1234 + 600_001;
    assert!((needed..needed + 32_768).contains(&moved.sent), "RAM is not sent again: {moved:?}");
    taking.compare(&giving);
    assert_eq!(fs::read(&below).unwrap(), grown, "what a VM may have below its disk is not written");
    assert_eq!(taking.fetch(&gone).await.unwrap().sent, 0, "it is whole now");
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_comes_anew_with_all_that_it_lists() {
    let giving = Giving::start(None).await;
    let taking = Taking::new(&giving);
    taking.fetch(&giving.source()).await.unwrap();
    fs::write(taking.file("manifest.json"), "{").unwrap();
    taking.receiver.store.verify(&name("s"), &name("a")).unwrap_err();
    taking.fetch(&giving.source()).await.unwrap();
    taking.compare(&giving);
}
