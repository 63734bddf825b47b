use std::{
    future::{pending, poll_fn},
    time::Duration,
};

use bytes::BytesMut;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;
use crate::{
    clock, drain,
    transport::{
        h1::{H1, Home},
        h2::H2,
        stream::{Stream, Wire},
    },
};

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
const END: &str = "0\r\nt: x\r\n\r\n";

#[tokio::test]
async fn a_body_is_sent_again_to_the_byte_whatever_the_first_try_took_of_it() {
    // Three chunks, trailers, and the end.
    for taken in 0..=5 {
        let (mut client, mut body) = upload(CHUNKED).await;
        let replay = Replay::keep(&mut body).unwrap();
        for (at, chunk) in ["one", "two", "three"].iter().enumerate() {
            send(&mut client, &chunked(chunk)).await;
            if at < taken {
                assert_eq!(data(&mut body).await, *chunk);
            }
        }
        send(&mut client, END).await;
        for _ in 3..taken {
            next(&mut body).await;
        }
        for _ in 0..2 {
            assert!(replay.is_at_hand());
            let again = replay.body().unwrap().collect().await.unwrap();
            assert_eq!(again.trailers().unwrap()["t"], "x", "after {taken} frames");
            assert_eq!(again.to_bytes(), "onetwothree", "after {taken} frames");
        }
    }
}

#[tokio::test]
async fn a_body_over_the_limit_goes_on_and_is_not_at_hand() {
    for (size, at_hand) in [(KEPT_MAX, true), (KEPT_MAX + 1, false)] {
        let (mut client, mut body) = upload(CHUNKED).await;
        let replay = Replay::keep(&mut body).unwrap();
        let text = "x".repeat(size);
        let sent = chunked(&text) + END;
        let _sending = drain::spawn("client", async move {
            send(&mut client, &sent).await;
            pending::<()>().await;
        });
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["t"], "x");
        assert_eq!(collected.to_bytes(), text);
        assert_eq!(replay.is_at_hand(), at_hand, "{size}");
        assert_eq!(replay.body().is_some(), at_hand, "{size}");
    }
}

#[tokio::test]
async fn a_body_in_many_small_frames_goes_on_and_is_not_at_hand() {
    let (mut client, mut body) = upload(CHUNKED).await;
    let replay = Replay::keep(&mut body).unwrap();
    for frame in 0..=FRAMES_MAX {
        assert!(replay.is_at_hand(), "{frame}");
        send(&mut client, &chunked("x")).await;
        assert_eq!(data(&mut body).await, "x");
    }
    assert!(!replay.is_at_hand());
    send(&mut client, &chunked("y")).await;
    assert_eq!(data(&mut body).await, "y");
}

#[tokio::test]
async fn a_body_that_needs_none_of_this_stays_as_it_was() {
    let mut body = Body::Empty;
    assert!(Replay::keep(&mut body).is_none() && matches!(body, Body::Empty));
    let (_client, mut body) = upload(&fixed(KEPT_MAX + 1)).await;
    assert!(Replay::keep(&mut body).is_none() && matches!(body, Body::Client(_)));
}

#[tokio::test]
async fn each_try_knows_the_length_that_the_client_gave() {
    let (mut client, mut body) = upload(&fixed(5)).await;
    let replay = Replay::keep(&mut body).unwrap();
    assert_eq!(body.size_hint().exact(), Some(5));
    send(&mut client, "ab").await;
    assert_eq!(data(&mut body).await, "ab");
    assert_eq!(body.size_hint().exact(), Some(3));
    let mut again = replay.body().unwrap();
    assert_eq!(again.size_hint().exact(), Some(5));
    send(&mut client, "cde").await;
    for (frame, left) in [("ab", 3), ("cde", 0)] {
        assert!(!again.is_end_stream());
        assert_eq!(data(&mut again).await, frame);
        assert_eq!(again.size_hint().exact(), Some(left));
    }
    assert!(again.is_end_stream());
    // The first try sent less, and must not take that for all.
    assert!(!body.is_end_stream());
    let third = replay.body().unwrap();
    assert!(!third.is_end_stream());
    assert_eq!(third.size_hint().exact(), Some(5));
}

#[tokio::test]
async fn a_body_without_a_length_never_gets_one() {
    let (mut client, mut body) = upload(CHUNKED).await;
    let replay = Replay::keep(&mut body).unwrap();
    send(&mut client, &(chunked("one") + END)).await;
    assert_eq!(body.size_hint().exact(), None);
    body.collect().await.unwrap();
    // All of it is here; with a length its trailers would have no place.
    let again = replay.body().unwrap();
    assert_eq!((again.size_hint().lower(), again.size_hint().exact()), (3, None));
}

#[tokio::test]
async fn a_view_breaks_off_when_another_takes_over() {
    let (mut client, mut body) = upload(CHUNKED).await;
    let replay = Replay::keep(&mut body).unwrap();
    send(&mut client, &chunked("one")).await;
    assert_eq!(data(&mut body).await, "one");
    // It waits for more, and is told.
    let old = drain::spawn("old try", async move {
        let told = matches!(next(&mut body).await, Some(Err(Error::Replaced)));
        told && !body.is_end_stream()
    });
    settled().await;
    let mut again = replay.body().unwrap();
    let told = tokio::time::timeout(Duration::from_secs(10), old).await;
    assert!(told.expect("it still waits").unwrap());
    send(&mut client, &(chunked("two") + END)).await;
    assert_eq!(data(&mut again).await, "one");
    assert_eq!(data(&mut again).await, "two");
}

#[tokio::test]
async fn a_client_that_leaves_breaks_the_body_off_for_good() {
    let (mut client, mut body) = upload(CHUNKED).await;
    let replay = Replay::keep(&mut body).unwrap();
    send(&mut client, &chunked("one")).await;
    assert_eq!(data(&mut body).await, "one");
    drop(client);
    assert!(matches!(next(&mut body).await, Some(Err(Error::Client(_)))));
    assert!(!replay.is_at_hand() && !replay.is_untouched());
    assert!(replay.body().is_none());
}

#[tokio::test]
async fn nothing_is_read_that_no_try_asks_for() {
    let (mut client, mut body) = upload(CHUNKED).await;
    let replay = Replay::keep(&mut body).unwrap();
    let writing = drain::spawn("client", async move {
        // More than the connection and hyper hold between them.
        for _ in 0..64 {
            send(&mut client, &chunked(&"x".repeat(64 * 1024))).await;
        }
    });
    settled().await;
    assert!(replay.is_untouched());
    let mut read = 0;
    for _ in 0..3 {
        read += data(&mut body).await.len();
        settled().await;
        assert_eq!(replay.0.lock().kept.as_ref().map_or(read, |it| it.bytes), read);
    }
    assert!(!writing.is_finished() && !replay.is_untouched());
}

#[tokio::test]
async fn a_try_that_is_cancelled_takes_no_frame_with_it() {
    let (mut client, mut body) = upload(CHUNKED).await;
    let replay = Replay::keep(&mut body).unwrap();
    assert!(polled(&mut body).await.is_pending());
    drop(body);
    send(&mut client, &(chunked("one") + END)).await;
    assert_eq!(replay.body().unwrap().collect().await.unwrap().to_bytes(), "one");
}

#[tokio::test]
async fn nothing_is_kept_that_nobody_will_ask_for() {
    let (mut client, mut body) = upload(CHUNKED).await;
    let replay = Replay::keep(&mut body).unwrap();
    let state = Arc::clone(&replay.0);
    let kept = || state.lock().kept.as_ref().map(|it| it.data.len());
    send(&mut client, &chunked("one")).await;
    assert_eq!(data(&mut body).await, "one");
    let mut again = replay.body().unwrap();
    drop(replay);
    assert_eq!(kept(), Some(1), "the second try has yet to send it");
    assert_eq!(data(&mut again).await, "one");
    assert_eq!(kept(), None);
    send(&mut client, &chunked("two")).await;
    assert_eq!(data(&mut again).await, "two");
    assert_eq!(kept(), None);
}

#[tokio::test]
async fn a_try_over_http_1_that_failed_or_is_given_up_lets_go_of_the_body() {
    for cancelled in [false, true] {
        let (mut client, mut body) = upload(&fixed(6)).await;
        let replay = Replay::keep(&mut body).unwrap();
        send(&mut client, "one").await;
        let (stream, mut far) = connection().await;
        let connection = h1(stream).await;
        let sending = drain::spawn("try", connection.send(post(body), clock::now()));
        let head = "POST / HTTP/1.1\r\ncontent-length: 6\r\n\r\none";
        assert_eq!(read(&mut far, head.len()).await, head);
        if cancelled {
            sending.abort();
        } else {
            drop(far);
        }
        assert!(sending.await.is_ok_and(|it| it.is_err()) != cancelled);
        assert_eq!(Arc::strong_count(&replay.0), 1, "cancelled: {cancelled}");

        // The next one has it all, and the client never knew.
        let (stream, mut far) = self::connection().await;
        let connection = h1(stream).await;
        let body = replay.body().unwrap();
        let sending = drain::spawn("try", connection.send(post(body), clock::now()));
        assert_eq!(read(&mut far, head.len()).await, head);
        send(&mut client, "two").await;
        assert_eq!(read(&mut far, 3).await, "two");
        far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        assert_eq!(sending.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_try_over_http_2_that_failed_or_is_given_up_lets_go_of_the_body() {
    for cancelled in [false, true] {
        let (mut client, mut body) = upload(CHUNKED).await;
        let replay = Replay::keep(&mut body).unwrap();
        send(&mut client, &chunked("one")).await;
        let (stream, far) = connection().await;
        let (serve, mut serving) = mpsc::channel(1);
        let _serving = drain::spawn("upstream", async move {
            let mut far = ::h2::server::handshake(far).await.unwrap();
            while let Some(Ok((request, respond))) = far.accept().await {
                serve.send((request.into_body(), respond)).await.unwrap();
            }
        });
        let connection = H2::new(stream, 0).await.unwrap();
        let head = Request::post("http://a/").version(http::Version::HTTP_2).body(()).unwrap();
        let sending = drain::spawn("try", async move { connection.send(head, body).await.is_ok() });
        let (mut received, mut respond) = serving.recv().await.unwrap();
        assert_eq!(received.data().await.unwrap().unwrap(), "one");
        if cancelled {
            sending.abort();
        } else {
            respond.send_reset(::h2::Reason::REFUSED_STREAM);
        }
        assert_eq!(sending.await.ok(), (!cancelled).then_some(false));
        // The upload ends as soon as its task is run.
        settled().await;
        assert_eq!(Arc::strong_count(&replay.0), 1, "cancelled: {cancelled}");
        let mut again = replay.body().unwrap();
        assert_eq!(data(&mut again).await, "one");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Tries that take any number of frames each: the last one sends what the client did.
    #[test]
    fn any_tries_are_followed_by_the_whole(
        chunks in proptest::collection::vec("[a-z]{1,20}", 0..8),
        tries in proptest::collection::vec(0_usize..12, 0..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut body) = upload(CHUNKED).await;
            let replay = Replay::keep(&mut body).unwrap();
            let mut to_come = chunks.iter();
            for taken in tries {
                for _ in 0..taken {
                    if let Some(chunk) = to_come.next() {
                        send(&mut client, &chunked(chunk)).await;
                    }
                    settled().await;
                    let _frame_or_not = polled(&mut body).await;
                }
                body = replay.body().unwrap();
            }
            for chunk in to_come {
                send(&mut client, &chunked(chunk)).await;
            }
            send(&mut client, END).await;
            let collected = body.collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["t"], "x");
            assert_eq!(collected.to_bytes(), chunks.concat());
        });
    }
}

/// A client that has sent `head`, and the body of its request.
async fn upload(head: &str) -> (DuplexStream, Body) {
    let (mut client, server) = tokio::io::duplex(16 * 1024);
    let (give, mut given) = mpsc::channel(1);
    let service = service_fn(move |request: Request<Incoming>| {
        let give = give.clone();
        async move {
            give.send(request.into_body()).await.unwrap();
            pending::<Result<Response<Body>, std::convert::Infallible>>().await
        }
    });
    let serving = http1::Builder::new().serve_connection(TokioIo::new(server), service);
    let _running = drain::spawn("server", async move {
        let _ended = serving.await.is_ok();
    });
    send(&mut client, head).await;
    (client, Body::from_client(given.recv().await.unwrap(), None))
}

/// A connection to an upstream, and the upstream's end of it.
async fn connection() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (Stream::Plain(Wire::new(near, BytesMut::new())), far)
}

async fn h1(stream: Stream) -> Box<H1> {
    Box::new(H1::new(stream, 0, Arc::new(Nowhere), clock::now()).await.unwrap())
}

/// Where no connection is kept.
#[derive(Debug)]
struct Nowhere;

impl Home for Nowhere {
    fn put(&self, connection: Box<H1>) {
        drop(connection);
    }
}

fn post(body: Body) -> Request<Body> {
    Request::post("/").body(body).unwrap()
}

/// So many bytes of what the upstream gets.
async fn read(far: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    far.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

fn fixed(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
}

fn chunked(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

async fn send(client: &mut DuplexStream, text: &str) {
    client.write_all(text.as_bytes()).await.unwrap();
}

/// The next frame; that of trailers has no bytes.
async fn next(body: &mut Body) -> Option<Result<Bytes, Error>> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
    frame.map(|it| it.map(|it| it.into_data().unwrap_or_default()))
}

/// The next frame, which is of data.
async fn data(body: &mut Body) -> Bytes {
    next(body).await.unwrap().unwrap()
}

async fn polled(body: &mut Body) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await
}

/// Lets every other task come as far as it can.
async fn settled() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}
