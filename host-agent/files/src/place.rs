//! Where a file is that another file names.

use std::path::{Component, Path, PathBuf};

/// A file and how it is called in a report.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Where it is.
    pub path: PathBuf,
    /// Relative to the report's folder; absolute if it lies elsewhere and was named so.
    pub shown: String,
}

impl Place {
    /// The file that `location` means, seen from `from`, in a report about `folder`. Both folders are absolute.
    ///
    /// Dots are taken away as the text stands, without asking the file system: a report about a VM whose files are gone
    /// must read the same.
    pub fn new(folder: &Path, from: &Path, location: &Path) -> Self {
        let path = without_dots(&from.join(location));
        let shown = match path.strip_prefix(folder) {
            Ok(inside) => inside.to_owned(),
            Err(_) if location.is_absolute() => path.clone(),
            Err(_) => upwards(folder, &path),
        };
        Self { path, shown: shown.to_string_lossy().into_owned() }
    }
}

/// The absolute folder that holds `file`.
pub fn folder_of(file: &Path) -> std::io::Result<PathBuf> {
    let file = without_dots(&std::path::absolute(file)?);
    Ok(file.parent().unwrap_or(Path::new("/")).to_owned())
}

/// `a/./b/../c` is `a/c`, and nothing lies above the root.
pub fn without_dots(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean
}

/// The way from `folder` to `path`, which does not lie in it.
fn upwards(folder: &Path, path: &Path) -> PathBuf {
    let common = folder.components().zip(path.components()).take_while(|(one, other)| one == other).count();
    let up = folder.components().skip(common).map(|_| Component::ParentDir);
    up.chain(path.components().skip(common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_from_the_folder() {
        let folder = Path::new("/vms/web");
        let cases = [
            ("web.vdi", "/vms/web/web.vdi", "web.vdi"),
            ("./Snapshots/../a b.vdi", "/vms/web/a b.vdi", "a b.vdi"),
            ("/vms/web/web.vdi", "/vms/web/web.vdi", "web.vdi"),
            ("/vms/web/../base/base.vdi", "/vms/base/base.vdi", "/vms/base/base.vdi"),
            ("../base/base.vdi", "/vms/base/base.vdi", "../base/base.vdi"),
            ("../../../../etc/passwd", "/etc/passwd", "../../etc/passwd"),
            ("/etc/passwd", "/etc/passwd", "/etc/passwd"),
        ];
        for (location, path, shown) in cases {
            let place = Place::new(folder, folder, Path::new(location));
            assert_eq!((place.path.to_str(), place.shown.as_str()), (Some(path), shown), "{location}");
        }
    }
}
