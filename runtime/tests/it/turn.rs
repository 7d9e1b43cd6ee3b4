//! The seam for protocol crates: streams of every kind, read on demand and written without a wait.

use std::fs::File;
use std::io::pipe;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream, UnixStream, Watched};
use dhaga::park::{self, Unparker, WaitReason};
use dhaga::sync::channel;
use dhaga::turn::{self, AtEnd, Input, OnReady, Output};
use dhaga::{JoinHandle, Runtime};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::common::{DEADLINE, within_deadline};

/// Tells that it was abandoned.
struct Abandoned(channel::Sender<u8>, u8);

impl OnReady for Abandoned {
    fn on_ready(self: Arc<Self>) {}

    fn on_abandoned(self: Arc<Self>) {
        let _ = self.0.try_send(self.1);
    }
}

#[test]
fn a_callback_is_told_that_its_runtime_has_gone_unless_it_was_taken_away() {
    within_deadline(DEADLINE * 2, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let (told, is_told) = channel::bounded(4);
        let watched = runtime.spawn(move || {
            let (kept, kept_far) = UnixStream::pair().expect("there are descriptors");
            let (stopped, stopped_far) = UnixStream::pair().expect("there are descriptors");
            turn::on_ready(&kept, Arc::new(Abandoned(told.clone(), 1))).expect("this is a worker");
            turn::on_ready(&stopped, Arc::new(Abandoned(told, 2))).expect("this is a worker");
            turn::stop_on_ready(&stopped);
            (kept, kept_far, stopped, stopped_far)
        });
        let watched = watched.join().expect("nobody panics");
        runtime.shutdown(DEADLINE).expect("nobody is left");
        assert_eq!(is_told.iter().collect::<Vec<_>>(), [1], "each is told once, and dropped");
        drop(watched);
    });
}

/// More than any descriptor of the kernel takes without a reader.
const LARGE: usize = 32 << 20;

/// Runs a body in a dhaga of a runtime of its own with one worker; fails when it fails, and when it hangs.
fn in_dhaga(body: impl FnOnce() + Send + 'static) {
    within_deadline(DEADLINE, move || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        runtime.spawn(body).join().expect("the body ends well");
    });
}

/// Tells of events.
struct Bell(channel::Sender<()>);

impl OnReady for Bell {
    fn on_ready(self: Arc<Self>) {
        let _ = self.0.try_send(());
    }
}

fn file(descriptor: impl Into<OwnedFd>) -> Watched<File> {
    Watched::new(File::from(descriptor.into())).expect("it has the mode")
}

/// Reads `count` bytes, by events and attempts alone.
fn read(input: &impl Input, events: &channel::Receiver<()>, count: usize) -> usize {
    let (mut total, mut buffer) = (0, vec![0; 64 << 10]);
    while total < count {
        match turn::try_read(input, &mut buffer).expect("it is open") {
            Some(0) => break,
            Some(count) => total += count,
            None => events.recv().expect("there is another event"),
        }
    }
    total
}

fn fill(output: &impl Output) -> usize {
    let (mut total, bytes) = (0, vec![7; 64 << 10]);
    while let Some(count) = turn::try_write(output, &bytes).expect("it is open") {
        total += count;
        assert!(total < LARGE, "the kernel takes all");
    }
    total
}

/// What holds for a stream from `output` to `input`; `end` closes the writing side.
fn check<O: Output + Send + Sync + 'static>(input: &impl Input, output: O, end: impl FnOnce(&O) + Send + 'static) {
    let (bell, events) = channel::bounded(1);
    turn::on_ready(input, Arc::new(Bell(bell))).expect("this is a worker");
    assert_eq!(turn::try_read(input, &mut [0; 8]).expect("it is open"), None);
    assert!(!turn::is_readable(input));

    assert_eq!(turn::try_write(&output, b"hello").expect("it is open"), Some(5));
    assert_eq!(read(input, &events, 5), 5);
    assert_eq!(turn::try_read(input, &mut [0; 8]).expect("it is open"), None);

    let taken = fill(&output);
    let writer = dhaga::spawn(move || {
        turn::wait_for_room(&output, DEADLINE).expect("it is open");
        while turn::try_write(&output, b"!").expect("it is open").is_none() {
            turn::wait_for_room(&output, DEADLINE).expect("it is open");
        }
        end(&output);
    });
    assert_eq!(read(input, &events, taken + 1), taken + 1);
    writer.join().expect("there was room");
    assert_eq!(read(input, &events, 1), 0, "an end");
    turn::stop_on_ready(input);
}

#[test]
fn tcp() {
    in_dhaga(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (far, _) = listener.accept().expect("a client has come");
        check(&near, far, |far| far.shutdown(Shutdown::Write).expect("it is open"));
    });
}

#[test]
fn unix() {
    in_dhaga(|| {
        let (near, far) = UnixStream::pair().expect("there are descriptors");
        check(&near, far, |far| far.shutdown(Shutdown::Write).expect("it is open"));
    });
}

#[test]
fn pipes() {
    in_dhaga(|| {
        let (reader, writer) = pipe().expect("there are descriptors");
        check(&file(reader), file(writer), |_| {});
    });
}

#[test]
fn any_descriptor() {
    in_dhaga(|| {
        let (near, far) = UnixStream::pair().expect("there are descriptors");
        check(&file(near), file(far), |_| {});
    });
}

#[test]
fn descriptors_that_are_sent_along_hold_up_no_bytes() {
    in_dhaga(|| {
        let (near, far) = UnixStream::pair().expect("there are descriptors");
        let (bell, events) = channel::bounded(1);
        turn::on_ready(&near, Arc::new(Bell(bell))).expect("this is a worker");
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        for _ in 0..3 {
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = [far.as_fd()];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
            sendmsg(&far, &[std::io::IoSlice::new(b"abc")], &mut ancillary, SendFlags::empty()).expect("there is room");
        }
        assert_eq!(turn::try_write(&far, b"d").expect("it is open"), Some(1));
        assert_eq!(read(&near, &events, 10), 10);
    });
}

#[test]
fn a_writer_who_waits_for_room_can_be_roused() {
    in_dhaga(|| {
        let (_reader, writer) = pipe().expect("there are descriptors");
        let writer = Arc::new(file(writer));
        fill(&*writer);
        let waiter = writer.clone();
        let (report, reported) = channel::unbounded();
        let waiter = dhaga::spawn(move || {
            while turn::try_write(&*waiter, b"!").expect("it is open").is_none() {
                report.send(()).expect("the test lives");
                if turn::wait_for_room(&*waiter, DEADLINE).is_err() {
                    return;
                }
            }
        });
        reported.recv().expect("it waits, or is about to");
        dhaga::yield_now();
        turn::rouse_writers(&*writer);
        reported.recv().expect("it has tried again");
        waiter.cancel();
        waiter.join().expect("it ends");
    });
}

#[test]
fn a_wait_for_room_ends_with_its_time() {
    in_dhaga(|| {
        let (_reader, writer) = pipe().expect("there are descriptors");
        let writer = file(writer);
        fill(&writer);
        let began = Instant::now();
        let short = Duration::from_millis(5);
        while turn::try_write(&writer, b"!").expect("it is open").is_none() && began.elapsed() < short {
            turn::wait_for_room(&writer, short).expect("its own time is no error");
        }
        assert!(began.elapsed() >= short);
    });
}

/// A dhaga that parks until it is woken for good, and writes its number down then.
fn sleeper(number: u32, order: &Arc<Mutex<Vec<u32>>>) -> (Unparker, JoinHandle<()>) {
    let (tell, told) = channel::bounded(1);
    let order = order.clone();
    let handle = dhaga::spawn(move || {
        tell.send(park::unparker()).expect("the test waits");
        park::park(WaitReason::Park);
        order.lock().expect("nobody panics").push(number);
    });
    (told.recv().expect("it tells"), handle)
}

#[test]
fn who_are_woken_at_once_run_in_their_order() {
    in_dhaga(|| {
        let order = Arc::new(Mutex::new(Vec::new()));
        let (sleepers, handles): (Vec<_>, Vec<_>) = (0..5).map(|number| sleeper(number, &order)).unzip();
        // They are parked by then.
        dhaga::yield_now();
        turn::unpark_all(sleepers);
        handles.into_iter().for_each(|handle| handle.join().expect("nobody panics"));
        assert_eq!(*order.lock().expect("nobody panics"), [0, 1, 2, 3, 4]);
    });
}

/// Whoever makes the list may wait meanwhile, and who was named may end before it is woken.
#[test]
fn a_wake_of_many_does_not_reach_who_took_the_place_of_one_that_has_ended() {
    in_dhaga(|| {
        let order = Arc::default();
        let (named, first) = sleeper(1, &order);
        dhaga::yield_now();
        let mut successor = None;
        let ends_first = std::iter::once_with(|| {
            named.unpark();
            first.join().expect("nobody panics");
            successor = Some(sleeper(2, &order));
            dhaga::yield_now();
            park::unparker()
        });
        turn::unpark_all(std::iter::once(named.clone()).chain(ends_first));
        dhaga::yield_now();
        assert_eq!(*order.lock().expect("nobody panics"), [1], "the other sleeps on");
        let (other, second) = successor.expect("it was spawned");
        other.unpark();
        second.join().expect("nobody panics");
    });
}

#[test]
fn who_was_named_before_the_list_failed_is_woken() {
    in_dhaga(|| {
        let order = Arc::default();
        let (named, handle) = sleeper(1, &order);
        dhaga::yield_now();
        let fails = std::iter::once_with(|| resume_unwind(Box::new("on purpose")));
        let list = std::iter::once(named).chain(fails);
        catch_unwind(AssertUnwindSafe(|| turn::unpark_all(list))).expect_err("the list fails");
        handle.join().expect("nobody panics");
    });
}

/// In which order they are done: who steps back, who was ready then, and whom that one spawns.
fn order_of_a_step_back() -> [u32; 3] {
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |number| {
        let order = order.clone();
        move || order.lock().expect("nobody panics").push(number)
    };
    let (patient, ready, late) = (note(3), note(1), note(2));
    let patient = dhaga::spawn(move || {
        turn::step_back();
        patient();
    });
    let ready = dhaga::spawn(move || {
        ready();
        dhaga::spawn(late)
    });
    ready.join().expect("nobody panics").join().expect("nobody panics");
    patient.join().expect("nobody panics");
    let order = order.lock().expect("nobody panics");
    order[..].try_into().expect("each is done once")
}

#[test]
fn who_steps_back_lets_those_go_first_who_become_ready_later() {
    // The time of the others may be over in between, but not each time.
    in_dhaga(|| {
        let again = (0..1000).map(|_| order_of_a_step_back());
        assert!(again.into_iter().any(|order| order == [1, 2, 3]));
    });
}

#[test]
fn who_steps_back_is_not_kept_out_by_those_who_never_end() {
    in_dhaga(|| {
        let is_over = Arc::new(AtomicBool::new(false));
        let others = (0..2).map(|_| {
            let is_over = is_over.clone();
            dhaga::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    dhaga::yield_now();
                }
            })
        });
        let others: Vec<_> = others.collect();
        dhaga::yield_now();
        (0..1000).for_each(|_| turn::step_back());
        is_over.store(true, Ordering::Relaxed);
        others.into_iter().for_each(|other| other.join().expect("nobody panics"));
    });
}

#[test]
fn those_who_step_back_again_and_again_keep_nobody_from_the_sockets() {
    in_dhaga(|| {
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = is_over.clone();
        let patient = dhaga::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                turn::step_back();
            }
        });
        let (near, far) = UnixStream::pair().expect("there are descriptors");
        let writer = std::thread::spawn(move || std::io::Write::write_all(&mut &far, b"!"));
        std::io::Read::read_exact(&mut &near, &mut [0]).expect("the byte comes");
        is_over.store(true, Ordering::Relaxed);
        patient.join().expect("nobody panics");
        writer.join().expect("nobody panics").expect("it is open");
    });
}

#[test]
fn a_step_back_on_a_plain_thread_is_none() {
    let turn = turn::number();
    turn::step_back();
    assert_eq!((turn, turn::number()), (0, 0));
}

#[test]
fn who_ends_after_a_step_back_is_not_counted_any_more() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        runtime.spawn(turn::step_back).join().expect("nobody panics");
        while runtime.tasks() > 0 {
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_shutdown_learns_at_once_of_those_who_end_after_a_step_back() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let last = runtime.spawn(|| {
            while !dhaga::is_shutting_down() {
                dhaga::yield_now();
            }
            // The worker has heard of it, too, after another turn.
            let turn = turn::number();
            while turn::number().wrapping_sub(turn) < 3 {
                dhaga::yield_now();
            }
            turn::step_back();
        });
        last.detach();
        runtime.shutdown(DEADLINE * 2).expect("it has ended by itself");
    });
}

/// Owns a source besides its own, as a connection over two pipes does.
struct Owner(#[expect(dead_code, reason = "it is only dropped")] Arc<UnixStream>);

impl OnReady for Owner {
    fn on_ready(self: Arc<Self>) {}
}

#[test]
fn a_callback_may_own_other_sources_of_its_worker_when_that_ends() {
    within_deadline(DEADLINE * 2, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let watched = runtime.spawn(|| {
            let (near, far) = UnixStream::pair().expect("there are descriptors");
            let (other, other_far) = UnixStream::pair().expect("there are descriptors");
            let other = Arc::new(other);
            turn::on_ready(&near, Arc::new(Owner(other.clone()))).expect("this is a worker");
            let (bell, _) = channel::bounded(1);
            turn::on_ready(&*other, Arc::new(Bell(bell))).expect("this is a worker");
            (near, far, other_far)
        });
        let watched = watched.join().expect("nobody panics");
        runtime.shutdown(DEADLINE).expect("nobody is left");
        drop(watched);
    });
}

/// Notes in how many turns after it was asked for it is done, at the worst.
struct Punctual {
    asked_in: u32,
    late: Arc<AtomicU32>,
}

impl AtEnd for Punctual {
    fn at_end(self: Arc<Self>) {
        self.late.fetch_max(turn::number().wrapping_sub(self.asked_in), Ordering::Relaxed);
    }
}

/// What is asked for amid dhagas that are quick may be put off, so that others of them may add to it.
#[test]
fn what_is_asked_for_the_end_of_a_turn_is_put_off_once_at_most() {
    in_dhaga(|| {
        let (late, until) = (Arc::new(AtomicU32::new(0)), Instant::now() + DEADLINE / 2);
        let ask_again_and_again = |late: Arc<AtomicU32>| {
            move || {
                for _ in 0..100 {
                    turn::at_end(Arc::new(Punctual { asked_in: turn::number(), late: late.clone() }));
                    dhaga::yield_now();
                }
            }
        };
        while late.load(Ordering::Relaxed) == 0 && Instant::now() < until {
            let dhagas: Vec<_> = (0..500).map(|_| dhaga::spawn(ask_again_and_again(late.clone()))).collect();
            dhagas.into_iter().for_each(|dhaga| dhaga.join().expect("it ends"));
        }
        assert_eq!(late.load(Ordering::Relaxed), 1);
    });
}

/// One dhaga after the other on this worker, each spawned by the one before.
fn spawn_chain(is_over: Arc<AtomicBool>) {
    if !is_over.load(Ordering::Relaxed) {
        dhaga::spawn_local(move || spawn_chain(is_over)).detach();
    }
}

#[test]
fn who_spawn_one_another_on_a_worker_keep_out_neither_its_callbacks_nor_other_new_dhagas() {
    in_dhaga(|| {
        // More than are called at once.
        let pairs: Vec<_> = (0..64).map(|_| UnixStream::pair().expect("there are descriptors")).collect();
        let (bell, events) = channel::unbounded();
        let bell = Arc::new(Bell(bell));
        pairs.iter().for_each(|(near, _)| turn::on_ready(near, bell.clone()).expect("this is a worker"));
        let is_over = Arc::new(AtomicBool::new(false));
        spawn_chain(is_over.clone());
        for (_, far) in &pairs {
            assert_eq!(turn::try_write(far, b"!").expect("it is open"), Some(1));
        }
        pairs.iter().for_each(|_| events.recv().expect("it is called"));
        dhaga::spawn(|| ()).join().expect("nobody panics");
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Counts what it was told.
#[derive(Default)]
struct Told([AtomicU32; 2]);

impl OnReady for Told {
    fn on_ready(self: Arc<Self>) {
        self.0[0].fetch_add(1, Ordering::Relaxed);
    }

    fn on_abandoned(self: Arc<Self>) {
        self.0[1].fetch_add(1, Ordering::Relaxed);
    }
}

/// So many are not called at once, but one after the other.
const MANY: u32 = 100;

/// Ends a runtime while many callbacks wait for its workers, of which a dhaga keeps one.
fn shut_down_before_callbacks(workers: usize, callback: Arc<dyn OnReady>) {
    within_deadline(DEADLINE * 2, move || {
        let runtime = Runtime::builder().workers(workers).build().expect("a test can start a runtime");
        let watch = move |_| {
            let (near, far) = UnixStream::pair().expect("there are descriptors");
            turn::on_ready(&near, callback.clone()).expect("this is a worker");
            (near, far)
        };
        let watched = runtime.spawn(|| (0..MANY).map(watch).collect::<Vec<_>>()).join().expect("nobody panics");
        let (begins, has_begun) = std::sync::mpsc::channel();
        let hog = runtime.spawn(move || {
            begins.send(()).expect("the test waits");
            while !dhaga::is_shutting_down() {
                std::hint::spin_loop();
            }
        });
        has_begun.recv().expect("it begins");
        for (_, far) in &watched {
            assert_eq!(turn::try_write(far, b"!").expect("it is open"), Some(1));
        }
        runtime.shutdown(DEADLINE).expect("nobody is left");
        hog.join().expect("nobody panics");
    });
}

#[test]
fn each_callback_is_called_at_most_once_and_abandoned_when_its_runtime_ends() {
    for workers in [1, 2] {
        let told = Arc::new(Told::default());
        shut_down_before_callbacks(workers, told.clone());
        let [called, abandoned] = told.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        assert!(called <= MANY && abandoned == MANY, "called {called} times, abandoned {abandoned} times");
    }
}

/// Counts the dhagas that it starts, and those of them that found themselves cancelled.
#[derive(Default)]
struct Starts([AtomicU32; 2]);

impl OnReady for Starts {
    fn on_ready(self: Arc<Self>) {
        let started = turn::spawn_here(move || {
            // No batch holds all of them.
            let began = Instant::now();
            while began.elapsed() < Duration::from_micros(50) {
                std::hint::spin_loop();
            }
            self.0[usize::from(dhaga::is_cancelled())].fetch_add(1, Ordering::Relaxed);
        });
        started.expect("there is room");
    }
}

#[test]
fn a_shutdown_lets_dhagas_end_that_callbacks_start_which_wait_for_their_turn() {
    let starts = Arc::new(Starts::default());
    shut_down_before_callbacks(1, starts.clone());
    assert_eq!(starts.0.each_ref().map(|count| count.load(Ordering::Relaxed)), [MANY, 0]);
}

/// Whose every read has another byte come.
struct Restless {
    near: UnixStream,
    far: UnixStream,
    reads: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
}

impl Restless {
    fn read(&self) {
        // Longer for all of them than the worker goes without a look at its sockets.
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(20) {
            std::hint::spin_loop();
        }
        turn::try_read(&self.near, &mut [0; 8]).expect("it is open");
        self.reads.fetch_add(1, Ordering::Relaxed);
        if !self.is_over.load(Ordering::Relaxed) {
            turn::try_write(&self.far, b"!").expect("it is open");
        }
    }
}

impl OnReady for Restless {
    fn on_ready(self: Arc<Self>) {
        turn::spawn_here(move || self.read()).expect("there is room");
    }
}

#[test]
fn callbacks_without_end_do_not_keep_out_new_dhagas() {
    in_dhaga(|| {
        let (reads, is_over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        for _ in 0..64 {
            let (near, far) = UnixStream::pair().expect("there are descriptors");
            let restless = Arc::new(Restless { near, far, reads: reads.clone(), is_over: is_over.clone() });
            turn::on_ready(&restless.near, restless.clone()).expect("this is a worker");
            turn::try_write(&restless.far, b"!").expect("it is open");
        }
        while reads.load(Ordering::Relaxed) < 200 {
            dhaga::yield_now();
        }
        dhaga::spawn(|| ()).join().expect("nobody panics");
        is_over.store(true, Ordering::Relaxed);
    });
}
