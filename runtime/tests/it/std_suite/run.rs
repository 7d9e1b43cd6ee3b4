//! A case that runs: where it does so, and the transcript of its answers.

use std::fmt::Debug;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use dhaga::Runtime;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::common::{DEADLINE, within_deadline};

/// Runs a case over std's sockets on plain threads, and over ours: on plain threads, in dhagas of one worker, and with its
/// peers on another worker. All must be told the same.
pub fn compare(over_stds: fn(&mut Run), over_ours: fn(&mut Run)) {
    let expected = Way::Threads.run(over_stds);
    assert!(!expected.is_empty(), "the case notes nothing");
    let ways = [("on plain threads", Way::Threads), ("on one worker", Way::OneWorker), ("on two", Way::TwoWorkers)];
    for (name, way) in ways {
        let answers = way.run(over_ours);
        for (answer, expected) in answers.iter().zip(&expected) {
            assert_eq!(answer, expected, "{name}, where std has the latter");
        }
        assert_eq!(answers.len(), expected.len(), "{name}: {answers:?}");
    }
}

/// Where a case runs, and its peers.
#[derive(Clone, Copy)]
enum Way {
    Threads,
    OneWorker,
    TwoWorkers,
}

impl Way {
    fn run(self, case: fn(&mut Run)) -> Vec<String> {
        answers(move || match self {
            Self::Threads => transcript(case, Place::Thread),
            Self::OneWorker => in_runtime(case, Place::SameWorker),
            Self::TwoWorkers => {
                // One worker each, so that no chance decides where a part runs.
                let other = Arc::new(one_worker());
                in_runtime(case, Place::OtherWorker(other.clone()))
            }
        })
    }
}

/// A case that runs.
pub struct Run {
    answers: Vec<String>,
    place: Place,
}

/// Where the peers of a case run.
enum Place {
    Thread,
    /// Where the case runs.
    SameWorker,
    OtherWorker(Arc<Runtime>),
}

impl Run {
    /// Notes an answer.
    pub fn note<T: Debug>(&mut self, what: &str, answer: io::Result<T>) {
        self.answers.push(match answer {
            Ok(value) => format!("{what}: {value:?}"),
            Err(error) => format!("{what}: {:?}, {:?}", error.kind(), error.raw_os_error()),
        });
    }

    /// Notes what is no result.
    pub fn note_value(&mut self, what: &str, value: impl Debug) {
        self.note(what, Ok(value));
    }

    /// Starts a part of the case that runs beside it.
    pub fn peer<T: Send + 'static>(&self, part: impl FnOnce() -> T + Send + 'static) -> Peer<T> {
        match &self.place {
            Place::Thread => Peer::Thread(thread::spawn(part)),
            Place::SameWorker => Peer::Dhaga(dhaga::spawn_local(part)),
            Place::OtherWorker(runtime) => Peer::Dhaga(runtime.spawn(part)),
        }
    }
}

/// A part of a case.
pub enum Peer<T> {
    Thread(thread::JoinHandle<T>),
    Dhaga(dhaga::JoinHandle<T>),
}

impl<T> Peer<T> {
    pub fn join(self) -> T {
        match self {
            Self::Thread(thread) => thread.join().expect("a part does not panic"),
            Self::Dhaga(dhaga) => dhaga.join().expect("a part does not panic"),
        }
    }
}

fn in_runtime(case: fn(&mut Run), place: Place) -> Vec<String> {
    one_worker().spawn(move || transcript(case, place)).join().expect("the case does not panic")
}

fn one_worker() -> Runtime {
    Runtime::builder().workers(1).build().expect("a test can start a runtime")
}

fn transcript(case: fn(&mut Run), place: Place) -> Vec<String> {
    let mut run = Run { answers: Vec::new(), place };
    case(&mut run);
    run.answers
}

fn answers(run: impl FnOnce() -> Vec<String> + Send + 'static) -> Vec<String> {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let told = answers.clone();
    within_deadline(DEADLINE, move || *told.lock().unwrap_or_else(PoisonError::into_inner) = run());
    std::mem::take(&mut answers.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Bytes that tell where they belong: pieces of a prime length, each with its number.
pub fn pattern(len: usize) -> Vec<u8> {
    const PIECE: usize = 251;
    let mut bytes = Vec::with_capacity(len + PIECE);
    for number in 0..len.div_ceil(PIECE) {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&[number as u8 ^ 0x5a; PIECE - size_of::<usize>()]);
    }
    bytes.truncate(len);
    bytes
}

/// What is printed, with `#` for each number: descriptors and ports are others each time.
pub fn without_numbers(printed: &str) -> String {
    let mut text = String::new();
    for letter in printed.chars() {
        match letter {
            '0'..='9' if text.ends_with('#') => {}
            '0'..='9' => text.push('#'),
            _ => text.push(letter),
        }
    }
    text
}

/// Blocks the thread until the kernel has seen the peer's end or an error.
pub fn wait_for_the_end(socket: &impl AsFd) {
    let limit = Timespec::try_from(DEADLINE).expect("it is short");
    let flags = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let ready = poll(&mut [PollFd::new(socket, flags)], Some(&limit)).expect("it can be polled");
    assert_eq!(ready, 1, "no end comes");
}
