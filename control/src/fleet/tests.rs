//! What is remembered, where, and for how long.

use std::{fs, path::Path};

use super::*;
use crate::store::{Folder, Objects as _};

const NOW: Duration = Duration::from_secs(1_770_091_506);
const HOUR: Duration = Duration::from_hours(1);
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test]
async fn a_certificate_waits_for_the_store() {
    let (dir, store, fleet) = world("one").await;
    let sender = sender("a", HOUR);
    let issued = fleet.issued(&sender);
    let mut issued = std::pin::pin!(issued);
    assert!(poll_once(issued.as_mut()).is_none());
    fleet.flush(&store, NOW).await;
    assert_eq!(issued.await, Ok(()));
    // As after a crash: nothing more is written.
    let again = Fleet::load(&store, "one").await.unwrap();
    assert_eq!(names(&again, NOW), ["a"]);
    drop(dir);
}

#[tokio::test]
async fn many_certificates_are_few_writes() {
    let (dir, store, fleet) = world("one").await;
    let drain = Drain::new();
    let running = {
        let (fleet, drain, folder) = (Arc::clone(&fleet), drain.clone(), dir.path().to_owned());
        remora::drain::spawn("fleet", async move {
            fleet.run(&Folder::new(&folder), &drain).await;
        })
    };
    let begun = clock::now();
    let all = (0..200).map(|it| {
        let not_after = (clock::wall() + HOUR).as_secs();
        let sender = Sender { not_after, ..sender(&format!("web-{it}"), HOUR) };
        let fleet = Arc::clone(&fleet);
        remora::drain::spawn("issue", async move { fleet.issued(&sender).await })
    });
    for issued in all.collect::<Vec<_>>() {
        assert_eq!(issued.await.unwrap(), Ok(()));
    }
    assert!(clock::now() - begun < GROUP * 40, "{:?}", clock::now() - begun);
    drain.begin();
    running.await.unwrap();
    assert_eq!(Fleet::load(&store, "one").await.unwrap().len(), 200);
}

#[tokio::test]
async fn what_a_report_says_is_short_and_one_line() {
    let (_dir, _store, fleet) = world("one").await;
    let bad = "\u{1b}[2J\nspiffe://cluster.local/ns/shop/sa/other  yes\u{9b}".repeat(1_000);
    let mut report =
        Report { version: bad.clone(), last_error: Some(bad.clone()), ..Report::default() };
    report.services = vec![bad.clone(), "web.shop".to_owned()];
    (report.certificate.serial, report.certificate.issuer) = (bad.clone(), bad.clone());
    report.policy.error = Some(bad);
    fleet.reported(&sender("a", HOUR), report).unwrap();
    let text = serde_json::to_string(&fleet.all(NOW)).unwrap();
    assert!(text.len() < 2_048, "{}", text.len());
    assert!(!text.contains("\\n") && !text.contains("\\u") && !text.contains('\u{9b}'), "{text}");
    assert_eq!(fleet.all(NOW)[0].report.services, ["web.shop"]);
}

#[tokio::test]
async fn what_the_store_does_not_take_is_not_recorded_until_it_does() {
    let (dir, store, fleet) = world("one").await;
    let fleets = dir.path().join("state/fleet");
    fs::create_dir_all(dir.path().join("state")).unwrap();
    fs::write(&fleets, "in the way").unwrap();
    let (sender, other) = (sender("a", HOUR), sender("b", HOUR));
    let issued = async { tokio::join!(fleet.issued(&sender), fleet.issued(&other)) };
    let (refused, ()) = tokio::join!(issued, fleet.flush(&store, NOW));
    assert!(matches!(refused, (Err(Reason::StoreFailed(_)), Err(Reason::StoreFailed(_)))));
    fs::remove_file(&fleets).unwrap();
    // What could not be written is written with the next.
    fleet.flush(&store, NOW).await;
    assert_eq!(names(&Fleet::load(&store, "one").await.unwrap(), NOW), ["a", "b"]);
}

#[tokio::test]
async fn a_record_ends_with_its_certificate() {
    let (dir, store, fleet) = world("one").await;
    let (early, late) = (sender("early", HOUR), sender("late", HOUR * 2));
    let ((), issued) = tokio::join!(
        async {
            tokio::task::yield_now().await;
            fleet.flush(&store, NOW).await;
        },
        async { tokio::join!(fleet.issued(&early), fleet.issued(&late)) },
    );
    assert_eq!(issued, (Ok(()), Ok(())));
    assert_eq!(names(&fleet, NOW + HOUR), ["late"]);
    fleet.flush(&store, NOW + HOUR).await;
    assert_eq!(names(&Fleet::load(&store, "one").await.unwrap(), NOW), ["late"]);
    fleet.flush(&store, NOW + HOUR * 2).await;
    assert!(files(dir.path()).is_empty());
}

#[tokio::test]
async fn of_a_sidecar_known_to_two_replicas_the_newest_word_counts() {
    let (_dir, store, one) = world("one").await;
    let two = Fleet::load(&store, "two").await.unwrap();
    let sender = |life, seen: Duration| Sender { seen: seen.as_secs(), ..sender("a", life) };
    let report = |bundle| Report { instance: "a".to_owned(), bundle, ..Report::default() };
    one.reported(&sender(HOUR * 2, NOW), report(1)).unwrap();
    two.reported(&sender(HOUR, NOW + HOUR / 2), report(2)).unwrap();
    one.flush(&store, NOW).await;
    two.flush(&store, NOW).await;
    for fleet in [&one, &two] {
        fleet.refresh(&store, NOW).await.unwrap();
        let all = fleet.all(NOW);
        let [it] = &all[..] else { panic!("{all:?}") };
        assert_eq!((it.report.bundle, it.not_after), (2, (NOW + HOUR * 2).as_secs()));
    }
    // One is no more; what it knew is forgotten when it has ended, and one had time to write.
    two.flush(&store, NOW + HOUR * 2).await;
    two.refresh(&store, NOW + HOUR * 2).await.unwrap();
    assert_eq!(store.list(Kind::FLEET).await.unwrap().len(), 1);
    two.refresh(&store, NOW + HOUR * 2 + Duration::from_secs(SILENCE)).await.unwrap();
    assert!(store.list(Kind::FLEET).await.unwrap().is_empty());
}

#[tokio::test]
async fn who_says_that_it_leaves_is_waited_for_a_minute() {
    let (_dir, _store, fleet) = world("one").await;
    let report = |leaving| Report { instance: "a".to_owned(), leaving, ..Report::default() };
    let later = |seconds| NOW + Duration::from_secs(seconds);
    fleet.reported(&sender("a", HOUR), report(true)).unwrap();
    assert_eq!(names(&fleet, later(59)), ["a"]);
    assert!(names(&fleet, later(60)).is_empty());
    // It is there again, by the same certificate.
    let again = Sender { seen: later(61).as_secs(), ..sender("a", HOUR) };
    fleet.reported(&again, report(false)).unwrap();
    assert_eq!(names(&fleet, later(3_599)), ["a"]);
}

#[tokio::test]
async fn who_was_connected_to_a_replica_that_died_is_not_for_ever() {
    let (_dir, store, one) = world("one").await;
    let two = Fleet::load(&store, "two").await.unwrap();
    let sender = sender("a", HOUR);
    let _connected = one.connected(&sender).unwrap();
    let connected = |now| two.all(now).iter().map(|it| it.connected).collect::<Vec<_>>();
    for (heard, now, expected) in [(0, 0, true), (30, 140, true), (30, 151, false)] {
        let [heard, now] = [heard, now].map(|it| NOW + Duration::from_secs(it));
        let report = Report { instance: "a".to_owned(), ..Report::default() };
        let sender = Sender { seen: heard.as_secs(), ..sender.clone() };
        one.reported(&sender, report).unwrap();
        one.flush(&store, heard).await;
        two.refresh(&store, now).await.unwrap();
        assert_eq!(connected(now), [expected]);
    }
}

#[tokio::test]
async fn what_another_version_wrote_is_left_alone() {
    let (_dir, store, fleet) = world("one").await;
    let key = Kind::FLEET.key("two-0");
    store.put(&key, b"{\"new\": 1}", Expected::Absent).await.unwrap();
    fleet.refresh(&store, NOW).await.unwrap();
    assert!(fleet.all(NOW).is_empty());
    assert!(store.get(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn a_watch_counts_as_long_as_it_is_open_and_hears_of_other_services() {
    let (_dir, store, fleet) = world("one").await;
    let sender = sender("a", HOUR);
    let (first, second) = (fleet.connected(&sender), fleet.connected(&sender));
    let mut services = second.as_ref().unwrap().clone();
    let calls = |it: &str| Report {
        instance: "a".to_owned(),
        services: vec![it.to_owned()],
        ..Report::default()
    };
    fleet.reported(&sender, calls("db.shop")).unwrap();
    assert!(services.has_changed().unwrap());
    services.mark_unchanged();
    fleet.reported(&sender, calls("db.shop")).unwrap();
    assert!(!services.has_changed().unwrap());
    assert_eq!(*services.borrow(), ["db.shop"]);
    drop(first);
    assert!(fleet.all(NOW)[0].connected);
    // Other replicas hear of both.
    let other = Fleet::load(&store, "two").await.unwrap();
    let mut watched = Some((second, services));
    for expected in [true, false] {
        fleet.flush(&store, NOW).await;
        other.refresh(&store, NOW).await.unwrap();
        assert_eq!([&fleet, &other].map(|it| it.all(NOW)[0].connected), [expected; 2]);
        watched.take();
    }
}

#[tokio::test]
async fn nobody_alone_uses_up_the_room_of_all() {
    let (_dir, _store, fleet) = world("one").await;
    for index in 0..INSTANCES_MAX {
        assert!(fleet.connected(&sender(&format!("{index}"), HOUR)).is_ok());
    }
    let more = sender("more", HOUR);
    assert_eq!(fleet.connected(&more).unwrap_err(), Reason::FleetFull);
    assert_eq!(fleet.issued(&more).await, Err(Reason::FleetFull));
    assert_eq!(fleet.reported(&more, Report::default()), Err(Reason::FleetFull));
    let db = "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap();
    assert!(fleet.connected(&Sender { id: db, ..more }).is_ok());
}

async fn world(replica: &str) -> (tempfile::TempDir, Folder, Arc<Fleet>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Folder::new(dir.path());
    let fleet = Fleet::load(&store, replica).await.unwrap();
    (dir, store, fleet)
}

fn sender(instance: &str, life: Duration) -> Sender {
    Sender {
        id: WEB.parse().unwrap(),
        instance: instance.to_owned(),
        seen: NOW.as_secs(),
        peer: IpAddr::from([127, 0, 0, 1]),
        not_after: (NOW + life).as_secs(),
    }
}

fn names(fleet: &Fleet, now: Duration) -> Vec<String> {
    fleet.all(now).into_iter().map(|it| it.report.instance).collect()
}

fn files(dir: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(dir.join("state/fleet")).unwrap().map(|it| it.unwrap().file_name()).collect()
}

/// What a future has right now.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(it) => Some(it),
        std::task::Poll::Pending => None,
    }
}
