//! A TCP server as one would write it with `std::net`, but a dhaga for each connection instead of a thread.
//!
//! Run:  cargo run --release -p dhaga-examples --example echo -- --addr 127.0.0.1:7000
//! Then: nc 127.0.0.1 7000    sends back whatever you type. Ten thousand at a time are no trouble.

use std::error::Error;
use std::io::{self, Read, Write};
use std::time::Duration;

use clap::Parser;
use dhaga::net::{TcpListener, TcpStream};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Sends back whatever comes.
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:7000")]
    addr: String,
    /// OS threads that run the dhagas [default: one a core]
    #[arg(long)]
    workers: Option<usize>,
}

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
    let listener = TcpListener::bind(&options.addr)?;
    println!("listening on {}", listener.local_addr()?);
    runtime.spawn(move || accept(&listener)).join()?;
    Ok(())
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => dhaga::spawn(|| echo(stream)).detach(),
            // The client has gone already, or the descriptors are used up until another one goes.
            Err(_) => dhaga::sleep(Duration::from_millis(10)),
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}
