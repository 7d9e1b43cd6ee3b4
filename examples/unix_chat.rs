//! A chat for the users of one host, over a Unix socket: what one says, all others hear, and nobody can claim to be another
//! user, since the kernel tells who it is.
//!
//! Run:  cargo run --release -p dhaga-examples --example unix_chat -- --path /tmp/chat.socket
//! Then: socat READLINE UNIX-CONNECT:/tmp/chat.socket    in two terminals, and type. A `nc -U` will do, too.
//!
//! Two dhagas for each client: one reads its lines, the other writes what the rest say. See `chat_dhaga` for a chat over TCP
//! that has names and rooms.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use dhaga::net::{UnixListener, UnixStream};
use dhaga::sync::Semaphore;
use dhaga::sync::broadcast::{self, RecvError};
use rustix::net::sockopt::socket_peercred;

/// Lines that are kept for who reads slowly. One that falls further behind is told how many it lost.
const LINES_KEPT: usize = 256;

/// Bytes of a line, with its end.
const LINE_BYTES_MAX: u64 = 1024;

/// Clients at once. More of them wait until one goes.
const CLIENTS_MAX: usize = 1000;

/// How long a client may take to accept what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait when descriptors are used up until another client goes.
const PAUSE: Duration = Duration::from_millis(10);

/// A chat for the users of one host.
#[derive(Parser)]
struct Options {
    /// Where the socket lies
    #[arg(long, default_value = "/tmp/dhaga-chat.socket")]
    path: PathBuf,
}

/// A line, and the number of the client that said it.
type Said = (u64, Arc<str>);

fn main() -> Result<(), Box<dyn Error>> {
    let Options { path } = Options::parse();
    let listener = bind(&path)
        .map_err(|error| format!("cannot listen at {}: {error}; choose another with --path", path.display()))?;
    println!("listening on {}", path.display());
    dhaga::spawn(move || accept_all(&listener)).join()?;
    Ok(())
}

/// Listens at a path, also if a server that was there before has left its socket.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_left(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

fn is_left(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn accept_all(listener: &UnixListener) {
    let chat = broadcast::Sender::new(LINES_KEPT);
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    for number in 1.. {
        let Ok(place) = places.acquire_owned() else { return };
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) => dhaga::sleep(PAUSE),
            }
        };
        let chat = chat.clone();
        let serve = move || {
            // Whatever ends a client, the others go on.
            let _ = serve(&stream, number, &chat);
            drop(place);
        };
        dhaga::spawn(serve).detach();
    }
}

fn serve(stream: &UnixStream, number: u64, chat: &broadcast::Sender<Said>) -> io::Result<()> {
    let name = format!("{number} (user {})", socket_peercred(stream)?.uid.as_raw());
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut heard = chat.subscribe();
    // Sent to all others, who are there or not.
    let say = |text: &str| _ = chat.send((number, format!("{text}\n").into()));
    let mut others = stream;
    writeln!(others, "* you are {name}, and {} are here", chat.receiver_count())?;
    say(&format!("* {name} has come"));
    let read = dhaga::scope(|scope| {
        let writer = scope.spawn(|| {
            // It must not go on saying what it cannot hear.
            let _ = (write_lines(stream, number, &mut heard), stream.shutdown(Shutdown::Both));
        });
        let read = read_lines(stream, |line| say(&format!("{name}: {line}")));
        writer.cancel();
        read
    });
    say(&format!("* {name} has left"));
    read
}

fn read_lines(stream: &UnixStream, say: impl Fn(&str)) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let len = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if len == 0 {
            return Ok(());
        }
        if len as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            return Err(io::Error::new(ErrorKind::InvalidData, "a line is too long"));
        }
        // A control character could do as it likes with the terminals of others.
        let text = String::from_utf8_lossy(&line);
        say(text.trim_end().replace(char::is_control, "?").as_str());
    }
}

/// Writes what others say.
fn write_lines(mut stream: &UnixStream, number: u64, heard: &mut broadcast::Receiver<Said>) -> io::Result<()> {
    loop {
        match heard.recv() {
            Ok((who, line)) if who != number => stream.write_all(line.as_bytes())?,
            Ok(_) => {}
            Err(RecvError::Lagged(lost)) => writeln!(stream, "* you read too slowly, and lost {lost} lines")?,
            Err(RecvError::Disconnected | RecvError::Interrupted(_)) => return Ok(()),
        }
    }
}
