#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;

const NAMES: [&str; 3] = ["svid.pem", "key.pem", "ca.pem"];
const MODES: [u32; 3] = [0o644, 0o600, 0o444];

struct Home {
    dir: TempDir,
    set: FileSet,
}

impl Home {
    fn new() -> Self {
        Self::with(NAMES)
    }

    fn with(names: [&str; 3]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = [0, 1, 2].map(|index| OutputFile {
            path: dir.path().join(names[index]),
            shown: names[index].to_owned(),
            mode: FileMode::new(MODES[index]),
        });
        let set = FileSet::new(&[&files[0], &files[1], &files[2]]);
        Self { dir, set }
    }

    fn publish(&self, tag: &str) -> Result<(), SwapError> {
        self.publish_at(tag, OffsetDateTime::now_utc())
    }

    fn publish_at(&self, tag: &str, now: OffsetDateTime) -> Result<(), SwapError> {
        let contents = NAMES.map(|name| format!("{name} {tag}"));
        self.set
            .publish(&contents.each_ref().map(|content| content.as_bytes()), now)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn versions(&self) -> usize {
        self.names()
            .iter()
            .filter(|name| name.starts_with("..svid.pem.v"))
            .count()
    }
}

#[test]
fn configured_names_show_the_last_version_with_the_configured_modes() {
    let home = Home::new();
    home.publish("1").unwrap();
    home.publish("2").unwrap();
    for (name, mode) in NAMES.iter().zip(MODES) {
        assert_eq!(home.read(name), format!("{name} 2"));
        let metadata = fs::metadata(home.path(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
        let link = fs::read_link(home.path(name)).unwrap();
        assert_eq!(link, Path::new("..svid.pem.data").join(name));
    }
    let shown = home.names().into_iter().filter(|name| !name.starts_with(".."));
    assert_eq!(shown.collect::<Vec<_>>(), ["ca.pem", "key.pem", "svid.pem"]);
}

#[test]
fn readers_that_look_the_link_up_once_never_see_a_mixture() {
    let home = Home::new();
    home.publish("0").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let version = fs::canonicalize(home.set.data_link()).unwrap();
                let tags = NAMES.map(|name| {
                    let content = fs::read_to_string(version.join(name)).unwrap();
                    content.rsplit(' ').next().unwrap().to_owned()
                });
                assert!(tags.iter().all(|tag| *tag == tags[0]), "{tags:?}");
                reads += 1;
            }
        });
        for round in 1..200 {
            home.publish(&round.to_string()).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn plain_files_are_taken_over_without_a_moment_of_mixture() {
    let home = Home::new();
    for name in NAMES {
        fs::write(home.path(name), format!("{name} old")).unwrap();
        fs::set_permissions(home.path(name), Permissions::from_mode(0o640)).unwrap();
    }
    let occupants = [Occupant::PlainFile; 3];
    home.set.take_over(&occupants, OffsetDateTime::now_utc()).unwrap();
    for name in NAMES {
        assert!(fs::symlink_metadata(home.path(name)).unwrap().is_symlink());
        assert_eq!(home.read(name), format!("{name} old"));
        let metadata = fs::metadata(home.path(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640, "{name}");
    }
    home.publish("new").unwrap();
    assert_eq!(
        NAMES.map(|name| home.read(name)),
        NAMES.map(|name| format!("{name} new"))
    );
}

#[test]
fn one_plain_file_beside_links_is_taken_over_too() {
    let home = Home::new();
    home.publish("1").unwrap();
    fs::remove_file(home.path("key.pem")).unwrap();
    fs::write(home.path("key.pem"), "by hand").unwrap();
    fs::remove_file(home.path("ca.pem")).unwrap();
    home.publish("2").unwrap();
    assert_eq!(
        NAMES.map(|name| home.read(name)),
        NAMES.map(|name| format!("{name} 2"))
    );
}

#[test]
fn a_program_that_writes_in_place_writes_through_the_links() {
    let home = Home::new();
    home.publish("1").unwrap();
    fs::write(home.path("key.pem"), "key.pem of spiffe-helper").unwrap();
    assert_eq!(home.read("key.pem"), "key.pem of spiffe-helper");
    home.publish("2").unwrap();
    assert_eq!(home.read("key.pem"), "key.pem 2");
}

#[test]
fn the_version_before_stays_for_readers_and_older_ones_go() {
    let home = Home::new();
    let later = OffsetDateTime::now_utc() + Duration::hours(1);
    home.publish("1").unwrap();
    let first = fs::canonicalize(home.set.data_link()).unwrap();
    home.publish_at("2", later).unwrap();
    assert_eq!(fs::read_to_string(first.join("key.pem")).unwrap(), "key.pem 1");
    home.publish_at("3", later).unwrap();
    assert!(!first.exists());
    assert_eq!(home.versions(), 2);
}

#[test]
fn what_another_process_has_just_begun_is_left_alone_and_leftovers_of_a_crash_go() {
    let home = Home::new();
    let begun = home.path(&format!("..svid.pem.v1-{}", Uuid::new_v4().simple()));
    let link = home.path(&format!("..svid.pem.{}.tmp", Uuid::new_v4().simple()));
    let foreign = ["..svid.pem.vault", "..svid.pem2.v1-0", "..svid.pem.data.bak"];
    fs::create_dir(&begun).unwrap();
    symlink("nowhere", &link).unwrap();
    for name in foreign {
        fs::create_dir(home.path(name)).unwrap();
    }
    home.publish("1").unwrap();
    assert!(begun.exists() && fs::symlink_metadata(&link).is_ok());
    home.publish_at("2", OffsetDateTime::now_utc() + Duration::hours(1))
        .unwrap();
    assert!(!begun.exists() && fs::symlink_metadata(&link).is_err());
    for name in foreign {
        assert!(home.path(name).exists(), "{name}");
    }
}

#[test]
fn links_of_others_and_directories_are_refused_before_anything_is_written() {
    let home = Home::new();
    fs::write(home.path("target"), "theirs").unwrap();
    symlink("target", home.path("key.pem")).unwrap();
    let error = home.publish("1").unwrap_err();
    assert!(
        matches!(&error, SwapError::ForeignLink(path) if path.ends_with("key.pem")),
        "{error}"
    );
    fs::remove_file(home.path("key.pem")).unwrap();
    fs::create_dir(home.path("key.pem")).unwrap();
    assert!(matches!(home.publish("1").unwrap_err(), SwapError::NotAFile(_)));
    assert_eq!(home.names(), ["key.pem", "target"]);
}

#[test]
fn a_failure_leaves_the_old_version_and_nothing_else() {
    let home = Home::new();
    home.publish("1").unwrap();
    // A name that no file can have makes the third write fail, like a full disk would.
    let mut broken = home.set.clone();
    broken.slots[2].stored = "x".repeat(300);
    let contents: [&[u8]; 3] = [b"2"; 3];
    broken.publish(&contents, OffsetDateTime::now_utc()).unwrap_err();
    assert_eq!(
        NAMES.map(|name| home.read(name)),
        NAMES.map(|name| format!("{name} 1"))
    );
    assert_eq!(home.versions(), 1);
    let gone = Home::new();
    fs::remove_dir(gone.dir.path()).unwrap();
    let error = gone.publish("1").unwrap_err().to_string();
    assert!(
        error.starts_with("examine directory: ") && error.contains("No such file"),
        "{error}"
    );
    fs::create_dir(gone.dir.path()).unwrap();
}

#[test]
fn attempts_that_fail_leave_no_key_however_often_they_are_made() {
    let at = |minutes| OffsetDateTime::now_utc() + Duration::minutes(minutes);
    // The link that all go through cannot be placed.
    let home = Home::new();
    fs::create_dir(home.set.data_link()).unwrap();
    for minutes in 0..5 {
        home.publish_at("1", at(minutes * 10)).unwrap_err();
    }
    assert_eq!(home.names(), ["..svid.pem.data"]);
    // The link to one of the files cannot.
    let home = Home::with(["svid.pem", "gone/key.pem", "ca.pem"]);
    for minutes in 0..5 {
        home.publish_at("1", at(minutes * 10)).unwrap_err();
    }
    assert!(home.versions() <= 2, "{:?}", home.names());
}

#[test]
fn files_in_several_directories_still_change_together() {
    let home = Home::with(["a/tls.pem", "b/c/tls.pem", "ca.pem"]);
    fs::create_dir_all(home.path("a")).unwrap();
    fs::create_dir_all(home.path("b/c")).unwrap();
    home.publish("1").unwrap();
    home.publish("2").unwrap();
    let link = |name: &str| fs::read_link(home.path(name)).unwrap().display().to_string();
    assert_eq!(link("a/tls.pem"), "..tls.pem.data/tls.pem");
    assert_eq!(link("b/c/tls.pem"), "../../a/..tls.pem.data/1.tls.pem");
    assert_eq!(link("ca.pem"), "a/..tls.pem.data/ca.pem");
    assert_eq!(home.read("b/c/tls.pem"), "key.pem 2");
    // The whole tree may be mounted elsewhere.
    let moved = home.dir.path().with_extension("moved");
    fs::rename(home.dir.path(), &moved).unwrap();
    assert_eq!(fs::read_to_string(moved.join("ca.pem")).unwrap(), "ca.pem 2");
    fs::rename(&moved, home.dir.path()).unwrap();
}

#[test]
fn two_sets_share_a_directory_and_a_renamed_set_takes_its_links_along() {
    let home = Home::new();
    home.publish("1").unwrap();
    let file = |name: &str| OutputFile {
        path: home.path(name),
        shown: name.to_owned(),
        mode: FileMode::SECRET,
    };
    let (svid, key) = (file("other.pem"), file("key.pem"));
    let other = FileSet::new(&[&svid, &key]);
    other
        .publish(&[b"other", b"other key"], OffsetDateTime::now_utc())
        .unwrap();
    assert_eq!(home.read("svid.pem"), "svid.pem 1");
    assert_eq!(home.read("key.pem"), "other key");
}

#[test]
fn a_version_may_be_entered_by_whom_the_directory_lets_in_and_written_by_us_alone() {
    let home = Home::new();
    for (given, expected) in [(0o2770, 0o2750), (0o700, 0o700), (0o1777, 0o755)] {
        fs::set_permissions(home.dir.path(), Permissions::from_mode(given)).unwrap();
        home.publish("1").unwrap();
        let metadata = fs::metadata(home.set.data_link()).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, expected, "{given:o}");
    }
}

#[test]
fn names_of_our_own_are_told_from_others() {
    assert!(is_version(".v1700000000-0123456789abcdef0123456789abcdef"));
    for rest in [".v1-", ".vx-0123456789abcdef0123456789abcdef", ".v1", "v1-a", ""] {
        assert!(!is_version(rest), "{rest}");
    }
    assert!(is_of_our_kind(Path::new("../..a.data/key")) && !is_of_our_kind(Path::new("a.data/key")));
    assert_eq!(way(Path::new("/a/b"), Path::new("/a")), Path::new(".."));
}
