//! HTTP/1 from one application to another, through two sidecars.

use http::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    http::{Client, get, upgrade_to_echo},
    mesh::{Mode, Pair, Route, both_modes},
    runner::Case,
    tcp::connect,
    wire::{OK, Reader, Script, answer, header, talk},
};

pub(crate) const CASES: &[Case] = &[
    ("http10_ends_its_connection_unless_asked_to_keep_it", http10),
    ("http11_keeps_its_connection", keep_alive),
    ("pipelined_requests_are_answered_in_order", pipelined),
    ("chunked_bodies_pass_both_ways", chunked),
    ("trailers_pass_both_ways", trailers),
    ("an_expectation_is_met_by_the_application", expectation_met),
    ("an_expectation_refused_by_the_application_costs_no_body", expectation_refused),
    ("an_early_answer_reaches_a_client_that_is_still_sending", early_answer),
    ("an_upload_that_breaks_off_is_its_clients_fault", broken_upload),
    ("answers_without_a_body_leave_the_connection_in_step", without_body),
    ("an_upgraded_connection_carries_bytes_both_ways", upgraded),
    ("connect_is_refused", connect_refused),
    ("an_absolute_target_says_who_is_asked", absolute),
    ("a_get_keeps_its_chunked_body", get_with_a_body),
    ("a_request_for_the_sidecar_itself_goes_nowhere", to_itself),
];

/// Runs `work` for a raw connection by each route of a pair in each mode.
fn http10() {
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let ask = |path: &str, keep: &str| {
                    format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\n{keep}\r\n")
                };
                let closed = talk(to, ask("/status/200", "").as_bytes()).await.unwrap();
                let closed = String::from_utf8(closed).unwrap();
                assert!(closed.starts_with("HTTP/1.0 200 "), "{closed}");
                assert!(closed.ends_with("\r\n\r\nstatus 200\n"), "{closed}");

                let keep = ask("/status/201", "Connection: keep-alive\r\n");
                let mut stream = connect(to).await.unwrap();
                let mut reader = Reader::default();
                for _ in 0..3 {
                    stream.write_all(keep.as_bytes()).await.unwrap();
                    let (head, body) = reader.message(&mut stream, true).await.unwrap();
                    assert!(head.starts_with("HTTP/1.0 201 "), "{head}");
                    assert_eq!(header(&head, "connection"), Some("keep-alive"), "{head}");
                    assert_eq!(body, b"status 201\n");
                }

                // A body of unknown length can only end with the connection: HTTP/1.0 has
                // no chunks.
                let chunks = ask("/trailers", "Connection: keep-alive\r\n");
                let whole = talk(to, chunks.as_bytes()).await.unwrap();
                let whole = String::from_utf8(whole).unwrap();
                assert!(whole.ends_with("\r\n\r\n000000000"), "{whole}");
                assert_eq!(header(&whole, "transfer-encoding"), None, "{whole}");
            });
        });
    });
}

fn keep_alive() {
    both_modes(|pair| {
        let app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let mut client = Client::connect(Version::HTTP_11, to).await.unwrap();
                for _ in 0..10 {
                    let request = get(Version::HTTP_11, &authority, "/who");
                    let who = client.send(request).await.unwrap().json();
                    assert_eq!(
                        (&who["host"], &who["version"]),
                        (&"orders".into(), &"HTTP/1.1".into())
                    );
                }
            });
        });
        assert_eq!(app.requests(), 20);
        // The sidecar keeps its own, too: one for each address it knows the application by.
        assert!(app.connections() <= 2, "{}", app.connections());
    });
}

fn pipelined() {
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                // The first is the slowest; what comes later must not overtake it.
                let paths: Vec<_> = std::iter::once("/slow?ms=30".to_owned())
                    .chain((1..20).map(|it| format!("/bytes/{}", it * 100)))
                    .collect();
                let ask = |it: &String| format!("GET {it} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
                let all: String = paths.iter().map(ask).collect();
                let mut stream = connect(to).await.unwrap();
                stream.write_all(all.as_bytes()).await.unwrap();
                let mut reader = Reader::default();
                for (at, path) in paths.iter().enumerate() {
                    let (head, body) = reader.message(&mut stream, true).await.unwrap();
                    assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
                    let expected = if at == 0 { "status 200\n".len() } else { at * 100 };
                    assert_eq!(body.len(), expected, "{path}");
                }
            });
        });
    });
}

fn chunked() {
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let mut stream = connect(to).await.unwrap();
                let head = format!(
                    "POST /echo HTTP/1.1\r\nHost: {authority}\r\nTransfer-Encoding: chunked\r\n\r\n"
                );
                let mut sent = head.into_bytes();
                let mut expected = Vec::new();
                for size in [1_usize, 9, 15, 16, 4095, 70_000] {
                    let extension = if size == 9 { ";a=b" } else { "" };
                    sent.extend(format!("{size:X}{extension}\r\n").bytes());
                    let piece = vec![b'a' + u8::try_from(size % 26).unwrap(); size];
                    sent.extend_from_slice(&piece);
                    sent.extend_from_slice(b"\r\n");
                    expected.extend(piece);
                }
                sent.extend_from_slice(b"0\r\n\r\n");
                // Twice: the connection is in step afterwards.
                for _ in 0..2 {
                    stream.write_all(&sent).await.unwrap();
                    let mut reader = Reader::default();
                    let (head, body) = reader.message(&mut stream, true).await.unwrap();
                    assert_eq!(header(&head, "transfer-encoding"), Some("chunked"), "{head}");
                    assert_eq!(header(&head, "content-length"), None, "{head}");
                    assert!(body == expected, "{} bytes came back", body.len());
                }
            });
        });
    });
}

fn trailers() {
    both_modes(|pair| {
        let app = pair.server.recorder(pair.app_port(), |_| {
            answer(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum\r\n\r\n\
                 3\r\nabc\r\n0\r\nx-checksum: of the answer\r\n\r\n",
            )
        });
        pair.each_route(|Route { to, authority, .. }| {
            let request = format!(
                "POST /t HTTP/1.1\r\nHost: {authority}\r\nTE: trailers\r\nConnection: TE, close\r\n\
                 Trailer: x-checksum\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5\r\nhello\r\n0\r\nx-checksum: of the request\r\n\r\n"
            );
            let answer = pair.client.run(move || async move {
                String::from_utf8(talk(to, request.as_bytes()).await.unwrap()).unwrap()
            });
            assert!(answer.contains("\r\nx-checksum: of the answer\r\n"), "{answer}");
            let seen = app.take();
            let body = String::from_utf8(seen[0].body.clone()).unwrap();
            assert!(body.contains("\r\nx-checksum: of the request\r\n"), "{body}");
        });
    });
}

fn expectation_met() {
    both_modes(|pair| {
        let app = pair.server.recorder(pair.app_port(), |_| Script {
            at_head: "HTTP/1.1 100 Continue\r\n\r\n",
            ..OK
        });
        pair.each_route(|Route { to, authority, .. }| {
            let head = format!(
                "PUT /e HTTP/1.1\r\nHost: {authority}\r\nExpect: 100-continue\r\n\
                 Content-Length: 5\r\n\r\n"
            );
            pair.client.run(move || async move {
                let mut stream = connect(to).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
                let mut reader = Reader::default();
                let first = reader.head(&mut stream).await.unwrap();
                assert!(first.starts_with("HTTP/1.1 100 "), "{first}");
                stream.write_all(b"hello").await.unwrap();
                let (head, body) = reader.message(&mut stream, true).await.unwrap();
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                assert_eq!(body, b"ok");
            });
            let seen = app.take();
            assert_eq!(seen[0].header("expect"), Some("100-continue"));
            assert_eq!((&seen[0].body[..], seen.len()), (&b"hello"[..], 1));
        });
    });
}

fn expectation_refused() {
    both_modes(|pair| {
        let app = pair.server.recorder(pair.app_port(), |_| Script {
            at_head: "HTTP/1.1 417 Expectation Failed\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            at_end: None,
        });
        pair.each_route(|Route { to, authority, .. }| {
            let head = format!(
                "PUT /e HTTP/1.1\r\nHost: {authority}\r\nExpect: 100-continue\r\n\
                 Content-Length: 100000\r\n\r\n"
            );
            let first = pair.client.run(move || async move {
                let mut stream = connect(to).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
                Reader::default().head(&mut stream).await.unwrap()
            });
            assert!(first.starts_with("HTTP/1.1 417 "), "{first}");
            assert_eq!(app.take().len(), 1);
        });
    });
}

fn early_answer() {
    const SENT: usize = 8 * 1024 * 1024;
    both_modes(|pair| {
        let _app = pair.server.recorder(pair.app_port(), |_| Script {
            at_head: "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno",
            at_end: None,
        });
        pair.each_route(|Route { to, authority, .. }| {
            let head =
                format!("PUT /e HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {SENT}\r\n\r\n");
            let (first, body) = pair.client.run(move || async move {
                let mut stream = connect(to).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&vec![b'x'; SENT]).await.unwrap();
                Reader::default().message(&mut stream, true).await.unwrap()
            });
            assert!(first.starts_with("HTTP/1.1 413 "), "{first}");
            assert_eq!(body, b"no");
        });
    });
}

fn broken_upload() {
    both_modes(|pair| {
        let _app = pair.server.recorder(pair.app_port(), |_| OK);
        pair.each_route(|Route { to, authority, .. }| {
            let request =
                format!("PUT /e HTTP/1.1\r\nHost: {authority}\r\nContent-Length: 10\r\n\r\nhel");
            let first = pair.client.run(move || async move {
                let mut stream = connect(to).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                Reader::default().head(&mut stream).await.unwrap()
            });
            assert!(first.starts_with("HTTP/1.1 400 "), "{first}");
            assert_eq!(header(&first, "x-remora-reason"), Some("bad_request"), "{first}");
        });
    });
}

fn without_body() {
    const ROWS: [(&str, &str, u16); 4] = [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n", 200),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n", 304),
        ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200),
    ];
    both_modes(|pair| {
        let app = pair.server.recorder(pair.app_port(), |head| {
            let row = ROWS.iter().enumerate().find(|(at, _)| head.contains(&format!(" /{at} ")));
            row.map_or(OK, |(_, row)| answer(row.1))
        });
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let mut stream = connect(to).await.unwrap();
                let mut reader = Reader::default();
                for (at, (method, answer, status)) in ROWS.iter().enumerate() {
                    let ask = format!("{method} /{at} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
                    stream.write_all(ask.as_bytes()).await.unwrap();
                    let (head, _) = reader.message(&mut stream, false).await.unwrap();
                    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
                    for name in ["content-length", "etag"] {
                        assert_eq!(header(&head, name), header(answer, name), "{at}: {head}");
                    }
                    let next = format!("GET /next HTTP/1.1\r\nHost: {authority}\r\n\r\n");
                    stream.write_all(next.as_bytes()).await.unwrap();
                    let (_, body) = reader.message(&mut stream, true).await.unwrap();
                    assert_eq!(body, b"ok", "after {at}");
                }
            });
            assert_eq!(app.take().len(), 2 * ROWS.len());
        });
    });
}

fn upgraded() {
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let stream = upgrade_to_echo(to, &authority).await.unwrap();
                let (mut from, mut into) = tokio::io::split(stream);
                into.write_all(b"hello").await.unwrap();
                let mut echoed = [0; 5];
                from.read_exact(&mut echoed).await.unwrap();
                assert_eq!(&echoed, b"hello");
                let sent: Vec<u8> = (0..4 << 20).map(|it: u32| it.to_le_bytes()[1]).collect();
                let (mut received, bytes) = (vec![0; sent.len()], sent.clone());
                let sending = async { into.write_all(&bytes).await.unwrap() };
                let receiving = async { from.read_exact(&mut received).await.unwrap() };
                tokio::join!(sending, receiving);
                assert!(sent == received, "the bytes changed on their way");
            });
        });
        let pair_metrics = pair.near.metrics();
        let switched = [("direction", "outbound"), ("code", "1xx")];
        let counted = pair_metrics.sum("remora_requests_total", &switched);
        assert_eq!(counted, 2, "{pair_metrics}");
    });
}

fn connect_refused() {
    both_modes(|pair| {
        let app = pair.server.recorder(pair.app_port(), |_| OK);
        pair.each_route(|Route { to, authority, .. }| {
            let before = pair.near.metrics().replies("outbound", "bad_request");
            let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            let answer = pair.client.run(move || async move {
                String::from_utf8(talk(to, request.as_bytes()).await.unwrap()).unwrap()
            });
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
            assert_eq!(header(&answer, "x-remora-reason"), Some("bad_request"));
            assert_eq!(pair.near.metrics().replies("outbound", "bad_request"), before + 1);
        });
        assert_eq!(app.take(), []);
    });
}

fn absolute() {
    // What an application does that is told of an `http_proxy`.
    let pair = Pair::new(Mode::Explicit);
    let app = pair.server.recorder(pair.app_port(), |_| OK);
    pair.each_route(|Route { to, authority, .. }| {
        let request = format!(
            "GET http://{authority}/a?b=c HTTP/1.1\r\nHost: somebody.else\r\n\
             Proxy-Connection: keep-alive\r\nConnection: close\r\n\r\n"
        );
        let answer = pair.client.run(move || async move {
            String::from_utf8(talk(to, request.as_bytes()).await.unwrap()).unwrap()
        });
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
    let expected = pair.routes().map(|it| it.authority);
    let seen = app.take();
    assert!(seen.iter().all(|it| it.head.starts_with("GET /a?b=c HTTP/1.1\r\n")), "{seen:?}");
    let hosts: Vec<_> = seen.iter().filter_map(|it| it.header("host")).collect();
    assert_eq!(hosts, expected);
    assert!(seen.iter().all(|it| it.header("proxy-connection").is_none()), "{seen:?}");
}

fn get_with_a_body() {
    both_modes(|pair| {
        let app = pair.server.recorder(pair.app_port(), |_| OK);
        pair.each_route(|Route { to, authority, .. }| {
            let request = format!(
                "GET /search HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\
                 Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            );
            let answer = pair.client.run(move || async move {
                String::from_utf8(talk(to, request.as_bytes()).await.unwrap()).unwrap()
            });
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let seen = app.take();
            assert!(String::from_utf8_lossy(&seen[0].body).contains("hello"), "{seen:?}");
        });
    });
}

fn to_itself() {
    let pair = Pair::new(Mode::Explicit);
    for Route { to, .. } in pair.routes() {
        let port = to.port();
        for host in
            [format!("0.0.0.0:{port}"), format!("[::ffff:127.0.0.1]:{port}"), to.to_string()]
        {
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = pair.client.run(move || async move {
                String::from_utf8(talk(to, request.as_bytes()).await.unwrap()).unwrap()
            });
            assert!(answer.starts_with("HTTP/1.1 404 "), "{host}: {answer}");
            assert_eq!(header(&answer, "x-remora-reason"), Some("no_route"), "{host}");
        }
    }
}
