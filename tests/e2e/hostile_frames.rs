//! Hostile HTTP/2 clients, and bytes of no protocol at all, at both listeners.

use std::net::SocketAddr;

use crate::{
    hostile::{Target, targets},
    mesh::{ADMIN, Mode, Pair, each},
    runner::Case,
    tcp::connect,
    wire::{OK, Recorder},
};

pub(crate) const CASES: &[Case] = &[
    ("invalid_frames_end_the_connection_with_a_reason", invalid_frames),
    ("malformed_http2_requests_reach_nobody", malformed_requests),
    ("floods_of_frames_are_survived", floods),
    ("garbage_on_any_port_is_survived", garbage),
];

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `PROTOCOL_ERROR`, `FLOW_CONTROL_ERROR`, `STREAM_CLOSED`, `FRAME_SIZE_ERROR`,
/// `COMPRESSION_ERROR`, `ENHANCE_YOUR_CALM`: RFC 9113, section 7.
const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const COMPRESSION: u32 = 9;
const CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head[..], payload].concat()
}

/// A field that is not to be indexed, as HPACK has it.
fn field(name: &str, value: &str) -> Vec<u8> {
    // RFC 7541, sections 5.1 and 5.2: seven bits, and the rest by seven more at a time.
    let text = |it: &str| {
        let mut bytes = Vec::new();
        if it.len() < 127 {
            bytes.extend(u8::try_from(it.len()));
        } else {
            bytes.push(127);
            let mut rest = it.len() - 127;
            while 128 <= rest {
                bytes.extend(u8::try_from(rest % 128).map(|it| it | 128));
                rest /= 128;
            }
            bytes.extend(u8::try_from(rest));
        }
        bytes.extend_from_slice(it.as_bytes());
        bytes
    };
    [&[0][..], &text(name), &text(value)].concat()
}

/// A request's fields, some of them in place of good ones.
fn request(authority: &str, changed: &[(&str, &str)]) -> Vec<u8> {
    let good =
        [(":method", "GET"), (":scheme", "http"), (":path", "/bad"), (":authority", authority)];
    let value = |name: &str| changed.iter().find(|it| it.0 == name).map(|it| it.1);
    let pseudo = good.iter().filter_map(|(name, good)| {
        // One that is changed to nothing is left out.
        let value = value(name).unwrap_or(good);
        (!value.is_empty()).then(|| field(name, value))
    });
    let others = changed.iter().filter(|it| !good.iter().any(|(name, _)| *name == it.0));
    pseudo.chain(others.map(|(name, value)| field(name, value))).flatten().collect()
}

fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}

/// What came back: the error of the connection, if it had one, and those of streams.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    goaway: Option<u32>,
    resets: Vec<u32>,
    headers: usize,
}

impl Outcome {
    fn of(mut bytes: &[u8]) -> Self {
        let mut outcome = Self::default();
        while let Some((head, rest)) = bytes.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else { break };
            let number = |at: usize| {
                payload.get(at..at + 4).map(|it| u32::from_be_bytes(it.try_into().unwrap()))
            };
            match head[3] {
                GOAWAY => outcome.goaway = outcome.goaway.max(number(4)),
                RST_STREAM => outcome.resets.extend(number(0)),
                HEADERS => outcome.headers += 1,
                _ => (),
            }
            bytes = rest;
        }
        outcome
    }
}

impl Target<'_> {
    /// Sends a preface, settings and `frames`, and nothing more.
    fn frames(&self, frames: &[u8]) -> Outcome {
        let bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), frames].concat();
        Outcome::of(&self.bytes(self.to, bytes))
    }

    /// Sends a preface, settings and `frames`, and waits for what comes of the one request
    /// in them.
    fn request(&self, frames: &[u8]) -> Outcome {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), frames].concat();
        let to = self.to;
        self.client.run(move || async move {
            let mut stream = connect(to).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            loop {
                let ended = stream.read_buf(&mut answer).await.unwrap() == 0;
                let outcome = Outcome::of(&answer);
                if ended || outcome != Outcome::default() {
                    return outcome;
                }
            }
        })
    }

    /// Sends `bytes` and an end, and returns what comes back until the other side ends.
    fn bytes(&self, to: SocketAddr, bytes: Vec<u8>) -> Vec<u8> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        self.client.run(move || async move {
            let (mut from, mut into) = connect(to).await.unwrap().into_split();
            let mut answer = Vec::new();
            let sending = async {
                // Who refuses need not take all of it, nor end politely.
                let _sent = into.write_all(&bytes).await.is_ok();
                let _ended = into.shutdown().await.is_ok();
            };
            let reading = async {
                let _ended = from.read_to_end(&mut answer).await.is_ok();
            };
            tokio::join!(sending, reading);
            answer
        })
    }
}

fn each_target(check: impl Fn(&Target<'_>, &Recorder)) {
    let pair = Pair::new(Mode::Explicit);
    let app = pair.server.recorder(pair.app_port(), |_| OK);
    for target in targets(&pair) {
        each(&format!("{} listener", target.name), || check(&target, &app));
    }
}

fn invalid_frames() {
    each_target(|target, app| {
        let rows = invalid(&request(&target.authority, &[]));
        for (name, frames, codes) in rows {
            each(name, || {
                let before = target.sidecar.metrics().replies(target.name, "bad_request");
                let outcome = target.frames(&frames);
                assert!(outcome.goaway.is_some_and(|it| codes.contains(&it)), "{outcome:?}");
                target
                    .sidecar
                    .metrics_when(|it| it.replies(target.name, "bad_request") == before + 1);
                target.still_works();
                let seen = app.take();
                assert!(seen.iter().all(|it| !it.whole || it.head.contains("/good")), "{seen:?}");
            });
        }
    });
}

/// Frames, each with the errors its connection may end with.
fn invalid(get: &[u8]) -> Vec<(&'static str, Vec<u8>, &'static [u32])> {
    let ok = END_STREAM | END_HEADERS;
    let begin = |stream| headers(stream, END_HEADERS, get);
    vec![
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), &[PROTOCOL]),
        ("HEADERS on stream 0", headers(0, ok, get), &[PROTOCOL]),
        ("HEADERS on an even stream", headers(2, ok, get), &[PROTOCOL]),
        ("DATA on an idle stream", frame(DATA, 0, 1, b"x"), &[PROTOCOL]),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), &[PROTOCOL]),
        ("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), &[PROTOCOL]),
        ("a frame over the limit", frame(DATA, 0, 1, &[0; 16_385]), &[FRAME_SIZE, PROTOCOL]),
        ("SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5]), &[FRAME_SIZE, PROTOCOL]),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), &[PROTOCOL]),
        (
            "an acknowledgement with settings",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            &[FRAME_SIZE, PROTOCOL],
        ),
        (
            "an initial window over the limit",
            frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
            &[FLOW_CONTROL, PROTOCOL],
        ),
        ("a frame size under the limit", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), &[PROTOCOL]),
        ("PING of seven bytes", frame(PING, 0, 0, &[0; 7]), &[FRAME_SIZE, PROTOCOL]),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), &[PROTOCOL]),
        ("WINDOW_UPDATE by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), &[PROTOCOL]),
        (
            "a window over the limit",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            &[FLOW_CONTROL, PROTOCOL],
        ),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, get), &[PROTOCOL]),
        (
            "PING amid a header block",
            [headers(1, 0, get), frame(PING, 0, 0, &[0; 8])].concat(),
            &[PROTOCOL],
        ),
        (
            "PUSH_PROMISE from a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            &[PROTOCOL],
        ),
        (
            "HPACK index beyond the table",
            headers(1, ok, &[0xff, 0xff, 0x03]),
            &[COMPRESSION, PROTOCOL],
        ),
        (
            "HPACK string that never ends",
            headers(1, ok, &[0, 0x7f, 0xff, 0xff, 0xff, 0x0f]),
            &[COMPRESSION, PROTOCOL],
        ),
        ("streams in the wrong order", [begin(3), begin(1)].concat(), &[PROTOCOL, CLOSED]),
        ("padding longer than the frame", frame(DATA, 8, 1, &[9, 0]), &[PROTOCOL]),
        ("PRIORITY of four bytes", frame(PRIORITY, 0, 0, &[0; 4]), &[PROTOCOL, FRAME_SIZE]),
    ]
}

fn malformed_requests() {
    let rows: [(&str, &[(&str, &str)]); 22] = [
        ("no method", &[(":method", "")]),
        ("no path", &[(":path", "")]),
        ("no scheme", &[(":scheme", "")]),
        ("no authority", &[(":authority", "")]),
        ("a method with a space", &[(":method", "GET /x")]),
        ("a path with a line end", &[(":path", "/a HTTP/1.1\r\nx: y\r\n\r\nGET /b")]),
        ("a path with a space", &[(":path", "/a b")]),
        ("a path that is no path", &[(":path", "a")]),
        ("an authority with a line end", &[(":authority", "a\r\nx: y")]),
        ("an authority with a user", &[(":authority", "user@10.77.0.12:8080")]),
        ("an authority with a space", &[(":authority", "a b")]),
        ("a value with a line end", &[("x", "a\r\nb: c")]),
        ("a value with a line feed", &[("x", "a\nb: c")]),
        ("a value with NUL", &[("x", "a\0b")]),
        ("a name with a line end", &[("x\r\ny", "a")]),
        ("a name with a colon", &[("x: y\r\n", "a")]),
        ("a name in capitals", &[("X", "a")]),
        ("a name that is empty", &[("", "a")]),
        ("a pseudo field that is unknown", &[(":x", "a")]),
        ("a pseudo field after others", &[("x", "a"), (":protocol", "b")]),
        ("Connection", &[("connection", "close")]),
        ("a length of a body that is not there", &[("content-length", "5")]),
    ];
    each_target(|target, app| {
        for (name, changed) in rows {
            each(name, || {
                let block = request(&target.authority, changed);
                let outcome = target.request(&headers(1, END_STREAM | END_HEADERS, &block));
                let seen = app.take();
                assert_eq!(seen, [], "{outcome:?}");
                let refused = outcome.goaway.is_some_and(|it| it != 0)
                    || outcome.resets.iter().any(|it| *it != 0)
                    || 0 < outcome.headers;
                assert!(refused, "{outcome:?}");
                target.still_works();
                app.take();
            });
        }
    });
}

fn floods() {
    each_target(|target, app| {
        let get = request(&target.authority, &[]);
        let big = field("x-big", &"b".repeat(4000));
        // Indexed once, then named by one byte as often as there is room.
        let mut bomb = [&get[..], &[0x40], &big[1..]].concat();
        bomb.extend([0x80 | 0x3e; 12_000]);
        let reset = |stream| {
            [headers(stream, END_HEADERS, &get), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
                .concat()
        };
        let pieces = frame(CONTINUATION, 0, 1, &field("x", &"y".repeat(16_000)));
        let rows: [(&str, Vec<u8>, bool); 7] = [
            ("rapid reset", (0..5000).flat_map(|it| reset(2 * it + 1)).collect(), true),
            ("CONTINUATION", [headers(1, 0, &get), pieces.repeat(500)].concat(), true),
            (
                "empty CONTINUATION",
                [headers(1, 0, &get), frame(CONTINUATION, 0, 1, &[]).repeat(50_000)].concat(),
                true,
            ),
            ("a bomb of HPACK", headers(1, END_STREAM | END_HEADERS, &bomb), false),
            ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(20_000), false),
            ("PING", frame(PING, 0, 0, &[7; 8]).repeat(20_000), false),
            (
                "empty DATA",
                [headers(1, END_HEADERS, &get), frame(DATA, 0, 1, &[]).repeat(50_000)].concat(),
                false,
            ),
        ];
        for (name, frames, ends) in rows {
            each(name, || {
                let before = target.sidecar.resident();
                let outcome = target.frames(&frames);
                let codes = [Some(CALM), Some(PROTOCOL), Some(COMPRESSION)];
                assert!(!ends || codes.contains(&outcome.goaway), "{outcome:?}");
                let grown = target.sidecar.resident().saturating_sub(before);
                assert!(grown < 32 << 20, "it took {} KiB", grown >> 10);
                target.still_works();
                let seen = app.take();
                let big = seen.iter().any(|it| it.head.contains("x-big"));
                assert!(!big, "a bomb went off at the application");
            });
        }
    });
}

fn garbage() {
    /// Numbers that look like chance and are the same each time.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(&mut next).take(length).collect()
    }
    let pair = Pair::new(Mode::Explicit);
    let _app = pair.server.recorder(pair.app_port(), |_| OK);
    for target in targets(&pair) {
        let admin = SocketAddr::new(target.to.ip(), ADMIN);
        for to in [target.to, admin] {
            for seed in 1..=20_u64 {
                each(&format!("noise {seed} to {to}"), || {
                    let noise = noise(seed, usize::try_from(seed * seed * 40).unwrap());
                    target.bytes(to, noise.clone());
                    for begin in
                        [&b"\x16\x03\x01"[..], b"\x16\x03\x01\x02\x00\x01", PREFACE, b"GET / "]
                    {
                        target.bytes(to, [begin, &noise].concat());
                    }
                });
            }
        }
        target.still_works();
    }
}
