//! TLS by rustls, unchanged, over sockets of dhagas: an echo server, a dhaga for each connection.
//!
//! Run:  cargo run --release -p dhaga-examples --example tls_echo            a server, and clients that talk to it
//!       cargo run --release -p dhaga-examples --example tls_echo -- --serve --addr 127.0.0.1:7443 --certificates /tmp/tls
//! Then: openssl s_client -connect 127.0.0.1:7443 -verify_return_error -CAfile /tmp/tls/authority.pem
//!       With --mutual the server asks for a certificate, too: add  -cert /tmp/tls/client.pem -key /tmp/tls/client.pem

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::Semaphore;
use dhaga_examples::tls::{self, Authority};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

/// Sends back whatever comes, over TLS, with certificates that it makes at its start.
#[derive(Parser, Clone)]
struct Options {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:0")]
    addr: String,
    /// Serve until killed, and start no clients.
    #[arg(long)]
    serve: bool,
    /// Write there whom to trust (authority.pem) and a client's certificate and key (client.pem).
    #[arg(long, value_name = "DIRECTORY")]
    certificates: Option<PathBuf>,
    /// Ask clients for a certificate, and refuse those without.
    #[arg(long)]
    mutual: bool,
    /// Connections at once; more wait to be accepted.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How long a handshake may take.
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    handshake_ms: u64,
}

/// How many clients talk to the server, when it has no others.
const CLIENTS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let authority = Authority::new("tls_echo")?;
    if let Some(directory) = &options.certificates {
        authority.write(directory)?;
    }
    let roots = authority.roots()?;
    let identity = authority.issue(tls::SERVER)?;
    let config = Arc::new(tls::server_config(&identity, options.mutual.then(|| roots.clone()))?);
    let listener = TcpListener::bind(&options.addr)?;
    let address = listener.local_addr()?;
    println!("listening on {address}");
    let serving = options.clone();
    let server = dhaga::spawn(move || accept(&listener, &config, &serving));
    if options.serve {
        return Ok(server.join()?);
    }
    let config = Arc::new(tls::client_config(roots, Some(&authority.issue(tls::CLIENT)?))?);
    let clients = (1..=CLIENTS).map(|number| {
        let config = config.clone();
        dhaga::spawn(move || talk(address, config, number))
    });
    for client in clients.collect::<Vec<_>>() {
        println!("{}", client.join()?.map_err(|error| error.to_string())?);
    }
    Ok(())
}

fn accept(listener: &TcpListener, config: &Arc<ServerConfig>, options: &Options) {
    let places = Arc::new(Semaphore::new(options.connections as usize));
    let handshake_max = Duration::from_millis(options.handshake_ms);
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // The client has gone already, or the descriptors are used up until another one goes.
            dhaga::sleep(Duration::from_millis(10));
            continue;
        };
        // Clients beyond the limit wait in the kernel's queue.
        let Ok(place) = places.acquire_owned() else { return };
        let config = config.clone();
        dhaga::spawn(move || {
            match handshake(stream, config, handshake_max) {
                Ok(tls) => echo(tls).unwrap_or_else(|error| println!("connection lost: {error}")),
                Err(error) => println!("no handshake: {error}"),
            }
            drop(place);
        })
        .detach();
    }
}

type ServerStream = StreamOwned<ServerConnection, TcpStream>;

/// Without a deadline, whoever connects and says nothing would keep a place for ever.
fn handshake(stream: TcpStream, config: Arc<ServerConfig>, time_max: Duration) -> io::Result<ServerStream> {
    stream.set_nodelay(true)?;
    let mut tls = StreamOwned::new(ServerConnection::new(config).map_err(io::Error::other)?, stream);
    dhaga::within(time_max, || tls.conn.complete_io(&mut tls.sock))?;
    Ok(tls)
}

fn echo(mut tls: ServerStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        // The peer's close_notify is the end; an end without it is an error, since somebody may have cut the data off.
        match tls.read(&mut buffer)? {
            0 => break,
            count => tls.write_all(&buffer[..count])?,
        }
    }
    tls.conn.send_close_notify();
    tls.flush()
}

fn talk(address: SocketAddr, config: Arc<ClientConfig>, number: usize) -> Result<String, Box<dyn Error + Send + Sync>> {
    let connection = ClientConnection::new(config, tls::SERVER.try_into()?)?;
    let mut tls = StreamOwned::new(connection, TcpStream::connect(address)?);
    write!(tls, "hello from client {number}")?;
    tls.conn.send_close_notify();
    tls.flush()?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer)?;
    Ok(format!("{answer}, {:?}", tls.conn.protocol_version().ok_or("there was no handshake")?))
}
