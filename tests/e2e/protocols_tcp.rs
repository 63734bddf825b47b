//! Bytes of no protocol of ours, and bodies as bytes, through two sidecars.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, Version};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use remora::{clock, drain};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{
    host::{Host, PATIENCE, Service},
    http::Client,
    mesh::{INBOUND, Mode, OUTBOUND, Pair, Route, both_modes, each},
    protocols_http2::{Channel, upload},
    runner::Case,
    tcp::{connect, exchange},
};

pub(crate) const CASES: &[Case] = &[
    ("tcp_half_closed_by_the_client_still_carries_the_answer", client_ends_first),
    ("tcp_half_closed_by_the_server_still_carries_the_request", server_ends_first),
    ("tcp_whose_server_speaks_first_does_not_stall", server_speaks_first),
    ("tcp_is_under_mesh_tls_between_the_sidecars", under_mesh_tls),
    ("tls_of_the_application_passes_untouched", application_tls),
    ("megabytes_pass_both_ways_unchanged", megabytes),
    ("a_slow_reader_takes_no_memory", slow_reader),
    ("connections_to_the_sidecars_own_ports_are_refused", own_ports),
];

/// Runs `check` with where to connect for the server's application, by each way there is
/// for bytes of no known protocol; the application is at [`Pair::app_port`].
fn each_way(application: impl Fn(&Host, u16) -> Service, check: impl Fn(&Pair, SocketAddr)) {
    let captured = Pair::new(Mode::Capture);
    let _application = application(&captured.server, captured.app_port());
    captured.each_route(|route| check(&captured, route.to));
    let (tunnelled, ends) = Pair::tunnelled();
    let _application = application(&tunnelled.server, tunnelled.app_port());
    for to in ends {
        each(&format!("tunnel at {to}"), || check(&tunnelled, to));
    }
    tunnelled.near.is_well();
    tunnelled.far.is_well();
}

fn client_ends_first() {
    let application = |host: &Host, port| {
        host.tcp_server(port, |mut stream| async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            let answer = format!("{} bytes", all.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
    };
    each_way(application, |pair, to| {
        let answer = pair.client.run(move || async move {
            let stream = connect(to).await.unwrap();
            exchange(stream, &vec![0; 100_000]).await.unwrap()
        });
        assert_eq!(String::from_utf8(answer).unwrap(), "100000 bytes");
    });
}

fn server_ends_first() {
    let (tell, told) = mpsc::sync_channel(16);
    let application = move |host: &Host, port| {
        let tell = tell.clone();
        host.tcp_server(port, move |mut stream| {
            let tell = tell.clone();
            async move {
                stream.write_all(b"all there is").await.unwrap();
                stream.shutdown().await.unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                tell.send(all.len()).unwrap();
            }
        })
    };
    each_way(application, |pair, to| {
        pair.client.run(move || async move {
            let mut stream = connect(to).await.unwrap();
            // A byte no protocol begins with.
            stream.write_all(b"\0").await.unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "all there is");
            stream.write_all(&vec![0; 99_999]).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), 100_000);
    });
}

fn server_speaks_first() {
    const BANNER: &str = "220 ready when you are\n";
    each_way(
        |host, port| host.tcp_banner(port, BANNER),
        |pair, to| {
            for _ in 0..2 {
                pair.client.run(move || async move {
                    let began = clock::now();
                    let mut stream = connect(to).await.unwrap();
                    let mut banner = [0; BANNER.len()];
                    stream.read_exact(&mut banner).await.unwrap();
                    let took = clock::now() - began;
                    assert_eq!(std::str::from_utf8(&banner).unwrap(), BANNER);
                    assert!(took < Duration::from_millis(500), "{took:?}");
                    assert_eq!(exchange(stream, b"quit").await.unwrap(), b"quit");
                });
            }
        },
    );
}

fn under_mesh_tls() {
    each_way(Host::tcp_echo, |pair, to| {
        let ok = |side| [("side", side), ("result", "ok")];
        let handshakes =
            |side| move |it: &crate::metrics::Page| it.sum("remora_handshakes_total", &ok(side));
        let (near, far) = (handshakes("client"), handshakes("server"));
        let before = (near(&pair.near.metrics()), far(&pair.far.metrics()));
        let open = [("direction", "inbound"), ("protocol", "tcp"), ("tls", "true")];
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let (opened, is_open) = mpsc::sync_channel(1);
        let client = pair.client.start(move || async move {
            let mut stream = connect(to).await.unwrap();
            stream.write_all(b"\x01\x02").await.unwrap();
            let mut echoed = [0; 2];
            stream.read_exact(&mut echoed).await.unwrap();
            opened.send(()).unwrap();
            told.await.unwrap();
            assert_eq!(exchange(stream, b"more").await.unwrap(), b"more");
        });
        is_open.recv_timeout(PATIENCE).unwrap();
        assert_eq!(pair.far.metrics().sum("remora_connections", &open), 1);
        tell.send(()).unwrap();
        client.join();
        pair.far.metrics_when(|it| it.sum("remora_connections", &open) == 0);
        let after = (near(&pair.near.metrics()), far(&pair.far.metrics()));
        assert_eq!(after, (before.0 + 1, before.1 + 1));
        let received = [("direction", "inbound"), ("flow", "received")];
        pair.far.metrics_when(|it| it.sum("remora_tcp_bytes_total", &received) % 6 == 0);
    });
}

fn application_tls() {
    let made = rcgen::generate_simple_self_signed(["app.test".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.der().clone(), made.signing_key.serialize_der());
    let key = PrivateKeyDer::try_from(key).unwrap();
    let server = ServerConfig::builder().with_no_client_auth();
    let mut server = server.with_single_cert(vec![certificate.clone()], key).unwrap();
    server.alpn_protocols = vec![b"of-the-app".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let application = move |host: &Host, port| {
        let acceptor = acceptor.clone();
        host.tcp_server(port, move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let (mut from, mut to) = tokio::io::split(stream);
                tokio::io::copy(&mut from, &mut to).await.unwrap();
                to.shutdown().await.unwrap();
            }
        })
    };
    each_way(application, |pair, to| {
        let client = ClientConfig::builder().with_root_certificates(roots.clone());
        let mut client = client.with_no_client_auth();
        client.alpn_protocols = vec![b"of-the-app".to_vec()];
        pair.client.run(move || async move {
            let name = ServerName::try_from("app.test").unwrap();
            let connector = TlsConnector::from(Arc::new(client));
            let tcp = connect(to).await.unwrap();
            let mut stream = connector.connect(name, tcp).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"of-the-app"[..]));
            stream.write_all(b"secret").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut echoed = Vec::new();
            stream.read_to_end(&mut echoed).await.unwrap();
            assert_eq!(echoed, b"secret");
        });
    });
}

fn megabytes() {
    const PIECES: u32 = 128;
    const PIECE: usize = 64 * 1024;
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let authority = authority.clone();
                pair.client.run(move || async move {
                    let mut client = Client::connect(version, to).await.unwrap();
                    let (frames, body) = Channel::open();
                    let sending = drain::spawn("upload", async move {
                        let mut sent = Checksum::default();
                        for number in 0..PIECES {
                            let piece: Vec<u8> =
                                number.to_le_bytes().into_iter().cycle().take(PIECE).collect();
                            sent.add(&piece);
                            frames.send(Frame::data(Bytes::from(piece))).await.unwrap();
                        }
                        sent
                    });
                    let answer = client.begin(upload(version, &authority, body)).await.unwrap();
                    let (mut answer, mut received) = (answer.into_body(), Checksum::default());
                    while let Some(frame) = answer.frame().await {
                        received.add(&frame.unwrap().into_data().unwrap_or_default());
                    }
                    let sent = sending.await.unwrap();
                    assert_eq!(sent.bytes, u64::from(PIECES) * PIECE as u64);
                    assert_eq!(sent, received, "{version:?}");
                });
            }
        });
    });
}

/// Fletcher's sum: it sees bytes that changed, and bytes that changed places.
#[derive(Debug, Default, PartialEq, Eq)]
struct Checksum {
    bytes: u64,
    sum: u64,
    sums: u64,
}

impl Checksum {
    fn add(&mut self, piece: &[u8]) {
        for it in piece {
            self.bytes += 1;
            self.sum = (self.sum + u64::from(*it)) % 0xffff_fffb;
            self.sums = (self.sums + self.sum) % 0xffff_fffb;
        }
    }
}

fn slow_reader() {
    const ALL: u64 = 200 << 20;
    /// What a stalled transfer may hold in one sidecar; kernel buffers are not its own.
    const HELD: u64 = 24 << 20;
    let sent = Arc::new(AtomicU64::new(0));
    let pair = Pair::new(Mode::Capture);
    let shared = Arc::clone(&sent);
    let _app = pair.server.tcp_server(pair.app_port(), move |stream| {
        let sent = Arc::clone(&shared);
        let answer = service_fn(move |_| {
            let body = Counted { sent: Arc::clone(&sent), all: ALL };
            async { Ok::<_, io::Error>(Response::new(body)) }
        });
        async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let served = server.serve_connection(TokioIo::new(stream), answer).await;
            // The sidecar may close a connection that it does not need any more.
            let _ended = served.is_ok();
        }
    });
    let [route, _] = pair.routes();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        sent.store(0, Ordering::SeqCst);
        let before = (pair.near.resident(), pair.far.resident());
        let (go_on, may_go_on) = tokio::sync::oneshot::channel::<()>();
        let Route { to, authority, .. } = route.clone();
        let client = pair.client.start(move || async move {
            let mut client = Client::connect(version, to).await.unwrap();
            let answer = client.begin(crate::http::get(version, &authority, "/")).await.unwrap();
            may_go_on.await.unwrap();
            let (mut body, mut received) = (answer.into_body(), 0);
            while let Some(frame) = body.frame().await {
                received += frame.unwrap().into_data().unwrap_or_default().len() as u64;
            }
            assert_eq!(received, ALL);
        });
        let held = stalled(&pair.client, &sent);
        let during = (pair.near.resident(), pair.far.resident());
        assert!(held < ALL / 4, "{version:?}: the application could send {} KiB", held >> 10);
        go_on.send(()).unwrap();
        client.join();
        let after = (pair.near.resident(), pair.far.resident());
        for (name, before, most) in
            [("near", before.0, during.0.max(after.0)), ("far", before.1, during.1.max(after.1))]
        {
            let grown = most.saturating_sub(before);
            assert!(grown < HELD, "{version:?}: {name} grew by {} KiB", grown >> 10);
        }
    }
}

/// A body that counts what is taken of it.
struct Counted {
    sent: Arc<AtomicU64>,
    all: u64,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        static PIECE: [u8; 64 * 1024] = [b'x'; 64 * 1024];
        let sent = self.sent.fetch_add(PIECE.len() as u64, Ordering::SeqCst);
        Poll::Ready((sent < self.all).then(|| Ok(Frame::data(Bytes::from_static(&PIECE)))))
    }
}

/// Waits until `count` stays as it is, and returns it.
fn stalled(host: &Host, count: &Arc<AtomicU64>) -> u64 {
    let count = Arc::clone(count);
    host.run(move || async move {
        let mut look = time::interval(Duration::from_millis(10));
        let (mut last, mut same) = (0, 0);
        while same < 20 {
            look.tick().await;
            let now = count.load(Ordering::SeqCst);
            same = if 0 < now && now == last { same + 1 } else { 0 };
            last = now;
        }
        last
    })
}

fn own_ports() {
    let pair = Pair::new(Mode::Capture);
    let _app = pair.server.http_app(pair.app_port());
    let refused = |host: &Host, to: SocketAddr| {
        let answer = host.run(move || async move {
            let mut stream = connect(to).await?;
            // It may be closed already.
            let _sent = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.is_ok();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        });
        each(&format!("{} to {to}", host.name()), || {
            assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
        });
    };
    let outside = pair.client.as_proxy();
    for address in pair.server.addresses() {
        refused(&outside, SocketAddr::new(address, INBOUND));
        refused(&outside, SocketAddr::new(address, OUTBOUND));
    }
    for loopback in ["127.0.0.1", "::1"] {
        for port in [INBOUND, OUTBOUND] {
            refused(&pair.server, SocketAddr::new(loopback.parse().unwrap(), port));
        }
    }
    let requests = [("direction", "inbound")];
    assert_eq!(pair.far.metrics().sum("remora_requests_total", &requests), 0);
    pair.far.is_well();
    // What is another pod's port of the same number is nothing of ours.
    let [route, _] = pair.routes_to(crate::mesh::ADMIN);
    let status = pair.client.run(move || async move {
        let Route { to, authority, .. } = route;
        let answer = crate::http::fetch(Version::HTTP_11, to, &authority, "/health/live").await;
        answer.unwrap().status
    });
    assert_eq!(status, 200);
}
