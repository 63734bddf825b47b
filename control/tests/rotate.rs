//! Rotate, status and check as an operator runs them, against a server without sidecars.
#![expect(clippy::unwrap_used, reason = "all of it is a test: a surprise should stop it")]

#[path = "served/server.rs"]
mod server;

use std::{fs, path::Path, process::Stdio};

use expect_test::{Expect, expect};
use server::{Server, control};
use tempfile::TempDir;

#[test]
fn a_rotation_is_watched_to_its_end() {
    let place = Place::serving();
    let before = place.file("root.crt");
    let said = place.says("rotate --prove --root", 0);
    assert!(said.starts_with("prepared a new issuer, until "), "{said}");
    assert!(said.ends_with("finished: the old issuer's key is removed\n"), "{said}");
    // The folder has what signs now, its root's key too.
    assert_ne!(place.file("root.crt"), before);
    assert_eq!(place.says("bundle", 0), place.file("root.crt"));
    assert_eq!(place.waiting(), [""; 0]);
    let said = place.says("rotate --prove --issuer-life 30d", 0);
    assert!(said.ends_with("finished: the old issuer's key is removed\n"), "{said}");
    let status = place.says("status", 0);
    let (_, rest) = status.split_once(", bundle 3\n").expect(&status);
    expect![[r"
        policy    generation 0
        rotation  none under way, 2 finished
        sidecars  0, 0 connected
    "]]
    .assert_eq(rest);
    place.check("check", 0, &expect![["ok: 0 sidecars, generation 0\n"]]);
    let said = place.says("check --min-life 31d", 1);
    assert!(said.starts_with("issuer `"), "{said}");
    assert!(said.contains("error: things that are not well: 1\n"), "{said}");
}

#[test]
fn an_issuer_made_elsewhere_takes_over() {
    let place = Place::serving();
    for (folder, trust_domain) in [("other", "cluster.local"), ("foreign", "example.org")] {
        place.plain(&format!("init --dir DIR/{folder} --trust-domain {trust_domain}"), 0);
    }
    place.says("rotate --prove --to DIR/other", 0);
    let other = fs::read_to_string(place.dir.path().join("other/issuer.crt")).unwrap();
    assert_eq!(place.file("issuer.crt"), other);
    place.check(
        "rotate --to DIR/other",
        78,
        &expect![[r"
        error: the issuer in `DIR/other` signs already
        hint: have `init` make another in another folder
    "]],
    );
    place.check(
        "rotate --to DIR/foreign",
        78,
        &expect![[r"
        error: the new issuer is of another trust domain: `example.org`
        hint: `init --trust-domain` makes one of the same
    "]],
    );
}

#[test]
fn what_cannot_be_done_is_said_with_what_can() {
    let place = Place::serving();
    place.check(
        "rotate --abort",
        78,
        &expect![[r"
        error: no rotation is under way
        hint: `remora-control status` shows what there is
    "]],
    );
    place.check(
        "init --force",
        78,
        &expect![[r"
        error: a server signs with the authority in `DIR/ca`
        hint: `init` another in another folder, then `remora-control rotate --prove --to FOLDER`
    "]],
    );
    fs::remove_file(place.dir.path().join("ca/root.key")).unwrap();
    place.check(
        "rotate --prove",
        78,
        &expect![[r"
        error: the key of the root is needed, to sign a new issuer with
        hint: name its file with `--root-key`, or make a new root: `--root`
    "]],
    );
}

#[test]
fn of_rotations_begun_at_once_one_leaves_its_keys() {
    let place = Place::serving();
    let server = format!("--server {} --root --dir {}/ca", place.server.url, place.path());
    let begin = |_| control().arg("rotate").args(server.split(' ')).stderr(Stdio::null()).spawn();
    let begun: Vec<_> = (0..4).map(begin).collect();
    let ended: Vec<_> = begun.into_iter().map(|it| it.unwrap().wait().unwrap()).collect();
    assert!(ended.iter().any(std::process::ExitStatus::success));
    // Either the one under way, or one that takes the key of the new root, which must fit.
    place.says("rotate --prove", 0);
    place.says("rotate --prove", 0);
    assert_eq!(place.waiting(), [""; 0]);
    let authorities = fs::read_dir(place.dir.path().join("ca/state/authority")).unwrap();
    assert_eq!(authorities.count(), 1);
}

#[test]
fn without_a_server_nothing_is_prepared() {
    let mut place = Place::serving();
    place.server.process.kill().unwrap();
    place.server.process.wait().unwrap();
    let authorities = || fs::read_dir(place.dir.path().join("ca/state/authority")).unwrap().count();
    assert_eq!(authorities(), 1);
    for command in ["rotate --prove --root", "status", "check"] {
        let said = place.says(command, 1);
        assert!(said.starts_with("error: no answer from `https://127.0.0.1:"), "{said}");
        assert!(said.contains("hint: start it with `remora-control serve`"), "{said}");
    }
    assert_eq!(authorities(), 1);
}

/// An authority, and a server of it.
struct Place {
    // The first to be dropped: nobody is left to write into the folder.
    server: Server,
    dir: TempDir,
}

impl Place {
    fn serving() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { server: Server::start(dir.path(), &[]), dir }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join("ca").join(name)).unwrap()
    }

    /// The keys of roots that are to be trusted.
    fn waiting(&self) -> Vec<String> {
        let all = fs::read_dir(self.dir.path().join("ca")).unwrap();
        let all = all.map(|it| it.unwrap().file_name().into_string().unwrap());
        all.filter(|it| it.starts_with("next-root")).collect()
    }

    /// What a command for this authority says, both streams one after the other.
    fn says(&self, words: &str, code: i32) -> String {
        let server = match words.split(' ').next() {
            Some("init" | "bundle") => String::new(),
            _ => format!(" --server {}", self.server.url),
        };
        self.plain(&format!("{words} --dir DIR/ca{server}"), code)
    }

    fn plain(&self, words: &str, code: i32) -> String {
        let path = self.path();
        let words = words.split(' ').map(|it| it.replace("DIR", path));
        let output = control().args(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(path, "DIR");
        let said = text(output.stdout) + &text(output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    }

    fn check(&self, words: &str, code: i32, expected: &Expect) {
        expected.assert_eq(&self.says(words, code));
    }

    fn path(&self) -> &str {
        Path::to_str(self.dir.path()).unwrap()
    }
}
