//! gRPC: a service of all four kinds of calls, and its client.
//!
//! Written by hand, for code generation would need a compiler of protocol buffers.

use std::{convert::Infallible, net::SocketAddr};

use http::{Request as HttpRequest, Response as HttpResponse, uri::PathAndQuery};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tonic::{
    Request, Response, Status, Streaming,
    client::Grpc as Caller,
    codegen::tokio_stream,
    server::Grpc as Server,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    host::{Host, Service},
    tcp::connect,
};

/// The one message, of requests and answers.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ping {
    /// Comes back; `fail N` in a unary call or as the first of a stream makes it fail
    /// with status N.
    #[prost(string, tag = "1")]
    pub(crate) text: String,
    /// How many messages the answer of `ServerStream` has.
    #[prost(uint32, tag = "2")]
    pub(crate) count: u32,
}

/// A message that says `text`, and asks for `count` answers.
pub(crate) fn ping(text: &str, count: u32) -> Ping {
    Ping { text: text.to_owned(), count }
}

type Codec = ProstCodec<Ping, Ping>;

impl Host {
    /// Starts the service `remora.test.Echo`.
    pub(crate) fn grpc_app(&self, port: u16) -> Service {
        self.tcp_server(port, |stream| async move {
            let server = auto::Builder::new(TokioExecutor::new()).http2_only();
            let connection = server.serve_connection(TokioIo::new(stream), service_fn(answer));
            // A client that goes away is its own affair.
            let _ended = connection.await.is_ok();
        })
    }
}

async fn answer(
    request: HttpRequest<Incoming>,
) -> Result<HttpResponse<tonic::body::Body>, Infallible> {
    let mut server = Server::new(Codec::default());
    Ok(match request.uri().path() {
        "/remora.test.Echo/Unary" => server.unary(tower::service_fn(unary), request).await,
        "/remora.test.Echo/ServerStream" => {
            server.server_streaming(tower::service_fn(server_stream), request).await
        }
        "/remora.test.Echo/ClientStream" => {
            server.client_streaming(tower::service_fn(client_stream), request).await
        }
        "/remora.test.Echo/Bidi" => server.streaming(tower::service_fn(bidi), request).await,
        path => Status::unimplemented(format!("no method `{path}`")).into_http(),
    })
}

async fn unary(request: Request<Ping>) -> Result<Response<Ping>, Status> {
    let message = request.into_inner();
    fail_if_asked(&message)?;
    Ok(Response::new(message))
}

async fn server_stream(
    request: Request<Ping>,
) -> Result<Response<impl tokio_stream::Stream<Item = Result<Ping, Status>>>, Status> {
    let message = request.into_inner();
    fail_if_asked(&message)?;
    let answers = (0..message.count).map(move |count| Ok(ping(&message.text, count)));
    Ok(Response::new(tokio_stream::iter(answers)))
}

async fn client_stream(request: Request<Streaming<Ping>>) -> Result<Response<Ping>, Status> {
    let (mut messages, mut all) = (request.into_inner(), Ping::default());
    while let Some(it) = messages.message().await? {
        fail_if_asked(&it)?;
        all.text.push_str(&it.text);
        all.count += 1;
    }
    Ok(Response::new(all))
}

async fn bidi(request: Request<Streaming<Ping>>) -> Result<Response<Streaming<Ping>>, Status> {
    Ok(Response::new(request.into_inner()))
}

fn fail_if_asked(message: &Ping) -> Result<(), Status> {
    match message.text.strip_prefix("fail ").and_then(|it| it.parse().ok()) {
        Some(code) => Err(Status::new(tonic::Code::from_i32(code), "as asked for")),
        None => Ok(()),
    }
}

/// A client of the service, over one connection.
#[derive(Debug)]
pub(crate) struct Client {
    caller: Caller<Channel>,
}

impl Client {
    /// Connects to `to`, for the service called `authority`.
    pub(crate) async fn connect(
        to: SocketAddr,
        authority: &str,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
        let connector =
            tower::service_fn(move |_| async move { connect(to).await.map(TokioIo::new) });
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok(Self { caller: Caller::new(channel) })
    }

    /// One message for one.
    pub(crate) async fn unary(&mut self, request: Request<Ping>) -> Result<Response<Ping>, Status> {
        self.ready().await?;
        self.caller.unary(request, path("Unary"), Codec::default()).await
    }

    /// Many for one.
    pub(crate) async fn server_stream(&mut self, message: Ping) -> Result<Vec<Ping>, Status> {
        self.ready().await?;
        let request = Request::new(message);
        let path = path("ServerStream");
        all(self.caller.server_streaming(request, path, Codec::default()).await?).await
    }

    /// One for many.
    pub(crate) async fn client_stream(&mut self, messages: Vec<Ping>) -> Result<Ping, Status> {
        self.ready().await?;
        let request = Request::new(tokio_stream::iter(messages));
        let path = path("ClientStream");
        let answer = self.caller.client_streaming(request, path, Codec::default()).await?;
        Ok(answer.into_inner())
    }

    /// Many for many.
    pub(crate) async fn bidi(&mut self, messages: Vec<Ping>) -> Result<Vec<Ping>, Status> {
        self.ready().await?;
        let request = Request::new(tokio_stream::iter(messages));
        all(self.caller.streaming(request, path("Bidi"), Codec::default()).await?).await
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.caller.ready().await.map_err(|it| Status::unavailable(it.to_string()))
    }
}

async fn all(answer: Response<Streaming<Ping>>) -> Result<Vec<Ping>, Status> {
    let (mut stream, mut messages) = (answer.into_inner(), Vec::new());
    while let Some(it) = stream.message().await? {
        messages.push(it);
    }
    Ok(messages)
}

fn path(method: &str) -> PathAndQuery {
    format!("/remora.test.Echo/{method}").parse().expect("a path")
}
