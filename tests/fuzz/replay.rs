//! Replay: every target on every input of its corpus, and on inputs derived from them.
//!
//! This is the part of fuzzing that stable Rust and every run of the tests can do: what
//! was found once stays found. Exploring takes cargo-fuzz; see `tests/fuzz/README.md`.

#![expect(clippy::unwrap_used, reason = "all of it is a test")]

#[path = "targets.rs"]
mod targets;

use std::{fs, path::Path};

use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

type Target = fn(&[u8]);

#[test]
fn spiffe_ids_hold() {
    replay("spiffe_id", targets::spiffe_id);
}

#[test]
fn certificate_requests_hold() {
    replay("csr", targets::csr);
}

#[test]
fn signatures_hold() {
    replay("signed", targets::signed);
    assert!(corpus("signed").iter().any(|it| targets::signer(it, br#"{"number":7}"#).is_some()));
}

#[test]
fn policy_files_hold() {
    replay("config", targets::config);
}

#[test]
fn detection_holds() {
    replay("detect", targets::detect);
}

#[test]
fn framing_holds() {
    replay("framing", targets::framing);
}

#[test]
fn timeouts_hold() {
    replay("timeout", targets::timeout);
}

#[test]
fn traceparents_hold() {
    replay("traceparent", targets::traceparent);
}

/// Runs the corpus as it is, then with pieces of it cut out, doubled and overwritten.
fn replay(name: &str, target: Target) {
    let seeds = corpus(name);
    assert!(!seeds.is_empty(), "no input in tests/fuzz/corpus/{name}");
    for seed in &seeds {
        target(seed);
    }
    let input = (any::<Index>(), any::<Index>(), any::<Index>(), any::<Index>(), any::<Change>());
    let mut runner = TestRunner::default();
    runner
        .run(&input, |(first, second, from, to, change)| {
            let (first, second): (&Vec<u8>, &Vec<u8>) = (first.get(&seeds), second.get(&seeds));
            target(&change.apply(first, second, from, to));
            Ok(())
        })
        .unwrap();
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|it| fs::read(it).unwrap()).collect()
}

/// A way to make a new input of old ones.
#[derive(Clone, Copy, Debug)]
enum Change {
    Cut,
    Double,
    Join,
    Set(u8),
}

impl Arbitrary for Change {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let simple = prop_oneof![Just(Self::Cut), Just(Self::Double), Just(Self::Join)];
        prop_oneof![simple, any::<u8>().prop_map(Self::Set)].boxed()
    }
}

impl Change {
    fn apply(self, first: &[u8], second: &[u8], from: Index, to: Index) -> Vec<u8> {
        let (a, b) = (from.index(first.len() + 1), to.index(first.len() + 1));
        let (start, end) = (a.min(b), a.max(b));
        let (before, middle, after) = (&first[..start], &first[start..end], &first[end..]);
        match self {
            Self::Cut => [before, after].concat(),
            Self::Double => [before, middle, middle, after].concat(),
            Self::Join => [before, &second[to.index(second.len() + 1)..]].concat(),
            Self::Set(byte) => [before, &[byte], after].concat(),
        }
    }
}
