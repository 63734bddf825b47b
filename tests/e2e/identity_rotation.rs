//! Rotation: certificates and roots change while requests go on.

use http::Version;
use remora_certs::authority::Issued;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
};

use crate::{
    http as web,
    identity_peers::{self as peers, Certificate},
    load::Load,
    pods::{Mesh, ORDERS, Pair, Setup, inbound, outbound},
    runner::Case,
};

pub(crate) const CASES: &[Case] = &[
    ("identity_rotates_leaves_and_roots_under_load", rotation),
    ("identity_no_connection_of_http_1_outlives_it", http1),
    ("identity_a_pair_that_does_not_fit_changes_nothing", half_written),
];

const HANDSHAKES: &str = "remora_handshakes_total";
const FALLBACKS: &str = "remora_plaintext_fallbacks_total";
const WEB_ID: &str = "spiffe://mesh.test/ns/shop/sa/web";

fn rotation() {
    let quiet = |it: Setup| it.with("--access-log", "failures");
    let pair = Pair::with(quiet, quiet);
    let new = Mesh::new();
    let load =
        Load::start(&pair.web, outbound(), 8, |_| web::get(Version::HTTP_11, ORDERS, "/who"));
    load.go_on_for(100);
    let both = format!("{}{}", pair.mesh.root(), new.root());
    let steps: [(&Mesh, String); 4] = [
        // A new leaf; then both roots; then a leaf of the new one; then that root alone.
        (&pair.mesh, pair.mesh.root()),
        (&pair.mesh, both.clone()),
        (&new, both),
        (&new, new.root()),
    ];
    for (generation, (authority, roots)) in (2..).zip(steps) {
        // One after the other, as an operator's machines get them.
        for (account, sidecar) in [("orders", &pair.server), ("web", &pair.client)] {
            pair.mesh.write(account, &authority.leaf(account), &roots);
            sidecar.log(&["identity rotated", &format!("\"generation\":{generation}")]);
            load.go_on_for(100);
        }
    }
    let sent = load.stop_without_failure();
    assert_eq!(pair.client.count(FALLBACKS, &[]), 0);
    assert_eq!(pair.client.count("remora_requests_total", &[("code", "2xx")]), sent);
    // The old root vouches for nobody any more.
    let to = inbound(pair.orders.v4());
    let old = Certificate::of(&pair.mesh, &[WEB_ID], |_| ());
    let asked = pair.web.run(move || peers::ask(to, "remora-http/1.1", Some(old)));
    assert!(asked.is_err(), "{asked:?}");
    let labels = [("side", "server"), ("result", "unknown_issuer")];
    pair.server.until(HANDSHAKES, &labels, |it| it == 1);
}

fn http1() {
    let pair = Pair::new();
    let (to, web) = (inbound(pair.orders.v4()), Certificate::of(&pair.mesh, &[WEB_ID], |_| ()));
    let (go_on, rotated) = oneshot::channel();
    let answers = pair.web.start(move || async move {
        let mut stream = peers::dial(to, "remora-http/1.1", Some(web)).await.unwrap();
        let first = one_more(&mut stream).await;
        rotated.await.unwrap();
        let second = one_more(&mut stream).await;
        (first, second, stream.read(&mut [0]).await.unwrap())
    });
    pair.server.until("remora_requests_total", &[("code", "2xx")], |it| it == 1);
    pair.mesh.issue("orders");
    pair.server.log(&["identity rotated", "\"generation\":2"]);
    go_on.send(()).unwrap();
    let (first, second, rest) = answers.join();
    assert!(!first.contains("connection: close"), "{first}");
    assert!(second.contains("connection: close"), "{second}");
    assert_eq!(rest, 0, "it is not closed");
}

/// Asks over a connection that may be kept, and returns the answer.
async fn one_more(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    stream.write_all(b"GET /status/200 HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"status 200\n") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "half an answer");
    }
    String::from_utf8(answer).unwrap()
}

fn half_written() {
    let pair = Pair::new();
    let (a, b) = (pair.mesh.leaf("orders"), pair.mesh.leaf("orders"));
    let half = Issued {
        chain: a.chain.clone(),
        key: b.key,
        roots: a.roots.clone(),
        not_after: a.not_after,
    };
    pair.mesh.write("orders", &half, &pair.mesh.root());
    pair.server.log(&["new identity refused"]);
    let ready = pair.server.admin("/health/ready");
    assert_eq!(ready.status, 200);
    assert_eq!(ready.json()["notes"][0]["condition"], "identity", "{}", ready.text());
    // Files that come again are no news.
    let again = pair.mesh.folder("orders").join("tls.crt");
    std::fs::File::open(&again).unwrap().sync_all().unwrap();
    assert_eq!(pair.get("/who").json()["headers"]["x-remora-peer"][0], WEB_ID);
    pair.mesh.write("orders", &a, &pair.mesh.root());
    pair.server.log(&["identity rotated", "\"generation\":2"]);
    assert_eq!(pair.server.admin("/health/ready").json()["notes"].as_array().unwrap().len(), 0);
    assert_eq!(pair.server.logged(&["new identity refused"]), 1);
    assert_eq!(pair.get("/who").status, 200);
}
