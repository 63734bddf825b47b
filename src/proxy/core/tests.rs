//! The queue, and what is given back when its users are dropped.

use std::future::Future;

use tokio::sync::oneshot;

use super::*;
use crate::{
    drain,
    endpoint::Endpoint,
    resilience::{
        breaker::{self, Scope},
        service::{Kind, Limits},
    },
    telemetry::Metrics,
};

#[tokio::test(start_paused = true)]
async fn who_is_refused_in_the_queue_wakes_the_next() {
    let core = core(ONE);
    let only = pick(&core).unwrap();
    let waiting = [waits(&core), waits(&core), waits(&core)];
    let done = drain::spawn("waits", async move { join(waiting).await });
    settled().await;
    assert_eq!(core.waiting.load(Ordering::Relaxed), 3);
    // Nobody is told of this but by the end of a try.
    core.machine.lock().update(&EndpointSet::default(), clock::now());
    drop(only);
    assert_eq!(done.await.unwrap(), [Err(Refused::NoEndpoints); 3]);
    assert_eq!(core.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn new_endpoints_and_new_limits_are_room_for_who_waits() {
    let core = core(Limits { per_endpoint: 1, ..Limits::default() });
    let held = [pick(&core).unwrap()];
    let waiting = drain::spawn("waits", waits(&core));
    settled().await;
    core.update(&set(2), clock::now());
    assert_eq!(waiting.await.unwrap(), Ok(()));
    core.update(&set(1), clock::now());
    let waiting = drain::spawn("waits", waits(&core));
    settled().await;
    core.configure(Config::default());
    assert_eq!(waiting.await.unwrap(), Ok(()));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn who_is_woken_and_leaves_wakes_the_next() {
    let core = core(ONE);
    let only = pick(&core).unwrap();
    let first = drain::spawn("waits", waits(&core));
    settled().await;
    let second = drain::spawn("waits", waits(&core));
    settled().await;
    // Woken, and dropped before it runs.
    drop(only);
    first.abort();
    assert_eq!(second.await.unwrap(), Ok(()));
    assert!(first.await.is_err());
    assert_eq!(core.waiting.load(Ordering::Relaxed), 0);
    assert_eq!(core.machine.lock().stats().pending, 0);
}

#[tokio::test]
async fn a_caller_in_a_hurry_charges_nobody_with_its_haste() {
    let breaker = breaker::Config { scope: Scope::Service, ..breaker::Config::default() };
    let core = core_of(Config { breaker, ..Config::default() });
    let hurried = |core: &Arc<Core>, callers| {
        let mut permit = pick(core).unwrap();
        (permit.deadline, permit.callers) = (Some(clock::now()), callers);
    };
    (0..50).for_each(|_| hurried(&core, true));
    assert!(pick(&core).is_ok());
    // Our own time is what an operator thinks right.
    (0..7).for_each(|_| hurried(&core, false));
    assert_eq!(pick(&core).unwrap_err(), Refused::BreakerOpen);
}

#[test]
fn that_a_breaker_would_open_is_no_news_for_a_minute() {
    let core = core(ONE);
    let now = clock::now();
    let told = [0, 1, 59, 60, 61].map(|it| core.is_news(now + Duration::from_secs(it)));
    assert_eq!(told, [true, false, false, true, false]);
}

/// Waits for its turn, no longer than the policy says, and gives its permit back at once.
fn waits(core: &Arc<Core>) -> impl Future<Output = Result<(), Refused>> + Send + 'static {
    let core = Arc::clone(core);
    async move {
        let within = Arc::clone(&core);
        core.in_turn(None, move |_| pick(&within)).await.map(drop)
    }
}

async fn join<F>(futures: [F; 3]) -> [F::Output; 3]
where
    F: Future + Send + 'static,
    F::Output: Send + Copy,
{
    let [a, b, c] = futures.map(|it| {
        let (done, ended) = oneshot::channel();
        drop(drain::spawn("waits", async move { done.send(it.await).ok() }));
        ended
    });
    [a.await.unwrap(), b.await.unwrap(), c.await.unwrap()]
}

/// Lets everything that can run do so.
async fn settled() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

fn pick(core: &Arc<Core>) -> Result<Permit, Refused> {
    let (now, route) = (clock::now(), RouteId::default());
    let ask = Ask { now, kind: Kind::First, route, avoid: None, key: None };
    core.pick(ask, &Draw::new(7))
}

const ONE: Limits =
    Limits { requests: 1, per_endpoint: 10, pending: 10, patience: Duration::from_secs(1) };

fn core(limits: Limits) -> Arc<Core> {
    core_of(Config { limits, ..Config::default() })
}

fn core_of(config: Config) -> Arc<Core> {
    let metrics = Metrics::new().service("shop/orders");
    Arc::new(Core::new("shop/orders".into(), config, &set(1), metrics))
}

fn set(size: u8) -> EndpointSet {
    (1..=size).map(|it| Endpoint::new(([10, 0, 0, it], 80).into())).collect()
}
