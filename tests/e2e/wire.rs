//! Wire: HTTP/1 byte by byte, on either end, for what a library would tidy up.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    host::{Host, Service},
    tcp::connect,
};

/// What an application does about one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    /// What it sends once it has the head.
    pub(crate) at_head: &'static str,
    /// What it sends once it has the body; without it, the body is not read and the
    /// connection ends.
    pub(crate) at_end: Option<&'static str>,
}

/// An answer to a whole request.
pub(crate) const fn answer(bytes: &'static str) -> Script {
    Script { at_head: "", at_end: Some(bytes) }
}

/// The shortest answer there is.
pub(crate) const OK: Script = answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");

/// An application that keeps every byte it was sent.
#[derive(Debug)]
pub(crate) struct Recorder {
    requests: Arc<Mutex<Vec<Request>>>,
    _service: Service,
}

/// A request as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Up to the empty line.
    pub(crate) head: String,
    /// With its framing.
    pub(crate) body: Vec<u8>,
    /// Whether all of it came.
    pub(crate) whole: bool,
}

impl Request {
    /// The value of a header, if there is exactly one.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

impl Recorder {
    /// The requests since it was last asked.
    pub(crate) fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().expect("no server panics"))
    }
}

impl Host {
    /// Starts an application that does what `script` says about each request's head.
    pub(crate) fn recorder(
        &self,
        port: u16,
        script: impl Fn(&str) -> Script + Send + Sync + 'static,
    ) -> Recorder {
        let (requests, script) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::new(script));
        let shared = Arc::clone(&requests);
        let service = self.tcp_server(port, move |stream| {
            let (requests, script) = (Arc::clone(&shared), Arc::clone(&script));
            async move {
                // A client that goes away is its own affair.
                let _ended = record(stream, &requests, &*script).await.is_ok();
            }
        });
        Recorder { requests, _service: service }
    }
}

async fn record(
    mut stream: TcpStream,
    requests: &Mutex<Vec<Request>>,
    script: &(dyn Fn(&str) -> Script + Send + Sync),
) -> io::Result<()> {
    let mut reader = Reader::default();
    loop {
        let mut request = Request::default();
        match reader.head(&mut stream).await {
            Ok(head) => request.head = head,
            Err(_) if reader.held.is_empty() => return Ok(()),
            Err(error) => {
                request.head = String::from_utf8_lossy(&reader.held).into_owned();
                requests.lock().expect("nobody panics with it").push(request);
                return Err(error);
            }
        }
        let Script { at_head, at_end } = script(&request.head);
        stream.write_all(at_head.as_bytes()).await?;
        let at_end = at_end.unwrap_or_default();
        let read = if at_end.is_empty() {
            Ok(())
        } else {
            reader.body(&mut stream, &request.head, &mut request.body).await
        };
        request.whole = read.is_ok();
        requests.lock().expect("nobody panics with it").push(request);
        read?;
        stream.write_all(at_end.as_bytes()).await?;
        if at_end.is_empty() {
            return stream.shutdown().await;
        }
    }
}

/// Reads messages of a connection.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    held: Vec<u8>,
}

impl Reader {
    /// The next head, with its empty line.
    pub(crate) async fn head(&mut self, stream: &mut TcpStream) -> io::Result<String> {
        let bytes = self.until(stream, b"\r\n\r\n").await?;
        String::from_utf8(bytes).map_err(io::Error::other)
    }

    /// The next whole message: its head, and its body without framing. `has_body` is what
    /// the request says about it: an answer to HEAD has none.
    pub(crate) async fn message(
        &mut self,
        stream: &mut TcpStream,
        has_body: bool,
    ) -> io::Result<(String, Vec<u8>)> {
        let head = self.head(stream).await?;
        let (mut raw, mut body) = (Vec::new(), Vec::new());
        if has_body {
            self.body(stream, &head, &mut raw).await?;
            if header(&head, "transfer-encoding").is_some() {
                let mut rest = &raw[..];
                while let Some(at) = rest.windows(2).position(|it| it == b"\r\n") {
                    let size = chunk_size(&rest[..at])?;
                    if size == 0 {
                        break;
                    }
                    body.extend_from_slice(&rest[at + 2..at + 2 + size]);
                    rest = &rest[at + 2 + size + 2..];
                }
            } else {
                body = raw;
            }
        }
        Ok((head, body))
    }

    /// The body that `head` speaks of, with its framing.
    pub(crate) async fn body(
        &mut self,
        stream: &mut TcpStream,
        head: &str,
        body: &mut Vec<u8>,
    ) -> io::Result<()> {
        if header(head, "transfer-encoding").is_some() {
            loop {
                let line = self.until(stream, b"\r\n").await?;
                body.extend_from_slice(&line);
                let size = chunk_size(&line[..line.len() - 2])?;
                if size == 0 {
                    break;
                }
                self.exactly(stream, size + 2, body).await?;
            }
            loop {
                let line = self.until(stream, b"\r\n").await?;
                body.extend_from_slice(&line);
                if line == b"\r\n" {
                    return Ok(());
                }
            }
        }
        let length = header(head, "content-length").and_then(|it| it.parse().ok());
        self.exactly(stream, length.unwrap_or(0), body).await
    }

    async fn until(&mut self, stream: &mut TcpStream, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.held.windows(end.len()).position(|it| it == end) {
                return Ok(self.held.drain(..at + end.len()).collect());
            }
            self.more(stream).await?;
        }
    }

    async fn exactly(
        &mut self,
        stream: &mut TcpStream,
        mut count: usize,
        into: &mut Vec<u8>,
    ) -> io::Result<()> {
        while 0 < count {
            if self.held.is_empty() {
                self.more(stream).await?;
            }
            let taken = count.min(self.held.len());
            into.extend(self.held.drain(..taken));
            count -= taken;
        }
        Ok(())
    }

    async fn more(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        match stream.read_buf(&mut self.held).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The value of a header of `head`, if there is exactly one.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = head.lines().skip(1).filter_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    });
    values.next().filter(|_| values.next().is_none())
}

fn chunk_size(line: &[u8]) -> io::Result<usize> {
    let text = std::str::from_utf8(line).map_err(io::Error::other)?;
    let size = text.split(';').next().unwrap_or_default();
    usize::from_str_radix(size, 16).map_err(io::Error::other)
}

/// Sends `bytes` and reads until the other side ends the connection, or resets it.
pub(crate) async fn talk(to: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(to).await?;
    let (mut from, mut into) = stream.split();
    let mut answer = Vec::new();
    let sending = async {
        // The other side need not take all of what it refuses.
        let _sent = into.write_all(bytes).await.is_ok();
    };
    let reading = async {
        // Nor need it end more politely than by a reset.
        let _ended = from.read_to_end(&mut answer).await.is_ok();
    };
    tokio::join!(sending, reading);
    Ok(answer)
}
