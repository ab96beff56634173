//! The guest agent in a stock Debian with systemd: put into its image from outside, and installed as a package.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use unasnap_host::definition::{Disk, ImageFormat};
use unasnap_host::hypervisor::Hypervisor;

use crate::bench::{Bench, from_environment, run, with_changed_bench, write_initrd};
use crate::memory::{armed, channel, cut_and_flip};

/// Emulated, and beside nothing else, it takes half a minute.
const BOOT: Duration = Duration::from_secs(300);
const RESTORE: Duration = Duration::from_secs(60);

const AGENT: &str = "usr/bin/unasnap-guest";
const UNIT: &str = "usr/lib/systemd/system/unasnap-guest.service";
const WANTED: &str = "etc/systemd/system/multi-user.target.wants/unasnap-guest.service";

/// From its first boot on: found, coloured, cut, restored.
#[test]
fn an_image_that_got_the_agent_boots_and_is_snapshotted() {
    with_changed_bench(None, prepare, |bench| {
        Box::pin(async {
            let mut vm = bench.driver.start(&bench.vm, 1).await.unwrap();
            channel(&*vm, BOOT).await;
            cut_and_flip(bench, &mut *vm, "first", 4).await;
            bench.driver.destroy(&bench.vm.name).await.unwrap();
            vm = bench.restore("first").await;
            vm.resume().await.unwrap();
            let found = channel(&*vm, RESTORE).await.identify().await.unwrap().word;
            assert_eq!(found, armed(4));
        })
    });
}

/// Makes the bench's VM one that boots the Debian.
fn prepare(bench: &mut Bench) {
    let image = bench.path().join("debian.img");
    let debian = from_environment("UNASNAP_TEST_DEBIAN");
    run("/sbin/mke2fs", &["-q", "-t", "ext4", "-d", &path(&debian), &path(&image), "1G"]);
    let agent = "there is no unasnap-guest in /usr/bin";
    assert!(condition(&image, "guest agent").1.contains(agent), "{:?}", condition(&image, "guest agent"));
    let package = from_environment("UNASNAP_TEST_PACKAGE");
    run(&unasnap(), &["image", "inject-agent", &path(&image), "--package", &path(&package)]);
    for kept in ["guest agent", "network", "superuser", "remote access"] {
        let (verdict, why) = condition(&image, kept);
        assert_eq!(verdict, "holds", "{kept}: {why}");
    }
    write_initrd(&bench.path().join("initrd"), include_bytes!("debian.sh"));
    bench.vm.memory_mb = 512;
    bench.vm.disks = vec![Disk { image, format: ImageFormat::Raw }];
}

/// What `image check` finds: the verdict and why.
fn condition(image: &Path, name: &str) -> (String, String) {
    let mut command = Command::new(unasnap());
    let output = command.args(["--json", "image", "check"]).arg(image).output().unwrap();
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let conditions = checked["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["condition"] == name).unwrap();
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    (text("verdict"), text("why"))
}

/// By dpkg, where no systemd runs: what is enabled is what is put into images.
#[test]
fn the_package_is_installed_and_removed_without_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    run("cp", &["-a", &path(&from_environment("UNASNAP_TEST_DEBIAN")), &path(&root)]);
    let package = from_environment("UNASNAP_TEST_PACKAGE");
    let dpkg = |arguments: &[&str]| {
        run("dpkg", &[&[format!("--root={}", path(&root)).as_str()], arguments].concat());
    };
    dpkg(&["--install", &path(&package)]);
    let agent = from_environment("UNASNAP_TEST_BIN").join("unasnap-guest");
    assert!(fs::read(root.join(AGENT)).unwrap() == fs::read(agent).unwrap());
    let wanted = fs::read_link(root.join(WANTED)).unwrap();
    assert!(root.join(UNIT).exists() && path(&wanted).ends_with("/lib/systemd/system/unasnap-guest.service"));
    dpkg(&["--purge", "unasnap-guest"]);
    for gone in
        [AGENT, UNIT, WANTED, "var/lib/systemd/deb-systemd-helper-enabled/unasnap-guest.service.dsh-also"]
    {
        assert!(root.join(gone).symlink_metadata().is_err(), "{gone} is left");
    }
}

fn unasnap() -> String {
    path(&from_environment("UNASNAP_TEST_BIN").join("unasnap"))
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
