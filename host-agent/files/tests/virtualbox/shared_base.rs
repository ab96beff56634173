//! Machines whose base another machine has registered: multiattach and linked clones. The `.vbox` alone does not tell their
//! chains; the headers of the differences and the registries beside it do.

use unasnap_protocol::files::FileRole;

use crate::support::{Folder, data, paths};

const LAYERS: [&str; 3] = [
    "db47ef28-9915-47e1-9018-86121e919a90",
    "fe813181-e445-4468-8757-5a0ade4855ea",
    "c1deb952-db22-4242-9d7e-7e4900f5f013",
];
const BASE: &str = "c1c3385c-a812-4a20-8cb8-c6769ef07bee";

/// The recorded machines, with their folder instead of the one in which they were recorded.
fn machines() -> Folder {
    let folder = Folder::new();
    folder.lay_out("shared");
    for name in ["ma1", "holder"] {
        let here = folder.path("");
        let text = data(&format!("shared-{name}.vbox")).replace("/srv/hostA/vms/", here.to_str().unwrap());
        folder.write(&format!("{name}/{name}.vbox"), text);
    }
    folder
}

/// The first 440 bytes of a VDI.
fn header(uuid: &str, parent: Option<&str>) -> Vec<u8> {
    let bytes = |uuid: &str| {
        let digits = uuid.replace('-', "");
        let mut bytes: Vec<u8> =
            (0..16).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    };
    let mut header = vec![0; 440];
    header[64..72].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe, 1, 0, 1, 0]);
    header[392..408].copy_from_slice(&bytes(uuid));
    header[424..440].copy_from_slice(&parent.map_or(vec![0; 16], bytes));
    header
}

fn write_layer(folder: &Folder, layer: usize) {
    let parent = if layer == 0 { BASE } else { LAYERS[layer - 1] };
    folder.write(&format!("ma1/Snapshots/{{{}}}.vdi", LAYERS[layer]), header(LAYERS[layer], Some(parent)));
}

#[test]
fn the_chain_is_found_in_the_registry_of_a_neighbour() {
    let folder = machines();
    let report = folder.track("ma1/ma1.vbox", Some("S2")).unwrap();
    let base = folder.path("base/base.vdi").to_str().unwrap().to_owned();
    let layer = |layer: usize| format!("Snapshots/{{{}}}.vdi", LAYERS[layer]);
    let expected = [base.as_str(), &layer(0), &layer(1), "ma1.vbox"];
    assert_eq!(paths!(report.needed), expected);
    assert!(report.missing.is_empty());
    let base = report.needed.iter().find(|file| file.path == base).unwrap();
    assert_eq!((base.role, base.bytes), (FileRole::BaseDisk, 2_097_152));
    assert_eq!(report.totals.needed_without_base_bytes, report.totals.needed_bytes - 2_097_152);
}

#[test]
fn what_a_newer_virtualbox_has_kept_of_a_neighbour_is_not_what_it_is() {
    let folder = machines();
    let kept = folder.path("holder/holder-1.19-linux.vbox");
    std::fs::write(&kept, data("nvram.vbox")).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
    std::fs::File::options().write(true).open(&kept).unwrap().set_modified(old).unwrap();
    assert!(folder.track("ma1/ma1.vbox", Some("S2")).unwrap().missing.is_empty());
}

#[test]
fn the_chain_is_found_in_the_headers() {
    let folder = machines();
    (0..3).for_each(|layer| write_layer(&folder, layer));
    // The holder's registry tells of the base alone.
    let holder = std::fs::read_to_string(folder.path("holder/holder.vbox")).unwrap();
    let start = holder.find("<HardDisk uuid=\"{db47").unwrap();
    let end = holder.rfind("</HardDisk>").unwrap();
    folder.write("holder/holder.vbox", format!("{}{}", &holder[..start], &holder[end..]));
    let report = folder.track("ma1/ma1.vbox", None).unwrap();
    assert_eq!(report.needed.len(), 5);
    assert!(report.missing.is_empty(), "{:?}", report.missing);
}

#[test]
fn a_base_of_which_nobody_tells_is_missing() {
    let folder = machines();
    (0..3).for_each(|layer| write_layer(&folder, layer));
    std::fs::remove_file(folder.path("holder/holder.vbox")).unwrap();
    let report = folder.track("ma1/ma1.vbox", None).unwrap();
    assert_eq!(report.needed.len(), 4);
    assert_eq!(paths!(report.missing), [format!("{{{BASE}}}")]);
    assert!(report.missing[0].why.contains("another machine has registered"));
}

#[test]
fn a_disk_of_which_nobody_tells_is_missing() {
    let folder = Folder::new();
    folder.write("ma1/ma1.vbox", data("shared-ma1.vbox"));
    let report = folder.track("ma1/ma1.vbox", None).unwrap();
    assert_eq!(paths!(report.missing), [format!("{{{}}}", LAYERS[2])]);
    assert_eq!(paths!(report.needed), ["ma1.vbox"]);
}

#[test]
fn headers_that_go_in_a_circle_are_refused() {
    let folder = machines();
    write_layer(&folder, 1);
    write_layer(&folder, 2);
    let first = format!("ma1/Snapshots/{{{}}}.vdi", LAYERS[0]);
    folder.write(&first, header(LAYERS[0], Some(LAYERS[2])));
    let text = folder.track("ma1/ma1.vbox", None).unwrap_err().to_string();
    assert!(text.contains("in a circle"), "{text}");
}

#[test]
fn the_holder_does_not_need_its_neighbours_disks() {
    let folder = machines();
    let report = folder.track("holder/holder.vbox", None).unwrap();
    assert_eq!(paths!(report.needed), ["holder.vbox"]);
    let base = report.not_needed.iter().find(|file| file.role == FileRole::BaseDisk).unwrap();
    assert_eq!(base.why, "no snapshot of this machine refers to it");
}
