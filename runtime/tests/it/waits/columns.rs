//! The conditions under which each wait is tried.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::{JoinError, JoinHandle, Runtime, with_deadline, within};

use super::{Ended, Manner, Wait};
use crate::common::{DEADLINE, within_deadline};

const SHORT: Duration = Duration::from_millis(5);

/// Runs a body with a thing to wait for and a runtime of one worker, in which things happen in the order of their spawns.
fn with<W: Wait>(body: impl FnOnce(Arc<W>, &Runtime) + Send + 'static) {
    within_deadline(DEADLINE, move || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        body(Arc::new(W::new()), &runtime);
    });
}

/// Returns when all that was spawned or woken before has run as far as it can.
fn settle(runtime: &Runtime) {
    // Twice: what was woken may go to the tail of the queue.
    for _ in 0..2 {
        runtime.spawn(|| ()).join().expect("it ends");
    }
}

fn start<W: Wait>(wait: &Arc<W>, runtime: &Runtime) -> JoinHandle<Ended> {
    let wait = wait.clone();
    let waiter = runtime.spawn(move || wait.wait());
    settle(runtime);
    waiter
}

fn end(waiter: JoinHandle<Ended>) -> Ended {
    waiter.join().expect("it ends well")
}

/// A wait that was stopped: it has ended so, or goes on until it is woken.
fn check_stopped<W: Wait>(wait: &W, runtime: &Runtime, waiter: JoinHandle<Ended>, failed: Ended) {
    match W::MANNER {
        Manner::Fails => assert_eq!(end(waiter), failed),
        Manner::Returns => assert_eq!(end(waiter), Ended::Done),
        Manner::GoesOn => {
            settle(runtime);
            assert!(!waiter.is_finished(), "it goes on");
            wait.wake();
            assert_eq!(end(waiter), Ended::Done);
        }
    }
}

/// What it waits for is there: it does not suspend.
pub fn ready<W: Wait>() {
    with::<W>(|wait, runtime| {
        wait.wake();
        let waiter = runtime.spawn(move || {
            let _promise = (!W::ALWAYS_SUSPENDS).then(dhaga::no_suspend);
            wait.wait()
        });
        assert_eq!(end(waiter), Ended::Done);
    });
}

/// It waits, and is woken.
pub fn woken<W: Wait>() {
    with::<W>(|wait, runtime| {
        let waiter = start(&wait, runtime);
        assert!(W::MANNER == Manner::Returns || !waiter.is_finished(), "there is nothing yet");
        wait.wake();
        assert_eq!(end(waiter), Ended::Done);
    });
}

/// The deadline around it passes while it waits, or has passed before.
pub fn deadline<W: Wait>() {
    with::<W>(|wait, runtime| {
        if W::MANNER != Manner::GoesOn {
            let late = wait.clone();
            let waiter = runtime.spawn(move || within(SHORT, || late.wait()));
            check_stopped(&*wait, runtime, waiter, Ended::Deadline);
        }
        let late = wait.clone();
        let passed = Instant::now();
        let waiter = runtime.spawn(move || with_deadline(passed, || late.wait()));
        settle(runtime);
        check_stopped(&*wait, runtime, waiter, Ended::Deadline);
    });
}

/// Its dhaga is cancelled while it waits, or was before.
pub fn cancelled<W: Wait>() {
    with::<W>(|wait, runtime| {
        let waiter = start(&wait, runtime);
        waiter.cancel();
        check_stopped(&*wait, runtime, waiter, Ended::Cancelled);
    });
    with::<W>(|wait, runtime| {
        let (go, gone) = dhaga::sync::oneshot::channel::<()>();
        let cancelled = wait.clone();
        let waiter = runtime.spawn(move || {
            dhaga::uncancellable(|| gone.recv()).expect("the test sends");
            cancelled.wait()
        });
        waiter.cancel();
        go.send(()).expect("it listens");
        settle(runtime);
        check_stopped(&*wait, runtime, waiter, Ended::Cancelled);
    });
}

/// On a plain thread: woken, out of time, and in a cancelled scope.
pub fn plain_thread<W: Wait>() {
    within_deadline(DEADLINE, || {
        let wait = Arc::new(W::new());
        let (tell, told) = mpsc::channel();
        let waits = wait.clone();
        let waiter = thread::spawn(move || {
            tell.send(()).expect("the test listens");
            waits.wait()
        });
        told.recv().expect("it is about to wait");
        wait.wake();
        assert_eq!(waiter.join().expect("it ends well"), Ended::Done);
        if W::MANNER == Manner::Fails {
            let wait = W::new();
            assert_eq!(within(SHORT, || wait.wait()), Ended::Deadline);
            assert_eq!(dhaga::scope(|s| (s.cancel(), wait.wait()).1), Ended::Cancelled);
        }
    });
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// In a `Drop`, while the dhaga unwinds from a panic: nothing is switched, and others go on afterwards.
pub fn panicking<W: Wait>() {
    with::<W>(|wait, runtime| {
        let (tell, told) = mpsc::channel();
        let waits = wait.clone();
        let waiter = runtime.spawn(move || {
            let mut ended = None;
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _waits = OnDrop(|| {
                    tell.send(()).expect("the test listens");
                    ended = Some(waits.wait());
                });
                resume_unwind(Box::new("on purpose"));
            }));
            assert!(panicked.is_err());
            dhaga::yield_now();
            ended.expect("the guard was dropped")
        });
        told.recv().expect("it is about to wait");
        if W::MANNER == Manner::GoesOn {
            wait.wake();
        }
        let expected = if W::MANNER == Manner::Fails { Ended::Panicking } else { Ended::Done };
        assert_eq!(end(waiter), expected);
        assert_eq!(runtime.spawn(|| 7).join().expect("others go on"), 7);
    });
}

/// The runtime is shut down while it waits. Its dhaga ends, and what it waited for is as good as before.
pub fn shutdown<W: Wait>() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let wait = Arc::new(W::new());
        let has_ended = Arc::new(AtomicBool::new(false));
        let (waits, ended) = (wait.clone(), has_ended.clone());
        let waiter = runtime.spawn(move || {
            let _ended = OnDrop(|| ended.store(true, Ordering::SeqCst));
            loop {
                match waits.wait() {
                    // One that returns at once would be called again and again.
                    Ended::Done if W::MANNER == Manner::Returns => {}
                    ended => break ended,
                }
            }
        });
        settle(&runtime);
        runtime.shutdown(Duration::ZERO).expect("all end");
        assert!(has_ended.load(Ordering::SeqCst));
        match (W::MANNER, waiter.join()) {
            (Manner::Fails, Ok(ended)) => assert_eq!(ended, W::AT_SHUTDOWN),
            (Manner::GoesOn | Manner::Returns, Err(JoinError::Unwound)) => {}
            (_, other) => panic!("{other:?}"),
        }
        wait.wake_again();
        assert_eq!(wait.wait(), Ended::Done);
    });
}
