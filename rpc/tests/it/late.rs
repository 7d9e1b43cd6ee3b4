//! Handlers that compute keep their worker from its connections: an idle worker serves these meanwhile.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::Runtime;
use dhaga_rpc::{HandlerError, Server};

use crate::common::*;

/// Handlers that keep their workers busy until they are let go.
#[derive(Clone, Default)]
struct Hogs(Arc<HogState>);

#[derive(Default)]
struct HogState {
    begun: AtomicUsize,
    released: AtomicUsize,
}

impl Hogs {
    /// Computes until all hogs up to this one are released.
    fn compute(&self) -> Result<(), HandlerError> {
        let number = self.0.begun.fetch_add(1, Ordering::SeqCst);
        let end = Instant::now() + PATIENCE;
        while self.0.released.load(Ordering::SeqCst) <= number {
            if Instant::now() > end {
                return Err(HandlerError::new("nobody let the hog go"));
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn begun(&self) -> usize {
        self.0.begun.load(Ordering::SeqCst)
    }

    fn release_one(&self) {
        self.0.released.fetch_add(1, Ordering::SeqCst);
    }
}

fn two_workers() -> Runtime {
    Runtime::builder().workers(2).build().expect("the kernel gives threads")
}

fn serve_hogs(runtime: &Runtime, hogs: &Hogs) -> Server {
    let hogs = hogs.clone();
    let builder = builder(&Gate::default()).method("hog", move || hogs.compute());
    builder.bind_on(runtime, "127.0.0.1:0").expect("the kernel has a port")
}

/// Connections that are known to the server, half of them on either of two workers.
fn peers(server: &Server) -> Vec<Peer> {
    let mut peers: Vec<_> = (0..8).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        assert_eq!(peer.ask(0, "echo", vec![0.into()]), Ok(0.into()));
    }
    peers
}

/// All but the first are answered while a request of the first computes.
fn check_round(peers: &mut [Peer], hogs: &Hogs) {
    let begun = hogs.begun();
    let [first, others @ ..] = peers else { panic!("there are peers") };
    first.send(&request(1, "hog", vec![]));
    eventually("a handler computes", || hogs.begun() > begun);
    for id in 2..5 {
        for peer in &mut *others {
            assert_eq!(peer.ask(id, "echo", vec![id.into()]), Ok(id.into()));
        }
    }
    hogs.release_one();
    assert_eq!(first.receive_answer(), (1, Ok(rmpv::Value::Nil)));
}

#[test]
fn while_a_handler_computes_the_connections_of_its_worker_are_served_by_the_other() {
    within_deadline(|| {
        let (runtime, hogs) = (two_workers(), Hogs::default());
        let server = serve_hogs(&runtime, &hogs);
        let mut peers = peers(&server);
        for _ in 0..30 {
            check_round(&mut peers, &hogs);
            peers.rotate_left(1);
        }
    });
}

#[test]
fn a_worker_that_has_slept_for_long_is_roused_to_look_after_the_other() {
    within_deadline(|| {
        let (runtime, hogs) = (two_workers(), Hogs::default());
        let server = serve_hogs(&runtime, &hogs);
        let mut peers = peers(&server);
        for _ in 0..10 {
            // Not for any order: with it both workers most likely sleep for good.
            thread::sleep(Duration::from_millis(30));
            check_round(&mut peers, &hogs);
            peers.rotate_left(1);
        }
    });
}

#[test]
fn an_answer_leaves_while_the_next_request_of_its_turn_computes() {
    within_deadline(|| {
        let (runtime, hogs) = (two_workers(), Hogs::default());
        let server = serve_hogs(&runtime, &hogs);
        let mut peers = peers(&server);
        for peer in &mut peers {
            peer.send(&[request(1, "echo", vec![1.into()]), request(2, "hog", vec![])].concat());
            assert_eq!(peer.receive_answer(), (1, Ok(1.into())));
            hogs.release_one();
            assert_eq!(peer.receive_answer(), (2, Ok(rmpv::Value::Nil)));
        }
    });
}

#[test]
fn each_request_is_answered_once_whoever_serves_it() {
    const EACH: u32 = 300;
    within_deadline(|| {
        let runtime = two_workers();
        let spin = |id: u32| {
            let until = Instant::now() + Duration::from_millis(3);
            while id % 50 == 7 && Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok(id)
        };
        let builder = builder(&Gate::default()).method("spin", spin);
        let server = builder.bind_on(&runtime, "127.0.0.1:0").expect("the kernel has a port");
        thread::scope(|threads| {
            for (index, mut peer) in peers(&server).into_iter().enumerate() {
                threads.spawn(move || {
                    // Some ask for one after the other, some for a few at once.
                    let at_once = 1 + index as u32 % 3;
                    for first in (1..=EACH).step_by(at_once as usize) {
                        let ids: Vec<_> = (first..first + at_once).collect();
                        let requests = ids.iter().flat_map(|id| request(*id, "spin", vec![(*id).into()]));
                        peer.send(&requests.collect::<Vec<_>>());
                        let mut answers: Vec<_> = ids.iter().map(|_| peer.receive_answer()).collect();
                        answers.sort_by_key(|(id, _)| *id);
                        assert_eq!(answers, ids.iter().map(|id| (*id, Ok((*id).into()))).collect::<Vec<_>>());
                    }
                    peer.finish();
                    peer.expect_end();
                });
            }
        });
        eventually("no connection is left", || server.stats().connections == 0 && server.stats().in_flight == 0);
    });
}

#[test]
fn a_runtime_ends_although_one_of_its_workers_is_served_by_another() {
    within_deadline(|| {
        for _ in 0..20 {
            let (runtime, hogs) = (two_workers(), Hogs::default());
            let server = serve_hogs(&runtime, &hogs);
            let mut peers = peers(&server);
            peers[0].send(&request(1, "hog", vec![]));
            eventually("a handler computes", || hogs.begun() == 1);
            let is_over = AtomicBool::new(false);
            thread::scope(|threads| {
                for peer in &mut peers[1..] {
                    let is_over = &is_over;
                    threads.spawn(move || {
                        while !is_over.load(Ordering::SeqCst) && peer.try_ask(1, "echo", vec![1.into()]).is_some() {}
                        peer.finish_if_open();
                        peer.expect_end_some_time();
                    });
                }
                threads.spawn(|| {
                    thread::sleep(Duration::from_millis(5));
                    hogs.release_one();
                });
                runtime.shutdown(PATIENCE).expect("all dhagas end");
                is_over.store(true, Ordering::SeqCst);
            });
            drop(server);
        }
    });
}

/// How often threads of this process have gone to sleep.
fn sleeps() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux has it");
    let texts = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let workers = texts.filter(|text| text.starts_with("Name:\tdhaga-"));
    workers
        .map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.and_then(|count| count.trim().parse::<usize>().ok()).expect("a count")
        })
        .sum()
}

#[test]
fn workers_that_look_after_each_other_sleep_when_all_are_idle() {
    in_child(name_of!(workers_that_look_after_each_other_sleep_when_all_are_idle), 256, || {
        let runtime = two_workers();
        let server = serve_hogs(&runtime, &Hogs::default());
        let _peers = peers(&server);
        let mut before = sleeps();
        eventually("no worker wakes for 200 ms", || {
            thread::sleep(Duration::from_millis(200));
            let quiet = before == sleeps();
            before = sleeps();
            quiet
        });
    });
}
