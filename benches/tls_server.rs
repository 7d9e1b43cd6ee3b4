//! TLS echo on each runtime: rustls with the same certificate, cipher and buffers, a task for each connection.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use clap::Parser;
use dhaga_benches::contender::Contender;
use dhaga_benches::programs::exit_code;
use dhaga_benches::{machine, may_work, tls_setup, tokio_work};
use may::go;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

/// A TLS echo server with one worker. Runs until it is killed.
#[derive(Parser, Clone)]
struct Options {
    /// Whose runtime: dhaga, tokio, tokio-multi, may or threads.
    #[arg(long)]
    contender: Contender,
    /// Where to listen, for example 127.0.0.1:7443.
    #[arg(long)]
    addr: SocketAddr,
    /// What one read takes at most, and one write sends.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    buffer_bytes: u32,
}

/// A quarter of it is used in release builds.
const HANDSHAKE_STACK_BYTES: usize = 128 << 10;

/// May's default of 32 KiB is too small for a handshake.
const MAY_STACK_WORDS: usize = (128 << 10) / size_of::<usize>();

/// std's default of 2 MiB would only take more address space.
const THREAD_STACK_BYTES: usize = 128 << 10;

fn main() -> ExitCode {
    exit_code("tls_server", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    machine::raise_open_files()?;
    let config = tls_setup::server_config()?;
    let server = Server { address: options.addr, buffer_bytes: options.buffer_bytes as usize, config };
    match options.contender {
        Contender::Dhaga => server.on_dhagas()?,
        Contender::Tokio => tokio_work::current_thread()?.block_on(server.on_tokio())?,
        // In a task: what `block_on` runs itself lives on a thread of its own.
        Contender::TokioMulti => {
            tokio_work::multi_thread(1)?.block_on(async move { tokio::spawn(server.on_tokio()).await })??;
        }
        Contender::May => server.on_may()?,
        Contender::Threads => server.on_threads()?,
        _ => return Err("this program has no such server".into()),
    }
    Ok(())
}

#[derive(Clone)]
struct Server {
    address: SocketAddr,
    buffer_bytes: usize,
    config: Arc<ServerConfig>,
}

impl Server {
    fn on_dhagas(self) -> io::Result<()> {
        let runtime = dhaga::Runtime::builder().workers(1).build()?;
        let listener = dhaga::net::TcpListener::bind(self.address)?;
        let accept = move || {
            loop {
                let (stream, _) = listener.accept()?;
                let server = self.clone();
                // Stacks of another size: those of waiting connections keep no pages that only the handshake has touched.
                let apart = dhaga::Builder::new().stack_size(HANDSHAKE_STACK_BYTES);
                apart.spawn(move || server.shake(stream)).map_err(io::Error::from)?.detach();
            }
        };
        runtime.spawn(accept).join().unwrap_or_else(|_| Err(io::Error::other("the accepting dhaga panicked")))
    }

    fn shake(self, mut stream: dhaga::net::TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut connection = self.connection()?;
        connection.complete_io(&mut stream)?;
        dhaga::spawn(move || self.echo(connection, stream)).detach();
        Ok(())
    }

    fn connection(&self) -> io::Result<ServerConnection> {
        ServerConnection::new(self.config.clone()).map_err(io::Error::other)
    }

    fn on_may(self) -> io::Result<()> {
        may_work::configure(1);
        may::config().set_stack_size(MAY_STACK_WORDS);
        let listener = may::net::TcpListener::bind(self.address)?;
        let accept = move || {
            loop {
                let (stream, _) = listener.accept()?;
                let server = self.clone();
                go!(move || stream.set_nodelay(true).and_then(|()| server.echo(server.connection()?, stream)));
            }
        };
        go!(accept).join().unwrap_or_else(|_| Err(io::Error::other("the accepting coroutine panicked")))
    }

    fn on_threads(self) -> io::Result<()> {
        let listener = std::net::TcpListener::bind(self.address)?;
        loop {
            let (stream, _) = listener.accept()?;
            let server = self.clone();
            let serve = move || stream.set_nodelay(true).and_then(|()| server.echo(server.connection()?, stream));
            thread::Builder::new().stack_size(THREAD_STACK_BYTES).spawn(serve)?;
        }
    }

    /// The same code wherever reads look blocking. The first read shakes hands, unless that was done.
    fn echo(&self, connection: ServerConnection, stream: impl Read + Write) -> io::Result<()> {
        let mut tls = StreamOwned::new(connection, stream);
        let mut buffer = vec![0; self.buffer_bytes];
        loop {
            match tls.read(&mut buffer)? {
                0 => return Ok(()),
                count => tls.write_all(&buffer[..count])?,
            }
        }
    }

    async fn on_tokio(self) -> io::Result<()> {
        let listener = tokio::net::TcpListener::bind(self.address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(self.clone().echo_in_tokio(stream));
        }
    }

    async fn echo_in_tokio(self, stream: tokio::net::TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut tls = TlsAcceptor::from(self.config).accept(stream).await?;
        let mut buffer = vec![0; self.buffer_bytes];
        loop {
            match tls.read(&mut buffer).await? {
                0 => return Ok(()),
                count => {
                    tls.write_all(&buffer[..count]).await?;
                    tls.flush().await?;
                }
            }
        }
    }
}
