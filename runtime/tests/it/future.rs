//! Futures: waited for in dhagas and on plain threads, and dhagas awaited by executors that know nothing of them.

use std::future::{self, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::Duration;

use dhaga::future::{JoinFuture, Sleep, sleep};
use dhaga::sync::oneshot::{self, RecvError};
use dhaga::{Builder, Interrupt, JoinError, Runtime, block_on, try_block_on, with_deadline, within};

use crate::child;
use crate::common::{DEADLINE, Part, cancelled_during, everywhere, on_all_mixtures, shut_down_during, within_deadline};
use crate::panicking::while_panicking;

const SHORT: Duration = Duration::from_millis(5);

/// A future that is pending `times` times, and says to whoever is asked for it when it wants to be polled.
fn pending(times: usize, mut ask: impl FnMut(Waker)) -> impl Future<Output = usize> {
    let mut polls = 0;
    poll_fn(move |context| {
        polls += 1;
        if polls > times {
            return Poll::Ready(polls);
        }
        ask(context.waker().clone());
        Poll::Pending
    })
}

/// Wakes itself at each poll, until it is told to end.
fn restless(may_end: impl Fn() -> bool) -> impl Future<Output = ()> {
    poll_fn(move |context| {
        if may_end() {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Says where it is dropped.
struct Drops(mpsc::Sender<(ThreadId, dhaga::DhagaId)>);

impl Drop for Drops {
    fn drop(&mut self) {
        // Whoever wants to know may have failed.
        let _ = self.0.send(here());
    }
}

fn here() -> (ThreadId, dhaga::DhagaId) {
    (thread::current().id(), dhaga::current().id())
}

#[test]
fn a_future_that_is_ready_is_polled_once_and_not_waited_for() {
    everywhere(|| {
        let _promise = dhaga::no_suspend();
        assert_eq!(block_on(pending(0, drop)), 1);
        assert_eq!(try_block_on(pending(0, drop)), Ok(1));
    });
}

#[test]
fn a_future_is_polled_once_for_each_wake() {
    everywhere(|| {
        let by_thread = |waker: Waker| drop(thread::spawn(|| waker.wake()));
        let by_dhaga = |waker: Waker| dhaga::spawn(|| waker.wake()).detach();
        assert_eq!(block_on(pending(3, by_thread)), 4);
        assert_eq!(block_on(pending(3, by_dhaga)), 4);
        assert_eq!(block_on(pending(3, Waker::wake)), 4);
        assert_eq!(try_block_on(pending(3, by_thread)), Ok(4));
        assert_eq!(try_block_on(pending(3, by_dhaga)), Ok(4));
        assert_eq!(try_block_on(pending(3, Waker::wake)), Ok(4));
    });
}

#[test]
fn a_wake_during_the_poll_counts() {
    everywhere(|| {
        // Others that wait are woken in between, and take no wake away that is not theirs.
        let during = |waker: Waker| {
            thread::spawn(|| waker.wake()).join().expect("it ends well");
            dhaga::spawn(dhaga::yield_now).join().expect("it ends well");
        };
        assert_eq!(block_on(pending(2, during)), 3);
        assert_eq!(try_block_on(pending(2, during)), Ok(3));
    });
}

#[test]
fn many_wakes_before_a_poll_are_one() {
    everywhere(|| {
        let thrice = |waker: Waker| (0..3).for_each(|_| waker.wake_by_ref());
        assert_eq!(block_on(pending(1, thrice)), 2);
    });
}

#[test]
fn a_wake_after_the_end_is_harmless() {
    everywhere(|| {
        let (keep, kept) = mpsc::channel::<Waker>();
        let keeper = keep.clone();
        let waits = move || {
            let keep = move |waker: Waker| {
                keeper.send(waker.clone()).expect("the test listens");
                waker.wake();
            };
            block_on(pending(1, keep))
        };
        assert_eq!(dhaga::spawn(waits.clone()).join().expect("it ends well"), 2);
        assert_eq!(thread::spawn(waits).join().expect("it ends well"), 2);
        drop(keep);
        let wakers: Vec<_> = kept.iter().take(2).collect();
        // Whoever is in their places now is woken for nothing.
        let next = pending(1, |waker| dhaga::spawn(|| waker.wake()).detach());
        wakers.into_iter().for_each(Waker::wake);
        assert_eq!(block_on(next), 2);
    });
}

/// Futures of the storm, and how often each is pending.
const FUTURES: usize = 10_000;
const PENDING: usize = 3;

#[test]
fn a_storm_of_wakes_from_other_threads_loses_none() {
    on_all_mixtures(|| {
        const PARTS: usize = 8;
        let part = |index: usize| -> Part {
            Box::new(move || {
                let (ask, asked) = mpsc::channel::<Waker>();
                let waking = thread::spawn(move || asked.into_iter().for_each(Waker::wake));
                for round in 0..FUTURES / PARTS {
                    let ask = |waker| ask.send(waker).expect("it listens");
                    let polls = if round % 2 == 0 {
                        block_on(pending(PENDING, ask))
                    } else {
                        try_block_on(pending(PENDING, ask)).expect("nobody stops it")
                    };
                    assert_eq!(polls, PENDING + 1, "part {index}");
                }
                drop(ask);
                waking.join().expect("it ends well");
            })
        };
        (0..PARTS).map(part).collect()
    });
}

#[test]
fn ten_thousand_dhagas_wait_for_futures_at_once() {
    within_deadline(DEADLINE, || {
        let (ask, asked) = mpsc::channel::<Waker>();
        let waits = |_| {
            let ask = ask.clone();
            dhaga::spawn(move || block_on(pending(1, |waker| ask.send(waker).expect("the test listens"))))
        };
        let waiting: Vec<_> = (0..FUTURES).map(waits).collect();
        let wakers: Vec<_> = asked.iter().take(FUTURES).collect();
        wakers.into_iter().for_each(Waker::wake);
        for waiter in waiting {
            assert_eq!(waiter.join().expect("it ends well"), 2);
        }
    });
}

#[test]
fn a_future_that_wakes_itself_starves_nobody() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let is_done = Arc::new(AtomicBool::new(false));
        let (done, done_too) = (is_done.clone(), is_done.clone());
        let first = runtime.spawn(move || block_on(restless(|| done.load(Ordering::SeqCst))));
        let second = runtime.spawn(move || try_block_on(restless(|| done_too.load(Ordering::SeqCst))));
        // A timer, too.
        let other = runtime.spawn(move || {
            dhaga::sleep(SHORT);
            is_done.store(true, Ordering::SeqCst);
        });
        other.join().expect("it gets its turn");
        first.join().expect("it ends well");
        second.join().expect("it ends well").expect("nobody stops it");
    });
}

#[test]
fn futures_that_are_ready_at_once_starve_nobody() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        let busy = runtime.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                block_on(future::ready(()));
            }
        });
        runtime.spawn(move || is_done.store(true, Ordering::SeqCst)).join().expect("it gets its turn");
        busy.join().expect("it ends well");
    });
}

#[test]
fn a_scope_that_ends_drops_the_future_in_its_place() {
    everywhere(|| {
        let (drops, dropped) = mpsc::channel();
        let drops = Drops(drops);
        let waiting = async move {
            let _drops = drops;
            future::pending::<()>().await
        };
        let ended = within(SHORT, || try_block_on(waiting));
        assert!(matches!(ended, Err(Interrupt::DeadlineExceeded { .. })), "{ended:?}");
        assert_eq!(dropped.try_recv(), Ok(here()));
    });
    let (drops, dropped) = mpsc::channel();
    let ended = cancelled_during(move || {
        let waiting = async move {
            let _drops = Drops(drops);
            future::pending::<()>().await
        };
        (try_block_on(waiting), here())
    });
    assert_eq!(ended.0, Err(Interrupt::Cancelled));
    assert_eq!(dropped.try_recv(), Ok(ended.1));
}

#[test]
fn a_scope_that_has_ended_refuses_the_first_poll() {
    everywhere(|| {
        let asked = AtomicUsize::new(0);
        let never = || {
            poll_fn(|_| {
                asked.fetch_add(1, Ordering::SeqCst);
                Poll::Ready(())
            })
        };
        let late = with_deadline(dhaga::park::now(), || try_block_on(never()));
        assert!(matches!(late, Err(Interrupt::DeadlineExceeded { .. })), "{late:?}");
        assert_eq!(dhaga::scope(|s| (s.cancel(), try_block_on(never())).1), Err(Interrupt::Cancelled));
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        // What cannot fail goes on, and so does what is masked.
        dhaga::scope(|s| (s.cancel(), block_on(never())).1);
        assert_eq!(dhaga::scope(|s| (s.cancel(), dhaga::uncancellable(|| try_block_on(never()))).1), Ok(()));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_scope_ends_a_future_that_wakes_itself() {
    everywhere(|| {
        let ended = within(SHORT, || try_block_on(restless(|| false)));
        assert!(matches!(ended, Err(Interrupt::DeadlineExceeded { .. })), "{ended:?}");
    });
}

#[test]
fn an_output_that_is_there_is_delivered_although_the_scope_ended() {
    everywhere(|| {
        let ended = dhaga::scope(|s| {
            try_block_on(poll_fn(|_| {
                s.cancel();
                Poll::Ready(7)
            }))
        });
        assert_eq!(ended, Ok(7));
    });
}

#[test]
fn a_shutdown_drops_the_future_where_it_was_polled() {
    fn check(wait: impl FnOnce(Pin<Box<dyn Future<Output = ()>>>) + Send + 'static) {
        let (drops, dropped) = mpsc::channel();
        let (polls, polled) = mpsc::channel();
        shut_down_during(move || {
            let drops = Drops(drops);
            wait(Box::pin(async move {
                let _drops = drops;
                polls.send(here()).expect("the test listens");
                future::pending().await
            }));
        });
        assert_eq!(dropped.recv().expect("it was dropped"), polled.recv().expect("it was polled"));
    }
    within_deadline(DEADLINE, || {
        check(block_on);
        check(|future| assert_eq!(try_block_on(future), Ok(())));
        // Also in a poll of another.
        check(|inner| block_on(async { block_on(inner) }));
    });
}

#[test]
fn a_poll_may_wait_for_anything_and_for_a_future_too() {
    everywhere(|| {
        let (sender, receiver) = oneshot::channel();
        let nested = async {
            let inner = block_on(pending(2, |waker| drop(thread::spawn(|| waker.wake()))));
            dhaga::spawn(move || sender.send(inner)).join().expect("it ends well").expect("it listens");
            let outer = pending(2, |waker| dhaga::spawn(|| waker.wake()).detach()).await;
            (receiver.recv(), outer)
        };
        assert_eq!(block_on(nested), (Ok(3), 3));
    });
}

/// Recurses as deep as `levels` says, 1 KiB a level at least.
fn recurse(levels: u64) -> u64 {
    let frame = std::hint::black_box([levels; 128]);
    if levels == 0 { 0 } else { recurse(levels - 1) + frame[7] - (levels - 1) }
}

/// Pending once, and goes so deep at each of its two polls.
fn deep(levels: u64) -> impl Future<Output = u64> {
    let mut is_second = false;
    poll_fn(move |context| {
        let depth = recurse(levels);
        if std::mem::replace(&mut is_second, true) {
            return Poll::Ready(depth);
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

#[test]
fn a_poll_has_as_much_stack_as_the_caller_was_given() {
    everywhere(|| {
        assert_eq!(block_on(deep(10)), 10);
        assert_eq!(dhaga::with_stack_size(4 << 20, || block_on(deep(1500))).expect("there is room"), 1500);
        let large = Builder::new().stack_size(4 << 20);
        let depths = large.spawn(|| (block_on(deep(1500)), block_on(poll_fn(|_| Poll::Ready(block_on(deep(1500)))))));
        assert_eq!(depths.expect("there is room").join().expect("it fits"), (1500, 1500));
    });
}

/// What this process has in memory, in KiB.
#[cfg(not(feature = "sanitizer"))]
fn resident_kib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("the kernel tells");
    let pages: usize = statm.split(' ').nth(1).expect("the second is what is resident").parse().expect("a number");
    pages * 4
}

/// The sanitizer's own memory would be counted, too.
#[cfg(not(feature = "sanitizer"))]
#[test]
fn a_future_that_goes_deep_and_is_pending_keeps_little_of_the_stack() {
    const DHAGAS: usize = 500;
    child::succeeds(child::name_of!(a_future_that_goes_deep_and_is_pending_keeps_little_of_the_stack), || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let before = resident_kib();
        let waiters: Vec<_> = (0..DHAGAS)
            .map(|_| {
                let waits = || {
                    try_block_on(poll_fn(|_| {
                        assert_eq!(recurse(64), 64);
                        Poll::<()>::Pending
                    }))
                };
                runtime.spawn(waits)
            })
            .collect();
        runtime.spawn(|| ()).join().expect("all others are parked by now");
        let each = (resident_kib() - before) / DHAGAS;
        assert!(each < 32, "each keeps {each} KiB, and 64 at least would stay of its own stack");
        waiters.into_iter().for_each(|waiter| waiter.cancel());
        runtime.shutdown(DEADLINE).expect("all end");
    });
}

#[test]
fn endless_recursion_by_polls_overflows_as_any_other() {
    fn endless(level: u64) -> u64 {
        std::hint::black_box(block_on(poll_fn(|_| Poll::Ready(endless(level + 1)))) + level)
    }
    let text = child::aborts(child::name_of!(endless_recursion_by_polls_overflows_as_any_other), || {
        dhaga::spawn(|| endless(0)).join().expect("it aborts first");
    });
    let Some(text) = text else { return };
    assert!(text.contains("has overflowed its stack of 256 KiB"), "{text}");
}

#[test]
fn an_overflow_of_a_poll_names_the_dhaga_and_the_place() {
    let text = child::aborts(child::name_of!(an_overflow_of_a_poll_names_the_dhaga_and_the_place), || {
        let endless = || block_on(deep(std::hint::black_box(u64::MAX)));
        Builder::new().name("the deep one").spawn(endless).expect("there is room").join().expect("it aborts first");
    });
    let Some(text) = text else { return };
    assert!(text.contains("dhaga 'the deep one' (on a stack of its own at ") && text.contains("future.rs:"), "{text}");
    assert!(text.contains("has overflowed its stack of 256 KiB; give it more with dhaga::with_stack_size"), "{text}");
}

#[test]
fn a_panic_of_a_poll_goes_to_the_caller_and_drops_the_future() {
    everywhere(|| {
        for wait in [|future| block_on(future), |future| try_block_on(future).expect("nobody stops it")] {
            let (drops, dropped) = mpsc::channel();
            let fails: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                let _drops = Drops(drops);
                pending(1, Waker::wake).await;
                resume_unwind(Box::new("on purpose"))
            });
            let payload = catch_unwind(AssertUnwindSafe(|| wait(fails))).expect_err("it panics");
            assert_eq!(payload.downcast_ref::<&str>(), Some(&"on purpose"));
            assert_eq!(dropped.try_recv(), Ok(here()));
            assert_eq!(block_on(pending(1, Waker::wake)), 2);
        }
    });
}

#[test]
fn while_a_panic_unwinds_a_wait_that_can_fail_is_refused_and_one_that_cannot_blocks() {
    everywhere(|| {
        let refused = while_panicking(|| try_block_on(poll_fn::<(), _>(|_| panic!("it is not polled"))));
        assert_eq!(refused, Err(Interrupt::Panicking));
        assert_eq!(while_panicking(|| block_on(future::ready(7))), 7);
        assert_eq!(while_panicking(|| block_on(pending(2, |waker| drop(thread::spawn(|| waker.wake()))))), 3);
        assert_eq!(while_panicking(|| block_on(pending(2, Waker::wake))), 3);
    });
}

fn check_aborts_in_words(test: &str, endless: fn() -> Pin<Box<dyn Future<Output = ()>>>) {
    let text = child::aborts(test, move || {
        let unwinder = Builder::new().name("the unwinder").spawn(move || while_panicking(|| block_on(endless())));
        unwinder.expect("there is room").join().expect("it aborts first");
    });
    let Some(text) = text else { return };
    assert!(text.contains("\"the unwinder\"") && text.contains("10s for a future to become ready"), "{text}");
}

#[test]
fn a_future_that_never_comes_while_a_panic_unwinds_ends_the_process_in_words() {
    let test = child::name_of!(a_future_that_never_comes_while_a_panic_unwinds_ends_the_process_in_words);
    check_aborts_in_words(test, || Box::pin(future::pending()));
}

#[test]
fn so_does_one_that_wakes_itself() {
    check_aborts_in_words(child::name_of!(so_does_one_that_wakes_itself), || Box::pin(restless(|| false)));
}

// Dhagas that are awaited

/// Counts its wakes, and wakes an OS thread by std's means.
struct Bell {
    wakes: AtomicUsize,
    thread: Thread,
}

impl Bell {
    fn new() -> Arc<Self> {
        Arc::new(Self { wakes: AtomicUsize::new(0), thread: thread::current() })
    }

    fn wakes(&self) -> usize {
        self.wakes.load(Ordering::SeqCst)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// An executor for one future on a plain thread, which brings another waker to each poll.
fn execute<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        let bell = Bell::new();
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&bell.clone().into())) {
            return output;
        }
        while bell.wakes() == 0 {
            thread::park();
        }
    }
}

fn poll_with<F: Future + Unpin>(future: &mut F, bell: &Arc<Bell>) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(&bell.clone().into()))
}

/// Until others have made it true; the test's deadline ends it otherwise.
fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        thread::yield_now();
    }
}

/// A dhaga that waits for the gate, as a future.
fn gated<T: Send + 'static>(result: T) -> (oneshot::Sender<()>, JoinFuture<T>) {
    let (open, opened) = oneshot::channel();
    let handle = dhaga::spawn(move || {
        opened.recv().expect("the gate opens");
        result
    });
    (open, handle.into_future())
}

#[test]
fn a_dhaga_is_awaited_by_any_executor() {
    within_deadline(DEADLINE, || {
        let sum = async {
            let (open, first) = gated(40);
            let second = dhaga::spawn(move || open.send(()).map(|()| 2));
            let second = second.await.expect("it ends well").expect("it listens");
            first.await.expect("it ends well") + second
        };
        assert_eq!(execute(sum), 42);
        let fails = execute(dhaga::spawn(|| resume_unwind(Box::new("on purpose"))).into_future());
        assert!(matches!(fails, Err::<(), _>(JoinError::Panicked(panic)) if panic.message() == "on purpose"));
    });
    everywhere(|| {
        let (open, handle) = gated(7);
        dhaga::spawn(|| open.send(())).detach();
        assert_eq!(block_on(handle).expect("it ends well"), 7);
        let (open, handle) = gated(7);
        dhaga::spawn(|| open.send(())).detach();
        assert_eq!(try_block_on(handle).expect("nobody stops it").expect("it ends well"), 7);
    });
}

#[test]
fn a_dhaga_that_a_shutdown_ends_wakes_who_awaits_it() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let parked = runtime.spawn(|| dhaga::uncancellable(|| block_on(future::pending::<()>())));
        let awaiting = thread::spawn(move || execute(parked.into_future()));
        runtime.shutdown(Duration::ZERO).expect("it unwinds");
        let ended = awaiting.join().expect("it ends well");
        assert!(matches!(ended, Err(JoinError::Unwound | JoinError::NeverRan)), "{ended:?}");
    });
}

#[test]
fn the_waker_of_the_latest_poll_is_woken_once_and_no_other() {
    within_deadline(DEADLINE, || {
        let (open, mut future) = gated("done");
        let bells = [Bell::new(), Bell::new(), Bell::new()];
        for bell in [0, 1, 1, 2] {
            assert!(poll_with(&mut future, &bells[bell]).is_pending());
        }
        // The others are forgotten already.
        assert_eq!(bells.each_ref().map(Arc::strong_count), [1, 1, 2]);
        open.send(()).expect("it listens");
        until(|| bells[2].wakes() > 0);
        let last = Bell::new();
        let Poll::Ready(result) = poll_with(&mut future, &last) else { panic!("it was woken for it") };
        assert_eq!(result.expect("it ends well"), "done");
        assert_eq!(bells.each_ref().map(|bell| bell.wakes()), [0, 0, 1]);
        until(|| bells.iter().chain([&last]).all(|bell| Arc::strong_count(bell) == 1));
    });
}

#[test]
fn to_drop_the_future_detaches_the_dhaga() {
    within_deadline(DEADLINE, || {
        for polls in 0..3 {
            let (drops, dropped) = mpsc::channel();
            let (open, mut future) = gated(Drops(drops));
            let bell = Bell::new();
            for _ in 0..polls {
                assert!(poll_with(&mut future, &bell).is_pending());
            }
            drop(future);
            assert_eq!(Arc::strong_count(&bell), 1);
            open.send(()).expect("it runs on");
            dropped.recv().expect("its result is dropped");
            assert_eq!(bell.wakes(), 0);
        }
    });
}

#[test]
fn to_drop_the_future_of_a_dhaga_that_has_ended_drops_its_result() {
    within_deadline(DEADLINE, || {
        let (drops, dropped) = mpsc::channel();
        let (open, mut future) = gated(Drops(drops));
        let bell = Bell::new();
        assert!(poll_with(&mut future, &bell).is_pending());
        open.send(()).expect("it listens");
        until(|| bell.wakes() == 1);
        drop(future);
        assert_eq!(dropped.try_recv(), Ok(here()));
    });
}

#[test]
#[should_panic(expected = "a future is not polled after it was ready")]
fn a_future_that_was_ready_is_polled_no_more() {
    let mut future = dhaga::spawn(|| ()).into_future();
    until(|| poll_with(&mut future, &Bell::new()).is_ready());
    let _ = poll_with(&mut future, &Bell::new());
}

#[test]
fn a_storm_of_ends_loses_no_wake() {
    on_all_mixtures(|| {
        let part = |_| -> Part {
            Box::new(|| {
                for round in 0..FUTURES / 4 {
                    let future = dhaga::spawn(move || round).into_future();
                    let ended = if dhaga::current().is_dhaga() { block_on(future) } else { execute(future) };
                    assert_eq!(ended.expect("it ends well"), round);
                }
            })
        };
        (0..4).map(part).collect()
    });
}

#[test]
fn polls_that_race_with_the_end_are_woken_or_ready() {
    // Each round has two threads take turns, which on a busy machine is milliseconds.
    const ROUNDS: usize = 2_000;
    within_deadline(DEADLINE, || {
        for round in 0..ROUNDS {
            let (open, mut future) = gated(round);
            open.send(()).expect("it listens");
            let mut bells = Vec::new();
            let ended = loop {
                let bell = Bell::new();
                match poll_with(&mut future, &bell) {
                    Poll::Ready(ended) => break ended,
                    Poll::Pending => bells.push(bell),
                }
                if bells.len() > round % 8 {
                    // Now it must be woken.
                    until(|| bells.last().is_none_or(|bell| bell.wakes() == 1));
                }
            };
            assert_eq!(ended.expect("it ends well"), round);
        }
    });
}

/// A waker that panics, or waits, where it is woken.
struct Unruly(fn(), AtomicBool);

impl Wake for Unruly {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        (self.0)();
    }
}

#[test]
fn a_waker_that_panics_or_waits_harms_neither_the_dhaga_nor_its_worker() {
    within_deadline(DEADLINE, || {
        let deeds: [fn(); 2] = [|| resume_unwind(Box::new("on purpose")), || dhaga::sleep(SHORT)];
        for deed in deeds {
            let runtime = Runtime::builder().workers(1).build().expect("a runtime");
            let (open, opened) = oneshot::channel::<()>();
            let mut future = runtime.spawn(move || opened.recv()).into_future();
            let unruly = Arc::new(Unruly(deed, AtomicBool::new(false)));
            let waker = unruly.clone().into();
            assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
            open.send(()).expect("it listens");
            until(|| unruly.1.load(Ordering::SeqCst));
            assert_eq!(execute(future).expect("it has ended"), Ok(()));
            assert_eq!(runtime.spawn(|| 7).join().expect("others go on"), 7);
            runtime.shutdown(DEADLINE).expect("nothing is left");
        }
    });
}

// Oneshots that are awaited

#[test]
fn the_message_of_a_oneshot_is_awaited_by_any_executor() {
    within_deadline(DEADLINE, || {
        let (sender, receiver) = oneshot::channel();
        dhaga::spawn(move || sender.send(7)).detach();
        assert_eq!(execute(receiver.into_future()), Ok(7));
        let (sender, receiver) = oneshot::channel::<()>();
        dhaga::spawn(move || drop(sender)).detach();
        assert_eq!(execute(receiver.into_future()), Err(RecvError::Disconnected));

        let (sender, receiver) = oneshot::channel();
        let (mut future, bells) = (receiver.into_future(), [Bell::new(), Bell::new()]);
        for bell in [0, 1, 1] {
            assert!(poll_with(&mut future, &bells[bell]).is_pending());
        }
        sender.send(7).expect("it listens");
        assert_eq!(bells.each_ref().map(|bell| bell.wakes()), [0, 1]);
        assert_eq!(poll_with(&mut future, &bells[0]), Poll::Ready(Ok(7)));

        let (sender, receiver) = oneshot::channel();
        let (mut future, bell) = (receiver.into_future(), Bell::new());
        assert!(poll_with(&mut future, &bell).is_pending());
        drop(future);
        assert_eq!((sender.send(7), Arc::strong_count(&bell)), (Err(7), 1));
    });
}

#[test]
fn a_storm_of_messages_loses_no_wake() {
    on_all_mixtures(|| {
        let part = |_| -> Part {
            Box::new(|| {
                let (hand, handed) = mpsc::channel::<oneshot::Sender<usize>>();
                let sending = thread::spawn(move || {
                    handed.into_iter().enumerate().all(|(round, sender)| sender.send(round).is_ok())
                });
                for round in 0..FUTURES / 4 {
                    let (sender, receiver) = oneshot::channel();
                    hand.send(sender).expect("it listens");
                    assert_eq!(block_on(receiver), Ok(round));
                }
                drop(hand);
                assert!(sending.join().expect("it ends well"));
            })
        };
        (0..4).map(part).collect()
    });
}

#[test]
fn a_future_may_move_from_one_waiter_to_the_next() {
    everywhere(|| {
        let (open, future) = gated(7);
        let future = Mutex::new(future);
        let first = within(SHORT, || {
            try_block_on(poll_fn(|context| Pin::new(&mut *future.lock().expect("nobody panicked")).poll(context)))
        });
        assert!(matches!(first, Err(Interrupt::DeadlineExceeded { .. })));
        open.send(()).expect("it listens");
        let future = future.into_inner().expect("nobody panicked");
        let second = dhaga::blocking(|| execute(future)).expect("the executor ends well");
        assert_eq!(second.expect("it ends well"), 7);
    });
}

/// Workers come and go, and the door by which other threads reach one goes on to the next: what comes late, for a worker that
/// has ended, concerns nobody.
#[test]
fn a_sleep_that_outlives_its_worker_disarms_and_redirects_no_other() {
    const ROUNDS: usize = 8;
    const LONG: Duration = Duration::from_secs(3600);
    fn polled_once(mut sleep: Sleep) -> Sleep {
        assert!(poll_with(&mut sleep, &Bell::new()).is_pending());
        sleep
    }
    fn check(deal_with: fn(Sleep)) {
        for _ in 0..ROUNDS {
            let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
            let old = runtime.spawn(|| polled_once(sleep(LONG))).join().expect("it ends well");
            runtime.shutdown(DEADLINE).expect("nothing is left");
            // Until then its door is kept.
            drop(runtime);
            let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
            let sleeper = runtime.spawn(move || {
                let mut new = pin!(sleep(SHORT));
                let mut old = Some(old);
                block_on(poll_fn(|context| {
                    let polled = new.as_mut().poll(context);
                    old.take().into_iter().for_each(deal_with);
                    polled
                }));
            });
            sleeper.join().expect("it ends well");
            runtime.shutdown(DEADLINE).expect("nothing is left");
        }
    }
    within_deadline(DEADLINE, || {
        check(drop);
        check(|old| drop(polled_once(old)));
    });
}
