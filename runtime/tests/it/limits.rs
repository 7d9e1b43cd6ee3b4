//! Where the system's limits end: what gets no stack is told so, and those that live go on.

use std::fs;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;

use dhaga::sync::{Semaphore, channel};
use dhaga::{Builder, JoinError, Runtime, RuntimeBuilder, SpawnError};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::child;
use crate::common::{DEADLINE, within_deadline};

/// Adds one when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What became of dhagas of which the system did not have room for all.
#[derive(Debug)]
struct Crowd {
    /// Were refused when they were spawned.
    refused: usize,
    /// Got no stack.
    never_ran: usize,
    /// Waited, were woken, and ended.
    lived: usize,
}

/// Spawns so many that park, lets go those that live, and counts. Afterwards the runtime still works.
fn crowd(runtime: &Runtime, count: usize) -> Crowd {
    let (parked, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (release, released) = channel::bounded::<()>(1);
    let spawned: Vec<_> = (0..count)
        .map(|_| {
            let (released, parked, counted) = (released.clone(), parked.clone(), Counted(dropped.clone()));
            Builder::new().spawn_on(runtime, move || {
                let _counted = counted;
                parked.fetch_add(1, Ordering::SeqCst);
                released.recv()
            })
        })
        .collect();
    while parked.load(Ordering::SeqCst) + dropped.load(Ordering::SeqCst) < count {
        thread::yield_now();
    }
    // Something is left for the rest of the program. A heap that gets nothing more ends the process.
    let thread = thread::Builder::new().stack_size(3 << 20).spawn(|| vec![1_u8; 1 << 20].len());
    assert_eq!(thread.expect("address space for a thread").join().expect("it ends"), 1 << 20);
    drop(release);
    let mut crowd = Crowd { refused: 0, never_ran: 0, lived: 0 };
    for handle in spawned {
        match handle.map(dhaga::JoinHandle::join) {
            Err(SpawnError::TooMany { .. }) => crowd.refused += 1,
            Ok(Err(JoinError::NeverRan)) => crowd.never_ran += 1,
            Ok(Ok(released)) => {
                released.expect_err("the channel was closed");
                crowd.lived += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(runtime.spawn(|| 1).join().expect("there is room again"), 1);
    println!("{crowd:?}");
    crowd
}

/// Bytes of address space that this process has.
fn address_space() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("the kernel tells");
    let pages = text.split(' ').next().and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number of pages") * rustix::param::page_size() as u64
}

fn limit(resource: Resource, bytes: u64) {
    let maximum = getrlimit(resource).maximum;
    setrlimit(resource, Rlimit { current: Some(bytes), maximum }).expect("it is not above the hard one");
}

#[test]
fn without_address_space_some_never_run_and_the_rest_live() {
    child::succeeds(child::name_of!(without_address_space_some_never_run_and_the_rest_live), || {
        limit(Resource::As, 600 << 20);
        let runtime = Runtime::builder().workers(2).tasks_max(200_000).build().expect("a runtime");
        let crowd = crowd(&runtime, 100_000);
        assert!(crowd.lived > 200 && crowd.never_ran > 80_000, "{crowd:?}");
    });
}

/// A future that waits, in its second poll, as a dhaga does: so it keeps the stack of that.
fn polled_twice(
    wakers: mpsc::Sender<Waker>,
    entered: Arc<AtomicUsize>,
    released: channel::Receiver<()>,
) -> impl Future<Output = ()> + Send {
    let mut polls = 0;
    poll_fn(move |context| {
        polls += 1;
        if polls == 1 {
            wakers.send(context.waker().clone()).expect("the test listens");
            return Poll::Pending;
        }
        entered.fetch_add(1, Ordering::SeqCst);
        released.recv().expect_err("the channel was closed");
        Poll::Ready(())
    })
}

#[test]
fn futures_that_find_no_stack_are_polled_when_there_is_one_again() {
    const FUTURES: usize = 6;
    child::succeeds(child::name_of!(futures_that_find_no_stack_are_polled_when_there_is_one_again), || {
        limit(Resource::As, 600 << 20);
        let runtime = Runtime::builder().workers(1).tasks_max(200_000).build().expect("a runtime");
        let (wakers, woken) = mpsc::channel();
        let counter = Arc::<AtomicUsize>::default;
        let (entered, parked, never_ran) = (counter(), counter(), counter());
        let (release, released) = channel::bounded::<()>(1);
        let (entered_by, released_by) = (Arc::clone(&entered), released.clone());
        let spawn = move || {
            let future = || polled_twice(wakers.clone(), entered_by.clone(), released_by.clone());
            (0..FUTURES).map(|_| dhaga::spawn_future(future())).collect::<Vec<_>>()
        };
        let futures = runtime.spawn(spawn).join().expect("it ends well");
        let wakers: Vec<_> = woken.iter().take(FUTURES).collect();
        // Others take all the stacks that there are.
        while never_ran.load(Ordering::SeqCst) == 0 {
            let (released, parked, counted) = (released.clone(), parked.clone(), Counted(never_ran.clone()));
            let park = move || {
                std::mem::forget(counted);
                parked.fetch_add(1, Ordering::SeqCst);
                released.recv()
            };
            Builder::new().spawn_on(&runtime, park).expect("there is room for dhagas").detach();
        }
        wakers.into_iter().for_each(Waker::wake);
        while entered.load(Ordering::SeqCst) == 0 {
            runtime.audit(DEADLINE).expect("the worker answers");
        }
        for _ in 0..3 {
            runtime.audit(DEADLINE).expect("the worker answers");
        }
        // The stack of the polls, and the one that is kept for when there is no other.
        let entered = entered.load(Ordering::SeqCst);
        assert!((1..=2).contains(&entered), "{entered} of {FUTURES} found a stack");
        futures.last().expect("some").cancel();
        drop(release);
        let ended: Vec<_> = futures.into_iter().map(|future| future.join().expect("it ends well")).collect();
        assert_eq!(ended.iter().filter(|ended| ended.is_err()).count(), 1, "{ended:?}");
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

/// Starts dhagas that park until the channel is closed, until there is no stack for another.
fn take_all_stacks(runtime: &Runtime, released: &channel::Receiver<()>) {
    let never_ran = Arc::<AtomicUsize>::default();
    while never_ran.load(Ordering::SeqCst) == 0 {
        let (released, counted) = (released.clone(), Counted(never_ran.clone()));
        let park = move || {
            std::mem::forget(counted);
            released.recv()
        };
        Builder::new().spawn_on(runtime, park).expect("there is room for dhagas").detach();
    }
}

/// One future waits within its poll, on the stack of the polls. Another is polled on the one that is kept for when there is no
/// other, which is then kept for that again.
#[test]
fn the_last_stack_comes_back_from_a_poll() {
    child::succeeds(child::name_of!(the_last_stack_comes_back_from_a_poll), || {
        limit(Resource::As, 600 << 20);
        let runtime = Runtime::builder().workers(1).tasks_max(200_000).build().expect("a runtime");
        let (wakers, woken) = mpsc::channel();
        let (entered, polled) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (release, released) = channel::bounded::<()>(1);
        let waits = polled_twice(wakers.clone(), entered.clone(), released.clone());
        let polls = polled.clone();
        let pending = poll_fn(move |context| {
            polls.fetch_add(1, Ordering::SeqCst);
            wakers.send(context.waker().clone()).expect("the test listens");
            Poll::<()>::Pending
        });
        let spawn = move || [dhaga::spawn_future(waits), dhaga::spawn_future(pending)];
        let [waits, pending] = runtime.spawn(spawn).join().expect("it ends well");
        let [first, second] = [woken.recv().expect("it is polled"), woken.recv().expect("it is polled")];
        take_all_stacks(&runtime, &released);
        for (waker, count) in [(first, &entered), (second, &polled)] {
            let before = count.load(Ordering::SeqCst);
            waker.wake();
            while count.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
        }
        let refused = runtime.spawn(|| ());
        assert!(matches!(refused.join(), Err(JoinError::NeverRan)), "it waits for nobody");
        pending.cancel();
        assert!(pending.join().expect("it ends well").is_err());
        drop(release);
        waits.join().expect("it ends well").expect("nobody stops it");
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

#[test]
fn a_future_for_whose_polls_there_is_no_stack_never_runs() {
    child::succeeds(child::name_of!(a_future_for_whose_polls_there_is_no_stack_never_runs), || {
        limit(Resource::As, 600 << 20);
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let dropped = Arc::<AtomicUsize>::default();
        let counted = Counted(dropped.clone());
        let too_large = move || {
            let never = Builder::new().stack_size(1 << 30).spawn_future(async move { drop(counted) });
            never.expect("there is room for a dhaga").join()
        };
        let ended = runtime.spawn(too_large).join().expect("it ends well");
        assert!(matches!(ended, Err(JoinError::NeverRan)), "{ended:?}");
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
        assert_eq!(
            runtime.spawn(|| dhaga::spawn_future(async { 1 }).join()).join().expect("ends").expect("ends"),
            Ok(1)
        );
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

#[test]
fn above_the_limit_of_dhagas_a_spawn_is_refused_and_the_rest_live() {
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(2).tasks_max(1000).build().expect("a runtime");
        let crowd = crowd(&runtime, 3000);
        // Up to an eighth of the limit may be held back.
        assert!((875..=1000).contains(&crowd.lived) && crowd.refused == 3000 - crowd.lived, "{crowd:?}");
    });
}

#[test]
fn without_mappings_for_guards_some_never_run_and_the_rest_live() {
    child::succeeds(child::name_of!(without_mappings_for_guards_some_never_run_and_the_rest_live), || {
        let text = fs::read_to_string("/proc/sys/vm/max_map_count").expect("the kernel tells");
        let mappings: usize = text.trim().parse().expect("a number");
        if mappings > 100_000 {
            return println!("{mappings} mappings are more than this test wants to use up");
        }
        let runtime = Runtime::builder().workers(2).protect_guards().build().expect("a runtime");
        let crowd = crowd(&runtime, mappings / 2 + 1000);
        assert!(crowd.lived > mappings / 2 * 9 / 10 && crowd.never_ran > 1000, "{crowd:?}");
    });
}

/// Gives up the privilege to lock as much as one likes. No effect for who has none.
fn become_nobody() {
    const NOBODY: libc::uid_t = 65_534;
    // SAFETY: it has no conditions; libc changes all threads.
    let _ = unsafe { libc::setuid(NOBODY) };
}

#[test]
fn without_memory_that_may_be_locked_some_never_run_and_the_rest_live() {
    child::succeeds(child::name_of!(without_memory_that_may_be_locked_some_never_run_and_the_rest_live), || {
        let runtime = Runtime::builder().workers(2).build().expect("a runtime");
        runtime.spawn(|| ()).join().expect("it runs");
        let hard = getrlimit(Resource::Memlock).maximum.unwrap_or(u64::MAX);
        let room = hard.min(address_space() + (64 << 20));
        limit(Resource::Memlock, room);
        become_nobody();
        // Where what is there already is more than may be locked, what comes still counts.
        let all = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
        all.or_else(|_| mlockall(MlockAllFlags::FUTURE)).expect("without limit or within it");
        let crowd = crowd(&runtime, 2000);
        assert!(crowd.lived > 50 && crowd.never_ran > 1000, "{crowd:?}");
    });
}

#[test]
fn locked_memory_carries_dhagas_too() {
    child::succeeds(child::name_of!(locked_memory_carries_dhagas_too), || {
        if mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).is_err() {
            return println!("this machine does not let us lock that much");
        }
        let runtime = match Runtime::builder().workers(2).build() {
            Ok(runtime) => runtime,
            Err(error) => return println!("no threads of locked memory: {error}"),
        };
        let crowd = crowd(&runtime, 500);
        assert!(crowd.lived >= 100, "{crowd:?}");
    });
}

/// Keeps what is logged.
struct Kept(Mutex<Vec<String>>);

impl log::Log for Kept {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().expect("nobody panics here").push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn what_there_is_room_for_is_logged_at_the_start() {
    child::succeeds(child::name_of!(what_there_is_room_for_is_logged_at_the_start), || {
        static KEPT: Kept = Kept(Mutex::new(Vec::new()));
        log::set_logger(&KEPT).expect("no other logger");
        log::set_max_level(log::LevelFilter::Info);
        let check = |builder: RuntimeBuilder, parts: &[&str]| {
            drop(builder.build().expect("a runtime"));
            let lines = std::mem::take(&mut *KEPT.0.lock().expect("nobody panics"));
            let [line] = &lines[..] else { panic!("one line, not {lines:?}") };
            println!("{line}");
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        };
        let one = || Runtime::builder().workers(1);
        check(one().name("x"), &["INFO runtime \"x\"", "1 workers for ", "(three quarters of ", "stacks of 256 KiB"]);
        check(one().tasks_max(9).stack_size(1 << 20), &["room for 9 dhagas (as asked for)", "stacks of 1024 KiB"]);
        check(one().protect_guards(), &["guarded by mprotect, ", " at once at most (vm.max_map_count)"]);
        limit(Resource::As, 1 << 30);
        check(one().protect_guards(), &[" at once at most (RLIMIT_AS)"]);
    });
}

#[test]
fn the_default_limit_comes_from_memory() {
    let field = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))?;
        line.parse::<usize>().ok()
    };
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text)).expect("the kernel tells");
    let limit = Runtime::builder().workers(1).build().expect("a runtime").tasks_max();
    assert!((1..=total * 1024 / 4 * 3 / 5000).contains(&limit), "{limit} dhagas in {total} kB");
    let limit = Runtime::builder().workers(1).tasks_max(7).build().expect("a runtime").tasks_max();
    assert_eq!(limit, 7);
}

#[test]
fn a_closure_larger_than_a_stack_is_dropped_where_it_lies() {
    child::succeeds(child::name_of!(a_closure_larger_than_a_stack_is_dropped_where_it_lies), || {
        let runtime = Runtime::builder().workers(1).stack_size(64 << 10).build().expect("a runtime");
        runtime.spawn(|| ()).join().expect("it keeps a stack of the smallest size");
        limit(Resource::As, address_space() + (256 << 20));
        let dropped = Arc::new(AtomicUsize::new(0));
        let (large, counted) = ([1_u8; 60_000], Counted(dropped.clone()));
        let refused = Builder::new().stack_size(1 << 30).spawn_on(&runtime, move || drop((large, counted)));
        assert!(matches!(refused.expect("there is room for it").join(), Err(JoinError::NeverRan)));
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    });
}

/// Says where it is dropped, and waits there.
struct WaitsInDrop(Arc<Semaphore>, mpsc::Sender<bool>);

impl Drop for WaitsInDrop {
    fn drop(&mut self) {
        self.1.send(dhaga::current().is_dhaga()).expect("the test listens");
        drop(self.0.acquire().expect("it is open"));
    }
}

#[test]
fn what_gets_no_stack_is_dropped_in_a_dhaga_however_long_that_takes() {
    child::succeeds(child::name_of!(what_gets_no_stack_is_dropped_in_a_dhaga_however_long_that_takes), || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        runtime.spawn(|| ()).join().expect("it has a stack");
        limit(Resource::As, address_space() + (256 << 20));
        let (permits, (dropped, is_dropped)) = (Arc::new(Semaphore::new(0)), mpsc::channel());
        let refused: Vec<_> = (0..10)
            .map(|_| {
                let waits = WaitsInDrop(permits.clone(), dropped.clone());
                Builder::new().stack_size(1 << 30).spawn_on(&runtime, || drop(waits)).expect("there is room for it")
            })
            .collect();
        assert!(is_dropped.recv().expect("the first is dropped"));
        assert_eq!(runtime.spawn(|| 1).join().expect("others go on"), 1);
        permits.add_permits(1);
        for handle in refused {
            assert!(matches!(handle.join(), Err(JoinError::NeverRan)));
        }
        assert!(is_dropped.try_iter().take(9).all(|in_dhaga| in_dhaga));
    });
}
