//! How fast can MessagePack-RPC be on one thread, with nothing but an event loop, a coroutine a
//! request, and serde?
//!
//! The limit that an RPC library is held against. It does what no honest server can leave out: cut
//! each request, decode its params to an owned value, run the handler on a stack of its own, encode
//! the result. All answers of a turn leave in one write a connection.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use clap::Parser;
use corosensei::Coroutine;
use corosensei::stack::DefaultStack;
use dhaga_benches::doze::Doze;
use dhaga_benches::event_loop::{Connection, Next, serve_forever};
use dhaga_benches::machine;
use dhaga_benches::payload::Payload;
use dhaga_benches::wire::{self, Stop};

/// The bare loop for MessagePack-RPC: one thread, no tasks, one method `echo` of one string or
/// binary. Runs until it is killed.
#[derive(Parser)]
struct Options {
    /// Where to listen, for example 127.0.0.1:7000.
    #[arg(long)]
    addr: SocketAddr,
    /// The processor to stay on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Poll for so many microseconds after useful work before blocking; 0 blocks at once.
    #[arg(long, default_value_t = 0)]
    doze_us: u64,
}

/// One read takes what a pipelining client sends while the last one is answered, and the answers
/// still fit the second-level cache.
const READ_BYTES: usize = 64 << 10;

/// The handler is shallow.
const STACK_BYTES: usize = 64 << 10;

fn main() -> io::Result<()> {
    let options = Options::parse();
    options.cpu.map(machine::pin_to).transpose()?;
    machine::raise_open_files()?;
    let mut service = Service::new()?;
    serve_forever(options.addr, Doze::new(Duration::from_micros(options.doze_us)), |connection| {
        service.serve(connection)
    })
}

/// What all connections use in turn.
struct Service {
    /// Runs each request, and rests in between.
    handler: Coroutine<Job, Job, (), DefaultStack>,
    /// The bytes read; at rest here, in the job while a request runs.
    input: Vec<u8>,
    /// The answers of this turn; likewise.
    output: Vec<u8>,
}

/// A request on its way into the coroutine, or an answer on its way out.
struct Job {
    id: u32,
    params: Range<usize>,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// The bytes of a request that has not come whole.
type Unread = Vec<u8>;

impl Service {
    fn new() -> io::Result<Service> {
        let handler = Coroutine::with_stack(DefaultStack::new(STACK_BYTES)?, |yielder, mut job: Job| {
            loop {
                echo(&mut job);
                job = yielder.suspend(job);
            }
        });
        Ok(Service { handler, input: vec![0; READ_BYTES], output: Vec::with_capacity(READ_BYTES) })
    }

    /// One read, all its requests, one write.
    fn serve(&mut self, connection: &mut Connection<Unread>) -> io::Result<Next> {
        // What another connection has left that broke before it could be sent is nothing for this one.
        self.output.clear();
        let kept = connection.state.len();
        self.input[..kept].copy_from_slice(&connection.state);
        let room = &mut self.input[kept..];
        let count = match connection.stream.read(room) {
            Ok(0) => return Ok(Next::Close),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if count < room.len() {
            connection.readiness.note_short_read();
        }
        let end = kept + count;
        let Ok(done) = self.answer_all(end) else {
            return Ok(Next::Close);
        };
        self.keep_rest(done..end, &mut connection.state)?;
        connection.outgoing.send(&mut connection.stream, &self.output)?;
        Ok(if connection.readiness.readable { Next::ServeAgain } else { Next::AwaitEvent })
    }

    /// Answers each whole request in the first `end` bytes of input; returns where the rest begins.
    fn answer_all(&mut self, end: usize) -> Result<usize, Stop> {
        let mut at = 0;
        while at < end {
            let request = match wire::cut_request(&self.input[at..end]) {
                Ok(request) => request,
                Err(Stop::Incomplete) => break,
                Err(Stop::Malformed) => return Err(Stop::Malformed),
            };
            let next = at + request.message_bytes;
            if request.method == b"echo" {
                // The params are the last part of a request.
                let params = next - request.params.len()..next;
                let id = request.id;
                self.run(id, params);
            } else {
                wire::push_error_answer(&mut self.output, request.id, "no such method");
            }
            at = next;
        }
        Ok(at)
    }

    #[inline]
    fn run(&mut self, id: u32, params: Range<usize>) {
        let (input, output) = (std::mem::take(&mut self.input), std::mem::take(&mut self.output));
        let job =
            self.handler.resume(Job { id, params, input, output }).as_yield().expect("the handler's loop has no end");
        self.input = job.input;
        self.output = job.output;
    }

    /// Leaves an unfinished request with its connection, which mostly has none.
    fn keep_rest(&self, rest: Range<usize>, unread: &mut Unread) -> io::Result<()> {
        if rest.len() == self.input.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request is larger than the read buffer"));
        }
        unread.clear();
        unread.extend_from_slice(&self.input[rest]);
        Ok(())
    }
}

/// The handler: an owned value in, the same value out.
#[inline]
fn echo(job: &mut Job) {
    match rmp_serde::from_slice::<(Payload,)>(&job.input[job.params.clone()]) {
        Ok((payload,)) => {
            wire::begin_answer(&mut job.output, job.id);
            rmp_serde::encode::write(&mut job.output, &payload).expect("a vector takes all that is written to it");
        }
        Err(_) => wire::push_error_answer(&mut job.output, job.id, "echo takes one string or binary"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use dhaga_benches::dial::rpc_call;
    use dhaga_benches::outgoing::Outgoing;
    use dhaga_benches::readiness::Readiness;
    use dhaga_benches::wire::{EchoRequest, PayloadKind};

    use super::*;

    /// A connection of the server's, and its peer.
    fn pair() -> io::Result<(Connection<Unread>, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let peer = TcpStream::connect(listener.local_addr()?)?;
        peer.set_read_timeout(Some(Duration::from_secs(30)))?;
        let (stream, readiness) = (mio::net::TcpStream::from_std(listener.accept()?.0), Readiness::default());
        Ok((Connection { stream, readiness, outgoing: Outgoing::default(), state: Unread::new() }, peer))
    }

    #[test]
    fn nobody_gets_the_answers_of_a_connection_that_broke() -> io::Result<()> {
        let mut service = Service::new()?;
        let (mut broken, mut peer) = pair()?;
        let mut bytes = Vec::new();
        EchoRequest::new(PayloadKind::Binary, 32).push(&mut bytes, 7);
        bytes.push(0xc1);
        peer.write_all(&bytes)?;
        assert_eq!(service.serve(&mut broken)?, Next::Close);
        let (mut sound, mut peer) = pair()?;
        let calling = std::thread::spawn(move || rpc_call(&mut peer, PayloadKind::Binary));
        service.serve(&mut sound)?;
        calling.join().expect("it does not panic")
    }
}
