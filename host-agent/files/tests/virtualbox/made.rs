//! Counts, sums and speed, on machines of every size.

use std::time::Duration;

use unasnap_protocol::files::FileRole;

use crate::support::Made;

/// The published count: (d+1)(s+1) files for d disks and s >= 1 snapshots.
#[test]
fn d_disks_and_s_snapshots_are_d_plus_1_times_s_plus_1_files() {
    for disks in 1..=4 {
        for snapshots in 1..=6 {
            let folder = Made::line(disks, snapshots).lay_out(|_, _| 1);
            let report = folder.track("made.vbox", None).unwrap();
            let count = (disks + 1) * (snapshots + 1);
            assert_eq!(report.totals.files as usize, count, "{disks} disks, {snapshots} snapshots");
            assert!(report.missing.is_empty());
            // Snapshot k of a line is the settings, its RAM and of each disk k + 1 files.
            for k in 0..snapshots {
                let report = folder.track("made.vbox", Some(&format!("S{k}"))).unwrap();
                assert_eq!(report.totals.needed_files as usize, 2 + disks * (k + 1));
            }
        }
    }
}

/// The published example: 10 files of 5.01 GB, of which a restore elsewhere needs 4.14, or 0.63 where the base is. The sums
/// are published; the sizes of the single files are a set that has them.
#[test]
fn the_published_example_of_ten_files() {
    const MB: u64 = 1_000_000;
    let made = Made::line(1, 4);
    let settings = made.settings().len() as u64;
    let folder = made.lay_out(|role, at| match (role, at) {
        (FileRole::BaseDisk, _) => 3510 * MB,
        (FileRole::SavedState, Some(2)) => 250 * MB - settings,
        (FileRole::SavedState, _) => 230 * MB,
        (_, Some(0)) => 200 * MB,
        (_, Some(1)) => 180 * MB,
        (_, Some(2)) => 120 * MB,
        _ => 60 * MB,
    });
    let totals = folder.track("made.vbox", Some("S2")).unwrap().totals;
    assert_eq!((totals.files, totals.bytes), (10, 5010 * MB));
    assert_eq!(totals.needed_bytes, 4140 * MB);
    assert_eq!(totals.needed_without_base_bytes, 630 * MB);
}

/// At most 100 ms for 1 000 snapshots; unoptimized code may take longer.
#[test]
fn a_thousand_snapshots_take_no_time() {
    // Four branches of 250, which is as deep as VirtualBox goes.
    let parents = (0..1000).map(|index: usize| index.checked_sub(4)).collect();
    let made = Made { disks: 2, parents, ram: true };
    let folder = made.lay_out(|_, _| 1);
    let start = processor_ns();
    let report = folder.track("made.vbox", Some("S999")).unwrap();
    let took = Duration::from_nanos(processor_ns() - start);
    assert_eq!(report.snapshots.len(), 1000);
    assert_eq!(report.totals.files, 3 * 1001);
    assert_eq!(report.totals.needed_files, 2 + 2 * 250);
    println!("{} bytes of settings and {} files took {took:?}", made.settings().len(), report.totals.files);
    let limit = if cfg!(debug_assertions) { 3000 } else { 100 };
    assert!(took.as_millis() <= limit, "{took:?}");
}

/// What this thread has had of a processor: other tests on the machine take nothing of it.
fn processor_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
