//! Which files may be bases, and whether they still are what they were.

use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// `<folder>/images` is where images are.
fn folder() -> (tempfile::TempDir, Bases) {
    let folder = tempfile::tempdir().unwrap();
    for made in ["images", "state", "other"] {
        fs::create_dir(folder.path().join(made)).unwrap();
    }
    let bases = open(&folder);
    (folder, bases)
}

fn open(folder: &tempfile::TempDir) -> Bases {
    Bases::open(&folder.path().join("state"), &[folder.path().join("images")]).unwrap()
}

fn image(folder: &tempfile::TempDir, place: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().canonicalize().unwrap().join(place);
    fs::write(&path, content).unwrap();
    path
}

/// As if it had been looked at.
async fn register(bases: &mut Bases, text: &str, path: &Path) -> Result<Name, RequestError> {
    let known = Known { format: ImageFormat::Raw, virtual_bytes: 512, image: describe(path).unwrap() };
    bases.enter(Unread { name: name(text), known }.read().await.unwrap())
}

#[test]
fn only_files_below_the_images_folders_are_images() {
    let (folder, bases) = folder();
    let good = image(&folder, "images/a.qcow2", b"x");
    let secret = image(&folder, "other/shadow", b"x");
    let at = |place: &str| folder.path().join(place).display().to_string();
    symlink(&good, at("images/link")).unwrap();
    symlink(&secret, at("images/leak")).unwrap();
    symlink(at("images/loop"), at("images/loop")).unwrap();
    assert_eq!(bases.resolve(&at("images/a.qcow2")), Ok(good.clone()));
    assert_eq!(bases.resolve(&at("images/link")), Ok(good), "a link stands for its file");
    for (path, words) in [
        (at("images/leak"), "is not below"),
        (at("images/../other/shadow"), "is not below"),
        (at("state"), "is not below"),
        (at("images"), "is not a file"),
        (at("images/loop"), "cannot be found"),
        (at("images/absent"), "cannot be found"),
        ("images/a.qcow2".to_owned(), "is not an absolute path"),
        (String::new(), "is not an absolute path"),
    ] {
        let error = bases.resolve(&path).unwrap_err();
        assert!(error.text.contains(words), "{path}: {error}");
    }
}

#[tokio::test]
async fn what_was_registered_is_known_to_the_next_agent_and_its_digest_is_not_computed_again() {
    let (folder, mut bases) = folder();
    let path = image(&folder, "images/a.img", &[7; 512]);
    assert_eq!(register(&mut bases, "a", &path).await, Ok(name("a")));
    assert_eq!(register(&mut bases, "a", &path).await, Ok(name("a")), "the same once more");
    let mut next = open(&folder);
    assert_eq!(next.known(), bases.known());
    let told = next.tell(&name("a"), vec![name("vm1")]).await.unwrap();
    assert_eq!((told.blake3.as_str(), told.problem), (blake3::hash(&[7; 512]).to_hex().as_str(), None));
    next.remove(&name("a")).unwrap();
    assert_eq!(next.remove(&name("a")).unwrap_err().kind, RequestErrorKind::NotFound);
    assert!(path.exists() && open(&folder).known().is_empty());
}

#[tokio::test]
async fn a_file_that_is_a_base_stays_the_one_that_it_is() {
    let (folder, mut bases) = folder();
    let path = image(&folder, "images/a.img", &[7; 512]);
    register(&mut bases, "other", &path).await.unwrap();
    let at = path.to_str().unwrap();
    let considered = async |name| bases.consider(at, name).await.map(|found| format!("{found:?}"));
    assert_eq!(considered(None).await, Ok("Known(other)".to_owned()), "whatever its file is called");
    assert_eq!(considered(Some(name("other"))).await, Ok("Known(other)".to_owned()));
    let refused = considered(Some(name("a"))).await.unwrap_err();
    assert!(refused.text.contains("is base other already"), "{refused}");
}

#[tokio::test]
async fn a_base_that_is_missing_or_changed_is_not_used() {
    let (folder, mut bases) = folder();
    let path = image(&folder, "images/a.img", &[7; 512]);
    register(&mut bases, "a", &path).await.unwrap();
    let wrong = async |words: &str| {
        let error = bases.sound(&name("a")).await.unwrap_err();
        assert!(error.text.contains(words), "{error}");
        assert!(bases.tell(&name("a"), Vec::new()).await.unwrap().problem.unwrap().contains(words));
    };
    let touch = || {
        let later = SystemTime::now() + Duration::from_secs(5);
        fs::File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
    };
    touch();
    assert!(bases.sound(&name("a")).await.is_ok(), "it was only touched");
    fs::write(&path, [8; 512]).unwrap();
    touch();
    wrong("was changed").await;
    fs::write(&path, [7; 1024]).unwrap();
    wrong("has 1024 bytes and had 512").await;
    fs::remove_file(&path).unwrap();
    wrong("cannot read").await;
    assert_eq!(bases.sound(&name("b")).await.unwrap_err().kind, RequestErrorKind::NotFound);
}

#[tokio::test]
async fn a_file_that_is_written_while_it_is_read_is_no_base() {
    let (folder, _) = folder();
    let path = image(&folder, "images/a.img", &[7; 512]);
    let known = Known { format: ImageFormat::Raw, virtual_bytes: 512, image: describe(&path).unwrap() };
    fs::write(&path, [8; 1024]).unwrap();
    let error = Unread { name: name("a"), known }.read().await.unwrap_err();
    assert!(error.text.contains("was written while it was read"), "{error}");
}

#[tokio::test]
async fn a_record_that_is_damaged_hides_no_other() {
    let (folder, mut bases) = folder();
    register(&mut bases, "a", &image(&folder, "images/a.img", &[7; 512])).await.unwrap();
    fs::write(folder.path().join("state/bases/b.toml"), "format = 'vdi'").unwrap();
    assert_eq!(open(&folder).known().keys().collect::<Vec<_>>(), [&name("a")]);
}

#[test]
fn a_base_is_called_as_its_file() {
    for (path, expected) in
        [("/i/debian.qcow2", "debian"), ("/i/Debian 12.5.img", "debian-12-5"), ("/i/-x-.raw", "x")]
    {
        assert_eq!(name_of(Path::new(path)), Ok(name(expected)));
    }
    assert!(name_of(Path::new("/i/\u{f6}.img")).unwrap_err().text.contains("--name"));
}
