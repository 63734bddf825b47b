//! Rollback as an operator runs it: older documents, with a new number.
#![expect(clippy::unwrap_used, reason = "all of it is a test: a surprise should stop it")]

#[path = "served/server.rs"]
mod server;

use std::{fs, path::Path};

use server::{Server, control};
use tempfile::TempDir;

#[test]
fn a_rollback_gives_older_documents_a_new_number() {
    let place = Place::serving();
    assert_eq!(
        place.says("rollback", 1),
        "error: `URL` says: there is no generation before this one\n\
         hint: `remora-control status` shows the generations\n"
    );
    for generation in 2..=3 {
        place.publish(generation);
    }
    assert_eq!(place.says("rollback", 0), "every sidecar gets generation 4\n  kept: 4, 3, 2, 1\n");
    assert_eq!(
        place.says("rollback --to 1", 0),
        "every sidecar gets generation 5\n  kept: 5, 4, 3, 2, 1\n"
    );
    let refused = place.says("rollback --to 7", 1);
    assert!(refused.contains("says: generation `7` is not kept\n"), "{refused}");
    // What is published next is above it all the same.
    place.publish(6);
}

/// A server with an authority and a folder of policy, the first of which is out.
struct Place {
    // The first to be dropped: nobody is left to write into the folder.
    server: Server,
    dir: TempDir,
}

impl Place {
    fn serving() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy");
        fs::create_dir(&policy).unwrap();
        write(&policy, 1);
        let server = Server::start(dir.path(), &["--policy".as_ref(), &policy]);
        let place = Self { server, dir };
        place.reaches(1);
        place
    }

    /// Changes the documents, and returns when they are handed out as that generation.
    fn publish(&self, generation: u64) {
        write(&self.dir.path().join("policy"), generation);
        self.reaches(generation);
    }

    fn reaches(&self, generation: u64) {
        let line = format!("policy    generation {generation}\n");
        let mut status = String::new();
        for _ in 0..500 {
            status = self.says("status", 0);
            if status.contains(&line) {
                return;
            }
        }
        assert!(status.contains(&line), "{status}");
    }

    /// What a command says, both streams one after the other.
    fn says(&self, words: &str, code: i32) -> String {
        let output = control()
            .args(words.split(' '))
            .args(["--server", &self.server.url, "--dir"])
            .arg(self.dir.path().join("ca"))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(&self.server.url, "URL");
        let said = text(output.stdout) + &text(output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    }
}

/// Documents that differ by `round`.
fn write(policy: &Path, round: u64) {
    let text = format!(
        "apiVersion: remora.dev/v1alpha1\nkind: ServicePolicy\n\
         metadata: {{name: orders, namespace: shop}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: orders}}]\n  timeouts: {{request: {round}s}}\n"
    );
    fs::write(policy.join(".next"), text).unwrap();
    fs::rename(policy.join(".next"), policy.join("orders.yaml")).unwrap();
}
