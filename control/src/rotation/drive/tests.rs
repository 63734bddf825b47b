use std::fs;

use remora::sync::wire::{Certificate, Report};
use remora_certs::{
    authority::{self, Authority, Key, Lives, Plan, ROOT_KEY, create, next_root_key},
    spiffe_id::SpiffeId,
};

use super::*;
use crate::{
    fleet::{Connected, Sender},
    issuing::{self, Names},
    store::{Folder, Kind},
};

#[tokio::test]
async fn a_crash_at_any_step_is_resumed() {
    let place = Place::new();
    let (fleet, _connected) = place.fleet().await;
    let first = place.rotation().await.live.get().record.signs.fingerprint.clone();
    place.begin(true).await;
    let mut steps = Vec::new();
    // Each turn is that of a process that has just begun.
    for _ in 0..20 {
        let rotation = place.rotation().await;
        let it = rotation.live.get();
        steps.push(it.record.step);
        let report = Report {
            instance: "orders-0".to_owned(),
            bundle: it.record.bundle.sequence,
            certificate: Certificate {
                issuer: it.record.signs.fingerprint.clone(),
                ..Certificate::default()
            },
            ..Report::default()
        };
        fleet.reported(&sender(), report).unwrap();
        rotation.turn(&fleet, clock::wall()).await.unwrap();
    }
    steps.dedup();
    let all = [Step::Trust, Step::Renew, Step::Prove, Step::Retire, Step::Clean];
    assert_eq!(steps, [&all[..], &[Step::Rest]].concat());
    let last = place.rotation().await.live.get();
    assert_ne!(last.record.signs.fingerprint, first);
    assert_eq!((last.record.finished, last.record.bundle.sequence), (1, 3));
}

#[tokio::test]
async fn in_the_end_the_folder_has_what_signs_and_the_old_key_is_gone() {
    let place = Place::new();
    let rotation = place.rotation().await;
    let old = rotation.live.get().record.signs.key();
    place.begin(true).await;
    let record = issuing::record(&*place.store).await.unwrap().unwrap().0;
    let next = next_root_key(place.dir.path(), &record.other.unwrap().fingerprint);
    fs::write(&next, "the new root's").unwrap();
    let stale = next_root_key(place.dir.path(), "of an attempt that failed");
    fs::write(&stale, "another's").unwrap();
    // Nobody is there: a step a turn.
    for _ in 0..8 {
        rotation.turn(&*empty().await, clock::wall()).await.unwrap();
    }
    let now = rotation.live.get();
    assert_eq!(now.record.step, Step::Rest);
    assert!(place.store.get(&old).await.unwrap().is_none());
    assert_eq!(place.store.list(Kind::AUTHORITY).await.unwrap().len(), 1);
    let mirrored = Authority::open(place.dir.path()).unwrap();
    assert_eq!(mirrored.issuer_fingerprint(), now.record.signs.fingerprint);
    let root_key = fs::read_to_string(place.dir.path().join("root.key")).unwrap();
    assert_eq!(root_key, "the new root's");
    assert!(!next.exists() && stale.exists());
}

#[tokio::test]
async fn the_key_of_a_root_that_is_retired_goes_with_it() {
    let place = Place::new();
    let rotation = place.rotation().await;
    let key = place.dir.path().join(ROOT_KEY);
    for (root, is_kept) in [(false, true), (true, false)] {
        // The new root's key is kept elsewhere: it is not beside the old one's.
        place.begin(root).await;
        for _ in 0..8 {
            rotation.turn(&*empty().await, clock::wall()).await.unwrap();
        }
        assert_eq!(rotation.live.get().record.step, Step::Rest);
        assert_eq!(key.exists(), is_kept, "{root}");
    }
}

#[tokio::test]
async fn a_key_that_is_of_no_root_is_left_alone() {
    let (place, other) = (Place::new(), Place::new());
    let rotation = place.rotation().await;
    let key = place.dir.path().join(ROOT_KEY);
    fs::copy(other.dir.path().join(ROOT_KEY), &key).unwrap();
    place.begin(true).await;
    for _ in 0..8 {
        rotation.turn(&*empty().await, clock::wall()).await.unwrap();
    }
    assert_eq!(rotation.live.get().record.step, Step::Rest);
    assert!(key.exists());
}

#[tokio::test]
async fn nothing_goes_on_while_a_sidecar_is_behind() {
    let place = Place::new();
    let (fleet, connected) = place.fleet().await;
    drop(connected);
    let rotation = place.rotation().await;
    place.begin(true).await;
    for _ in 0..4 {
        rotation.turn(&fleet, clock::wall()).await.unwrap();
    }
    let status = rotation.status(&fleet, clock::wall());
    assert_eq!(status.step.as_deref(), Some("trust"));
    let [it] = &status.sidecars[..] else { panic!("{status:?}") };
    assert_eq!((it.instance.as_str(), it.trusts), ("orders-0", false));
    assert!(it.lacks.starts_with("not connected, certificate ends in "), "{}", it.lacks);
}

#[tokio::test]
async fn proofs_are_of_one_rotation_whoever_drove_the_others() {
    let place = Place::new();
    let (fleet, _connected) = place.fleet().await;
    let (one, other) = (place.rotation().await, place.rotation().await);
    // `one` drives all of the first, `other` the second as far as `prove`.
    for (rotation, until, deaf) in [(&one, Step::Rest, false), (&other, Step::Prove, true)] {
        place.begin(false).await;
        for _ in 0..20 {
            let it = place.rotation().await.live.get();
            let report = Report {
                instance: "orders-0".to_owned(),
                // Nobody listens at port 0, and nobody proves what is not listened for.
                inbound: deaf.then(|| ([127, 0, 0, 1], 0).into()),
                bundle: it.record.bundle.sequence,
                certificate: Certificate {
                    issuer: it.record.signs.fingerprint.clone(),
                    ..Certificate::default()
                },
                ..Report::default()
            };
            fleet.reported(&sender(), report).unwrap();
            rotation.turn(&fleet, clock::wall()).await.unwrap();
            if rotation.live.get().record.step == until {
                break;
            }
        }
        assert_eq!(rotation.live.get().record.step, until);
    }
    one.turn(&fleet, clock::wall()).await.unwrap();
    assert_eq!(one.live.get().record.step, Step::Prove, "by a proof of the first rotation");
}

#[tokio::test]
async fn one_that_is_given_up_is_gone_without_a_trace() {
    let place = Place::new();
    let (fleet, _connected) = place.fleet().await;
    let rotation = place.rotation().await;
    let before = rotation.live.get();
    place.begin(true).await;
    rotation.turn(&fleet, clock::wall()).await.unwrap();
    assert_eq!(rotation.live.get().roots.roots().len(), 2);
    let (record, _) = issuing::record(&*place.store).await.unwrap().unwrap();
    let aborted = record.aborted().unwrap();
    place.store.put_json(&Record::key(), &aborted, Expected::Any).await.unwrap();
    rotation.turn(&fleet, clock::wall()).await.unwrap();
    let after = rotation.live.get();
    let (after, before) = (&after.record, &before.record);
    assert_eq!((&after.signs, &after.bundle.roots), (&before.signs, &before.bundle.roots));
    assert_eq!(after.bundle.sequence, 3);
}

#[tokio::test]
async fn controls_own_certificate_is_renewed_at_half_its_life() {
    let place = Place::new();
    let (fleet, _connected) = place.fleet().await;
    let rotation = place.rotation().await;
    let first = rotation.live.get().svid.not_after();
    for (hours, renewed) in [(11, false), (13, true)] {
        let now = clock::wall() + Duration::from_hours(hours);
        rotation.turn(&fleet, now).await.unwrap();
        assert_eq!(first < rotation.live.get().svid.not_after(), renewed, "{hours}");
    }
    // Near the issuer's end there is none that lives longer.
    let late = clock::wall() + Duration::from_hours(24 * 365 - 1);
    rotation.turn(&fleet, late).await.unwrap();
    assert!(!rotation.live.get().ages(late + Duration::from_mins(50)));
}

/// An authority's folder, and the store in it.
struct Place {
    dir: tempfile::TempDir,
    store: Arc<Store>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let life = Duration::from_hours(24 * 365);
        let plan = Plan { trust_domain: "td", root_life: life, issuer_life: life };
        create(dir.path(), &plan, clock::wall()).unwrap();
        let store = Arc::new(Folder::new(dir.path()));
        Self { dir, store }
    }

    /// As a server that has just begun has it.
    async fn rotation(&self) -> Arc<Rotation> {
        let (dir, store) = (self.dir.path(), Arc::clone(&self.store));
        let live = Live::load(&*store, Some(dir), Names::default(), clock::wall()).await;
        Rotation::new(store, live.unwrap(), Some(dir.to_owned()))
    }

    /// A fleet of one.
    async fn fleet(&self) -> (Arc<Fleet>, Connected) {
        let fleet = empty().await;
        let connected = fleet.connected(&sender());
        (fleet, connected.unwrap())
    }

    async fn begin(&self, root: bool) {
        let now = clock::wall();
        let it = Issuing::read(&*self.store, &Names::default(), now).await.unwrap();
        let key = self.dir.path().join(ROOT_KEY);
        let life = Duration::from_hours(24);
        let lives = Lives { root: life, issuer: life };
        let key = Some(&*key).filter(|_| !root);
        let next = authority::next(&it.authority, key, lives, Key::P256, now).unwrap();
        let issuer = issuing::keep(&*self.store, &next.authority).await.unwrap();
        let record = it.record.begun(issuer).unwrap();
        let expected = Expected::Version(&it.version);
        self.store.put_json(&Record::key(), &record, expected).await.unwrap();
    }
}

fn sender() -> Sender {
    let not_after = (clock::wall() + Duration::from_hours(24)).as_secs();
    let id = SpiffeId::workload("td", "shop", "orders").unwrap();
    let peer = [127, 0, 0, 1].into();
    Sender { id, instance: "orders-0".to_owned(), peer, seen: clock::wall().as_secs(), not_after }
}

/// A fleet of nobody.
async fn empty() -> Arc<Fleet> {
    let none = tempfile::tempdir().unwrap();
    Fleet::load(&Folder::new(none.path()), "b").await.unwrap()
}
