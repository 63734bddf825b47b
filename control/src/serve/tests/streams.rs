//! What a watch tells, in which order, and how it ends.

use std::time::Duration;

use remora::sync::wire;

use super::{
    super::Pace,
    WEB,
    refusals::policy,
    world::{Odd, World, text, until},
};

#[tokio::test]
async fn a_stream_begins_with_all_there_is_and_goes_on_with_what_is_new() {
    let world = World::publishing().await;
    world.policy("a.yaml", &policy("shop", "11s"));
    let member = world.join(WEB, "web-1").await;
    let mut lines = world.client(&member).await.watch("web-1").await;
    assert_eq!(lines.bundle().await.sequence, 1);
    let first = lines.having("11s").await;
    assert_eq!(first.audience.as_str(), WEB);
    world.policy("a.yaml", &policy("shop", "12s"));
    let second = lines.having("12s").await;
    assert!(first.number < second.number);
    drop(lines);
    // Whoever was away misses nothing: it is told all there is now.
    let mut lines = world.client(&member).await.watch("web-1").await;
    assert_eq!(lines.bundle().await.sequence, 1);
    assert_eq!(lines.generation().await, second);
}

#[tokio::test]
async fn a_sidecar_that_calls_another_service_is_sent_its_policy() {
    let world = World::publishing().await;
    world.policy("a.yaml", &policy("shop", "1s"));
    world.policy("b.yaml", &policy("billing", "1s"));
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    let mut lines = client.watch("web-1").await;
    lines.bundle().await;
    let mut before = lines.having("shop").await;
    // The folder may have been read between two files.
    while before.number < world.control.publisher.status().generation {
        before = lines.generation().await;
    }
    assert!(text(&before).contains("shop") && !text(&before).contains("billing"), "{before:?}");
    client.report("web-1", &["web.billing"]).await;
    let after = lines.generation().await;
    assert!(text(&after).contains("shop") && text(&after).contains("billing"), "{after:?}");
}

#[tokio::test]
async fn a_stream_resumes_at_what_the_sidecar_has() {
    let world = World::publishing().await;
    world.policy("a.yaml", &policy("shop", "11s"));
    let member = world.join(WEB, "web-1").await;
    let mut lines = world.client(&member).await.watch("web-1").await;
    lines.bundle().await;
    let has = lines.having("11s").await;
    drop(lines);
    let mut client = world.client(&member).await;
    let mut lines = client.resume("web-1", &has).await;
    lines.bundle().await;
    // Whatever comes next is new: another generation, or other documents of it.
    world.policy("b.yaml", &policy("billing", "12s"));
    let next = lines.generation().await;
    assert!(has.number < next.number && next.files == has.files, "{next:?}");
    client.report("web-1", &["web.billing"]).await;
    let more = lines.generation().await;
    assert!(more.number == next.number && text(&more).contains("billing"), "{more:?}");
    drop(lines);
    // What was in force before is not what it is to have.
    let mut lines = world.client(&member).await.resume("web-1", &has).await;
    lines.bundle().await;
    assert_eq!(lines.generation().await, more);
}

#[tokio::test]
async fn what_was_lost_on_the_way_is_sent_though_the_number_is_the_same() {
    let world = World::publishing().await;
    world.policy("a.yaml", &(policy("shop", "1s") + "---\n" + &policy("billing", "1s")));
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    let mut lines = client.watch("web-1").await;
    lines.bundle().await;
    let has = lines.having("shop").await;
    // Control hears of a service, and the connection ends before the policy for it has come.
    client.report("web-1", &["web.billing"]).await;
    drop((lines, client));
    let mut client = world.client(&member).await;
    client.report("web-1", &["web.billing"]).await;
    let mut lines = client.resume("web-1", &has).await;
    lines.bundle().await;
    let lost = lines.generation().await;
    assert!(lost.number == has.number && text(&lost).contains("billing"), "{lost:?}");
}

#[tokio::test]
async fn a_server_that_has_forgotten_who_calls_what_takes_nothing_away() {
    let world = World::publishing().await;
    world.policy("a.yaml", &(policy("shop", "1s") + "---\n" + &policy("billing", "1s")));
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    client.report("web-1", &["web.billing"]).await;
    let mut lines = client.watch("web-1").await;
    lines.bundle().await;
    let has = lines.having("billing").await;
    world.run.abort();
    std::fs::remove_dir_all(world.path().join("state/fleet")).unwrap();
    let again = World::on(world.dir, Odd { publishes: true, ..Odd::default() }).await;
    let mut client = again.client(&member).await;
    client.report("web-1", &["web.billing"]).await;
    let mut lines = client.resume("web-1", &has).await;
    lines.bundle().await;
    again.policy("a.yaml", &policy("shop", "2s"));
    assert!(has.number < lines.generation().await.number);
}

#[tokio::test]
async fn a_quiet_stream_says_that_it_lives() {
    let pace = Pace { heartbeat: Duration::from_millis(20), ..Pace::DEFAULT };
    let world = World::odd(Odd { pace, ..Odd::default() }).await;
    let member = world.join(WEB, "web-1").await;
    let mut lines = world.client(&member).await.watch("web-1").await;
    lines.bundle().await;
    for _ in 0..3 {
        assert_eq!(lines.next().await, Some(wire::Message::Heartbeat));
    }
}

#[tokio::test]
async fn a_connection_has_one_watch() {
    let world = World::new().await;
    let member = world.join(WEB, "web-1").await;
    let mut client = world.client(&member).await;
    let mut lines = client.watch("web-1").await;
    lines.bundle().await;
    let path = format!("{}?instance=web-1", wire::WATCH);
    assert_eq!(client.get(&path).await.reason(), (409, "busy"));
    let is_connected = || world.control.fleet.all(remora::clock::wall())[0].connected;
    assert!(is_connected());
    drop(lines);
    until("the first has ended", async || !is_connected()).await;
    client.watch("web-1").await.bundle().await;
}

#[tokio::test]
async fn who_reads_nothing_is_cut_off_and_others_are_not() {
    let stall = Duration::from_millis(300);
    let pace = Pace { stall, ..Pace::DEFAULT };
    let world = World::odd(Odd { pace, publishes: true, ..Odd::default() }).await;
    let (slow, quick) = (world.join(WEB, "slow").await, world.join(WEB, "quick").await);
    let mut stuck = world.client(&slow).await;
    // Never read: what does not fit into the windows stays on the way.
    let _unread = stuck.watch("slow").await;
    let mut lines = world.client(&quick).await.watch("quick").await;
    lines.bundle().await;
    for number in 1..=4 {
        world.policy("a.yaml", &large(number));
        lines.having(&format!("request: {number}s")).await;
    }
    until("the slow one is cut off", async || stuck.is_closed()).await;
    let page = world.page("/metrics").await.1;
    assert!(page.contains("dropped_total{reason=\"slow\"} 1"), "{page}");
    world.policy("a.yaml", &policy("shop", "1s"));
    lines.having("request: 1s").await;
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_it_was_opened_with() {
    let pace = Pace { heartbeat: Duration::from_millis(20), ..Pace::DEFAULT };
    let leaf_life = Duration::from_secs(2);
    let world = World::odd(Odd { pace, leaf_life, ..Odd::default() }).await;
    let member = world.join(WEB, "web-1").await;
    let mut lines = world.client(&member).await.watch("web-1").await;
    lines.bundle().await;
    assert!(lines.news().await.is_none());
    assert!(member.svid.not_after() <= remora::clock::wall());
    until("it is forgotten", async || world.control.fleet.all(remora::clock::wall()).is_empty())
        .await;
}

/// Documents of some 200 KiB, other ones for each number.
fn large(number: u64) -> String {
    let route = |index: usize| {
        let path = format!("/{}", "x".repeat(1000));
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: r{index}, namespace: shop}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: web{index}, port: 80}}]\n\
             \x20 rules:\n  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n\
             \x20   timeouts: {{request: {number}s}}\n\
             \x20   backendRefs: [{{name: web{index}, port: 80}}]\n"
        )
    };
    (0..160).map(route).collect()
}
