//! HTTP/2 with prior knowledge, and gRPC on it, through two sidecars.

use std::{
    io,
    pin::Pin,
    sync::mpsc as sync,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use remora::drain;
use tokio::sync::mpsc;
use tonic::{Code, Request as Call};

use crate::{
    grpc::{self, ping},
    host::{Host, PATIENCE, Service},
    http::{AnyBody, Client, get, post},
    mesh::{Mode, Route, both_modes, each},
    runner::Case,
};

pub(crate) const CASES: &[Case] = &[
    ("http2_with_prior_knowledge_passes_end_to_end", prior_knowledge),
    ("http2_streams_of_one_connection_do_not_wait_for_each_other", streams),
    ("http2_bodies_stream_both_ways_frame_by_frame", both_ways),
    ("grpc_calls_of_all_kinds_pass", calls),
    ("grpc_statuses_pass_unchanged", statuses),
    ("grpc_messages_of_megabytes_pass", large),
    ("a_cancelled_call_is_cancelled_at_the_application", cancelled),
];

fn prior_knowledge() {
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let version = Version::HTTP_2;
                let mut client = Client::connect(version, to).await.unwrap();
                let who = client.send(get(version, &authority, "/who?a=b")).await.unwrap().json();
                assert_eq!(who["version"], "HTTP/2.0");
                assert_eq!(who["target"], format!("http://{authority}/who?a=b"));
                let echo = client.send(post(version, &authority, "/echo", "hello")).await.unwrap();
                assert_eq!((echo.text(), echo.header("x-app")), ("hello", "echo"));
                let trailers = client.send(get(version, &authority, "/trailers")).await.unwrap();
                assert_eq!(trailers.trailers["x-checksum"], "nine zeros");
                let not = client.send(get(version, &authority, "/status/404")).await.unwrap();
                assert_eq!((not.status, not.header("x-remora-reason")), (404, ""));
            });
        });
    });
}

fn streams() {
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let version = Version::HTTP_2;
                let mut client = Client::connect(version, to).await.unwrap();
                let Client::Two(handle) = &client else { panic!("not HTTP/2") };
                let mut waits = handle.clone();
                // Never answered, and so in the way of all that would wait for it.
                let never = waits.send_request(get(version, &authority, "/never"));
                let never = drain::spawn("never", never);
                for _ in 0..20 {
                    let answer = client.send(get(version, &authority, "/bytes/1000")).await;
                    assert_eq!(answer.unwrap().body.len(), 1000);
                }
                assert!(!never.is_finished());
                never.abort();
            });
        });
    });
}

fn both_ways() {
    both_modes(|pair| {
        let _app = pair.server.http_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let authority = authority.clone();
                pair.client.run(move || async move {
                    let mut client = Client::connect(version, to).await.unwrap();
                    let (frames, body) = Channel::open();
                    let mut request = post(version, &authority, "/echo", "");
                    *request.body_mut() = body;
                    // HTTP/1.1 answers before the request has ended, too.
                    frames.send(Frame::data(Bytes::from_static(b"0"))).await.unwrap();
                    let mut answer = client.begin(request).await.unwrap().into_body();
                    for number in 0..5_u8 {
                        // Each is back before the next is sent: nothing waits for more.
                        let echoed = answer.frame().await.unwrap().unwrap();
                        let expected = number.to_string().into_bytes();
                        assert_eq!(echoed.into_data().unwrap(), expected, "{version:?}");
                        let next = Bytes::from((number + 1).to_string());
                        frames.send(Frame::data(next)).await.unwrap();
                    }
                    answer.frame().await.unwrap().unwrap();
                    if version == Version::HTTP_2 {
                        let mut trailers = HeaderMap::new();
                        trailers.insert("x-sum", HeaderValue::from_static("15"));
                        frames.send(Frame::trailers(trailers)).await.unwrap();
                        let echoed = answer.frame().await.unwrap().unwrap();
                        assert_eq!(echoed.into_trailers().unwrap()["x-sum"], "15");
                    }
                    drop(frames);
                    assert!(answer.frame().await.is_none(), "{version:?}");
                });
            }
        });
    });
}

fn calls() {
    both_modes(|pair| {
        let _app = pair.server.grpc_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let mut it = grpc::Client::connect(to, &authority).await.unwrap();
                let answer = it.unary(Call::new(ping("a", 7))).await.unwrap();
                assert_eq!(answer.into_inner(), ping("a", 7));
                let many = it.server_stream(ping("a", 100)).await.unwrap();
                assert_eq!((many.len(), many[99].clone()), (100, ping("a", 99)));
                let messages: Vec<_> = (0..100).map(|it| ping("x", it)).collect();
                let one = it.client_stream(messages.clone()).await.unwrap();
                assert_eq!(one, ping(&"x".repeat(100), 100));
                assert_eq!(it.bidi(messages.clone()).await.unwrap(), messages);
                assert_eq!(it.server_stream(ping("a", 0)).await.unwrap(), []);
            });
        });
    });
}

fn statuses() {
    both_modes(|pair| {
        let _app = pair.server.grpc_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let mut it = grpc::Client::connect(to, &authority).await.unwrap();
                for code in (1..=16).map(Code::from_i32) {
                    let message = ping(&format!("fail {}", code as i32), 0);
                    let unary = it.unary(Call::new(message.clone())).await.unwrap_err();
                    let stream = it.server_stream(message.clone()).await.unwrap_err();
                    let up = it.client_stream(vec![ping("a", 0), message]).await.unwrap_err();
                    for status in [unary, stream, up] {
                        assert_eq!((status.code(), status.message()), (code, "as asked for"));
                    }
                }
            });
        });
    });
}

fn large() {
    both_modes(|pair| {
        let _app = pair.server.grpc_app(pair.app_port());
        pair.each_route(|Route { to, authority, .. }| {
            pair.client.run(move || async move {
                let mut it = grpc::Client::connect(to, &authority).await.unwrap();
                let text = "0123456789abcde\n".repeat(200_000);
                let answer = it.unary(Call::new(ping(&text, 1))).await.unwrap();
                assert!(answer.into_inner().text == text, "the message changed on its way");
                let both = it.bidi(vec![ping(&text, 1), ping(&text, 2)]).await.unwrap();
                assert!(both == [ping(&text, 1), ping(&text, 2)]);
            });
        });
    });
}

fn cancelled() {
    both_modes(|pair| {
        let (_app, events) = watched_app(&pair.server, pair.app_port());
        let seen = || {
            let mut seen: Vec<_> =
                (0..4).map(|_| events.recv_timeout(PATIENCE).expect("it is told")).collect();
            seen.sort();
            seen
        };
        // One family for each mode, and all calls at once: a client of HTTP/1 is given time.
        let [v4, v6] = pair.routes();
        let route = if pair.mode == Mode::Capture { v4 } else { v6 };
        each(&route.name, || {
            let Route { to, authority, .. } = route.clone();
            let calls = [Version::HTTP_2, Version::HTTP_11]
                .into_iter()
                .flat_map(|version| ["/before", "/during"].map(|path| (version, path)));
            let calls = calls.map(|(version, path)| {
                let (leave, may_leave) = tokio::sync::oneshot::channel::<()>();
                let authority = authority.clone();
                let client = pair.client.start(move || async move {
                    let mut client = Client::connect(version, to).await.unwrap();
                    let call = client.begin(get(version, &authority, path));
                    if path == "/before" {
                        tokio::select! {
                            _ = call => panic!("there is no answer"),
                            told = may_leave => told.unwrap(),
                        }
                    } else {
                        let mut body = call.await.unwrap().into_body();
                        body.frame().await.unwrap().unwrap();
                        may_leave.await.unwrap();
                    }
                });
                (client, leave)
            });
            let calls: Vec<_> = calls.collect();
            let all = |what: &str| {
                ["/before", "/before", "/during", "/during"].map(|it| format!("{it} {what}"))
            };
            assert_eq!(seen(), all("begins"));
            for (client, leave) in calls {
                leave.send(()).unwrap();
                client.join();
            }
            assert_eq!(seen(), all("is cancelled"));
        });
        for sidecar in [&pair.near, &pair.far] {
            sidecar
                .metrics_when(|it| it.sum("remora_requests_total", &[("code", "cancelled")]) == 4);
        }
    });
}

/// An application that never comes to an end, and tells when its client has.
fn watched_app(host: &Host, port: u16) -> (Service, sync::Receiver<String>) {
    let (tell, events) = sync::sync_channel(64);
    let service = host.tcp_server(port, move |stream| {
        let tell = tell.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let (path, tell) = (request.uri().path().to_owned(), tell.clone());
            tell.send(format!("{path} begins")).expect("somebody listens");
            let endless = Endless { path, tell, begun: false };
            async move {
                if endless.path == "/before" {
                    std::future::pending::<()>().await;
                }
                Ok::<_, io::Error>(Response::new(endless))
            }
        });
        async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A client that goes away is what this is about.
            let _ended = server.serve_connection(TokioIo::new(stream), answer).await.is_ok();
        }
    });
    (service, events)
}

/// A body of one frame, and no end.
struct Endless {
    path: String,
    tell: sync::SyncSender<String>,
    begun: bool,
}

impl Body for Endless {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if std::mem::replace(&mut self.begun, true) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"first")))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        // At the end of the case nobody listens any more.
        let _told = self.tell.send(format!("{} is cancelled", self.path)).is_ok();
    }
}

/// A body whose frames come from elsewhere.
pub(crate) struct Channel(mpsc::Receiver<Frame<Bytes>>);

impl Channel {
    /// The body, and what sends it.
    pub(crate) fn open() -> (mpsc::Sender<Frame<Bytes>>, AnyBody) {
        let (send, receive) = mpsc::channel(4);
        (send, Self(receive).boxed_unsync())
    }
}

impl Body for Channel {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(cx).map(|it| it.map(Ok))
    }
}

/// A request with this body.
pub(crate) fn upload(version: Version, authority: &str, body: AnyBody) -> Request<AnyBody> {
    let mut request = post(version, authority, "/echo", "");
    *request.method_mut() = Method::POST;
    *request.body_mut() = body;
    request
}
