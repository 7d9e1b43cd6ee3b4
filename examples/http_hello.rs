//! A web server in sequential code: hyper speaks HTTP/1 and HTTP/2 on one port, and each request runs in a dhaga of its own.
//!
//! Run:  cargo run --release -p dhaga-examples --example http_hello -- --addr 127.0.0.1:8080
//! Then: curl http://127.0.0.1:8080/sleep/500           waits half a second, as ten thousand others can beside it
//!       curl -N http://127.0.0.1:8080/stream           a line every 100 ms
//!       curl --http2-prior-knowledge -d hello http://127.0.0.1:8080/echo

use std::error::Error;
use std::io;
use std::time::Duration;

use clap::Parser;
use dhaga::hyper::{DhagaExecutor, DhagaIo, DhagaTimer, sequential};
use dhaga::net::{TcpListener, TcpStream};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::server::conn::auto;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Serves /, /sleep/MS, /stream and /echo, by HTTP/1 and by HTTP/2 without an upgrade.
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:8080")]
    addr: String,
    /// OS threads that run the dhagas [default: one a core]
    #[arg(long)]
    workers: Option<usize>,
}

type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Bytes of a request's body at most. They are kept until it has come to its end.
const ECHO_BYTES_MAX: usize = 16 << 20;
/// How long a client may take to tell its version, and then for a body.
const VERSION_MAX: Duration = Duration::from_secs(10);
const BODY_MAX: Duration = Duration::from_secs(30);
/// The preface of HTTP/2, by which hyper tells it.
const HTTP_2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long /sleep sleeps at most, in milliseconds: a minute.
const SLEEP_MAX: u64 = 60_000;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    // A connection takes a descriptor, and the usual soft limit is 1024 of them.
    let mut open_files = getrlimit(Resource::Nofile);
    open_files.current = open_files.maximum;
    setrlimit(Resource::Nofile, open_files)?;

    let mut builder = dhaga::Runtime::builder();
    if let Some(workers) = options.workers {
        builder = builder.workers(workers);
    }
    let runtime = builder.build()?;
    let listener = TcpListener::bind(&options.addr)
        .map_err(|error| format!("cannot listen on {}: {error}; choose another --addr", options.addr))?;
    println!("listening on {}", listener.local_addr()?);
    runtime.spawn(move || accept(&listener)).join()?;
    Ok(())
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => dhaga::spawn(|| serve(stream)).detach(),
            // The client has gone already, or the descriptors are used up until another one goes.
            Err(_) => dhaga::sleep(Duration::from_millis(10)),
        }
    }
}

/// Serves a connection until the client closes it, or sends what is no HTTP.
fn serve(stream: TcpStream) -> Result<(), Box<dyn Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    // hyper's own limit, of 30 s for the head of a request, counts from where it knows which version is spoken.
    dhaga::within(VERSION_MAX, || wait_for_version(&stream))?;
    let mut server = auto::Builder::new(DhagaExecutor);
    server.http1().timer(DhagaTimer);
    server.http2().timer(DhagaTimer);
    let service = service_fn(sequential(answer));
    dhaga::try_block_on(server.serve_connection(DhagaIo::new(stream), service))?
}

/// Until the client has sent the preface of HTTP/2, or something else.
fn wait_for_version(stream: &TcpStream) -> io::Result<()> {
    let mut begun = [0; HTTP_2.len()];
    loop {
        let count = stream.peek(&mut begun)?;
        if count == 0 || count == begun.len() || !HTTP_2.starts_with(&begun[..count]) {
            return Ok(());
        }
        // Part of it has come, and nothing tells of more: it is there to be peeked at all the time.
        dhaga::sleep(Duration::from_millis(10));
    }
}

fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::http::Error> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => Response::builder().header("content-type", "text/html").body(full(PAGE)),
        (&Method::GET, "/stream") => Ok(Response::new(Either::Right(stream()))),
        (&Method::POST, "/echo") => echo(request.into_body()),
        (&Method::GET, path) if path.starts_with("/sleep/") => match path["/sleep/".len()..].parse() {
            Ok(millis @ 0..=SLEEP_MAX) => {
                dhaga::sleep(Duration::from_millis(millis));
                Ok(Response::new(full(format!("slept for {millis} ms\n"))))
            }
            _ => status(StatusCode::BAD_REQUEST, format!("/sleep/MS takes milliseconds, {SLEEP_MAX} at most\n")),
        },
        _ => status(StatusCode::NOT_FOUND, "here are /, /sleep/MS, /stream and POST /echo\n"),
    }
}

fn echo(body: Incoming) -> Result<Response<Body>, hyper::http::Error> {
    match dhaga::within(BODY_MAX, || dhaga::try_block_on(Limited::new(body, ECHO_BYTES_MAX).collect())) {
        Ok(Ok(body)) => Ok(Response::new(full(body.to_bytes()))),
        Err(late) => status(StatusCode::REQUEST_TIMEOUT, format!("the body has not come: {late}\n")),
        Ok(Err(error)) => status(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}\n")),
    }
}

/// Ten lines, each as soon as it is there. Another dhaga writes them, and ends when the client has gone.
fn stream() -> Channel<Bytes> {
    let (mut sender, body) = Channel::new(1);
    let write = move || {
        for number in 1..=10 {
            dhaga::block_on(sender.send_data(format!("line {number} of 10\n").into()))?;
            dhaga::sleep(Duration::from_millis(100));
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(())
    };
    dhaga::spawn(write).detach();
    body
}

fn full(text: impl Into<Bytes>) -> Body {
    Either::Left(Full::new(text.into()))
}

fn status(status: StatusCode, text: impl Into<Bytes>) -> Result<Response<Body>, hyper::http::Error> {
    Response::builder().status(status).body(full(text))
}

const PAGE: &str = "<!doctype html><title>Dhaga</title>
<h1>Hello from a dhaga</h1>
<p>Each request runs in one of its own. Try <a href=/sleep/500>/sleep/500</a> and <a href=/stream>/stream</a>.
";
