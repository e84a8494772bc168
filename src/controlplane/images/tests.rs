use std::os::unix::fs::MetadataExt;

use super::*;
use crate::progress::Silent;
use crate::state::SqliteStore;

struct FixedClock;

impl Clock for FixedClock {
    fn unix_seconds(&self) -> u64 {
        1_700_000_000
    }
}

struct Fixture {
    temp: tempfile::TempDir,
    store: SqliteStore,
    dir: StateDir,
}

impl Fixture {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::create(&temp.path().join("state")).unwrap();
        let store = SqliteStore::open(&dir.database()).unwrap();
        Fixture { temp, store, dir }
    }

    fn images(&self) -> Images<'_> {
        Images { store: &self.store, dir: &self.dir }
    }

    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.temp.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn import(&self, path: &Path, name: Option<&str>, replace: bool) -> Result<Image, ImageError> {
        let request = ImportRequest {
            path: path.to_owned(),
            format: None,
            name: name.map(str::to_owned),
            replace,
            drivers: Drivers::default(),
        };
        self.images().import(&request, &FixedClock, &Silent)
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.images()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

const ONE: [u8; 1024] = [1; 1024];
const TWO: [u8; 1024] = [2; 1024];

#[test]
fn imported_file_is_named_by_its_contents_and_cannot_be_written() {
    let f = Fixture::new();
    let image = f.import(&f.file("debian-12.raw", &ONE), None, false).unwrap();
    assert_eq!(image.name.as_deref(), Some("debian-12"));
    assert_eq!((image.created, image.virtual_size), (1_700_000_000, ByteSize::bytes(1024)));
    let path = f.images().path(&image);
    assert_eq!(fs::read(&path).unwrap(), ONE);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
    assert_eq!(f.files(), [format!("sha256-{}.raw", image.sha256)]);
    assert_eq!(f.images().find("debian-12").unwrap(), image);
    assert_eq!(f.images().find(&image.id.to_string()).unwrap(), image);
}

#[test]
fn same_import_twice_gives_the_same_image() {
    let f = Fixture::new();
    let path = f.file("a.raw", &ONE);
    let first = f.import(&path, None, false).unwrap();
    assert_eq!(f.import(&path, None, false).unwrap(), first);
    let other_name = f.import(&path, Some("b"), false).unwrap();
    assert_ne!(other_name.id, first.id);
    assert_eq!((f.images().list().unwrap().len(), f.files().len()), (2, 1), "two rows share one file");
}

#[test]
fn taken_name_is_refused_and_nothing_is_left_unless_it_is_replaced() {
    let f = Fixture::new();
    let first = f.import(&f.file("a.raw", &ONE), Some("x"), false).unwrap();
    let path = f.file("b.raw", &TWO);
    assert!(
        matches!(f.import(&path, Some("x"), false), Err(ImageError::NameTaken { id, .. }) if id == first.id)
    );
    assert_eq!(f.files().len(), 1);
    let second = f.import(&path, Some("x"), true).unwrap();
    assert_eq!(f.images().find("x").unwrap().id, second.id);
    assert_eq!(f.images().find(&first.id.to_string()).unwrap().name, None);
}

#[test]
fn file_goes_with_its_last_row() {
    let f = Fixture::new();
    let path = f.file("a.raw", &ONE);
    f.import(&path, Some("x"), false).unwrap();
    f.import(&path, Some("y"), false).unwrap();
    f.images().remove("x").unwrap();
    assert_eq!(f.files().len(), 1);
    f.images().remove("y").unwrap();
    assert!(f.files().is_empty() && f.images().list().unwrap().is_empty());
    assert!(matches!(f.images().remove("y"), Err(ImageError::NotFound { .. })));
}

#[test]
fn unknown_image_suggests_near_names() {
    let f = Fixture::new();
    f.import(&f.file("debian-12.raw", &ONE), None, false).unwrap();
    let error = f.images().find("debain-12").unwrap_err().to_string();
    assert_eq!(
        error,
        "there is no image or file \"debain-12\" (did you mean debian-12? See `kiln image ls`)"
    );
}

#[test]
fn names_that_could_be_mistaken_are_refused() {
    let f = Fixture::new();
    let path = f.file("a.raw", &ONE);
    for name in ["", "ami-1", "a/b", "-x", ".x", "a b", "\u{1b}x", &"x".repeat(129)] {
        assert!(matches!(f.import(&path, Some(name), false), Err(ImageError::BadName(_))), "{name:?}");
    }
    assert!(f.files().is_empty());
}

#[test]
fn bad_source_leaves_nothing() {
    let f = Fixture::new();
    assert!(f.import(&f.file("empty.raw", &[]), None, false).is_err());
    assert!(f.import(&f.file("odd.raw", &[1; 100]), None, false).is_err());
    assert!(f.import(&f.file("notq.qcow2", &ONE), None, false).is_err());
    assert!(f.files().is_empty());
}

#[test]
fn sweep_removes_unfinished_imports_of_dead_processes_and_files_without_a_row() {
    let f = Fixture::new();
    f.import(&f.file("a.raw", &ONE), None, false).unwrap();
    let alive = Unfinished::create(&f.dir.images()).unwrap();
    fs::write(f.dir.images().join(".import-dead"), "x").unwrap();
    fs::write(f.dir.images().join("sha256-orphan.raw"), "x").unwrap();
    f.images().sweep().unwrap();
    assert_eq!(f.files().len(), 2, "{:?}", f.files());
    drop(alive);
    assert_eq!(f.files().len(), 1);
}
