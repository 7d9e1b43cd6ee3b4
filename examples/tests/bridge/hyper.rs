//! hyper's servers and clients on dhagas and their sockets, both in one process.

use std::convert::Infallible;
use std::future;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dhaga::hyper::{DhagaExecutor, DhagaIo, DhagaLocalExecutor, DhagaTimer, sequential};
use dhaga::net::{SocketAddr, TcpListener, TcpStream};
use dhaga::sync::{channel, oneshot};
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};

use crate::common::{DEADLINE, in_dhaga, in_dhagas, pattern};

const MEBIBYTE: usize = 1 << 20;

type Answer = Response<BoxBody<Bytes, Infallible>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(bytes.into()).boxed()
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a test can listen");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// Serves one connection, and says how that ended.
fn serve<H, F>(version: Version, stream: TcpStream, handler: H) -> hyper::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = DhagaIo::new(stream);
    match version {
        Version::One => dhaga::block_on(http1::Builder::new().timer(DhagaTimer).serve_connection(io, service)),
        Version::Two => {
            dhaga::block_on(http2::Builder::new(DhagaExecutor).timer(DhagaTimer).serve_connection(io, service))
        }
    }
}

/// Where a server listens that takes one connection.
fn server<H, F>(version: Version, handler: H) -> (SocketAddr, dhaga::JoinHandle<hyper::Result<()>>)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let (listener, address) = listener();
    let served = dhaga::spawn(move || {
        let (stream, _) = listener.accept().expect("a client comes");
        serve(version, stream, handler)
    });
    (address, served)
}

/// A client's connection, in either version.
enum Client<B> {
    One(conn::http1::SendRequest<B>),
    Two(conn::http2::SendRequest<B>),
}

impl<B> Client<B>
where
    B: Body<Data = Bytes, Error = Infallible> + Unpin + Send + 'static,
{
    fn connect(version: Version, address: SocketAddr) -> Self {
        let io = DhagaIo::new(TcpStream::connect(address).expect("it listens"));
        match version {
            Version::One => {
                let (client, connection) = dhaga::block_on(conn::http1::handshake(io)).expect("it answers");
                dhaga::spawn(move || drop(dhaga::block_on(connection))).detach();
                Self::One(client)
            }
            Version::Two => {
                let shaken = dhaga::block_on(conn::http2::Builder::new(DhagaExecutor).timer(DhagaTimer).handshake(io));
                let (client, connection) = shaken.expect("it answers");
                dhaga::spawn(move || drop(dhaga::block_on(connection))).detach();
                Self::Two(client)
            }
        }
    }

    fn send(&mut self, request: Request<B>) -> hyper::Result<Response<Incoming>> {
        dhaga::block_on(self.request(request))
    }

    async fn request(&mut self, request: Request<B>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(client) => {
                client.ready().await?;
                client.send_request(request).await
            }
            Self::Two(client) => client.send_request(request).await,
        }
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://localhost{path}"))
        .header("host", "localhost")
        .body(Full::default())
        .expect("it is well-formed")
}

fn post(body: Vec<u8>) -> Request<Full<Bytes>> {
    Request::post("http://localhost/").header("host", "localhost").body(Full::from(body)).expect("it is well-formed")
}

fn bytes_of(response: Response<Incoming>) -> Bytes {
    dhaga::block_on(response.into_body().collect()).expect("it comes to its end").to_bytes()
}

async fn echo(request: Request<Incoming>) -> Answer {
    let body = request.into_body().collect().await.expect("it comes to its end");
    Response::new(full(body.to_bytes()))
}

async fn path(request: Request<Incoming>) -> Answer {
    Response::new(full(request.uri().path().to_owned()))
}

/// Runs a test for both versions, with one worker and with two.
fn in_both(body: impl Fn(Version) + Copy + Send + 'static) {
    for version in [Version::One, Version::Two] {
        in_dhagas(move || body(version));
    }
}

#[test]
fn a_connection_is_kept_for_many_requests() {
    in_both(|version| {
        let (address, served) = server(version, path);
        let mut client = Client::connect(version, address);
        for index in 0..100 {
            let response = client.send(get(&format!("/{index}"))).expect("it answers");
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(bytes_of(response), format!("/{index}"));
        }
        drop(client);
        served.join().expect("it ends well").expect("the client goes in peace");
    });
}

#[test]
fn bodies_of_a_mebibyte_go_both_ways() {
    in_both(|version| {
        let (address, served) = server(version, echo);
        let mut client = Client::connect(version, address);
        for _ in 0..5 {
            let body = pattern(MEBIBYTE);
            let answer = bytes_of(client.send(post(body.clone())).expect("it answers"));
            assert!(answer == body, "{version:?}: bytes are lost or out of order");
        }
        drop(client);
        served.join().expect("it ends well").expect("the client goes in peace");
    });
}

#[test]
fn requests_in_a_pipeline_are_answered_in_their_order() {
    in_dhagas(|| {
        let (address, served) = server(Version::One, path);
        let mut stream = TcpStream::connect(address).expect("it listens");
        let request = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
        let requests = [request("/a", ""), request("/b", ""), request("/c", "connection: close\r\n")];
        stream.write_all(requests.concat().as_bytes()).expect("it has room");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("it answers, and closes");
        let bodies: Vec<_> = answers.split("\r\n\r\n").skip(1).map(|rest| &rest[..2]).collect();
        assert_eq!(bodies, ["/a", "/b", "/c"], "{answers}");
        served.join().expect("it ends well").expect("the client goes in peace");
    });
}

/// The handler is sequential code: it sleeps, waits for a channel and calls another server, each in the middle of a poll.
#[test]
fn a_handler_may_wait_as_any_other_code_of_a_dhaga() {
    in_both(|version| {
        let (backend, backend_address) = listener();
        let calls = 20;
        let backend = dhaga::spawn(move || {
            for _ in 0..calls {
                let (mut stream, _) = backend.accept().expect("the handler calls");
                let mut word = [0; 4];
                stream.read_exact(&mut word).expect("it writes");
                stream.write_all(&word.map(|byte| byte.to_ascii_uppercase())).expect("it has room");
            }
        });
        let (address, served) = server(version, move |_| async move {
            dhaga::sleep(Duration::from_millis(1));
            let (sender, receiver) = channel::bounded(1);
            dhaga::spawn(move || sender.send("word")).detach();
            let word = receiver.recv().expect("it is sent");
            Response::new(full(call(backend_address, word).expect("the backend answers")))
        });
        let mut client = Client::connect(version, address);
        for _ in 0..calls {
            assert_eq!(bytes_of(client.send(get("/")).expect("it answers")), "WORD");
        }
        drop(client);
        served.join().expect("it ends well").expect("the client goes in peace");
        backend.join().expect("it ends well");
    });
}

fn call(address: SocketAddr, word: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(word.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Each request runs in a dhaga of its own, so it may even wait for its body while nobody polls the service.
#[test]
fn sequential_services_wait_for_everything_and_end_with_their_client() {
    in_both(|version| {
        let (listener, address) = listener();
        let (tells, told) = channel::bounded(1);
        let handler = move |request: Request<Incoming>| {
            if request.uri().path() == "/never" {
                tells.send(None).expect("the test waits");
                let ended = dhaga::within(DEADLINE, || dhaga::try_block_on(future::pending::<()>()));
                dhaga::uncancellable(|| tells.send(ended.err())).expect("the test waits");
            }
            let body = dhaga::block_on(request.into_body().collect())?;
            dhaga::sleep(Duration::from_millis(1));
            Ok::<_, hyper::Error>(Response::new(full(body.to_bytes())))
        };
        let served = dhaga::spawn(move || {
            let (stream, _) = listener.accept().expect("a client comes");
            let (io, service) = (DhagaIo::new(stream), service_fn(sequential(handler)));
            match version {
                Version::One => dhaga::block_on(http1::Builder::new().serve_connection(io, service)),
                Version::Two => dhaga::block_on(http2::Builder::new(DhagaExecutor).serve_connection(io, service)),
            }
        });
        let mut client = Client::connect(version, address);
        let body = pattern(MEBIBYTE);
        assert!(bytes_of(client.send(post(body.clone())).expect("it answers")) == body, "{version:?}");
        // Dropped together with the connection.
        let asked = dhaga::spawn(move || {
            let send = async { client.request(get("/never")).await.map(drop) };
            drop(dhaga::try_block_on(send));
        });
        assert!(told.recv().expect("the request comes").is_none());
        asked.cancel();
        asked.join().expect("it ends well");
        assert_eq!(told.recv().expect("the handler ends"), Some(dhaga::Interrupt::Cancelled));
        let _ = served.join().expect("it ends well");
    });
}

/// A hundred handlers that sleep do so at the same time, each in its own dhaga.
#[test]
fn a_hundred_streams_of_one_connection_wait_beside_each_other() {
    const STREAMS: usize = 100;
    in_dhagas(|| {
        let present = Arc::new(dhaga::sync::Barrier::new(STREAMS));
        let (address, served) = server(Version::Two, move |request| {
            let present = present.clone();
            async move {
                present.wait();
                path(request).await
            }
        });
        let Client::Two(client) = Client::connect(Version::Two, address) else { unreachable!("it is of version 2") };
        let calls = (0..STREAMS).map(|index| {
            let mut client = client.clone();
            dhaga::spawn(move || {
                let response = dhaga::block_on(client.send_request(get(&format!("/{index}")))).expect("it answers");
                assert_eq!(bytes_of(response), format!("/{index}"));
            })
        });
        calls.collect::<Vec<_>>().into_iter().for_each(|call| call.join().expect("it ends well"));
        drop(client);
        served.join().expect("it ends well").expect("the client goes in peace");
    });
}

/// What is produced waits for who reads.
#[test]
fn a_slow_reader_holds_the_writer_up() {
    const CHUNKS: usize = 512;
    const CHUNK_BYTES: usize = 64 << 10;
    in_both(|version| {
        let produced = Arc::new(AtomicUsize::new(0));
        let count = produced.clone();
        let (address, served) = server(version, move |_| {
            let count = count.clone();
            async move {
                let chunks = (0..CHUNKS).map(move |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                    Ok(Frame::data(Bytes::from(vec![7; CHUNK_BYTES])))
                });
                Response::new(StreamBody::new(stream::iter(chunks)).boxed())
            }
        });
        let mut client = Client::connect(version, address);
        let response = client.send(get("/")).expect("it answers");
        let settled = settle(&produced);
        assert!(settled < CHUNKS, "{version:?}: all {CHUNKS} chunks were produced though nobody reads");
        let body = bytes_of(response);
        assert_eq!(body.len(), CHUNKS * CHUNK_BYTES);
        drop(client);
        served.join().expect("it ends well").expect("the client goes in peace");
    });
}

/// The value of a counter that has not changed for a while.
fn settle(counter: &AtomicUsize) -> usize {
    loop {
        let before = counter.load(Ordering::Relaxed);
        dhaga::sleep(Duration::from_millis(50));
        if before > 0 && before == counter.load(Ordering::Relaxed) {
            return before;
        }
    }
}

#[test]
fn a_graceful_shutdown_finishes_what_is_asked_for_and_then_closes() {
    in_dhagas(|| {
        let (listener, address) = listener();
        let (handles, is_handled) = channel::bounded(1);
        let (ends, end) = oneshot::channel::<()>();
        let served = dhaga::spawn(move || {
            let (stream, _) = listener.accept().expect("a client comes");
            let service = service_fn(move |request| {
                let handles = handles.clone();
                async move {
                    handles.send(()).expect("the test waits");
                    dhaga::future::sleep(Duration::from_millis(20)).await;
                    Ok::<_, Infallible>(path(request).await)
                }
            });
            dhaga::block_on(async {
                let connection = http1::Builder::new().serve_connection(DhagaIo::new(stream), service);
                let mut connection = pin!(connection);
                match futures::future::select(end.into_future(), connection.as_mut()).await {
                    futures::future::Either::Left(_) => connection.as_mut().graceful_shutdown(),
                    futures::future::Either::Right(_) => panic!("nobody has ended it"),
                }
                connection.await
            })
        });
        let mut client = Client::connect(Version::One, address);
        let asked = dhaga::spawn(move || (client.send(get("/last")), client));
        is_handled.recv().expect("the request comes");
        ends.send(()).expect("the server waits");
        let (response, mut client) = asked.join().expect("it ends well");
        assert_eq!(bytes_of(response.expect("what was begun is finished")), "/last");
        served.join().expect("it ends well").expect("it closes in peace");
        assert!(client.send(get("/late")).is_err(), "the connection is closed");
    });
}

#[test]
fn who_does_not_finish_a_header_in_time_is_cut_off() {
    in_dhagas(|| {
        let (listener, address) = listener();
        let served = dhaga::spawn(move || {
            let (stream, _) = listener.accept().expect("a client comes");
            let limit = Duration::from_millis(30);
            let connection = http1::Builder::new().timer(DhagaTimer).header_read_timeout(limit).serve_connection(
                DhagaIo::new(stream),
                service_fn(async |request| Ok::<_, Infallible>(path(request).await)),
            );
            dhaga::block_on(connection)
        });
        let mut stream = TcpStream::connect(address).expect("it listens");
        let begun = Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: loc").expect("it has room");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(begun.elapsed() >= Duration::from_millis(30) && begun.elapsed() < DEADLINE);
        let error = served.join().expect("it ends well").expect_err("the header was not finished");
        assert!(error.is_timeout(), "{error:?}");
    });
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_body_is_an_error_and_leaves_nothing() {
    in_dhagas(|| {
        let (tells, told) = channel::bounded(1);
        let (address, served) = server(Version::One, move |request| {
            let tells = tells.clone();
            async move {
                let read = request.into_body().collect().await;
                tells.send(read.is_err()).expect("the test waits");
                Response::new(full(""))
            }
        });
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream
            .write_all(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nhalf")
            .expect("it has room");
        drop(stream);
        assert!(told.recv().expect("the handler ends"), "the body had no end");
        // An error or none, as the answer has reached the kernel or not.
        let _ = served.join().expect("it ends well");
    });
}

#[test]
fn a_client_that_goes_while_it_is_written_to_ends_the_connection() {
    in_both(|version| {
        let (address, served) = server(version, async |_| {
            let endless = stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![7; MEBIBYTE]))));
            Response::new(StreamBody::new(endless).boxed())
        });
        let mut client = Client::connect(version, address);
        let mut response = client.send(get("/")).expect("it answers");
        let first = dhaga::block_on(response.body_mut().frame()).expect("it has no end").expect("nothing fails");
        assert!(first.is_data());
        drop((response, client));
        let _ = served.join().expect("it ends, one way or the other");
    });
}

/// Whoever is cancelled drops the connection with the future.
#[test]
fn a_cancel_closes_a_connection_that_is_served() {
    in_dhagas(|| {
        let (listener, address) = listener();
        let server = dhaga::spawn(move || {
            let (stream, _) = listener.accept().expect("a client comes");
            let service = service_fn(async |request| Ok::<_, Infallible>(path(request).await));
            dhaga::try_block_on(http1::Builder::new().serve_connection(DhagaIo::new(stream), service))
        });
        let mut client = Client::connect(Version::One, address);
        assert_eq!(bytes_of(client.send(get("/a")).expect("it answers")), "/a");
        server.cancel();
        assert!(matches!(server.join().expect("it ends well"), Err(dhaga::Interrupt::Cancelled)));
        assert!(client.send(get("/b")).is_err());
    });
}

/// What is not `Send` stays on the worker of its connection.
#[test]
fn services_that_are_not_send_run_beside_their_connection() {
    in_dhaga(2, || {
        let (listener, address) = listener();
        let server = dhaga::spawn(move || {
            let (stream, _) = listener.accept().expect("a client comes");
            let count = std::rc::Rc::new(std::cell::Cell::new(0));
            let counter = count.clone();
            let service = service_fn(move |_: Request<Incoming>| {
                let count = counter.clone();
                async move {
                    count.set(count.get() + 1);
                    dhaga::future::sleep(Duration::from_millis(1)).await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(count.get().to_string()))))
                }
            });
            let served = dhaga::block_on(
                http2::Builder::new(DhagaLocalExecutor).serve_connection(DhagaIo::new(stream), service),
            );
            served.expect("the client goes in peace");
            count.get()
        });
        let mut client = Client::connect(Version::Two, address);
        for _ in 0..10 {
            client.send(get("/")).expect("it answers");
        }
        drop(client);
        assert_eq!(server.join().expect("it ends well"), 10);
    });
}
