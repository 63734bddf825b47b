use std::sync::Arc;

use proptest::{collection::vec, option, prelude::*};
use remora::{
    config::catalogue::Files,
    sync::wire::{Policy, Report},
};

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish(Option<u8>),
    Ask(u32),
    Promote,
    Stop,
    Renumber(u64),
    RollBack(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => option::of(1..100_u8).prop_map(Step::Publish),
        3 => (0..10_000_u32).prop_map(Step::Ask),
        1 => Just(Step::Promote),
        1 => Just(Step::Stop),
        1 => (0..5_u64).prop_map(Step::Renumber),
        1 => (0..HISTORY_MAX).prop_map(Step::RollBack),
    ]
}

proptest! {
    #[test]
    fn no_sidecar_ever_gets_a_lower_number(steps in vec(step(), 0..40)) {
        let mut record = Record::default();
        let mut before = vec![0; 30];
        let mut documents: Vec<(u64, String)> = Vec::new();
        for (index, step) in steps.into_iter().enumerate() {
            apply(&mut record, step, index);
            let now: Vec<_> = (0..30).map(|it| {
                record.offers("id", &it.to_string()).next().map_or(0, |it| it.number)
            }).collect();
            prop_assert!(before.iter().zip(&now).all(|(a, b)| a <= b), "{before:?} {now:?}");
            prop_assert!(now.iter().all(|it| *it <= record.number));
            before = now;
            // A number never means other documents than it did.
            for Entry { number, digest, .. } in record.entries() {
                let known = documents.iter().find(|(it, _)| it == number);
                prop_assert!(known.is_none_or(|(_, it)| it == digest));
                documents.push((*number, digest.clone()));
            }
            prop_assert!(record.history.len() <= HISTORY_MAX);
        }
    }
}

fn content(text: &str) -> Arc<Content> {
    let files = [("a.yaml".to_owned(), text.to_owned())];
    Content::read(&Files::new(&files.into())).unwrap()
}

/// What the publisher does, and when.
fn apply(record: &mut Record, step: Step, index: usize) {
    match step {
        Step::Publish(percent) => {
            record.decide(&content(&format!("# {index}")), percent, true).unwrap();
        }
        Step::Ask(below) => {
            if let Some(trial) = record.canary.as_mut().filter(|it| it.below.is_none()) {
                trial.below = Some(below);
            }
        }
        Step::Promote => {
            if let Some(trial) = record.canary.clone() {
                record.make_current(trial.entry);
            }
        }
        Step::Stop if record.canary.is_some() => record.stop("refused"),
        Step::Renumber(above) if record.canary.is_none() => {
            let has = record.number + above;
            let report = report(0, has, has, None);
            let _raised = record.raise(&[Sidecar { report, ..sidecar(0, 0, None) }]);
        }
        Step::RollBack(at) => {
            if let Some(to) = record.history.get(at).map(|it| it.number) {
                record.roll_back(Some(to)).unwrap();
            }
        }
        Step::Stop | Step::Renumber(_) => (),
    }
}

#[test]
fn a_record_with_more_in_it_is_read() {
    let text = r#"{"number": 3, "current": {"number": 3, "origin": 3, "digest": "c"},
        "canary": null, "history": [{"number": 3, "origin": 3, "digest": "c"}],
        "source": "c", "held": null, "error": "wrong"}"#;
    let record: Record = serde_json::from_str(text).unwrap();
    assert_eq!((record.number, record.current().unwrap().number), (3, 3));
}

#[test]
fn a_percentage_of_many_is_asked_and_of_few_at_least_one() {
    let trial = trial(None);
    for (many, least, most) in [(1, 1, 1), (5, 1, 4), (2_000, 150, 250)] {
        let fleet: Vec<_> = (0..many).map(|it| sidecar(it, 6, None)).collect();
        let (.., Verdict::Ask(below)) = judge(&trial, &fleet, false) else { panic!("{many}") };
        let trial = self::trial(Some(below));
        let asked = fleet.iter().filter(|it| trial.asks(&it.id, &it.report.instance)).count();
        assert!((least..=most).contains(&asked), "{asked} of {many}");
    }
}

#[test]
fn nobody_to_ask_is_waited_for_however_long() {
    let gone = Sidecar { connected: false, ..sidecar(0, 7, None) };
    for fleet in [vec![], vec![gone]] {
        assert_eq!(judge(&trial(None), &fleet, true), (0, 0, Verdict::Wait));
    }
}

#[test]
fn who_tries_what_is_replaced_gets_what_all_have_until_it_is_asked_again() {
    let mut record = Record::default();
    let one_of_two = |record: &Record| {
        ["0", "1"].map(|it| record.offers("id", it).next().map_or(0, |it| it.number))
    };
    for (text, expected) in [("# a", [1, 1]), ("# b", [1, 1]), ("# c", [3, 3])] {
        record.decide(&content(text), Some(10), true).unwrap();
        assert_eq!(one_of_two(&record), expected, "{text}");
        if let Some(trial) = &mut record.canary {
            trial.below = Some(bucket("id", "0").min(bucket("id", "1")) + 1);
        }
    }
    let mut numbers = one_of_two(&record);
    numbers.sort_unstable();
    assert_eq!(numbers, [3, 4]);
}

#[test]
fn all_that_are_asked_and_connected_must_have_taken_it() {
    let all = trial(Some(BUCKETS));
    let judge = |fleet: &[Sidecar]| judge(&all, fleet, false);
    let silent = sidecar(1, 6, None);
    assert_eq!(judge(&[sidecar(0, 7, None), silent.clone()]), (2, 1, Verdict::Wait));
    assert_eq!(judge(&[sidecar(0, 7, None), sidecar(1, 7, None)]), (2, 2, Verdict::Promote));
    let gone = Sidecar { connected: false, ..silent };
    assert_eq!(judge(&[sidecar(0, 7, None), gone.clone()]), (1, 1, Verdict::Promote));
    assert_eq!(judge(&[gone]), (0, 0, Verdict::Wait));
}

#[test]
fn one_refusal_stops_it_even_of_who_has_gone_since() {
    let all = trial(Some(BUCKETS));
    let mut refusal = sidecar(1, 6, Some("a.yaml:1:1: wrong"));
    for connected in [true, false] {
        refusal.connected = connected;
        let verdict = judge(&all, &[sidecar(0, 7, None), refusal.clone()], false).2;
        let reason = "`spiffe://td/ns/a/sa/b` (1) refused it: a.yaml:1:1: wrong".to_owned();
        assert_eq!(verdict, Verdict::Stop(reason));
    }
    // Of another generation, or of who was not asked.
    refusal.report.policy.received = 5;
    assert_eq!(judge(&all, &[refusal], false).2, Verdict::Wait);
    let nobody = trial(Some(0));
    let refusal = sidecar(1, 6, Some("a.yaml:1:1: wrong"));
    assert_eq!(judge(&nobody, &[refusal], false).2, Verdict::Wait);
}

#[test]
fn silence_stops_it_when_time_is_over() {
    let all = trial(Some(BUCKETS));
    let fleet = [sidecar(0, 7, None), sidecar(1, 6, None)];
    let reason = "`spiffe://td/ns/a/sa/b` (1) did not say in time what it makes of it";
    assert_eq!(judge(&all, &fleet, true).2, Verdict::Stop(reason.to_owned()));
    // Whom it was sent to is gone: it may have been the policy.
    let gone = Sidecar { connected: false, ..sidecar(0, 6, None) };
    let reason = "who was asked is gone".to_owned();
    assert_eq!(judge(&all, &[gone], true).2, Verdict::Stop(reason));
    assert_eq!(judge(&all, &fleet[..1], true).2, Verdict::Promote);
}

/// What comes of a trial.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    Ask(u32),
    Promote,
    Stop(String),
}

/// How many are asked and have taken it, and what comes of that.
fn judge(trial: &Trial, fleet: &[Sidecar], is_late: bool) -> (usize, usize, Verdict) {
    let current = Entry { number: 6, origin: 6, digest: String::new() };
    let canary = Some(trial.clone());
    let mut record = Record { number: 7, history: vec![current], canary, ..Record::default() };
    let wire::Canary { asked, accepted, .. } = record.judge(fleet, is_late).unwrap();
    let verdict = match (record.canary, record.history[0].number) {
        (Some(it), 6) if it == *trial => Verdict::Wait,
        (Some(it), 6) => Verdict::Ask(it.below.unwrap()),
        (None, 7) => Verdict::Promote,
        (None, 8) => {
            let held = record.held.unwrap();
            let said = held.strip_prefix("generation 7 was stopped: ").unwrap();
            Verdict::Stop(said.lines().next().unwrap().to_owned())
        }
        other => panic!("{other:?}"),
    };
    (asked, accepted, verdict)
}

fn trial(below: Option<u32>) -> Trial {
    let entry = Entry { number: 7, origin: 7, digest: String::new() };
    Trial { entry, percent: 10, below }
}

fn sidecar(index: usize, accepted: u64, error: Option<&str>) -> Sidecar {
    let report = report(index, 7, accepted, error);
    let id = "spiffe://td/ns/a/sa/b".to_owned();
    Sidecar { id, connected: true, seen: 0, not_after: 0, peer: None, report }
}

fn report(index: usize, received: u64, accepted: u64, error: Option<&str>) -> Report {
    let policy = Policy { received, accepted, error: error.map(str::to_owned) };
    Report { instance: index.to_string(), policy, ..Report::default() }
}
