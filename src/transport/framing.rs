//! Framing guard: an HTTP/1 request that two parsers could read differently is refused.
//!
//! hyper parses requests, and is lenient where the RFC lets a server be: it accepts a
//! `Content-Length` beside `Transfer-Encoding`, repeated lengths, and bare line feeds.
//! A proxy must not be: what it forwards is read again by somebody else. The guard
//! watches the bytes on their way to hyper, follows where each message ends, and spoils
//! a head that is ambiguous, so that hyper answers 400 and closes.
//!
//! Refused: `Content-Length` with `Transfer-Encoding`, more than one of either, a length
//! that is not digits, any transfer coding but `chunked`, a line feed without carriage
//! return, folded lines, white space before a colon, heads over [`HEAD_MAX`], chunk sizes
//! that are not plain hexadecimal.
//!
//! # Sources
//!
//! - RFC 9112, sections 2.2, 5.1, 5.2, 6.1, 6.3 and 7.1.
//!   <https://www.rfc-editor.org/rfc/rfc9112>

/// The longest head, request line included.
pub const HEAD_MAX: usize = 64 * 1024;

/// The longest chunk-size line; extensions are of no use to anybody.
const CHUNK_LINE_MAX: usize = 256;

/// The longest trailer section.
const TRAILER_MAX: usize = 16 * 1024;

/// Follows the requests of one connection.
#[derive(Debug, Default)]
pub struct Guard {
    at: At,
    line: Vec<u8>,
    /// Bytes of the head or trailer section so far.
    section: usize,
    length: Option<u64>,
    chunked: bool,
}

/// Where in a message the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    RequestLine,
    Headers,
    Fixed(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    /// The connection no longer carries HTTP/1.
    Transparent,
}

/// What must not be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Index into the bytes given to [`Guard::feed`] of the first one not to deliver.
    pub at: usize,
    /// Whether it was in a head (which can be answered) or in a body (which can't).
    pub in_head: bool,
}

impl Guard {
    /// Follows `bytes`, the next ones of the connection.
    ///
    /// # Errors
    ///
    /// Where they stop being unambiguous. The guard must not be fed again after that.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.at {
                At::Transparent => return Ok(()),
                At::Fixed(left) => {
                    let taken = take(rest, left);
                    self.at = after(left, taken, At::RequestLine, At::Fixed);
                    taken
                }
                At::ChunkData(left) => {
                    let taken = take(rest, left);
                    self.at = after(left, taken, At::ChunkEnd, At::ChunkData);
                    taken
                }
                At::RequestLine | At::Headers | At::ChunkSize | At::ChunkEnd | At::Trailers => {
                    let in_head = matches!(self.at, At::RequestLine | At::Headers);
                    self.line_of(rest).map_err(|offset| Violation { at: at + offset, in_head })?
                }
            };
        }
        Ok(())
    }

    /// Whether the next byte begins a request.
    pub fn is_between(&self) -> bool {
        self.at == At::RequestLine && self.line.is_empty()
    }

    /// Stops looking: the connection has switched protocols.
    pub fn release(&mut self) {
        *self = Self { at: At::Transparent, ..Self::default() };
    }

    /// Takes one line or the part of one that is there; the offset of what is wrong if not.
    fn line_of(&mut self, rest: &[u8]) -> Result<usize, usize> {
        let end = memchr::memchr(b'\n', rest);
        let taken = end.map_or(rest.len(), |it| it + 1);
        self.section += taken;
        let limit = match self.at {
            At::ChunkSize | At::ChunkEnd => CHUNK_LINE_MAX,
            At::Trailers => TRAILER_MAX,
            At::RequestLine | At::Headers | At::Fixed(_) | At::ChunkData(_) | At::Transparent => {
                HEAD_MAX
            }
        };
        if self.section > limit {
            return Err(0);
        }
        let Some(end) = end else {
            self.line.extend_from_slice(rest);
            return Ok(taken);
        };
        let ok = if self.line.is_empty() {
            self.on_line(&rest[..end])
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&rest[..end]);
            let ok = self.on_line(&line);
            line.clear();
            self.line = line;
            ok
        };
        if ok { Ok(taken) } else { Err(end) }
    }

    /// Whether a whole line, without its line feed, may be forwarded.
    fn on_line(&mut self, line: &[u8]) -> bool {
        // RFC 9112, section 2.2: "A sender MUST NOT generate a bare CR … A recipient of
        // such a bare CR MUST consider that element to be invalid".
        let Some((b'\r', line)) = line.split_last() else { return false };
        match self.at {
            // "a server … SHOULD ignore at least one empty line (CRLF) received prior to
            // the request-line".
            At::RequestLine if line.is_empty() => true,
            At::RequestLine => {
                self.at = At::Headers;
                true
            }
            At::Headers if line.is_empty() => self.head_ends(),
            At::Headers => self.header(line),
            At::ChunkSize => self.chunk_size(line),
            At::ChunkEnd => {
                (self.at, self.section) = (At::ChunkSize, 0);
                line.is_empty()
            }
            At::Trailers if line.is_empty() => {
                (self.at, self.section) = (At::RequestLine, 0);
                true
            }
            At::Trailers => !matches!(line.first(), Some(b' ' | b'\t')),
            At::Fixed(_) | At::ChunkData(_) | At::Transparent => true,
        }
    }

    fn header(&mut self, line: &[u8]) -> bool {
        let first = line.first().copied().unwrap_or_default();
        match first | 0x20 {
            // Folding: section 5.2.
            0x20 => false,
            // A tab with that bit set.
            0x29 if first == b'\t' => false,
            b'c' => match value_of(line, b"content-length") {
                None => true,
                Some(value) => {
                    let first = self.length.is_none() && !self.chunked;
                    self.length = digits(value, 10);
                    first && self.length.is_some()
                }
            },
            b't' => match value_of(line, b"transfer-encoding") {
                None => true,
                Some(value) => {
                    let first = self.length.is_none() && !self.chunked;
                    self.chunked = value.eq_ignore_ascii_case(b"chunked");
                    first && self.chunked
                }
            },
            _ => true,
        }
    }

    fn head_ends(&mut self) -> bool {
        self.section = 0;
        self.at = match (std::mem::take(&mut self.chunked), self.length.take()) {
            (true, _) => At::ChunkSize,
            (false, None | Some(0)) => At::RequestLine,
            (false, Some(length)) => At::Fixed(length),
        };
        true
    }

    fn chunk_size(&mut self, line: &[u8]) -> bool {
        self.section = 0;
        let size = line.split(|it| *it == b';').next().unwrap_or_default();
        match digits(size, 16) {
            None => return false,
            Some(0) => self.at = At::Trailers,
            Some(size) => self.at = At::ChunkData(size),
        }
        true
    }
}

/// How much of `rest` belongs to a body that has `left` to come.
fn take(rest: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()))
}

fn after(left: u64, taken: usize, done: At, more: fn(u64) -> At) -> At {
    match left - taken as u64 {
        0 => done,
        left => more(left),
    }
}

/// The trimmed value of a header line whose name is `name`.
///
/// A name followed by white space is not the name, and hyper refuses it (section 5.1).
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// A number of at most 15 digits, and nothing else: no sign, no list, no white space.
fn digits(value: &[u8], radix: u32) -> Option<u64> {
    if value.is_empty() || value.len() > 15 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, digit| {
        Some(sum * u64::from(radix) + u64::from(char::from(*digit).to_digit(radix)?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ambiguous_framing_is_refused() {
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\tfolded\r\n\r\n",
        ] {
            let violation = Guard::default().feed(head.as_bytes()).expect_err(head);
            assert!(violation.in_head, "{head}");
        }
    }

    #[test]
    fn a_broken_chunk_is_refused() {
        for body in [
            "x\r\n",
            "-1\r\n",
            "3 \r\nabc\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n",
            "\r\n",
            "10000000000000000\r\n",
            "0x3\r\n",
        ] {
            let request = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            let violation = Guard::default().feed(request.as_bytes()).expect_err(body);
            assert!(!violation.in_head, "{body}");
        }
    }

    #[test]
    fn a_head_over_the_limit_is_refused() {
        let head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_MAX));
        assert!(Guard::default().feed(head.as_bytes()).is_err());
    }

    #[test]
    fn what_follows_a_switch_of_protocols_is_not_looked_at() {
        let mut guard = Guard::default();
        guard.feed(b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n").unwrap();
        guard.release();
        guard.feed(b"\n\n\0 anything").unwrap();
    }

    /// Requests that may follow each other on a connection.
    const FINE: [&str; 6] = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\n\r\n\nab\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhe\nlo\r\n0\r\n\r\n",
        "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: close\r\nTE: trailers\r\nContent-Length: 0\r\n\r\n",
    ];

    proptest! {
        /// Pipelined requests pass, however they are split.
        #[test]
        fn unambiguous_requests_pass(order in proptest::collection::vec(0_usize..6, 1..6), size in 1_usize..40) {
            let bytes: String = order.iter().map(|it| FINE[*it]).collect();
            let mut guard = Guard::default();
            for part in bytes.as_bytes().chunks(size) {
                prop_assert_eq!(guard.feed(part), Ok(()));
            }
            prop_assert!(guard.is_between());
        }

        /// Whether bytes are refused never depends on how they are split.
        #[test]
        fn a_split_changes_nothing(bytes in "[GP /\r\nHc:0-9a-f]{0,80}", size in 1_usize..9) {
            let bytes = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{bytes}");
            let whole = Guard::default().feed(bytes.as_bytes()).is_ok();
            let mut guard = Guard::default();
            let parts = bytes.as_bytes().chunks(size).all(|it| guard.feed(it).is_ok());
            prop_assert_eq!(whole, parts);
        }
    }
}
