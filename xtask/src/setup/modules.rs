//! The kernel modules that guests need, with what they depend on.
//!
//! A package holds no `modules.dep` (that is made when it is installed), so dependencies are read where depmod reads them:
//! in each module's `depends=` string.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::guest::unpack_file;

/// The list of what guests load when they boot.
pub const BOOT: &str = "order";

/// The list of what iptables needs in addition, in the benchmark's guests that are coloured the published way.
pub const IPTABLES: &str = "order-iptables";

/// The lists with what is wanted in them; sch_netem is for tests that make networks bad.
const WANTED: [(&str, &[&str]); 2] = [
    (BOOT, &["virtio_net", "virtio_blk", "cls_bpf", "sch_ingress", "sch_netem"]),
    (IPTABLES, &["iptable_mangle", "iptable_filter", "xt_DSCP", "xt_dscp"]),
];

/// Copies the wanted modules from the kernel's `tree` into `to`, unpacked, with the lists: one file name a line, each
/// after what it depends on. A module that is not in the tree must be built into the kernel.
///
/// # Errors
/// A module can be found neither in the tree nor among the built-in ones.
pub fn collect(tree: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    let mut files = HashMap::new();
    find(tree, &mut files).with_context(|| format!("reading {}", tree.display()))?;
    let list = tree.with_file_name("modules.builtin");
    let builtin = std::fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    let builtin: Vec<_> = builtin.lines().map(|line| module_name(Path::new(line))).collect();
    let mut order = Vec::new();
    for (list, wanted) in WANTED {
        let listed_already = order.len();
        for name in wanted {
            let context = || format!("kernel module {name}");
            add(name, &files, &builtin, to, &mut order).with_context(context)?;
        }
        let lines: String = order[listed_already..].iter().map(|name| format!("{name}.ko\n")).collect();
        std::fs::write(to.join(list), lines).context("writing a list of modules")?;
    }
    Ok(())
}

fn add(
    name: &str,
    files: &HashMap<String, PathBuf>,
    builtin: &[String],
    to: &Path,
    order: &mut Vec<String>,
) -> Result<()> {
    if order.iter().any(|done| done == name) || builtin.iter().any(|built| built == name) {
        return Ok(());
    }
    let Some(file) = files.get(name) else { bail!("{name} is neither a module nor built in") };
    let plain = to.join(format!("{name}.ko"));
    unpack_file(file, &plain)?;
    let bytes = std::fs::read(&plain).with_context(|| format!("reading {}", plain.display()))?;
    for dependency in depends(&bytes) {
        add(&dependency, files, builtin, to, order)?;
    }
    order.push(name.to_owned());
    Ok(())
}

/// The modules that a module's `.modinfo` section names.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(normal).collect()
}

fn find(directory: &Path, files: &mut HashMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

/// `.../virtio-net.ko.xz` is `virtio_net`.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    normal(name.split(".ko").next().unwrap_or_default())
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_once() {
        let scratch = tempfile::tempdir().unwrap();
        let tree = scratch.path().join("kernel");
        std::fs::create_dir_all(tree.join("net")).unwrap();
        std::fs::write(scratch.path().join("modules.builtin"), "kernel/core/inner-most.ko\n").unwrap();
        let modinfo = |depends: &str| format!("ELF\0license=GPL\0depends={depends}\0retpoline=Y\0");
        std::fs::write(tree.join("net/virtio_net.ko"), modinfo("shared,middle")).unwrap();
        std::fs::write(tree.join("net/middle.ko"), modinfo("shared,inner-most")).unwrap();
        std::fs::write(tree.join("shared.ko"), modinfo("")).unwrap();
        for name in WANTED.iter().flat_map(|(_, wanted)| *wanted).skip(1) {
            std::fs::write(tree.join(format!("{name}.ko")), modinfo("")).unwrap();
        }
        let to = scratch.path().join("out");
        collect(&tree, &to).unwrap();
        let order = std::fs::read_to_string(to.join("order")).unwrap();
        assert!(order.starts_with("shared.ko\nmiddle.ko\nvirtio_net.ko\n"), "{order}");
        let more = std::fs::read_to_string(to.join(IPTABLES)).unwrap();
        assert!(more.starts_with("iptable_mangle.ko\n") && !more.contains("shared"), "{more}");
        assert!(to.join("middle.ko").exists());

        std::fs::remove_file(tree.join("shared.ko")).unwrap();
        let error = format!("{:#}", collect(&tree, &scratch.path().join("again")).unwrap_err());
        assert!(error.contains("shared is neither"), "{error}");
    }
}
