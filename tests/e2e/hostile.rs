//! Hostile HTTP/1 clients: what two parsers could read differently is refused, what is
//! refused is counted, and nobody else notices.
//!
//! Each row goes to a listener of its own sidecar: to an inbound one, whose application
//! keeps every byte it is sent, and to an outbound one in front of the same application.

use std::net::{Ipv4Addr, SocketAddr};

use crate::{
    host::Host,
    mesh::{Mode, OUTBOUND, Pair, SERVICE, Sidecar, each},
    metrics::Page,
    runner::Case,
    wire::{OK, Recorder, header, talk},
};

pub(crate) const CASES: &[Case] = &[
    ("hostile_heads_are_refused_and_counted", heads),
    ("hostile_bodies_end_the_connection_and_are_never_completed", bodies),
    ("hostile_sizes_are_bounded", sizes),
    ("unusual_requests_are_served", unusual),
];

/// One listener, and how to see what it does.
pub(crate) struct Target<'a> {
    pub(crate) name: &'static str,
    pub(crate) client: &'a Host,
    pub(crate) sidecar: &'a Sidecar,
    pub(crate) to: SocketAddr,
    pub(crate) authority: String,
}

/// An inbound and an outbound listener in explicit mode, of the same application.
pub(crate) fn targets(pair: &Pair) -> [Target<'_>; 2] {
    let there = SocketAddr::new(pair.server.v4(), SERVICE);
    let authority = there.to_string();
    [
        Target {
            name: "inbound",
            client: &pair.client,
            sidecar: &pair.far,
            to: there,
            authority: authority.clone(),
        },
        Target {
            name: "outbound",
            client: &pair.client,
            sidecar: &pair.near,
            to: (Ipv4Addr::LOCALHOST, OUTBOUND).into(),
            authority,
        },
    ]
}

impl Target<'_> {
    /// Sends `bytes`, in which `HOST` stands for a good `Host` field, and returns all that
    /// comes back until the connection ends.
    pub(crate) fn talk(&self, bytes: &[u8]) -> String {
        let bytes = with_host(bytes, &self.authority);
        let to = self.to;
        let answer = self.client.run(move || async move { talk(to, &bytes).await.unwrap() });
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asserts that a good request is served, and that nothing panicked.
    pub(crate) fn still_works(&self) {
        let answer = self.talk(b"GET /good HTTP/1.1\r\nHOSTConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "a good request got {answer:?}");
        self.sidecar.is_well();
    }

    fn replies(&self, page: &Page, reason: &str) -> u64 {
        page.replies(self.name, reason)
    }

    /// Asserts that `bytes` are refused by `statuses`, counted as `reason`, and reach nobody.
    fn refuses(&self, app: &Recorder, bytes: &[u8], statuses: &[u16], reason: &str) {
        app.take();
        let before = self.replies(&self.sidecar.metrics(), reason);
        let answer = self.talk(bytes);
        let status = answer.get(9..12).and_then(|it| it.parse::<u16>().ok());
        assert!(status.is_some_and(|it| statuses.contains(&it)), "answered {answer:?}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "more than one answer: {answer:?}");
        assert_eq!(app.take(), [], "the application saw something");
        self.sidecar.metrics_when(|it| self.replies(it, reason) == before + 1);
        self.still_works();
        app.take();
    }
}

fn with_host(bytes: &[u8], authority: &str) -> Vec<u8> {
    let Some(at) = bytes.windows(4).position(|it| it == b"HOST") else { return bytes.into() };
    let host = format!("Host: {authority}\r\n");
    [&bytes[..at], host.as_bytes(), &bytes[at + 4..]].concat()
}

/// Runs every row at both listeners.
fn each_row<R>(rows: &[(&str, R)], check: impl Fn(&Target<'_>, &Recorder, &R)) {
    let pair = Pair::new(Mode::Explicit);
    let app = pair.server.recorder(pair.app_port(), |_| OK);
    for target in targets(&pair) {
        for (name, row) in rows {
            each(&format!("{name} at the {} listener", target.name), || {
                check(&target, &app, row);
            });
        }
    }
}

/// A smuggled request that must never be answered or seen.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: hidden\r\n\r\n";

fn heads() {
    let rows: [(&str, &[u8]); 43] = [
        ("CL before TE", b"POST / HTTP/1.1\r\nHOSTContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("TE before CL", b"POST / HTTP/1.1\r\nHOSTTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
        ("two equal CL", b"POST / HTTP/1.1\r\nHOSTContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
        ("two different CL", b"POST / HTTP/1.1\r\nHOSTContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        ("a list of CL", b"POST / HTTP/1.1\r\nHOSTContent-Length: 3, 3\r\n\r\nabc"),
        ("a signed CL", b"POST / HTTP/1.1\r\nHOSTContent-Length: +3\r\n\r\nabc"),
        ("a negative CL", b"POST / HTTP/1.1\r\nHOSTContent-Length: -3\r\n\r\nabc"),
        ("a hexadecimal CL", b"POST / HTTP/1.1\r\nHOSTContent-Length: 0x3\r\n\r\nabc"),
        ("an empty CL", b"POST / HTTP/1.1\r\nHOSTContent-Length: \r\n\r\nabc"),
        ("a CL beyond 64 bits", b"POST / HTTP/1.1\r\nHOSTContent-Length: 18446744073709551619\r\n\r\nabc"),
        ("two TE", b"POST / HTTP/1.1\r\nHOSTTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("TE identity", b"POST / HTTP/1.1\r\nHOSTTransfer-Encoding: identity\r\n\r\nabc"),
        ("TE chunked, identity", b"POST / HTTP/1.1\r\nHOSTTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("TE gzip, chunked", b"POST / HTTP/1.1\r\nHOSTTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("TE xchunked", b"POST / HTTP/1.1\r\nHOSTTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("TE with a vertical tab", b"POST / HTTP/1.1\r\nHOSTTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
        ("TE in HTTP/1.0", b"POST / HTTP/1.0\r\nHOSTTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a folded field", b"GET / HTTP/1.1\r\nHOSTX: a\r\n b\r\n\r\n"),
        ("a field folded by a tab", b"GET / HTTP/1.1\r\nHOSTX: a\r\n\tb\r\n\r\n"),
        ("a folded first field", b"GET / HTTP/1.1\r\n X: a\r\nHOST\r\n"),
        ("a bare LF after the request line", b"GET / HTTP/1.1\nHOST\r\n"),
        ("a bare LF after a field", b"GET / HTTP/1.1\r\nHOSTX: a\nY: b\r\n\r\n"),
        ("a bare LF as the empty line", b"GET / HTTP/1.1\r\nHOSTX: a\r\n\n"),
        ("a bare CR in a value", b"GET / HTTP/1.1\r\nHOSTX: a\rY: b\r\n\r\n"),
        ("a bare CR in the target", b"GET /\r HTTP/1.1\r\nHOST\r\n"),
        ("a NUL in a value", b"GET / HTTP/1.1\r\nHOSTX: a\0b\r\n\r\n"),
        ("a NUL in a name", b"GET / HTTP/1.1\r\nHOSTX\0: a\r\n\r\n"),
        ("a space in a name", b"GET / HTTP/1.1\r\nHOSTX Y: a\r\n\r\n"),
        ("a space before a colon", b"POST / HTTP/1.1\r\nHOSTContent-Length : 3\r\n\r\nabc"),
        ("a tab before a colon", b"POST / HTTP/1.1\r\nHOSTTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
        ("a field without a colon", b"GET / HTTP/1.1\r\nHOSTnonsense\r\n\r\n"),
        ("a field without a name", b"GET / HTTP/1.1\r\nHOST: a\r\n\r\n"),
        ("two Host fields", b"GET / HTTP/1.1\r\nHOSTHost: other\r\n\r\n"),
        ("no Host field", b"GET / HTTP/1.1\r\n\r\n"),
        ("no Host field beside an absolute target", b"GET http://a/ HTTP/1.1\r\n\r\n"),
        ("two Host fields beside an absolute target", b"GET http://a/ HTTP/1.1\r\nHOSTHost: other\r\n\r\n"),
        ("a Host with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        ("a Host with a user", b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
        ("a Host with a space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        ("an unknown version", b"GET / HTTP/1.7\r\nHOST\r\n"),
        ("no version", b"GET /\r\nHOST\r\n"),
        ("a space in the target", b"GET /a b HTTP/1.1\r\nHOST\r\n"),
        ("two spaces", b"GET  / HTTP/1.1\r\nHOST\r\n"),
    ];
    each_row(&rows, |target, app, bytes| {
        let bytes = [bytes, HIDDEN.as_bytes()].concat();
        target.refuses(app, &bytes, &[400], "bad_request");
    });
}

fn bodies() {
    let rows: [(&str, &[u8]); 12] = [
        ("a size that is no number", b"x\r\nabc\r\n"),
        ("a negative size", b"-3\r\nabc\r\n"),
        ("a size with 0x", b"0x3\r\nabc\r\n"),
        ("a size with a space", b"3 \r\nabc\r\n"),
        ("an empty size", b"\r\nabc\r\n"),
        ("a size beyond 64 bits", b"10000000000000003\r\nabc\r\n"),
        ("a size of sixteen digits", b"ffffffffffffffff\r\nabc\r\n"),
        ("a size that ends in LF", b"3\nabc\r\n"),
        ("a chunk longer than its size", b"3\r\nabcdef\r\n"),
        ("a chunk that ends in LF", b"3\r\nabc\n"),
        ("a folded trailer", b"3\r\nabc\r\n0\r\nX: a\r\n b\r\n\r\n"),
        ("an endless extension", &[b'3'; 300]),
    ];
    each_row(&rows, |target, app, chunks| {
        app.take();
        let head = b"POST /bad HTTP/1.1\r\nHOSTTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        let bytes = [&head[..], chunks, b"\r\n0\r\n\r\n", HIDDEN.as_bytes()].concat();
        let before = target.replies(&target.sidecar.metrics(), "bad_request");
        let answer = target.talk(&bytes);
        assert!(!answer.starts_with("HTTP/1.1 2"), "answered {answer:?}");
        assert!(answer.matches("HTTP/1.").count() <= 1, "more than one answer: {answer:?}");
        target.sidecar.metrics_when(|it| before < target.replies(it, "bad_request"));
        target.still_works();
        // The head had gone on before the body went wrong: that much may be seen, as a
        // request that breaks off.
        let seen = app.take();
        let broken = seen.iter().filter(|it| it.head.starts_with("POST /bad "));
        assert!(broken.clone().all(|it| !it.whole), "{seen:?}");
        let good = seen.iter().filter(|it| it.head.starts_with("GET /good "));
        assert_eq!(broken.count() + good.count(), seen.len(), "{seen:?}");
    });
}

fn sizes() {
    let mib = "a".repeat(1 << 20);
    let many: Vec<_> = (0..2000).map(|it| format!("x-{it}: {it}\r\n")).collect();
    let many = many.concat();
    let flood = "x: y\r\n".repeat(30_000);
    let rows = [
        ("a field of a MiB", format!("GET / HTTP/1.1\r\nHOSTX: {mib}\r\n\r\n")),
        ("a name of a MiB", format!("GET / HTTP/1.1\r\nHOST{mib}: x\r\n\r\n")),
        ("a target of a MiB", format!("GET /{mib} HTTP/1.1\r\nHOST\r\n")),
        ("two thousand fields", format!("GET / HTTP/1.1\r\nHOST{many}\r\n")),
        ("a flood of fields", format!("GET / HTTP/1.1\r\nHOST{flood}\r\n")),
    ];
    each_row(&rows, |target, app, request| {
        target.refuses(app, request.as_bytes(), &[414, 431], "headers_too_large");
    });
}

fn unusual() {
    let rows: [(&str, (&str, &str)); 9] = [
        ("an unknown method", ("BREW /pot HTTP/1.1\r\nHOST", "BREW /pot HTTP/1.1")),
        ("a method of another protocol", ("M-SEARCH * HTTP/1.1\r\nHOST", "M-SEARCH * HTTP/1.1")),
        ("a target of its own form", ("OPTIONS * HTTP/1.1\r\nHOST", "OPTIONS * HTTP/1.1")),
        ("an empty line first", ("\r\nGET /a HTTP/1.1\r\nHOST", "GET /a HTTP/1.1")),
        (
            "dots and escapes",
            (
                "GET /a/../%2e%2E//b;c?d=%00&e HTTP/1.1\r\nHOST",
                "GET /a/../%2e%2E//b;c?d=%00&e HTTP/1.1",
            ),
        ),
        ("an empty field", ("GET /a HTTP/1.1\r\nHOSTX:\r\n", "GET /a HTTP/1.1")),
        (
            "white space around a value",
            ("GET /a HTTP/1.1\r\nHOSTX: \t a \t\r\n", "GET /a HTTP/1.1"),
        ),
        (
            "bytes beyond ASCII in a value",
            ("GET /a HTTP/1.1\r\nHOSTX: \u{e9}\r\n", "GET /a HTTP/1.1"),
        ),
        ("a body of GET", ("GET /a HTTP/1.1\r\nHOSTContent-Length: 0\r\n", "GET /a HTTP/1.1")),
    ];
    each_row(&rows, |target, app, (request, line)| {
        app.take();
        let answer = target.talk(format!("{request}Connection: close\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 "), "answered {answer:?}");
        let seen = app.take();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].head.lines().next(), Some(*line), "{seen:?}");
        assert_eq!(header(&seen[0].head, "host"), Some(&*target.authority), "{seen:?}");
        target.still_works();
    });
}
