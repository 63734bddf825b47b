use std::net::{IpAddr, Ipv4Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn ready_is_503_with_what_is_missing_and_then_200() {
    let world = World::new(&[Condition::Identity]);
    let response = world.get("/health/ready").await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    let missing = r#"{"missing":[{"condition":"identity","detail":"not yet"}],"#;
    assert!(response.contains("application/json") && response.contains(missing), "{response}");
    world.health.set(Condition::Identity, Ok(()));
    assert!(world.get("/health/ready").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_drain_makes_ready_503_and_leaves_the_rest() {
    let world = World::new(&[]);
    world.drain.begin();
    let response = world.get("/health/ready").await;
    assert!(response.starts_with("HTTP/1.1 503 ") && response.contains("draining"), "{response}");
    for path in ["/health/live", "/health/startup", "/metrics"] {
        assert!(world.get(path).await.starts_with("HTTP/1.1 200 "), "{path}");
    }
}

#[tokio::test]
async fn startup_is_200_from_the_first_time_it_was_ready() {
    let world = World::new(&[Condition::Policy]);
    assert!(world.get("/health/startup").await.starts_with("HTTP/1.1 503 "));
    world.health.set(Condition::Policy, Ok(()));
    world.health.set(Condition::Policy, Err("gone".into()));
    assert!(world.get("/health/startup").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_metrics_page_has_the_content_type_of_its_format() {
    let response = World::new(&[]).get("/metrics").await;
    assert!(response.contains("content-type: text/plain; version=0.0.4"), "{response}");
    assert!(response.contains("\nremora_build_info{version="), "{response}");
}

#[tokio::test]
async fn a_head_request_gets_the_head_of_a_get() {
    let world = World::new(&[]);
    let response = world.send("HEAD /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let response = response.await;
    assert!(response.contains("content-length: 5") && response.ends_with("\r\n\r\n"), "{response}");
}

#[tokio::test]
async fn what_there_is_not_is_404_and_what_is_not_a_get_is_405() {
    let world = World::new(&[]);
    assert!(world.get("/nothing").await.starts_with("HTTP/1.1 404 "));
    assert!(world.get("/").await.contains("/metrics"));
    let response = world.send("POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let response = response.await;
    assert!(response.starts_with("HTTP/1.1 405 ") && response.contains("allow: GET, HEAD"));
}

#[tokio::test]
async fn debug_is_for_loopback_peers() {
    let admin = World::new(&[]).admin();
    let status = |ip: IpAddr| admin.answer("/debug/x", (ip, 1).into()).status();
    assert_eq!(status([10, 0, 0, 1].into()), StatusCode::FORBIDDEN);
    assert_eq!(status(Ipv4Addr::LOCALHOST.into()), StatusCode::NOT_FOUND);
    assert_eq!(status(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_head_too_large_is_refused() {
    let world = World::new(&[]);
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "x".repeat(2 * HEAD_MAX));
    assert!(world.send(&head).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_crowd_that_only_holds_connections_locks_nobody_out() {
    let patient = Patience { head: FOREVER, lifetime: FOREVER };
    let world = World::with(&[], patient);
    let mut crowd = Vec::new();
    for _ in 0..2 * CONNECTIONS_MAX {
        crowd.push(TcpStream::connect(world.address).await.unwrap());
    }
    assert!(world.get("/health/live").await.starts_with("HTTP/1.1 200 "));
    for stream in &mut crowd[..CONNECTIONS_MAX] {
        assert!(ends(stream).await, "the oldest ones are closed");
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let hasty = Patience { head: Duration::from_millis(10), lifetime: FOREVER };
    let world = World::with(&[], hasty);
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    assert!(ends(&mut stream).await);
}

#[tokio::test]
async fn a_connection_ends_with_its_lifetime() {
    let hasty = Patience { head: FOREVER, lifetime: Duration::from_millis(10) };
    let world = World::with(&[], hasty);
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    assert!(ends(&mut stream).await);
}

const FOREVER: Duration = Duration::from_hours(1);

/// Whether the server ends the connection, which it has five seconds for.
async fn ends(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.is_ok()
}

/// An admin server on loopback.
struct World {
    health: Health,
    drain: Drain,
    metrics: Metrics,
    address: SocketAddr,
    patience: Patience,
}

impl World {
    fn new(needed: &[Condition]) -> Self {
        Self::with(needed, Patience::default())
    }

    fn with(needed: &[Condition], patience: Patience) -> Self {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let health = Health::new(needed.iter().copied());
        let (drain, metrics) = (Drain::new(), Metrics::new());
        let world = Self { health, drain, metrics, address, patience };
        drain::spawn("admin", world.admin().serve(vec![listener]));
        world
    }

    fn admin(&self) -> Admin {
        let admin = Admin::new(self.metrics.clone(), self.health.clone(), self.drain.clone());
        Admin { patience: self.patience, ..admin }
    }

    async fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        self.send(&request).await
    }

    /// Everything that is answered until the connection ends.
    async fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        // A refusal may reset the connection after its response.
        let _ended = stream.read_to_end(&mut response).await.is_ok();
        String::from_utf8(response).unwrap()
    }
}
