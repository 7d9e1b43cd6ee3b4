//! Many peers at once who mean no good: each is held to its share, what they cost is bounded, and others go on.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga_rpc::limits::QUEUED_BYTES_MAX;
use dhaga_rpc::{HandlerError, Limits, Server, Value};
use serde::Deserialize;

use crate::common::*;

/// Memory that a peer may cost beyond what it has sent and we still work on.
const BYTES_EACH_MAX: usize = 1 << 20;
/// What the process takes and gives back by itself, threads of the test included.
const NOISE_BYTES: usize = 24 << 20;

fn check_growth(before: usize, peers: usize, bytes_each: usize) {
    let after = resident_bytes();
    let most = before + NOISE_BYTES + peers * bytes_each;
    assert!(after < most, "from {before} to {after} bytes by {peers} peers");
}

fn none_is_left(server: &Server) {
    eventually("nothing is left", || (server.stats().connections, server.stats().in_flight) == (0, 0));
}

/// Each begins what would be far too large, and waits for what becomes of it.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let argument = |bytes: &[u8]| [&[0x94, 0, 1, 0xa4], &b"echo"[..], &[0x91], bytes].concat();
    let claim = |marker: u8| argument(&[&[marker, 0xff, 0xff, 0xff, 0xff], &[0x91; 1000][..]].concat());
    let pairs =
        [&[0x94, 0, 1, 0xa4], &b"echo"[..], &[0x91, 0xdf, 0, 1, 0, 0], &[0xa1, b'k', 0xc0].repeat(1 << 16)].concat();
    vec![
        ("a depth of a million", argument(&vec![0x91; 1_000_000])),
        ("a depth of a million maps", argument(&vec![0x81; 1_000_000])),
        ("str", claim(0xdb)),
        ("bin", claim(0xc6)),
        ("array", claim(0xdd)),
        ("map", claim(0xdf)),
        ("ext", claim(0xc9)),
        ("an ext of five bytes", argument(&[0xc7, 2, 5, 1, 1])),
        ("0xc1", argument(&[0xc1])),
        ("one key 65 536 times", pairs),
        ("a claim just below the limit", argument(&[0xc6, 0, 0x7f, 0xff, 0])),
        ("as many values as are allowed", argument(&[0xdd, 0, 0x0f, 0xff, 0x00])),
    ]
}

#[test]
fn a_bomb_costs_no_more_than_a_mebibyte_while_its_connection_lives() {
    const PEERS: usize = 40;
    in_child(name_of!(a_bomb_costs_no_more_than_a_mebibyte_while_its_connection_lives), 1024, || {
        let server = serve(&Gate::default());
        for (name, bytes) in bombs() {
            println!("{name}");
            let bystander = Bystander::at(&server);
            let before = resident_bytes();
            let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
            peers.iter_mut().for_each(|peer| peer.send_to_whom_it_may_concern(&bytes));
            // What was sent after it is looked at after it: its connection is closed by then, or still waits for the rest.
            bystander.has_not_noticed();
            check_growth(before, PEERS, BYTES_EACH_MAX);
            drop(peers);
            none_is_left(&server);
        }
    });
}

/// A nil takes a byte on the wire, and as an element of this type 128 in memory.
#[derive(Deserialize)]
struct Fat {
    #[allow(dead_code)]
    numbers: [u64; 16],
}

/// Bytes alone do not bound what is made of them: `Limits::elements_max` does, and frames of one connection that are large
/// come one by one.
#[test]
fn nils_become_no_more_than_as_many_values_as_are_allowed() {
    const VALUES: usize = 1 << 16;
    const FRAMES: u32 = 16;
    in_child(name_of!(nils_become_no_more_than_as_many_values_as_are_allowed), 1024, || {
        let gate = Gate::default();
        let held = gate.clone();
        let fat = move |values: Vec<Option<Fat>>| {
            held.wait();
            Ok(values.len())
        };
        let limits = Limits { elements_max: VALUES as u32, queued_bytes_max: VALUES, ..Limits::default() };
        let server = builder(&gate).method("fat", fat).limits(limits).bind("127.0.0.1:0").expect("there is a port");
        let nils = |count: usize| [&[0xdd][..], &(count as u32).to_be_bytes(), &vec![0xc0; count]].concat();
        let request = |id: u32, count: usize| {
            let head = [&[0x94, 0, id as u8, 0xa3], &b"fat"[..], &[0x91]].concat();
            [head, nils(count)].concat()
        };
        let before = resident_bytes();
        let fits = VALUES - 10;
        let mut peer = Peer::connect(server.local_addr());
        let frames: Vec<u8> = (1..=FRAMES).flat_map(|id| request(id, fits)).collect();
        peer.send(&frames);
        for id in 1..=FRAMES {
            eventually("the next one runs", || gate.arrived() == id as usize);
            assert_eq!((gate.inside(), server.stats().in_flight), (1, 1), "frames that large run one by one");
            check_growth(before, 1, 4 * VALUES * size_of::<Option<Fat>>());
            gate.admit(1);
            assert_eq!(peer.receive_answer(), (id, Ok(fits.into())));
        }
        peer.send_to_whom_it_may_concern(&request(1, VALUES));
        peer.expect_end_some_time();
        assert_eq!(server.stats().closed_for_fault, 1);
    });
}

/// Peers on threads of their own, who send the same again and again until they are stopped or closed.
struct Flood {
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
    senders: Vec<JoinHandle<Peer>>,
}

impl Flood {
    /// `chunk` holds whole messages. Answers are read, and forgotten, or not read at all.
    fn start(server: &Server, peers: usize, chunk: &[u8], reads: Reads) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let [sent, answered] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let senders = (0..peers).map(|_| {
            let (is_over, chunk) = (is_over.clone(), chunk.to_vec());
            let (sent, answered) = (sent.clone(), answered.clone());
            let mut peer = Peer::connect(server.local_addr());
            if reads == Reads::Nothing {
                // Closed with an answer that nobody has read, a socket is reset: what it still holds is not worked off.
                peer.send(&request(77, "add", vec![1.into(), 2.into()]));
            }
            thread::spawn(move || flood(peer, &chunk, reads, &is_over, [&sent, &answered]))
        });
        Self { senders: senders.collect(), is_over, sent, answered }
    }

    /// How many bytes were taken from all of them.
    fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// How many bytes came back to those who read.
    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    fn stop(self) -> Vec<Peer> {
        self.is_over.store(true, Ordering::SeqCst);
        self.senders.into_iter().map(|sender| sender.join().expect("a flood does not panic")).collect()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Reads {
    All,
    Nothing,
}

fn flood(
    mut peer: Peer,
    chunk: &[u8],
    reads: Reads,
    is_over: &AtomicBool,
    [sent, answered]: [&AtomicUsize; 2],
) -> Peer {
    peer.0.set_nonblocking(true).expect("it is a socket");
    let (mut rest, mut buffer) = (chunk, vec![0; 64 << 10]);
    let mut read = |peer: &mut Peer| peer.0.read(&mut buffer).unwrap_or(0);
    while !is_over.load(Ordering::SeqCst) {
        match peer.0.write(rest) {
            Ok(count) => {
                sent.fetch_add(count, Ordering::SeqCst);
                rest = if count == rest.len() { chunk } else { &rest[count..] };
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(_) => break,
        }
        while reads == Reads::All
            && let count @ 1.. = read(&mut peer)
        {
            answered.fetch_add(count, Ordering::SeqCst);
        }
    }
    peer
}

fn notice(method: &str) -> Vec<u8> {
    bytes_of(&Value::Array(vec![2.into(), method.into(), Value::Array(vec![])]))
}

/// Calls of a client that does as it should, until so much of a flood was taken.
fn behave_during(server: &Server, flood: &Flood, bytes: usize) {
    let mut behaving = Peer::connect(server.local_addr());
    let mut id = 0;
    eventually("the flood has come", || {
        id += 1;
        assert_eq!(behaving.ask(id, "add", vec![id.into(), 1.into()]), Ok((id + 1).into()));
        flood.sent() > bytes
    });
}

/// Has peers send as much as their sockets take while the one worker stands still, in a handler that waits outside of the
/// runtime; and again when each was served for the first time. How many are served further before one who asks for little?
#[test]
fn who_asks_for_little_does_not_wait_until_all_are_served_who_ask_for_much() {
    const HOGS: usize = 40;
    within_deadline(|| {
        let served: Arc<[AtomicUsize; HOGS]> = Arc::new([const { AtomicUsize::new(0) }; HOGS]);
        let [count, look] = [(); 2].map(|()| served.clone());
        let (standing, stands) = mpsc::channel();
        let (goes_on, go_on) = mpsc::channel();
        let stand_still = Arc::new(Mutex::new(Some((standing, go_on))));
        let stop = stand_still.clone();
        let before = Arc::new(Mutex::new(None));
        let has_changed = before.clone();
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let server = builder(&Gate::default())
            .method("stop", move || {
                let stop = stop.lock().expect("nobody panics");
                let (standing, go_on) = stop.as_ref().expect("it is there until it ends");
                standing.send(()).expect("the test waits");
                go_on.recv().expect("the test goes on");
                Ok::<_, HandlerError>(())
            })
            .method("count", move |hog: usize| {
                count[hog].fetch_add(1, Ordering::SeqCst);
                let now = count.each_ref().map(|served| served.load(Ordering::SeqCst));
                let mut before = before.lock().expect("nobody panics");
                if before.is_none() && now.iter().all(|served| *served > 0) {
                    *before = Some(now);
                    let (standing, go_on) = stand_still.lock().expect("nobody panics").take().expect("it comes once");
                    standing.send(()).expect("the test waits");
                    go_on.recv().expect("the test goes on");
                }
                Ok::<_, HandlerError>(())
            })
            .method("look", move || {
                let before = has_changed.lock().expect("nobody panics").expect("all were served");
                let now = look.each_ref().map(|served| served.load(Ordering::SeqCst));
                Ok(now.iter().zip(before).filter(|(now, before)| **now > *before).count())
            })
            .bind_on(&runtime, "127.0.0.1:0")
            .expect("there is a port");
        let [mut control, mut light] = [(); 2].map(|()| Peer::connect(server.local_addr()));
        for id in 1..4 {
            assert_eq!(light.ask(id, "add", vec![1.into(), 2.into()]), Ok(3.into()), "it is no stranger");
        }
        let mut hogs: Vec<_> = (0..HOGS).map(|_| Peer::connect(server.local_addr())).collect();
        for hog in &mut hogs {
            assert_eq!(hog.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        }
        control.send(&request(1, "stop", vec![]));
        stands.recv().expect("the server stands still");
        for (index, hog) in hogs.iter_mut().enumerate() {
            fill(hog, &notification("count", vec![index.into()]).repeat(1000));
        }
        goes_on.send(()).expect("the server waits");
        stands.recv().expect("the server stands still");
        light.send(&request(4, "look", vec![]));
        goes_on.send(()).expect("the server waits");
        let (_, served) = light.receive_answer();
        let served = served.expect("it looks").as_u64().expect("it counts");
        assert!(served < HOGS as u64 / 2, "{served} of {HOGS} went first");
        drop((hogs, runtime));
    });
}

/// Sends whole messages for as long as the socket takes them, and no more than it takes.
fn fill(peer: &mut Peer, chunk: &[u8]) {
    peer.0.set_nonblocking(true).expect("it is a socket");
    while let Ok(count) = peer.0.write(chunk)
        && count == chunk.len()
    {}
}

#[test]
fn a_flood_of_the_smallest_frames_runs_no_more_handlers_than_allowed() {
    const PEERS: usize = 20;
    const EACH: usize = 16;
    in_child(name_of!(a_flood_of_the_smallest_frames_runs_no_more_handlers_than_allowed), 1024, || {
        let gate = Gate::default();
        let limits = Limits { in_flight_per_connection_max: EACH, ..Limits::default() };
        let server = serve_within(limits, &gate);
        let before = resident_bytes();
        let flood = Flood::start(&server, PEERS, &notice("hold").repeat(1000), Reads::Nothing);
        eventually("all have their share", || gate.inside() == PEERS * EACH);
        // They are not read any further: others are, and the sockets of the flood fill up.
        behave_during(&server, &flood, PEERS * (16 << 10));
        assert_eq!((gate.most_inside(), server.stats().in_flight), (PEERS * EACH, PEERS * EACH));
        check_growth(before, PEERS, BYTES_EACH_MAX);
        gate.open();
        let taken = flood.sent();
        behave_during(&server, &flood, taken + (1 << 20));
        assert!(gate.most_inside() <= PEERS * EACH, "{} ran at once", gate.most_inside());
        check_growth(before, PEERS, BYTES_EACH_MAX);
        drop(flood.stop());
        none_is_left(&server);
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

/// What is taken back at once has cost a handler all the same, and is counted until its answer is sent.
#[test]
fn a_flood_of_requests_that_are_taken_back_runs_no_more_handlers_than_allowed() {
    const PEERS: usize = 10;
    const EACH: usize = 16;
    in_child(name_of!(a_flood_of_requests_that_are_taken_back_runs_no_more_handlers_than_allowed), 1024, || {
        let limits = Limits { in_flight_per_connection_max: EACH, ..Limits::default() };
        let server = serve_within(limits, &Gate::default());
        let caps = Value::Array(vec!["cancel".into()]);
        let hello = Value::Map(vec![("v".into(), 1.into()), ("caps".into(), caps)]);
        let mut chunk = request(0, "$/hello", vec![hello]);
        for id in 1..1000 {
            let cancel =
                Value::Array(vec![2.into(), "$/cancelRequest".into(), Value::Array(vec![0.into(), id.into()])]);
            chunk.extend(request(id, "sleep", vec![100_000.into(), 1.into()]));
            chunk.extend(bytes_of(&cancel));
        }
        let before = resident_bytes();
        let flood = Flood::start(&server, PEERS, &chunk, Reads::All);
        let mut behaving = Peer::connect(server.local_addr());
        let mut id = 0;
        eventually("the flood was answered", || {
            id += 1;
            assert_eq!(behaving.ask(id, "add", vec![id.into(), 1.into()]), Ok((id + 1).into()));
            let in_flight = server.stats().in_flight;
            assert!(in_flight <= PEERS * EACH + 1, "{in_flight} run");
            flood.answered() > 1 << 20
        });
        check_growth(before, PEERS, BYTES_EACH_MAX);
        drop((behaving, flood.stop()));
        none_is_left(&server);
        assert_eq!(server.stats().closed_for_fault, 0);
    });
}

#[test]
fn floods_that_nobody_serves_cost_no_memory() {
    const PEERS: usize = 20;
    in_child(name_of!(floods_that_nobody_serves_cost_no_memory), 1024, || {
        let server = serve(&Gate::default());
        let broken = bytes_of(&Value::Array(vec![0.into(), 1.into()]));
        let floods = [
            ("notifications for nobody", notice("n"), Reads::Nothing, 2 << 20),
            ("answers to nothing", answer(1, 1), Reads::Nothing, 2 << 20),
            ("requests for nothing", request(1, "", vec![]), Reads::All, 1 << 20),
            ("requests for nothing whose answers nobody reads", request(1, "", vec![]), Reads::Nothing, 2 << 20),
            ("no requests at all, whose answers nobody reads", broken, Reads::Nothing, 2 << 20),
            ("panics", request(1, "panic", vec![]), Reads::All, 64 << 10),
        ];
        for (name, message, reads, bytes) in floods {
            println!("{name}");
            let before = resident_bytes();
            let flood = Flood::start(&server, PEERS, &message.repeat(1000), reads);
            behave_during(&server, &flood, bytes);
            // One read may bring refusals of several times its size; after it nothing more is read.
            check_growth(before, PEERS, 4 * BYTES_EACH_MAX);
            drop(flood.stop());
            none_is_left(&server);
        }
    });
}

#[test]
fn of_many_readers_a_tenth_that_stops_costs_what_is_allowed_and_keeps_nobody() {
    const PEERS: usize = 200;
    const STOPPED: usize = PEERS / 10;
    const UNSENT: usize = 64 << 10;
    in_child(name_of!(of_many_readers_a_tenth_that_stops_costs_what_is_allowed_and_keeps_nobody), 1024, || {
        let limits = Limits { unsent_bytes_max: UNSENT, in_flight_per_connection_max: 8, ..Limits::default() };
        let server = serve_within(limits, &Gate::default());
        let mut stopped: Vec<_> = (0..STOPPED).map(|_| Peer::connect(server.local_addr())).collect();
        let mut reading: Vec<_> = (STOPPED..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
        let before = resident_bytes();
        let blobs: Vec<u8> = (0..400).flat_map(|id| request(id, "blob", vec![(64 << 10).into()])).collect();
        stopped.iter_mut().for_each(|peer| peer.send(&blobs));
        for round in 0..10 {
            for peer in &mut reading {
                peer.send(&request(round, "blob", vec![1000.into()]));
            }
            for peer in &mut reading {
                let (id, blob) = peer.receive_answer();
                assert_eq!((id, blob.ok().and_then(|blob| blob.as_slice().map(<[u8]>::len))), (round, Some(1000)));
            }
        }
        let stats = server.stats();
        assert!(stats.in_flight <= STOPPED * 8, "{stats:?}");
        // Unsent, in the hands of a writer, and one answer that was under way.
        check_growth(before, STOPPED, (64 << 10) + 4 * UNSENT);
        drop((stopped, reading));
        none_is_left(&server);
    });
}

/// Who has asked for a thousand large answers, and reads none or few at a time, gets them made as it reads: they wait neither as
/// unsent bytes up to the limit nor with as many dhagas that have answered and wait for their turn.
#[test]
fn large_answers_that_are_read_slowly_or_never_cost_little() {
    const PEERS: usize = 60;
    const BYTES_EACH: usize = 512 << 10;
    in_child(name_of!(large_answers_that_are_read_slowly_or_never_cost_little), 1024, || {
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let server = builder(&Gate::default()).bind_on(&runtime, "127.0.0.1:0").expect("there is a port");
        let blobs: Vec<u8> = (0..1000).flat_map(|id| request(id, "blob", vec![(64 << 10).into()])).collect();
        let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
        Bystander::at(&server).has_not_noticed();
        let before = resident_bytes();
        peers.iter_mut().for_each(|peer| peer.send(&blobs));
        for _ in 0..10 {
            peers.iter_mut().step_by(2).for_each(|peer| drop(peer.receive_bytes(1 << 20)));
            check_growth(before, PEERS, BYTES_EACH);
        }
        Bystander::at(&server).has_not_noticed();
        drop(peers);
        none_is_left(&server);
    });
}

#[test]
fn peers_that_stall_are_all_closed_in_time_and_cost_little() {
    const PEERS: usize = 400;
    const BYTES_EACH: usize = 8 << 10;
    in_child(name_of!(peers_that_stall_are_all_closed_in_time_and_cost_little), 1024, || {
        let within = Duration::from_secs(2);
        let limits = Limits { first_frame_within: within, frame_must_grow_within: within, ..Limits::default() };
        let server = serve_within(limits, &Gate::default());
        let before = resident_bytes();
        let since = Instant::now();
        let message = request(1, "echo", vec!["a text of some length".into()]);
        let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
        // A third sends nothing, a third a byte, a third some of a frame and then some more.
        for (index, peer) in peers.iter_mut().enumerate() {
            peer.send_to_whom_it_may_concern(&message[..index % 3 * 5]);
        }
        let mut behaving = Peer::connect(server.local_addr());
        let mut id = 0;
        eventually("all are closed", || {
            id += 1;
            assert_eq!(behaving.ask(id, "add", vec![id.into(), 1.into()]), Ok((id + 1).into()));
            check_growth(before, PEERS, BYTES_EACH);
            server.stats().closed_for_fault == PEERS as u64
        });
        let elapsed = since.elapsed();
        assert!(elapsed >= within && elapsed < within + Duration::from_secs(8), "closed after {elapsed:?}");
        eventually("one is left", || server.stats().connections == 1);
        peers.iter_mut().for_each(Peer::expect_end);
    });
}

/// A request that was read is charged at what it takes, so that one read of the smallest cannot fill the memory.
#[test]
fn what_is_read_and_not_run_is_charged() {
    in_child(name_of!(what_is_read_and_not_run_is_charged), 1024, || {
        let gate = Gate::default();
        let limits = Limits { in_flight_per_connection_max: 1 << 20, ..Limits::default() };
        let server = serve_within(limits, &gate);
        let before = resident_bytes();
        let flood = Flood::start(&server, 1, &notice("hold").repeat(1000), Reads::Nothing);
        let mut last = 0;
        eventually("the server holds still", || {
            thread::sleep(Duration::from_millis(100));
            let now = server.stats().in_flight;
            std::mem::replace(&mut last, now) == now && now > 0
        });
        let most = QUEUED_BYTES_MAX / (256 + notice("hold").len());
        assert!(server.stats().in_flight <= most && last + 8 > most, "{last} of {most} run");
        check_growth(before, last, 16 << 10);
        gate.open();
        drop(flood.stop());
        none_is_left(&server);
    });
}
