//! A DNS relay over UDP: takes queries, asks another server, and hands its answers back. A dhaga for each query, which waits
//! for its answer as if it were alone.
//!
//! Run:  cargo run --release -p dhaga-examples --example udp_dns_relay -- --upstream 9.9.9.9:53
//! Then: dig @127.0.0.1 -p PORT example.org    with the port that it prints
//!
//! Towards the other server each query has an id of its own, so that two clients with the same id get their own answers. Only
//! an answer with the id and the question of a query that waits is handed back. A query that is not answered in time is
//! answered with SERVFAIL, and so is one that comes when too many wait already.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::error::Error;
use std::hash::BuildHasher;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use dhaga::net::UdpSocket;
use dhaga::sync::{Mutex, MutexGuard, PoisonError, oneshot};

/// Bytes of a datagram: more than any that DNS sends over UDP.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// Bytes of the header: id, flags, and four counts.
const HEADER_BYTES: usize = 12;
/// Bytes of a question behind its name: type and class.
const QUESTION_TAIL_BYTES: usize = 4;
/// Bytes of a name, as RFC 1035 limits it.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of a label. A length with one of the two bits above is a pointer, of which a question has none.
const LABEL_BYTES_MAX: usize = 63;
/// In the third byte of the header: this is an answer.
const ANSWER: u8 = 0x80;
const FORMAT_ERROR: u8 = 1;
const SERVER_FAILURE: u8 = 2;
/// The smallest stack there is: a query's datagrams lie on the heap.
const STACK_BYTES: usize = 64 << 10;
/// How long to wait when a socket fails, before it is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// Relays DNS queries over UDP.
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:0")]
    addr: String,
    /// The server that is asked: IP:PORT
    #[arg(long)]
    upstream: SocketAddr,
    /// How long the server may take, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    timeout_ms: u64,
    /// Queries that may wait at once; more of them fail
    #[arg(long, value_name = "N", default_value_t = 4_096, value_parser = clap::value_parser!(u16).range(1..))]
    pending: u16,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let clients = UdpSocket::bind(&options.addr)
        .map_err(|error| format!("cannot listen on {}: {error}; choose another with --addr", options.addr))?;
    println!("listening on {}", clients.local_addr()?);
    let any = if options.upstream.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let upstream = UdpSocket::bind(any)?;
    upstream.connect(options.upstream)?;
    let timeout = Duration::from_millis(options.timeout_ms);
    let relay = Relay { clients, upstream, pending: Mutex::default(), pending_max: options.pending.into(), timeout };
    let relay = Arc::new(relay);
    let answering = relay.clone();
    dhaga::spawn(move || answering.take_answers()).detach();
    dhaga::spawn(move || relay.take_queries()).join()?;
    Ok(())
}

struct Relay {
    clients: UdpSocket,
    upstream: UdpSocket,
    /// Who waits for the answer with an id.
    pending: Mutex<HashMap<u16, Waiting>>,
    pending_max: usize,
    timeout: Duration,
}

struct Waiting {
    question: Box<[u8]>,
    answer: oneshot::Sender<Vec<u8>>,
}

impl Relay {
    fn take_queries(self: &Arc<Self>) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let Ok((len, client)) = self.clients.recv_from(&mut buffer) else {
                dhaga::sleep(PAUSE);
                continue;
            };
            let query = &buffer[..len];
            if len < HEADER_BYTES || query[2] & ANSWER != 0 {
                continue;
            }
            self.start(query, client);
        }
    }

    /// Gives a query its dhaga, or fails it at once.
    fn start(self: &Arc<Self>, query: &[u8], client: SocketAddr) {
        let Some(question) = question(query) else {
            return self.send(&failure(query, HEADER_BYTES, FORMAT_ERROR), client);
        };
        let Some((id, answer)) = self.enter(&query[question.clone()]) else {
            return self.send(&failure(query, question.end, SERVER_FAILURE), client);
        };
        let (relay, asked, end) = (self.clone(), query.to_vec(), question.end);
        let serve = move || {
            let answer = relay.ask(&asked, id, answer);
            // No longer awaited, whether it has come or not.
            lock(&relay.pending).remove(&id);
            relay.send(&answer.unwrap_or_else(|| failure(&asked, end, SERVER_FAILURE)), client);
        };
        match dhaga::Builder::new().stack_size(STACK_BYTES).spawn(serve) {
            Ok(serving) => serving.detach(),
            Err(_) => {
                lock(&self.pending).remove(&id);
                self.send(&failure(query, end, SERVER_FAILURE), client);
            }
        }
    }

    /// Finds an id for a question. `None`: too many wait already.
    fn enter(&self, question: &[u8]) -> Option<(u16, oneshot::Receiver<Vec<u8>>)> {
        let mut pending = lock(&self.pending);
        if pending.len() >= self.pending_max {
            return None;
        }
        let (answer, receiver) = oneshot::channel();
        loop {
            let id = random();
            if let Entry::Vacant(place) = pending.entry(id) {
                place.insert(Waiting { question: question.into(), answer });
                return Some((id, receiver));
            }
        }
    }

    /// Asks the other server and waits for its answer, which gets the id that the client has chosen.
    fn ask(&self, query: &[u8], id: u16, mut answer: oneshot::Receiver<Vec<u8>>) -> Option<Vec<u8>> {
        self.upstream.send(&with_id(query.to_vec(), id.to_be_bytes())).ok()?;
        let answer = answer.recv_timeout(self.timeout).ok()?;
        Some(with_id(answer, [query[0], query[1]]))
    }

    fn take_answers(&self) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match self.upstream.recv(&mut buffer) {
                Ok(len) => self.take(&buffer[..len]),
                // Nobody is there, or not yet; who asked runs out of time.
                Err(_) => dhaga::sleep(PAUSE),
            }
        }
    }

    /// Hands an answer to who waits for it. What nobody waits for is dropped: it came late, or is forged.
    fn take(&self, answer: &[u8]) {
        let Some(question) = question(answer).filter(|_| answer[2] & ANSWER != 0) else { return };
        let id = u16::from_be_bytes([answer[0], answer[1]]);
        let mut pending = lock(&self.pending);
        if let Entry::Occupied(waiting) = pending.entry(id)
            && waiting.get().question.eq_ignore_ascii_case(&answer[question])
        {
            // It fails only if the time is over just now.
            let _ = waiting.remove().answer.send(answer.to_vec());
        }
    }

    fn send(&self, datagram: &[u8], client: SocketAddr) {
        // A client that cannot be reached asks again, or not.
        let _: io::Result<usize> = self.clients.send_to(datagram, client);
    }
}

/// Where the only question of a message lies, if it has one.
fn question(message: &[u8]) -> Option<Range<usize>> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER_BYTES;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1 + len;
        if len > LABEL_BYTES_MAX || at > HEADER_BYTES + NAME_BYTES_MAX {
            return None;
        }
        if len == 0 {
            let end = at + QUESTION_TAIL_BYTES;
            return (end <= message.len()).then_some(HEADER_BYTES..end);
        }
    }
}

/// The answer that there is none: the query up to `end`, marked as an answer, with nothing behind its question.
fn failure(query: &[u8], end: usize, code: u8) -> Vec<u8> {
    let mut answer = query[..end].to_vec();
    answer[2] |= ANSWER;
    answer[3] = code;
    let questions = u8::from(end > HEADER_BYTES);
    answer[4..HEADER_BYTES].copy_from_slice(&[0, questions, 0, 0, 0, 0, 0, 0]);
    answer
}

fn with_id(mut message: Vec<u8>, id: [u8; 2]) -> Vec<u8> {
    message[..2].copy_from_slice(&id);
    message
}

/// Hard to guess for who would forge an answer: std seeds each state of its hash maps anew.
fn random() -> u16 {
    RandomState::new().hash_one(0) as u16
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
