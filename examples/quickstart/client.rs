//! Client: one HTTP/1.1 connection that is kept for the next request.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use remora::drain;
use tokio::{net::TcpStream, time::timeout};

use crate::Result;

/// Longer than anything here may take: a request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to `address`, made when it is needed.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    connection: Option<SendRequest<Empty<Bytes>>>,
}

impl Client {
    /// Connects to nobody yet.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Sends `GET path` for `host`, once, and waits for the whole answer.
    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Result<Response<Bytes>> {
        let asking = timeout(PATIENCE, self.ask(host, path)).await;
        let answer =
            asking.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn ask(&mut self, host: &str, path: &str) -> Result<Response<Bytes>> {
        let request = Request::get(path).header(HOST, host).body(Empty::new())?;
        let connection = self.connected().await?;
        let (head, body) = connection.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }

    async fn connected(&mut self) -> Result<&mut SendRequest<Empty<Bytes>>> {
        let mut kept = self.connection.take();
        if let Some(it) = &mut kept
            && it.ready().await.is_err()
        {
            kept = None;
        }
        let connection = if let Some(it) = kept {
            it
        } else {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
            drop(drain::spawn("connection", driver));
            connection
        };
        Ok(self.connection.insert(connection))
    }
}
