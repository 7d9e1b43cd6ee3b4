//! Each call ends once, with its own answer or an error, whatever races with what: answers that come late, twice, out of order
//! or for nobody, timeouts, cancels, connections that end.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga_rpc::frame::{Cutter, Progress};
use dhaga_rpc::message::Message;
use dhaga_rpc::{CallError, Client, Extensions, Limits, Server};
use serde_bytes::ByteBuf;

use crate::common::*;

/// Where calls are fast a million in all, each round within the deadline of a test.
const ROUNDS: u64 = if cfg!(debug_assertions) { 2 } else { 10 };
const CALLS_A_ROUND: u64 = if cfg!(debug_assertions) { 20_000 } else { 100_000 };
const CALLERS: u64 = 200;
/// As many as there are callers: one place that is lost is missed in the end.
const ROOM: usize = CALLERS as usize;

/// What a server does that nobody should rely on.
#[derive(Default)]
struct Whims {
    /// No more of them: each request is kept until it is seen that all are there, and then all are answered.
    is_reformed: AtomicBool,
    kept: AtomicUsize,
    answered_twice: AtomicU64,
    closed: AtomicU64,
}

/// A server that answers with the number it was sent: at once, later, in any order, twice, or never; that answers to ids which
/// nobody used, and that closes connections.
fn whimsical_server(whims: &Arc<Whims>, seed: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the kernel has a port");
    let address = listener.local_addr().expect("it is bound");
    let whims = whims.clone();
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let (whims, stream) = (whims.clone(), stream.expect("there are descriptors"));
            thread::spawn(move || Session::new(stream, seed << 32 | index as u64).run(&whims));
        }
    });
    address
}

struct Session {
    stream: TcpStream,
    seed: u64,
    /// Answers to come, in the order in which they may.
    owed: VecDeque<Vec<u8>>,
}

impl Session {
    fn new(stream: TcpStream, index: u64) -> Self {
        // Who is owed something must not wait for who asks for more.
        stream.set_read_timeout(Some(Duration::from_millis(2))).expect("it is not zero");
        stream.set_nodelay(true).expect("it is TCP");
        Self { stream, seed: 0x9e37_79b9_7f4a_7c15 ^ (index + 1), owed: VecDeque::new() }
    }

    fn run(mut self, whims: &Whims) {
        let limits = Limits::default();
        let (mut cutter, mut bytes, mut buffer) = (Cutter::new(&limits), Vec::new(), vec![0; 64 << 10]);
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            let (mut start, mut out) = (0, Vec::new());
            while let Ok(Progress::Whole { len }) = cutter.advance(&bytes[start..]) {
                let Ok(Message::Request { id, params, .. }) = Message::parse(&bytes[start..start + len], &limits)
                else {
                    panic!("a client sends requests");
                };
                let number = rmp_serde::from_slice::<(u64,)>(params).expect("its argument is a number").0;
                if !self.treat(whims, id, number, &mut out) {
                    whims.closed.fetch_add(1, Ordering::SeqCst);
                    let _ = self.stream.write_all(&out[..out.len() / 2]);
                    let _ = self.stream.shutdown(Shutdown::Both);
                    return;
                }
                start += len;
            }
            bytes.drain(..start);
            self.pay(whims, &mut out);
            if self.stream.write_all(&out).is_err() {
                return;
            }
        }
    }

    /// Returns whether the connection lives on.
    fn treat(&mut self, whims: &Whims, id: u32, number: u64, out: &mut Vec<u8>) -> bool {
        let right = answer(id, number);
        if whims.is_reformed.load(Ordering::SeqCst) {
            whims.kept.fetch_add(1, Ordering::SeqCst);
            self.owed.push_back(right);
            return true;
        }
        match next(&mut self.seed) % 1000 {
            0..400 => out.extend(right),
            400..700 => self.owed.push_back(right),
            700..800 => self.owed.push_front(right),
            800..850 => {
                whims.answered_twice.fetch_add(1, Ordering::SeqCst);
                out.extend([right.clone(), right].concat());
            }
            850..900 => {
                whims.answered_twice.fetch_add(1, Ordering::SeqCst);
                out.extend(&right);
                self.owed.push_back(right);
            }
            900..950 => {
                out.extend(answer(id.wrapping_add(1 << 20), u64::MAX));
                out.extend(right);
            }
            950..999 => {}
            _ => return false,
        }
        true
    }

    /// Answers what was put off: at times all, at times half.
    fn pay(&mut self, whims: &Whims, out: &mut Vec<u8>) {
        let count = match whims.is_reformed.load(Ordering::SeqCst) {
            true if whims.kept.load(Ordering::SeqCst) < ROOM => 0,
            true => self.owed.len(),
            false => self.owed.len() >> (next(&mut self.seed) % 2),
        };
        self.owed.drain(..count).for_each(|answer| out.extend(answer));
    }
}

#[derive(Debug, Default)]
struct Ends {
    answered: AtomicU64,
    late: AtomicU64,
    cancelled: AtomicU64,
    disconnected: AtomicU64,
}

impl Ends {
    fn count(&self, number: u64, end: &Result<u64, CallError>) {
        let counter = match end {
            Ok(back) => {
                assert_eq!(*back, number, "an answer that is another's");
                &self.answered
            }
            Err(CallError::DeadlineExceeded) => &self.late,
            Err(CallError::Cancelled) => &self.cancelled,
            Err(CallError::Disconnected { .. }) => &self.disconnected,
            Err(error) => panic!("{error:?}"),
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn sum(&self) -> u64 {
        [&self.answered, &self.late, &self.cancelled, &self.disconnected]
            .iter()
            .map(|count| count.load(Ordering::SeqCst))
            .sum()
    }
}

/// Makes calls one after the other: with timeouts of all lengths, and some of them in a dhaga of their own that is cancelled.
fn call_on(runtime: &Runtime, client: &Client, caller: u64, ends: &Ends) {
    let mut seed = (caller + 1).wrapping_mul(0x2545_f491_4f6c_dd1d);
    for call in 0..CALLS_A_ROUND / CALLERS {
        let number = caller << 32 | call;
        let timeout = Duration::from_micros(next(&mut seed) % 8000);
        let end = if next(&mut seed).is_multiple_of(8) {
            let client = client.clone();
            let calling = runtime.spawn(move || client.call_timeout::<_, u64>("number", (number,), timeout));
            (0..next(&mut seed) % 20).for_each(|_| dhaga::yield_now());
            calling.cancel();
            calling.join().expect("nobody panics")
        } else {
            client.call_timeout::<_, u64>("number", (number,), timeout)
        };
        ends.count(number, &end);
    }
}

/// Fills the table of the connection to its last place, all at once.
fn check_room(runtime: &Runtime, whims: &Whims, client: &Client) {
    whims.is_reformed.store(true, Ordering::SeqCst);
    let callers: Vec<_> = (0..ROOM as u64)
        .map(|number| {
            let client = client.clone();
            runtime.spawn(move || client.call_timeout::<_, u64>("number", (number,), PATIENCE))
        })
        .collect();
    for (number, caller) in callers.into_iter().enumerate() {
        let end = caller.join().expect("nobody panics");
        assert!(matches!(end, Ok(back) if back == number as u64), "{number}: {end:?}, {:?}", whims.kept);
    }
}

/// On one worker, and so on one connection at a time, whose places can be counted.
fn round(seed: u64) {
    let whims = Arc::new(Whims::default());
    let address = whimsical_server(&whims, seed);
    let runtime = Arc::new(Runtime::builder().workers(1).build().expect("the kernel gives threads"));
    let limits = Limits {
        calls_per_connection_max: ROOM,
        unknown_answers_per_second_max: u32::MAX,
        call_timeout: PATIENCE,
        ..Limits::default()
    };
    let builder = Client::builder().limits(limits).extensions(Extensions::Plain);
    let client = runtime.spawn(move || builder.connect(address)).join().expect("nobody panics");
    let client = client.expect("it listens");
    let ends = Arc::new(Ends::default());
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (inside, client, ends) = (runtime.clone(), client.clone(), ends.clone());
            runtime.spawn(move || call_on(&inside, &client, caller + seed * CALLERS, &ends))
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().expect("all its calls ended well"));
    assert_eq!(ends.sum(), CALLS_A_ROUND, "{ends:?}");
    let has_happened = [&ends.answered, &ends.late, &ends.cancelled, &ends.disconnected, &whims.answered_twice];
    assert!(has_happened.iter().all(|count| count.load(Ordering::SeqCst) > 0), "{ends:?}");
    check_room(&runtime, &whims, &client);
}

#[test]
fn each_call_ends_once_and_leaves_no_place_taken() {
    for seed in 0..ROUNDS {
        within_deadline(move || round(seed));
    }
}

/// Of those who call at the last moment.
const CALLERS_THEN: u64 = 50;
const CALLS_EACH: u64 = if cfg!(debug_assertions) { 200 } else { 1000 };

/// A server that answers at an instant that the caller names, in nanoseconds since `base`; and that holds who asks it to.
fn punctual_server(base: Instant, gate: &Gate) -> Server {
    let server = builder(gate).method("number at", move |number: u64, nanos: u64| {
        dhaga::sleep_until(base + Duration::from_nanos(nanos));
        Ok(number)
    });
    server.bind("127.0.0.1:0").expect("there is a port")
}

/// Makes calls whose answers come when their time is over. After each that was late the next answer is sent a good deal earlier,
/// and after each that was not a little later.
fn call_at_the_last_moment(client: &Client, base: Instant, caller: u64, ends: &Ends) {
    const TIMEOUT: Duration = Duration::from_millis(2);
    const STEP: Duration = Duration::from_micros(20);
    let (mut timeout, mut earlier) = (TIMEOUT, STEP);
    for call in 0..CALLS_EACH {
        let number = caller << 32 | call;
        let nanos = (Instant::now() + timeout - earlier - base).as_nanos() as u64;
        let end = client.call_timeout::<_, u64>("number at", (number, nanos), timeout);
        ends.count(number, &end);
        match end {
            Ok(_) => (timeout, earlier) = (TIMEOUT.max(timeout * 7 / 8).max(earlier), earlier * 3 / 4),
            Err(_) if earlier < timeout => earlier = timeout.min(earlier * 2 + STEP),
            // On a busy machine no answer comes in time, even if it is sent at once.
            Err(_) => timeout *= 2,
        }
    }
}

/// All calls share one connection, whose reader is on one of two workers: answer and timeout come from two threads.
fn round_at_the_last_moment() {
    let (base, gate) = (Instant::now(), Gate::default());
    let server = punctual_server(base, &gate);
    let runtime = Runtime::builder().workers(2).build().expect("the kernel gives threads");
    let limits = Limits { calls_per_connection_max: ROOM, ..Limits::default() };
    let builder = Client::builder().limits(limits).timeout(PATIENCE).extensions(Extensions::Plain);
    let (builder, address) = (builder.method("never called", || Ok(())), server.local_addr());
    let client = runtime.spawn(move || builder.connect(address)).join().expect("nobody panics");
    let client = client.expect("it listens");
    let ends = Arc::new(Ends::default());
    let callers: Vec<_> = (0..CALLERS_THEN)
        .map(|caller| {
            let (client, ends) = (client.clone(), ends.clone());
            runtime.spawn(move || call_at_the_last_moment(&client, base, caller, &ends))
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().expect("all its calls ended well"));
    let (answered, late) = (ends.answered.load(Ordering::SeqCst), ends.late.load(Ordering::SeqCst));
    let all = CALLERS_THEN * CALLS_EACH;
    assert!(answered + late == all && answered.min(late) > all / 50, "{ends:?}");
    let holding: Vec<_> = (0..ROOM)
        .map(|number| {
            let client = client.clone();
            runtime.spawn(move || client.call::<_, usize>("hold", (number,)))
        })
        .collect();
    eventually("each place is free", || gate.inside() == ROOM);
    gate.open();
    for (number, held) in holding.into_iter().enumerate() {
        assert_eq!(held.join().expect("nobody panics").ok(), Some(number));
    }
}

#[test]
fn an_answer_at_the_instant_of_the_timeout_is_taken_or_not_and_goes_to_nobody_else() {
    for _ in 0..ROUNDS {
        within_deadline(round_at_the_last_moment);
    }
}

/// A connection whose peer reads nothing fills up with calls. They end in time, and what they would have sent goes with the
/// connection: the next one carries only what lives.
#[test]
fn what_dead_calls_have_not_sent_goes_with_their_connection() {
    const BYTES: usize = 256 << 10;
    within_deadline(|| {
        let (let_go, is_let_go) = mpsc::channel::<()>();
        let mut first = true;
        let address = foreign_server(2, move |mut peer| {
            if std::mem::take(&mut first) {
                let _ = is_let_go.recv();
                return;
            }
            let mut bytes = 0;
            while let Ok(message) = rmpv::decode::read_value(&mut peer.0) {
                let number = message.as_array().and_then(|parts| parts[3].as_array()?[0].as_u64());
                bytes += 1;
                assert_eq!((number, bytes), (Some(99), 1), "a dead call was sent again");
                let id = message.as_array().and_then(|parts| parts[1].as_u64()).expect("it has an id");
                peer.send(&answer(id as u32, 99));
            }
        });
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let builder = Client::builder().timeout(PATIENCE).extensions(Extensions::Plain);
        let client = runtime.spawn(move || builder.connect(address)).join().expect("nobody panics");
        let client = client.expect("it listens");
        let callers: Vec<_> = (0..64_u64)
            .map(|number| {
                let client = client.clone();
                let params = (number, ByteBuf::from(vec![7; BYTES]));
                runtime.spawn(move || client.call_timeout::<_, u64>("number", params, Duration::from_millis(200)))
            })
            .collect();
        for caller in callers {
            let end = caller.join().expect("nobody panics");
            assert!(matches!(end, Err(CallError::DeadlineExceeded | CallError::Overloaded { .. })), "{end:?}");
        }
        drop(let_go);
        eventually("the client knows", || client.connections() == 0);
        let calling = client.clone();
        let end = runtime.spawn(move || calling.call::<_, u64>("number", (99,))).join().expect("nobody panics");
        assert!(matches!(end, Ok(99)), "{end:?}");
    });
}
