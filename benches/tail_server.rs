//! Servers with two workers for the long-tail benchmark: a task for each connection, which answers, waits or computes in
//! place, as its user would write it without a thought for the others.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use clap::Parser;
use dhaga_benches::contender::Contender;
use dhaga_benches::payload::Payload;
use dhaga_benches::tail_work::{Kind, MESSAGE_BYTES, SLOW, compute};
use dhaga_benches::{machine, tokio_work};
use dhaga_rpc::{HandlerError, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server whose requests say in their first byte whether to wait or compute. Runs until it is killed.
#[derive(Parser)]
struct Options {
    /// Whose runtime: dhaga, dhaga-rpc or tokio-multi.
    #[arg(long)]
    contender: Contender,
    /// Where to listen, for example 127.0.0.1:7000.
    #[arg(long)]
    addr: SocketAddr,
    /// Its workers.
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    machine::raise_open_files()?;
    match options.contender {
        Contender::Dhaga => serve_dhaga(&options),
        Contender::DhagaRpc => serve_rpc(&options),
        Contender::TokioMulti => tokio_work::multi_thread(options.workers)?.block_on(async move {
            // In a task: what `block_on` runs itself lives on a thread of its own.
            tokio::spawn(serve_tokio(options.addr)).await?
        }),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "this program has no such server")),
    }
}

fn serve_dhaga(options: &Options) -> io::Result<()> {
    let runtime = dhaga::Runtime::builder().workers(options.workers).build()?;
    let listener = dhaga::net::TcpListener::bind(options.addr)?;
    let accept = move || {
        loop {
            let (stream, _) = listener.accept()?;
            dhaga::spawn(|| answer(stream)).detach();
        }
    };
    runtime.spawn(accept).join().unwrap_or_else(|_| Err(io::Error::other("the accepting dhaga panicked")))
}

fn answer(mut stream: dhaga::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE_BYTES];
    loop {
        stream.read_exact(&mut message)?;
        match Kind::of_byte(message[0]) {
            Kind::Plain => {}
            Kind::Wait => dhaga::sleep(SLOW),
            Kind::Compute => compute(),
        }
        stream.write_all(&message)?;
    }
}

/// The same in a method, whose binary says in its first byte what to do.
fn serve_rpc(options: &Options) -> io::Result<()> {
    let runtime = dhaga::Runtime::builder().workers(options.workers).build()?;
    let echo = |payload: Payload| {
        let Payload::Binary(bytes) = &payload else {
            return Err(HandlerError::new("the load sends binaries"));
        };
        match Kind::of_byte(bytes.first().copied().unwrap_or_default()) {
            Kind::Plain => {}
            Kind::Wait => dhaga::sleep(SLOW),
            Kind::Compute => compute(),
        }
        Ok(payload)
    };
    let _server = Server::builder().method("echo", echo).bind_on(&runtime, options.addr)?;
    loop {
        std::thread::park();
    }
}

async fn serve_tokio(address: SocketAddr) -> io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(answer_in_tokio(stream));
    }
}

async fn answer_in_tokio(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE_BYTES];
    loop {
        stream.read_exact(&mut message).await?;
        match Kind::of_byte(message[0]) {
            Kind::Plain => {}
            Kind::Wait => tokio::time::sleep(SLOW).await,
            Kind::Compute => compute(),
        }
        stream.write_all(&message).await?;
    }
}
