use remora::sync::wire::{Certificate, Report};
use remora_certs::pem::certificates;

use super::*;

mod model;

const NOW: Duration = Duration::from_secs(1_000_000);

#[test]
fn each_step_waits_for_the_last_one() {
    let mut record = begun();
    let (old, new) = (record.signs.clone(), record.other.clone().unwrap());
    let mut sidecars = [sidecar("a", &old, 1), sidecar("b", &old, 1)];
    let proofs = Proofs::new();

    assert_eq!((record.step, record.bundle.sequence), (Step::Trust, 2));
    assert_eq!(record.signs, old, "nobody trusts the new issuer yet");
    assert_eq!(record.bundle.roots, certificates([&old.root, &new.root]));
    assert_eq!(record.advance(&sidecars, &proofs, NOW), None);
    sidecars[0].report.bundle = 2;
    assert_eq!(record.advance(&sidecars, &proofs, NOW), None);
    sidecars[1].report.bundle = 2;

    record = record.advance(&sidecars, &proofs, NOW).unwrap();
    assert_eq!((record.step, &record.signs), (Step::Renew, &new));
    assert_eq!(record.renew(), Some(&*new.fingerprint));
    sidecars[0].report.certificate.issuer.clone_from(&new.fingerprint);
    assert_eq!(record.advance(&sidecars, &proofs, NOW), None);
    sidecars[1].report.certificate.issuer.clone_from(&new.fingerprint);

    record = record.advance(&sidecars, &proofs, NOW).unwrap();
    assert_eq!(record.step, Step::Prove);
    let mut proofs = proofs_of([("a", Ok(())), ("b", Err("refused".to_owned()))]);
    assert_eq!(record.advance(&sidecars, &proofs, NOW), None);
    proofs.extend(proofs_of([("b", Ok(()))]));

    record = record.advance(&sidecars, &proofs, NOW).unwrap();
    assert_eq!((record.step, record.bundle.sequence), (Step::Retire, 3));
    assert_eq!(record.bundle.roots, new.root);
    assert_eq!(record.advance(&sidecars, &proofs, NOW), None);
    for it in &mut sidecars {
        it.report.bundle = 3;
    }

    record = record.advance(&sidecars, &proofs, NOW).unwrap();
    assert_eq!((record.step, &record.other), (Step::Clean, &Some(old)));
    assert_eq!(record.advance(&sidecars, &proofs, NOW), None, "the key is to be removed first");
    record = record.cleaned().unwrap();
    assert_eq!((record.step, record.other.clone(), record.finished), (Step::Rest, None, 1));
    assert_eq!(record.advance(&sidecars, &proofs, NOW), None);
}

#[test]
fn an_issuer_under_the_same_root_changes_no_bundle() {
    let old = issuer(1, 1);
    let mut record = Record::first(old).begun(issuer(2, 1)).unwrap();
    while let Some(next) = record.advance(&[], &Proofs::new(), NOW) {
        assert_eq!(next.bundle, record.bundle);
        record = next;
    }
    assert_eq!((record.step, record.signs), (Step::Clean, issuer(2, 1)));
}

#[test]
fn one_that_is_not_connected_counts_until_its_certificate_ends() {
    let record = begun();
    let mut gone = sidecar("gone", &record.signs, 1);
    gone.connected = false;
    let ends = Duration::from_secs(gone.not_after);
    let before = ends.saturating_sub(Duration::from_secs(1));
    let sidecars = [gone];
    assert_eq!(record.advance(&sidecars, &Proofs::new(), before), None);
    assert!(record.advance(&sidecars, &Proofs::new(), ends).is_some());
}

#[test]
fn one_that_never_reported_is_behind_at_every_step() {
    let mut record = begun();
    loop {
        let silent = Sidecar { report: Report::default(), ..sidecar("silent", &record.signs, 0) };
        let waits = matches!(record.step, Step::Trust | Step::Renew | Step::Prove | Step::Retire);
        let next = record.advance(&[], &Proofs::new(), NOW);
        let Some(next) = next else { break };
        let blocked = record.advance(&[silent], &Proofs::new(), NOW).is_none();
        assert_eq!(blocked, waits, "{:?}", record.step);
        record = next;
    }
}

#[test]
fn what_is_lacking_is_said_in_words() {
    let mut record = begun();
    let mut it = sidecar("a", &record.signs, 1);
    let said = |record: &Record, it: &Sidecar, proofs| record.standing(it, &proofs, NOW).lacks;
    assert_eq!(said(&record, &it, Proofs::new()), "does not say that it trusts the new root");
    it.connected = false;
    it.report.last_error = Some("no space left".to_owned());
    assert_eq!(
        said(&record, &it, Proofs::new()),
        "not connected, certificate ends in 1 h: does not say that it trusts the new root: no \
         space left"
    );
    it = sidecar("a", &record.signs, 2);
    assert_eq!(said(&record, &it, Proofs::new()), "");
    record = record.advance(&[it.clone()], &Proofs::new(), NOW).unwrap();
    assert_eq!(said(&record, &it, Proofs::new()), "has no certificate of the new issuer");
    it = sidecar("a", &record.signs, 2);
    record = record.advance(&[it.clone()], &Proofs::new(), NOW).unwrap();
    assert_eq!(said(&record, &it, Proofs::new()), "no handshake yet");
    let refused = proofs_of([("a", Err("connection refused".to_owned()))]);
    assert_eq!(said(&record, &it, refused), "connection refused");
    record.step = Step::Retire;
    record.bundle.sequence = 3;
    assert_eq!(
        said(&record, &it, Proofs::new()),
        "does not say that it trusts the old root no longer"
    );
}

#[test]
fn a_rotation_can_be_given_up_until_the_new_issuer_signs() {
    let mut record = begun();
    let old = record.signs.clone();
    loop {
        let aborted = record.aborted();
        match record.step {
            Step::Trust => {
                let aborted = aborted.unwrap();
                assert_eq!(
                    (aborted.step, aborted.signs, aborted.other),
                    (Step::Rest, old.clone(), None)
                );
                assert_eq!((aborted.bundle.sequence, aborted.bundle.roots), (3, old.root.clone()));
            }
            step @ (Step::Rest | Step::Renew | Step::Prove | Step::Retire | Step::Clean) => {
                assert_eq!(aborted, None, "{step:?}");
            }
        }
        let Some(next) = record.advance(&[], &Proofs::new(), NOW) else { break };
        record = next;
    }
}

#[test]
fn one_rotation_at_a_time_and_to_another_issuer() {
    let record = Record::first(issuer(1, 1));
    assert_eq!(record.begun(issuer(1, 1)), None);
    assert_eq!(record.begun(issuer(2, 2)).unwrap().begun(issuer(3, 3)), None);
}

#[test]
fn one_that_is_left_out_is_not_waited_for_unless_it_is_connected() {
    for name in ["a", "spiffe://td/ns/shop/sa/orders/a"] {
        let mut record = begun();
        record.without.push(name.to_owned());
        let mut killed = sidecar("a", &record.signs, 1);
        let is_waited_for = |record: &Record, it: &Sidecar| {
            record.advance(std::slice::from_ref(it), &Proofs::new(), NOW).is_none()
        };
        assert!(is_waited_for(&record, &killed), "who is connected can do its part");
        killed.connected = false;
        assert!(is_waited_for(&begun(), &killed));
        let other = Sidecar { report: Report::default(), ..killed.clone() };
        assert!(is_waited_for(&record, &other));
        while let Some(next) = record.advance(&[killed.clone()], &Proofs::new(), NOW) {
            assert_eq!(record.standing(&killed, &Proofs::new(), NOW).lacks, "left out");
            record = next;
        }
        assert_eq!(record.step, Step::Clean);
        assert_eq!(record.cleaned().unwrap().without, [""; 0], "the next rotation waits for all");
    }
    let record = Record { without: vec!["a".to_owned()], ..begun() };
    assert_eq!(record.aborted().unwrap().without, [""; 0]);
}

#[test]
fn a_record_is_read_back_with_and_without_whom_to_leave_out() {
    let record = begun();
    let old = serde_json::to_string(&record).unwrap();
    assert!(old.contains("\"step\":\"trust\"") && !old.contains("without"), "{old}");
    assert_eq!(serde_json::from_str::<Record>(&old).unwrap(), record);
    let record = Record { without: vec!["a".to_owned()], ..record };
    let new = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&new).unwrap(), record);
}

#[test]
fn one_that_an_earlier_version_had_but_prepared_is_begun_anew() {
    let (next, first) = (issuer(2, 2), Record::first(issuer(1, 1)));
    let prepared = Record { other: Some(next.clone()), ..first.clone() };
    let text = serde_json::to_string(&prepared).unwrap().replace("\"rest\"", "\"prepare\"");
    assert!(text.contains("\"step\":\"prepare\""), "{text}");
    let record: Record = serde_json::from_str(&text).unwrap();
    // It signs on, and nobody is taken to trust a root that no bundle has had.
    assert_eq!(record, prepared);
    assert_eq!(record.advance(&[], &Proofs::new(), NOW), None);
    assert_eq!(record.begun(next.clone()), first.begun(next));
}

fn begun() -> Record {
    Record::first(issuer(1, 1)).begun(issuer(2, 2)).unwrap()
}

fn issuer(number: usize, root: usize) -> Issuer {
    Issuer { fingerprint: format!("{number:064x}"), root: pem(root) }
}

/// Not a certificate, but a block of PEM that says it is one.
fn pem(root: usize) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{root:04}\n-----END CERTIFICATE-----\n")
}

fn sidecar(instance: &str, issuer: &Issuer, bundle: u64) -> Sidecar {
    let not_after = NOW.as_secs() + 3600;
    let issuer = issuer.fingerprint.clone();
    Sidecar {
        id: "spiffe://td/ns/shop/sa/orders".to_owned(),
        connected: true,
        seen: NOW.as_secs(),
        not_after,
        peer: None,
        report: Report {
            instance: instance.to_owned(),
            bundle,
            certificate: Certificate { issuer, not_after, ..Certificate::default() },
            ..Report::default()
        },
    }
}

fn proofs_of<const N: usize>(proofs: [(&str, Result<(), String>); N]) -> Proofs {
    let id = "spiffe://td/ns/shop/sa/orders";
    proofs.map(|(instance, it)| ((id.to_owned(), instance.to_owned()), it)).into()
}
