use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[test]
fn a_second_set_takes_the_place_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("deep/folder");
    replace(&folder, &set(b"1"), at(1)).unwrap();
    let first = fs::read_link(folder.join(DATA)).unwrap();
    replace(&folder, &set(b"2"), at(2)).unwrap();
    let second = fs::read_link(folder.join(DATA)).unwrap();
    assert_ne!(first, second);
    for name in ["tls.crt", "tls.key"] {
        assert_eq!(fs::read(folder.join(name)).unwrap(), b"2");
        assert_eq!(fs::read_link(folder.join(name)).unwrap(), Path::new(DATA).join(name));
    }
    // `..data`, the dated directory and two links: nothing is left of the first.
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 4);
}

#[test]
fn a_file_that_left_the_set_is_gone_and_what_is_not_ours_stays() {
    let dir = tempfile::tempdir().unwrap();
    let names = || {
        let entries = fs::read_dir(dir.path()).unwrap();
        let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|it| !it.starts_with("..")).collect();
        names.sort();
        names
    };
    let file = |name| File { name, content: b"1", secret: false };
    replace(dir.path(), &[file("a.yaml"), file("b.yaml")], at(1)).unwrap();
    assert_eq!(names(), ["a.yaml", "b.yaml"]);
    // Neither a file of somebody's own, nor a link of theirs that leads nowhere.
    fs::write(dir.path().join("own"), "").unwrap();
    symlink("nowhere", dir.path().join("theirs")).unwrap();
    replace(dir.path(), &[file("b.yaml"), file("c.yaml")], at(2)).unwrap();
    assert_eq!(names(), ["b.yaml", "c.yaml", "own", "theirs"]);
    assert!(fs::read(dir.path().join("c.yaml")).is_ok());
    // And back again; and all of it.
    replace(dir.path(), &[file("a.yaml")], at(3)).unwrap();
    assert_eq!(names(), ["a.yaml", "own", "theirs"]);
    replace(dir.path(), &[], at(4)).unwrap();
    assert_eq!(names(), ["own", "theirs"]);
}

#[test]
fn a_set_that_cannot_be_written_leaves_the_old_one_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    replace(dir.path(), &set(b"1"), at(1)).unwrap();
    let before = entries(dir.path());
    let long = "x".repeat(300);
    let files = [set(b"2")[0], set(b"2")[1], File { name: &long, content: b"2", secret: false }];
    assert!(matches!(replace(dir.path(), &files, at(2)), Err(Error::Io { .. })));
    assert_eq!(entries(dir.path()), before);
    assert_eq!(fs::read(dir.path().join("tls.key")).unwrap(), b"1");
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    for name in ["", ".", "..", "..data", "../x", "/x", "a/b", "..1.2"] {
        let refused = replace(&folder, &[File { name, content: b"1", secret: false }], at(1));
        assert!(matches!(refused, Err(Error::Name(_))), "{name}");
    }
    assert_eq!((entries(dir.path()).len(), entries(&folder).len()), (1, 0));
}

#[test]
fn a_link_that_cannot_be_made_leaves_the_old_set_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    replace(dir.path(), &set(b"1"), at(1)).unwrap();
    // Where the second new link would be made, something is in the way.
    fs::create_dir_all(dir.path().join("..c_tmp/x")).unwrap();
    let before = entries(dir.path());
    let file = |name| File { name, content: b"2", secret: false };
    let files = [set(b"2")[0], set(b"2")[1], file("b"), file("c")];
    assert!(matches!(replace(dir.path(), &files, at(2)), Err(Error::Io { .. })));
    assert_eq!(entries(dir.path()), before);
    assert_eq!(fs::read(dir.path().join("tls.key")).unwrap(), b"1");
}

/// A disk that takes no more, as seen from here: writing stops amid a file. The test
/// runs itself again in a process that may write no more than a block to a file.
#[test]
fn a_full_disk_leaves_the_old_set_and_no_half_of_the_new() {
    const NAME: &str = "folder::tests::a_full_disk_leaves_the_old_set_and_no_half_of_the_new";
    let large = vec![b'x'; 200_000];
    if let Some(folder) = std::env::var_os("REMORA_TEST_FULL_DISK") {
        let error = replace(Path::new(&folder), &set(&large), at(2)).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    replace(dir.path(), &set(b"1"), at(1)).unwrap();
    let before = entries(dir.path());
    let itself = std::env::current_exe().unwrap();
    let limited = "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact \"$1\"";
    let mut child = std::process::Command::new("sh");
    child.args(["-c", limited]).arg(itself).arg(NAME).env("REMORA_TEST_FULL_DISK", dir.path());
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert_eq!(entries(dir.path()), before);
    assert_eq!(fs::read(dir.path().join("tls.key")).unwrap(), b"1");
    // With room again, the next one is written.
    replace(dir.path(), &set(&large), at(3)).unwrap();
    assert_eq!(entries(dir.path()).len(), 4);
}

#[test]
fn a_reader_never_sees_some_of_each() {
    let dir = tempfile::tempdir().unwrap();
    replace(dir.path(), &set(b"0"), at(0)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 1..200_u64 {
                replace(dir.path(), &set(round.to_string().as_bytes()), at(round)).unwrap();
            }
        });
        let mut sets = 0;
        while !writer.is_finished() {
            // Resolved once; what was removed meanwhile is read again.
            let current = dir.path().join(fs::read_link(dir.path().join(DATA)).unwrap());
            let read = |name| fs::read(current.join(name));
            if let (Ok(certificate), Ok(key)) = (read("tls.crt"), read("tls.key")) {
                assert_eq!(certificate, key);
                sets += 1;
            }
        }
        assert!(0 < sets);
    });
}

#[test]
fn sets_of_one_instant_and_writers_at_once_all_arrive_whole() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in [b"1", b"2", b"3"] {
            scope.spawn(|| {
                (0..50).for_each(|_| replace(dir.path(), &set(writer), at(1)).unwrap());
            });
        }
    });
    let [certificate, key] = read(dir.path(), ["tls.crt", "tls.key"]).unwrap();
    assert_eq!(certificate, key);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
}

#[test]
fn a_set_is_read_whole_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    replace(dir.path(), &set(b"1"), at(1)).unwrap();
    let [certificate, key] = read(dir.path(), ["tls.crt", "tls.key"]).unwrap();
    assert_eq!((&certificate[..], &key[..]), (&b"1"[..], &b"1"[..]));
    let missing = dir.path().join("ca.crt");
    let error = read(dir.path(), ["tls.crt", "ca.crt"]).unwrap_err();
    assert!(matches!(error, Error::Read { path, .. } if path == missing));
    replace(dir.path(), &set(&vec![b'x'; FILE_BYTES_MAX]), at(2)).unwrap();
    assert!(read(dir.path(), ["tls.crt"]).is_ok());
    replace(dir.path(), &set(&vec![b'x'; FILE_BYTES_MAX + 1]), at(3)).unwrap();
    assert!(matches!(read(dir.path(), ["tls.crt"]), Err(Error::TooLarge(_, FILE_BYTES_MAX))));
}

#[test]
fn secrets_are_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    replace(dir.path(), &set(b"1"), at(1)).unwrap();
    let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("tls.key"), mode("tls.crt") & 0o077), (0o600, 0o044));
}

#[test]
fn a_file_of_its_own_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tls.key");
    fs::write(&path, "mine").unwrap();
    let error = replace(dir.path(), &set(b"1"), at(1)).unwrap_err();
    assert!(matches!(error, Error::NotALink(it) if it == path));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(fs::read(path).unwrap(), b"mine");
}

#[test]
fn writing_anew_never_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.key");
    let file = |content| File { name: "root.key", content, secret: true };
    write_new(&path, &file(b"first")).unwrap();
    let error = write_new(&path, &file(b"second")).unwrap_err();
    assert!(matches!(error, Error::Exists(it) if it == path));
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let nowhere = dir.path().join("nowhere/root.key");
    assert!(matches!(write_new(&nowhere, &file(b"x")), Err(Error::Io { .. })));
}

#[test]
fn writing_over_replaces_the_whole_file_and_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("issuer.key");
    fs::write(&path, "a longer one").unwrap();
    write_over(&path, &File { name: "issuer.key", content: b"new", secret: true }).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // A name that cannot be replaced stays, and nothing is left beside it.
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let file = File { name: "folder", content: b"x", secret: false };
    assert!(matches!(write_over(&folder, &file), Err(Error::Io { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

fn entries(folder: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    names
}

fn set(content: &[u8]) -> [File<'_>; 2] {
    [
        File { name: "tls.crt", content, secret: false },
        File { name: "tls.key", content, secret: true },
    ]
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn names_that_lead_nowhere_are_cleared_away_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    symlink("..data/gone.yaml", path("gone.yaml")).unwrap();
    symlink("/nowhere", path("own.yaml")).unwrap();
    fs::write(path("plain.yaml"), "").unwrap();
    clear(folder.path()).unwrap();
    assert!(!path("gone.yaml").is_symlink());
    assert!(path("own.yaml").is_symlink() && path("plain.yaml").exists());
    clear(&path("missing")).unwrap();
}
