use super::*;
use crate::vbox::as_saved;

const OWN: Own<'_> = Own {
    name: "web",
    bridges: &["br0"],
    guest_channel: "/srv/be\"ta/vms/web/guest.sock",
    console: "/srv/be\"ta/vms/web/console.sock",
    believed: false,
};
/// The same machine, as VirtualBox 7.2.22 writes it with an engine that was chosen, and without.
const WRITTEN: [&str; 2] =
    [include_str!("../../../tests/data/own-1.19.vbox"), include_str!("../../../tests/data/own-1.20.vbox")];

fn anew(text: &str) -> Result<String, String> {
    written_anew(text, &OWN)
}

#[test]
fn a_machine_of_another_host_comes_with_nothing_of_that_host() {
    for text in WRITTEN {
        let here = anew(text).unwrap();
        for foreign in ["/srv/alpha", "/srv/images", "MediaRegistry", "DisabledModes", "<!--"] {
            assert!(text.contains(foreign) && !here.contains(foreign), "{foreign}: {here}");
        }
        let channel = "server=\"true\" path=\"/srv/be&quot;ta/vms/web/guest.sock\" hostMode=\"HostPipe\"";
        for port in [channel, &channel.replace("guest", "console")] {
            assert_eq!(here.matches(port).count(), 2, "of the machine and of the cut: {here}");
        }
        for kept in
            ["<BridgedInterface name=\"br0\"/>", "<CPU count=\"2\"", "MACAddress=\"525400000001\"", ".sav"]
        {
            assert!(here.contains(kept), "{kept}: {here}");
        }
        assert_eq!(anew(&here).unwrap(), here);
        // Every element but those that are left out is there.
        let count = |text: &str, name: &str| text.matches(&format!("<{name}")).count();
        for name in
            ["Machine ", "Snapshot ", "Hardware", "Adapter ", "Order ", "Image ", "GuestProperty ", "PAE "]
        {
            assert_eq!(count(&here, name), count(text, name), "{name}: {here}");
        }
    }
}

/// What the driver does next with it.
#[test]
fn a_machine_comes_as_saved_and_with_no_disk_of_the_other_host() {
    for text in WRITTEN {
        let here = anew(text).unwrap();
        assert!(!here.contains("/srv/images") && !here.contains("<HardDisk "), "{here}");
        let begin = here.find("<Snapshot uuid=\"{").unwrap() + "<Snapshot uuid=\"{".len();
        let saved = as_saved(&here, &here[begin..begin + 36]).unwrap();
        assert!(!saved.contains("<Snapshot") && saved.contains("stateFile="), "{saved}");
    }
}

/// Each of these is put in the place of something that is there.
#[test]
fn whatever_else_is_there_is_refused_by_its_name() {
    let clipboard = "<Clipboard/>";
    let channel = "server=\"true\" path=\"/srv/alpha/vms/web/guest.sock\" hostMode=\"HostPipe\"";
    let bridge = "<BridgedInterface name=\"br0\"/>";
    let disk = "type=\"HardDisk\" hotpluggable=\"false\"";
    let machine = "name=\"web\" OSType=\"Linux_64\"";
    let slot = "<Adapter slot=\"0\" enabled=\"true\"";
    let cases = [
        (
            clipboard,
            "<SharedFolders><SharedFolder name=\"x\" hostPath=\"/\"/></SharedFolders>",
            "<SharedFolders>",
        ),
        (clipboard, "<USB><DeviceFilters/></USB>", "<USB>"),
        (clipboard, "<USBController/>", "<USBController>"),
        (clipboard, "<RemoteDisplay enabled=\"true\"/>", "<RemoteDisplay enabled=\"true\">"),
        (clipboard, "<VideoCapture enabled=\"true\" file=\"/x\"/>", "<VideoCapture"),
        (clipboard, "<Clipboard mode=\"Bidirectional\"/>", "mode=\"Bidirectional\""),
        (clipboard, "<LPT><Port slot=\"0\" path=\"/dev/sda\"/></LPT>", "<LPT>"),
        (clipboard, "<Debugging tracingEnabled=\"true\"/>", "<Debugging"),
        (clipboard, "<HostPci><Devices/></HostPci>", "<HostPci>"),
        ("<SmbiosUuidLittleEndian enabled=\"true\"/>", "<NVRAM path=\"/etc/x\"/>", "<NVRAM path=\"/etc/x\">"),
        ("<SmbiosUuidLittleEndian enabled=\"true\"/>", "<Logo imagePath=\"/etc/x\"/>", "<Logo"),
        (
            "<SmbiosUuidLittleEndian enabled=\"true\"/>",
            "<ACPI><CustomTable path=\"/etc/x\"/></ACPI>",
            "<ACPI>",
        ),
        ("<AudioAdapter useDefault=\"true\"", "<AudioAdapter enabledIn=\"true\"", "enabledIn=\"true\""),
        (channel, "path=\"/root/.profile\" hostMode=\"RawFile\"", "hostMode=\"RawFile\""),
        (channel, "server=\"false\" path=\"/run/x\" hostMode=\"HostPipe\"", "server=\"false\""),
        (channel, "path=\"/dev/ttyS0\" hostMode=\"HostDevice\"", "HostDevice"),
        ("<Port slot=\"1\"", "<Port slot=\"2\"", "slot=\"2\""),
        (
            bridge,
            "<BridgedInterface name=\"eth0\"/>",
            "name=\"eth0\" in VirtualBox/Machine/Snapshot/Hardware/Network/Adapter/BridgedInterface",
        ),
        (bridge, "<NAT/>", "<NAT> in VirtualBox/Machine/Snapshot/Hardware/Network/Adapter"),
        (bridge, "<HostOnlyInterface name=\"br0\"/>", "<HostOnlyInterface"),
        (bridge, "<InternalNetwork name=\"x\"/>", "<InternalNetwork"),
        (bridge, "<GenericInterface driver=\"UDPTunnel\"/>", "<GenericInterface"),
        (slot, "<Adapter slot=\"0\" enabled=\"yes\"", "enabled=\"yes\""),
        (slot, "<Adapter trace=\"true\" tracefile=\"/x\"", "trace=\"true\""),
        (slot, "<Adapter promiscuousModePolicy=\"AllowAll\"", "promiscuousModePolicy"),
        (disk, "type=\"DVD\" passthrough=\"true\"", "type=\"DVD\""),
        (disk, "type=\"Floppy\"", "type=\"Floppy\""),
        ("<Image uuid", "<HostDrive src", "<HostDrive"),
        ("type=\"AHCI\"", "type=\"USB\"", "type=\"USB\""),
        ("snapshotFolder=\"Snapshots\"", "snapshotFolder=\"/tmp\"", "snapshotFolder=\"/tmp\""),
        ("stateFile=\"Snapshots/", "stateFile=\"Snapshots/../", "stateFile=\"Snapshots/../"),
        ("stateFile=\"Snapshots/", "stateFile=\"/etc/", "stateFile=\"/etc/"),
        (machine, "name=\"other\" OSType=\"Linux_64\"", "name=\"other\""),
        (machine, "name=\"web\" stateFile=\"x.sav\"", "stateFile=\"x.sav\""),
        (machine, "name=\"web\" teleporterEnabled=\"true\"", "teleporterEnabled"),
        ("<Snapshot ", "<Snapshots><Snapshot/></Snapshots><Snapshot ", "<Snapshots>"),
        (
            "<Hardware>",
            "<ExtraData><ExtraDataItem name=\"VBoxInternal/x\"/></ExtraData><Hardware>",
            "<ExtraData> in VirtualBox/Machine/Snapshot",
        ),
        (
            "<Snapshot ",
            "<ExtraData><ExtraDataItem name=\"VBoxInternal/x\" value=\"1\"/></ExtraData><Snapshot ",
            "VBoxInternal/x",
        ),
        ("<Hardware>", "<x:Hardware>", "<x:Hardware>"),
        ("<Hardware>", "<MediaRegistry/><Hardware>", "<MediaRegistry> in VirtualBox/Machine/Snapshot"),
        (clipboard, "<![CDATA[x]]>", "VirtualBox does not write"),
        (clipboard, "text", "VirtualBox does not write"),
        (clipboard, "<?php x?>", "VirtualBox does not write"),
        (clipboard, "&lt;", "VirtualBox does not write"),
        ("<VirtualBox ", "<!DOCTYPE x SYSTEM \"/etc/x\"><VirtualBox ", "VirtualBox does not write"),
        ("MACAddress=\"525400000001\"", "slot=\"1\"", "its XML"),
        ("</VirtualBox>", "", "not the text of one machine"),
        ("<Machine ", "<Machine name=\"web\"/><Machine ", "not the text of one machine"),
    ];
    for text in WRITTEN {
        for (there, instead, words) in &cases {
            assert!(text.contains(there), "{there}");
            let refused = anew(&text.replacen(there, instead, 1)).expect_err(instead);
            assert!(refused.contains(words), "{instead}: {refused}");
        }
    }
}

#[test]
fn machines_of_others_are_refused() {
    for (text, words) in [
        (include_str!("../../../tests/data/branch.vbox"), "in VirtualBox/Machine"),
        (include_str!("../../../tests/data/nvram.vbox"), "in VirtualBox/Machine"),
        (include_str!("../../../tests/data/VirtualBox.xml"), "<Global"),
        ("", "not the text"),
        ("<VirtualBox/>", "not the text"),
    ] {
        let refused = anew(text).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
    // Under its own name it would still have a serial port that writes a file, and a card that reaches out.
    let run = include_str!("../../../../tests/virtualbox/fixtures/running.vbox");
    let refused = written_anew(run, &Own { name: "run", ..OWN }).unwrap_err();
    assert!(
        refused.contains("hostMode=\"RawFile\" in VirtualBox/Machine/Snapshot/Hardware/UART/Port"),
        "{refused}"
    );
}

#[test]
fn of_a_host_that_is_believed_a_machine_comes_as_it_is_but_for_this_hosts_places() {
    let run = include_str!("../../../../tests/virtualbox/fixtures/running.vbox");
    let pipe = "server=\"true\" path=\"/run/x.sock\" hostMode=\"HostPipe\"";
    let (_, port) = run.split_once("<Port ").unwrap();
    let (port, _) = port.split_once("/>").unwrap();
    let run = run.replacen("<UART>", &format!("<UART><Port slot=\"3\" {pipe}/>"), 1);
    let here = written_anew(&run, &Own { name: "run", believed: true, ..OWN }).unwrap();
    assert!(here.contains(&format!("<Port {port}/>")), "what it writes is its own affair: {here}");
    assert!(
        here.contains("slot=\"3\" server=\"true\" path=\"/srv/be&quot;ta/vms/web/guest.sock\""),
        "{here}"
    );
    assert!(!here.contains("<HardDisk "), "{here}");
    let count = |text: &str, name: &str| text.matches(&format!("<{name}")).count();
    for name in ["Snapshot ", "Hardware", "Adapter ", "Image ", "Port ", "CPU"] {
        assert_eq!(count(&here, name), count(&run, name), "{name}: {here}");
    }
    for text in
        ["", "<VirtualBox/>", "<VirtualBox><Machine/><Machine/></VirtualBox>", "<VirtualBox>x</VirtualBox>"]
    {
        assert!(written_anew(text, &Own { believed: true, ..OWN }).is_err(), "{text}");
    }
}
