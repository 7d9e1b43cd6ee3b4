//! "Hello" over HTTP on each runtime: hyper on dhaga and on tokio, may's own small server on may.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use dhaga::hyper::{DhagaExecutor, DhagaIo};
use dhaga_benches::contender::Contender;
use dhaga_benches::http_load::Protocol;
use dhaga_benches::programs::exit_code;
use dhaga_benches::{machine, may_work, tokio_work};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, SERVER};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use may_minihttp::{HttpServer, HttpService};

/// An HTTP server with one worker that greets whatever it is asked. Runs until it is killed.
#[derive(Parser)]
struct Options {
    /// Whose runtime: dhaga, tokio, tokio-multi or may.
    #[arg(long)]
    contender: Contender,
    /// Where to listen, for example 127.0.0.1:8080.
    #[arg(long)]
    addr: SocketAddr,
    /// Which version it speaks.
    #[arg(long, value_enum, default_value = "http1")]
    protocol: Protocol,
}

const HELLO: &str = "Hello, world!";

/// The header that may's server sends of itself; with it all answers have as many bytes.
const NAME: HeaderValue = HeaderValue::from_static("M");

/// Connections that wait to be accepted: as many as our own listeners have.
const BACKLOG: u32 = 4096;

fn main() -> ExitCode {
    exit_code("http_server", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    machine::raise_open_files()?;
    let (address, protocol) = (options.addr, options.protocol);
    match options.contender {
        Contender::Dhaga => on_dhagas(address, protocol)?,
        Contender::Tokio => tokio_work::current_thread()?.block_on(on_tokio(address, protocol))?,
        // In a task: what `block_on` runs itself lives on a thread of its own.
        Contender::TokioMulti => {
            let serve = async move { tokio::spawn(on_tokio(address, protocol)).await };
            tokio_work::multi_thread(1)?.block_on(serve)??;
        }
        Contender::May if protocol == Protocol::Http1 => on_may(address)?,
        _ => return Err("this program has no such server".into()),
    }
    Ok(())
}

async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(HELLO.as_bytes())));
    response.headers_mut().insert(SERVER, NAME);
    Ok(response)
}

fn on_dhagas(address: SocketAddr, protocol: Protocol) -> io::Result<()> {
    let runtime = dhaga::Runtime::builder().workers(1).build()?;
    let listener = dhaga::net::TcpListener::bind(address)?;
    let accept = move || {
        loop {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            serve(stream, protocol);
        }
    };
    runtime.spawn(accept).join().unwrap_or_else(|_| Err(io::Error::other("the accepting dhaga panicked")))
}

/// How a connection ends is the load's affair.
fn serve(stream: dhaga::net::TcpStream, protocol: Protocol) {
    let stream = DhagaIo::new(stream);
    match protocol {
        Protocol::Http1 => {
            dhaga::spawn_future(http1::Builder::new().serve_connection(stream, service_fn(hello))).detach();
        }
        Protocol::Http2 => {
            let builder = http2::Builder::new(DhagaExecutor::new());
            dhaga::spawn_future(builder.serve_connection(stream, service_fn(hello))).detach();
        }
    }
}

async fn on_tokio(address: SocketAddr, protocol: Protocol) -> io::Result<()> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        // How a connection ends is the load's affair.
        match protocol {
            Protocol::Http1 => {
                drop(tokio::spawn(http1::Builder::new().serve_connection(stream, service_fn(hello))));
            }
            Protocol::Http2 => {
                let builder = http2::Builder::new(TokioExecutor::new());
                drop(tokio::spawn(builder.serve_connection(stream, service_fn(hello))));
            }
        }
    }
}

#[derive(Clone)]
struct Hello;

impl HttpService for Hello {
    fn call(&mut self, _: may_minihttp::Request, response: &mut may_minihttp::Response) -> io::Result<()> {
        response.body(HELLO);
        Ok(())
    }
}

fn on_may(address: SocketAddr) -> io::Result<()> {
    may_work::configure(1);
    let server = HttpServer(Hello).start(address)?;
    server.join().map_err(|_| io::Error::other("the accepting coroutine panicked"))
}
