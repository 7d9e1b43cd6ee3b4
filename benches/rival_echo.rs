//! TCP echo in the rivals' own words: a task for each connection, buffers of 1 KiB, no delay, as in `examples/echo.rs`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use clap::Parser;
use dhaga_benches::contender::Contender;
use dhaga_benches::{machine, may_work, tokio_work};
use may::go;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An echo server of a rival, with one worker. Runs until it is killed.
#[derive(Parser)]
struct Options {
    /// Whose runtime: tokio, tokio-multi, may or threads.
    #[arg(long)]
    contender: Contender,
    /// Where to listen, for example 127.0.0.1:7000.
    #[arg(long)]
    addr: SocketAddr,
}

const BUFFER_BYTES: usize = 1024;

/// Enough for the buffer; std's default of 2 MiB would only take more address space.
const THREAD_STACK_BYTES: usize = 64 << 10;

fn main() -> io::Result<()> {
    let options = Options::parse();
    machine::raise_open_files()?;
    match options.contender {
        Contender::Tokio => tokio_work::current_thread()?.block_on(serve_tokio(options.addr)),
        Contender::TokioMulti => tokio_work::multi_thread(1)?.block_on(async move {
            // In a task: what `block_on` runs itself lives on a thread of its own.
            tokio::spawn(serve_tokio(options.addr)).await?
        }),
        Contender::May => serve_may(options.addr),
        Contender::Threads => serve_threads(options.addr),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "this program has no such server")),
    }
}

async fn serve_tokio(address: SocketAddr) -> io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let mut buffer = [0; BUFFER_BYTES];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return io::Result::Ok(()),
                    count => stream.write_all(&buffer[..count]).await?,
                }
            }
        });
    }
}

fn serve_may(address: SocketAddr) -> io::Result<()> {
    may_work::configure(1);
    let listener = may::net::TcpListener::bind(address)?;
    let accept = move || {
        loop {
            let (stream, _) = listener.accept()?;
            go!(move || stream.set_nodelay(true).and_then(|()| echo(stream)));
        }
    };
    go!(accept).join().unwrap_or_else(|_| Err(io::Error::other("the accepting coroutine panicked")))
}

fn serve_threads(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    loop {
        let (stream, _) = listener.accept()?;
        let serve = move || stream.set_nodelay(true).and_then(|()| echo(stream));
        thread::Builder::new().stack_size(THREAD_STACK_BYTES).spawn(serve)?;
    }
}

fn echo(mut stream: impl Read + Write) -> io::Result<()> {
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}
