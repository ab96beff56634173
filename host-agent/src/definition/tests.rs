//! What is accepted, and the words of each refusal.

use super::*;

const GOOD: &str = "name='a'\ndeployment='d'\nmemory_mb=128\nkernel='k'\n\
    [[nic]]\nbridge='br0'\nmac='52:54:00:00:00:01'\naddresses=['10.0.0.1','fd00::/64']\n";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("k"), "kernel").unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn refusal(text: &str) -> String {
    let folder = folder(&[("vm.toml", text)]);
    VmDefinition::load(&folder.path().join("vm.toml")).unwrap_err().to_string()
}

#[test]
fn paths_are_relative_to_the_file() {
    let folder = folder(&[("vm.toml", GOOD)]);
    let definition = VmDefinition::load(&folder.path().join("vm.toml")).unwrap();
    assert_eq!(definition.kernel, Some(folder.path().join("k")));
    assert_eq!(definition.cpus, 1);
    assert_eq!(definition.colouring, Colouring::Auto);
}

#[test]
fn each_refusal_names_the_key() {
    let cases = [
        (GOOD.replace("kernel='k'", "kernel='absent'"), "key `kernel` names"),
        (GOOD.replace("kernel='k'", ""), "give a kernel or at least one [[disk]]"),
        (GOOD.replace("memory_mb=128", "memory_mb=1"), "key `memory_mb` is 1"),
        (GOOD.replace("name='a'", "name='../a'"), "not a valid name"),
        (GOOD.replace("name='a'", "name='a'\ncolour='x'"), "unknown field `colour`"),
        (GOOD.replace("name='a'", "name='a'\ncolouring='x'"), "unknown variant `x`, expected one of `auto`"),
        (GOOD.replace("52:54", "53:54"), "key `nic[0].mac`"),
        (GOOD.replace("fd00::/64", "fd00::/129"), "key `nic[0].addresses` is fd00::/129"),
        (GOOD.replace("br0", "br/0"), "key `nic[0].bridge`"),
        (GOOD.to_owned() + "[[disk]]\nimage='x.qcow2'\n", "key `disk[0].image` names"),
        (GOOD.replace("kernel='k'", "machine='a.vbox'").replace("br0", ""), "key `nic[0].bridge` is "),
        (
            GOOD.replace("kernel='k'", "machine='a.vbox'") + "[[disk]]\nimage='k'\n",
            "key `disk` is given: VirtualBox's machine says this",
        ),
        (
            GOOD.to_owned() + "[[disk]]\nimage='k'\nformat='vdi'\n",
            "key `disk[0].format` is vdi: QEMU's VMs have qcow2 and raw images",
        ),
        ("x".repeat(65 * 1024), "cannot read"),
    ];
    for (text, words) in cases {
        let message = refusal(&text);
        assert!(message.contains(words), "{message:?} lacks {words:?}");
        assert!(message.contains("vm.toml"), "{message:?} does not name the file");
    }
}

/// As unasnap writes it when it has made the machine.
#[test]
fn a_machine_may_have_cards_with_bridges() {
    let folder = folder(&[("vm.toml", &GOOD.replace("kernel='k'", "machine='a.vbox'"))]);
    let definition = VmDefinition::load(&folder.path().join("vm.toml")).unwrap();
    assert_eq!(definition.nics[0].bridge, "br0");
    let text = definition.to_toml().unwrap();
    assert_eq!(VmDefinition::parse(&text, &folder.path().join("vm.toml")).unwrap(), definition);
}

#[test]
fn one_bad_file_does_not_hide_the_others() {
    let other = GOOD.replace("'a'", "'b'");
    let files = [("1.toml", GOOD), ("2.toml", "nonsense"), ("3.toml", GOOD), ("4.toml", other.as_str())];
    let folder = folder(&files);
    let (good, bad) = load_folder(folder.path()).unwrap();
    assert_eq!(good.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(matches!(bad[0], DefinitionError::Syntax { .. }));
    assert!(matches!(&bad[1], DefinitionError::Duplicate { first, .. } if first.ends_with("1.toml")));
    assert_eq!(bad.len(), 2);
}
