//! Detection: which protocol a connection's first bytes begin.
//!
//! Bytes accumulate until they decide, never one read: a preface split over many
//! segments is still a preface. A client that stays silent speaks a protocol in which
//! the server begins, and nothing is guessed about it.
//!
//! # Sources
//!
//! - RFC 9113, section 3.4: the HTTP/2 connection preface.
//! - RFC 9112, section 3: an HTTP/1 request line is a method token, a target and a version;
//!   section 2.2: empty lines may come before it.
//! - RFC 8446, section 5.1: a TLS record of type handshake begins `16 03`.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How long a client may be silent before the server is taken to speak first.
pub const SILENCE: Duration = Duration::from_millis(50);

/// The same where the client may be a mesh peer. It always speaks first, perhaps late on a
/// busy machine; if an application that greets were asked meanwhile, the peer would take its
/// greeting for a refusal of mesh TLS, and go on in plaintext.
pub const SILENCE_INBOUND: Duration = Duration::from_millis(250);

/// How long a client that began may take to say enough.
pub const UNDECIDED: Duration = Duration::from_secs(10);

/// Methods that decide at once, right or wrong as the rest may be; any other token is one
/// only in a line that ends in a version, for many a protocol of lines has words like these.
const METHODS: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// A line whose end is not within the first bytes is too long for any other protocol.
const LINE_MAX: usize = 8 * 1024;

/// What the client sends before its first HTTP/2 frame.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection's first bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// A TLS handshake record.
    Tls,
    /// None of these, or nothing at all.
    Opaque,
}

/// The protocol that `bytes` begin, or `None` while more are needed.
pub fn protocol(bytes: &[u8]) -> Option<Protocol> {
    match bytes {
        [] | [0x16] => return None,
        [0x16, 0x03, ..] => return Some(Protocol::Tls),
        _ => (),
    }
    let known = bytes.len().min(PREFACE.len());
    if bytes[..known] == PREFACE[..known] {
        return (known == PREFACE.len()).then_some(Protocol::Http2);
    }
    let bytes = &bytes[..bytes.len().min(LINE_MAX)];
    let full = bytes.len() == LINE_MAX;
    let mut line = bytes;
    while let Some(rest) = line.strip_prefix(b"\r\n") {
        line = rest;
    }
    if matches!(line, [] | [b'\r']) {
        return full.then_some(Protocol::Opaque);
    }
    let method = line.iter().take_while(|it| is_token(**it)).count();
    match line.get(method) {
        None if !full => None,
        Some(b' ') if METHODS.contains(&&line[..method]) => Some(Protocol::Http1),
        Some(b' ') if 0 < method => by_version(line, full),
        Some(_) | None => Some(Protocol::Opaque),
    }
}

/// Whether a line with an unknown first word is a request line.
fn by_version(line: &[u8], full: bool) -> Option<Protocol> {
    let Some(end) = memchr::memchr(b'\n', line) else {
        return full.then_some(Protocol::Http1);
    };
    let has_version = memchr::memmem::find(&line[..end], b" HTTP/").is_some();
    Some(if has_version { Protocol::Http1 } else { Protocol::Opaque })
}

/// RFC 9110, section 5.6.2: `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads until the protocol is decided, keeping what was read in `seen`.
///
/// Silence for `silence` is [`Protocol::Opaque`], and so is indecision for
/// [`UNDECIDED`] and the end of the stream.
///
/// # Errors
///
/// That of the first read that fails.
///
/// # Cancel safety
///
/// Safe: what was read is in `seen`.
pub async fn sniff<R>(
    stream: &mut R,
    seen: &mut BytesMut,
    silence: Duration,
) -> std::io::Result<Protocol>
where
    R: AsyncRead + Unpin,
{
    if seen.is_empty() {
        match tokio::time::timeout(silence, stream.read_buf(seen)).await {
            Err(_) | Ok(Ok(0)) => return Ok(Protocol::Opaque),
            Ok(read) => read?,
        };
    }
    let deciding = async {
        loop {
            if let Some(protocol) = protocol(seen) {
                return Ok(protocol);
            }
            if stream.read_buf(seen).await? == 0 {
                return Ok(Protocol::Opaque);
            }
        }
    };
    tokio::time::timeout(UNDECIDED, deciding).await.unwrap_or(Ok(Protocol::Opaque))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_protocol_is_known_by_its_first_bytes() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Protocol::Http1)),
            (b"GET nonsense", Some(Protocol::Http1)),
            (b"PROPFIND /x", None),
            (b"PROPFIND /x HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"a!#$%&'*+-.^_`|~9 / HTTP/1.1\r\n", Some(Protocol::Http1)),
            (b"\r\n\r\nGET /", Some(Protocol::Http1)),
            (b"\r\n", None),
            (b"get key\r\n", Some(Protocol::Opaque)),
            (b"EHLO client.example\r\n", Some(Protocol::Opaque)),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Some(Protocol::Opaque)),
            (b"NICK remora", None),
            (&[b'\r', b'\n'].repeat(LINE_MAX), Some(Protocol::Opaque)),
            (&[b'x'].repeat(LINE_MAX), Some(Protocol::Opaque)),
            (&[&b"BREW /"[..], &[b'x'].repeat(LINE_MAX)].concat(), Some(Protocol::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PRI * HTTP/2.0\r\n", None),
            (b"PRI", None),
            (b"PRIX ", None),
            (b"\x16\x03\x01", Some(Protocol::Tls)),
            (b"\x16", None),
            (b"\x16\x04", Some(Protocol::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Opaque)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Protocol::Opaque)),
            (b" GET /", Some(Protocol::Opaque)),
            (b"", None),
        ] {
            assert_eq!(protocol(bytes), expected, "{bytes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_opaque_after_a_moment() {
        let (_client, mut server) = tokio::io::duplex(64);
        let mut seen = BytesMut::new();
        assert_eq!(sniff(&mut server, &mut seen, SILENCE).await.unwrap(), Protocol::Opaque);
    }

    proptest! {
        /// However the bytes arrive, the answer is that for all of them at once.
        #[test]
        fn a_decision_never_depends_on_how_bytes_are_split(
            bytes in "(\r\n)?[A-Z \r\n/]{0,30}( HTTP/1.1)?\r?\n?.{0,9}",
            cut in 0_usize..64,
        ) {
            let bytes = bytes.into_bytes();
            let early = protocol(&bytes[..cut.min(bytes.len())]);
            if early.is_some() {
                prop_assert_eq!(early, protocol(&bytes));
            }
        }
    }
}
