//! An `async` library in sequential code: `async-compression` packs and unpacks what goes through a socket of ours.
//!
//! Run:  cargo run --release -p dhaga-examples --example async_inside
//! You see how many bytes were sent, and how few of them went through the socket.

use std::error::Error;
use std::io;

use async_compression::futures::bufread::GzipDecoder;
use async_compression::futures::write::GzipEncoder;
use clap::Parser;
use dhaga::net::{Async, TcpListener, TcpStream};
use futures::AsyncReadExt;
use futures::io::{AsyncWriteExt, BufReader};

/// Sends lines through a socket, packed as gzip.
#[derive(Parser)]
struct Options {
    /// How many lines.
    #[arg(long, default_value_t = 10_000)]
    lines: usize,
}

/// A packer begins with tables of 300 KB, which a build without optimiser makes on the stack.
const PACKER_STACK_BYTES: usize = 2 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let text: String = (1..=options.lines).map(|number| format!("line {number} of {}\n", options.lines)).collect();

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let receiver = dhaga::spawn(move || receive(listener.accept()?.0));
    let sender = dhaga::Builder::new().stack_size(PACKER_STACK_BYTES);
    let text = sender.spawn(move || send(TcpStream::connect(address)?, &text).map(|()| text))?.join()??;

    let (received, packed) = receiver.join()??;
    assert!(received == text, "what came is not what was sent");
    println!("{} bytes of text went through the socket as {packed}", text.len());
    Ok(())
}

/// The futures of the library run here, in this dhaga, which waits with them.
fn send(stream: TcpStream, text: &str) -> io::Result<()> {
    let mut packer = GzipEncoder::new(Async::new(stream));
    dhaga::block_on(async {
        packer.write_all(text.as_bytes()).await?;
        packer.close().await
    })
}

/// Returns the text, and in how many bytes it came.
fn receive(stream: TcpStream) -> io::Result<(String, usize)> {
    let mut packed = Vec::new();
    dhaga::block_on(Async::new(stream).read_to_end(&mut packed))?;
    let mut text = String::new();
    dhaga::block_on(GzipDecoder::new(BufReader::new(packed.as_slice())).read_to_string(&mut text))?;
    Ok((text, packed.len()))
}
