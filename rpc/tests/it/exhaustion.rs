//! Everything is used up: descriptors, address space for stacks, places in tables. Who asks learns it, and all goes on as before
//! when there is something again.

use std::fs::File;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga_rpc::{CallError, Client, Extensions, HandlerError, Limits, Value};

use crate::common::*;

/// All descriptors that the process may have.
fn hoard() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// Descriptors that are open, the one that looks among them.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("Linux has it").count()
}

#[test]
fn a_hundred_times_out_of_descriptors_and_back() {
    in_child(name_of!(a_hundred_times_out_of_descriptors_and_back), 64, || {
        let server = serve(&Gate::default());
        let mut bystander = Peer::connect(server.local_addr());
        assert_eq!(bystander.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        let at_first = open_descriptors();
        for cycle in 0..100 {
            let mut hoard = hoard();
            // For both ends of two connections and one end more, so that one stays in the backlog.
            hoard.truncate(hoard.len() - 5);
            let mut peers = Vec::new();
            // Somebody else may have one for a moment: the runtime reads a file of the kernel now and then.
            eventually("no more can connect", || {
                peers.extend(std::iter::from_fn(|| TcpStream::connect(server.local_addr()).ok()).map(Peer::new));
                peers.len() >= 3
            });
            peers.iter_mut().for_each(|peer| peer.send(&request(1, "add", vec![cycle.into(), 2.into()])));
            assert_eq!(bystander.ask(cycle, "add", vec![1.into(), 2.into()]), Ok(3.into()));
            drop(hoard);
            peers.iter_mut().for_each(|peer| assert_eq!(peer.receive_answer(), (1, Ok((cycle + 2).into()))));
            drop(peers);
            eventually("all but one are gone", || server.stats().connections == 1);
            // Who counts a connection no more may have its descriptor for a moment longer.
            eventually("their descriptors are closed", || open_descriptors() <= at_first);
        }
        assert_eq!((server.stats().closed_for_fault, server.stats().in_flight), (0, 0));
    });
}

/// In 600 MiB of address space there is no room for the stacks of all who would wait: some wait for those who do, nobody dies
/// of it, and who asks meanwhile is answered or sent away, but not left without a word.
#[test]
fn a_server_without_room_for_stacks_serves_on_and_recovers() {
    const PEERS: u32 = 6;
    const CALLS: u32 = 600;
    let limits = "ulimit -n 1024 && ulimit -v 614400";
    in_limited_child(name_of!(a_server_without_room_for_stacks_serves_on_and_recovers), limits, || {
        let runtime = Runtime::builder().workers(2).build().expect("there is room for two threads");
        for _ in 0..3 {
            let gate = Gate::default();
            let server = builder(&gate).bind_on(&runtime, "127.0.0.1:0").expect("the kernel has a port");
            let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
            let mut bystanders: Vec<_> = (0..4).map(|_| Peer::connect(server.local_addr())).collect();
            eventually("all are there", || server.stats().connections == peers.len() + bystanders.len());
            let pipeline: Vec<u8> = (0..CALLS).flat_map(|id| request(id, "hold", vec![id.into()])).collect();
            peers.iter_mut().for_each(|peer| peer.send(&pipeline));
            let mut last = 0;
            eventually("no more of them begin", || {
                std::thread::sleep(Duration::from_millis(200));
                let now = gate.arrived();
                std::mem::replace(&mut last, now) == now && now > 100
            });
            assert!(last < (PEERS * CALLS) as usize, "there was room for all");
            for peer in &mut bystanders {
                peer.send_to_whom_it_may_concern(&request(1, "add", vec![1.into(), 2.into()]));
                peer.finish_if_open();
                peer.expect_end_some_time();
            }
            gate.open();
            for peer in &mut peers {
                peer.finish_if_open();
                peer.expect_end_some_time();
            }
            eventually("none is in flight", || server.stats().in_flight == 0 && gate.inside() == 0);
            eventually("it serves again", || {
                let mut peer = Peer::connect(server.local_addr());
                peer.try_ask(1, "add", vec![1.into(), 2.into()]) == Some(3.into())
            });
        }
    });
}

/// As deep as a frame may nest, a value of the type that takes the most stack for each level is decoded and encoded with a
/// quarter of the stack to spare.
#[test]
fn the_deepest_value_leaves_a_quarter_of_the_stack() {
    within_deadline(|| {
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let server = builder(&Gate::default()).bind_on(&runtime, "127.0.0.1:0").expect("the kernel has a port");
        let depth = Limits::default().depth_max - 2;
        let nested = |leaf: Value| (1..depth).fold(leaf, |value, _| Value::Map(vec![(Value::Nil, value)]));
        let deep = nested(Value::Array(vec![1.into()]));
        let mut peer = Peer::connect(server.local_addr());
        for id in 0..200 {
            assert_eq!(peer.ask(id, "echo", vec![deep.clone()]), Ok(deep.clone()));
            assert!(peer.ask(id, "add", vec![deep.clone(), 1.into()]).is_err());
        }
        drop((peer, server));
        let sites = runtime.stack_high_water();
        assert!(sites.iter().any(|site| site.samples > 0));
        for site in sites {
            assert!(4 * site.used_bytes <= 3 * site.stack_bytes, "{site:?}");
        }
    });
}

/// Of many handlers that panic, each costs one error answer.
#[test]
fn each_of_many_panics_costs_its_own_call_only() {
    const ROUNDS: u32 = if cfg!(debug_assertions) { 10 } else { 100 };
    within_deadline(|| {
        let server = builder(&Gate::default())
            .method("odd", |n: u32| match n % 2 {
                0 => Ok(n),
                _ => panic!("{}", ON_PURPOSE),
            })
            .method("odd later", |n: u32| {
                dhaga::yield_now();
                match n % 2 {
                    0 => Ok::<_, HandlerError>(n),
                    _ => panic!("{}", ON_PURPOSE),
                }
            })
            .bind("127.0.0.1:0")
            .expect("the kernel has a port");
        let mut peer = Peer::connect(server.local_addr());
        for _ in 0..ROUNDS {
            let method = |id| if id % 3 == 0 { "odd later" } else { "odd" };
            peer.send(&(0..200).flat_map(|id| request(id, method(id), vec![id.into()])).collect::<Vec<_>>());
            let mut answers: Vec<_> = (0..200).map(|_| peer.receive_answer()).collect();
            answers.sort_by_key(|(id, _)| *id);
            for (index, (id, outcome)) in answers.into_iter().enumerate() {
                let expected = if id % 2 == 0 { Ok(id.into()) } else { Err("the handler panicked".to_owned()) };
                assert_eq!((id, outcome), (index as u32, expected));
            }
        }
        eventually("none is left", || server.stats().in_flight == 0);
    });
}

/// Calls that nobody answers end when they said they would: none earlier, and few much later.
#[test]
fn calls_end_at_their_deadlines() {
    const CALLS: u64 = 2000;
    within_deadline(|| {
        let address = foreign_server(1, |mut peer| peer.expect_end_some_time());
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        let builder = Client::builder().extensions(Extensions::Plain);
        let client = runtime.spawn(move || builder.connect(address)).join().expect("nobody panics");
        let client = client.expect("it listens");
        let calls: Vec<_> = (0..CALLS)
            .map(|call| {
                let client = client.clone();
                let timeout = Duration::from_micros(200_000 + (call * 7919 % CALLS) * 500);
                runtime.spawn(move || {
                    let since = Instant::now();
                    let end = client.call_timeout::<_, ()>("never", (), timeout);
                    assert!(matches!(end, Err(CallError::DeadlineExceeded)), "{end:?}");
                    since.elapsed().checked_sub(timeout).expect("no call ends before its deadline")
                })
            })
            .collect();
        let mut late: Vec<_> = calls.into_iter().map(|call| call.join().expect("it ended late enough")).collect();
        late.sort_unstable();
        let (half, most) = (late[late.len() / 2], late[late.len() - 1]);
        // On a machine that does nothing else it is half a millisecond.
        assert!(half < Duration::from_millis(100), "half are later than {half:?}, one by {most:?}");
    });
}
