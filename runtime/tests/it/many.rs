//! Very many dhagas at once, and what each costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dhaga::Runtime;
use dhaga::sync::channel;

use crate::child;

const DHAGAS: usize = 100_000;
/// A page of stack, page tables, and the books: the packet, the task, the coroutine, the place in the channel's queue.
/// Without optimisation the frames take a second page.
const BYTES_MAX: usize = if cfg!(debug_assertions) { 13_500 } else { 5500 };

/// Resident memory and page tables of this process, in bytes.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let kib = |key: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(key)).expect("the kernel tells");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("it is a number")
    };
    (kib("VmRSS:") + kib("VmPTE:")) << 10
}

/// How often the workers of this process have gone to sleep, and the clock ticks that they have run.
fn work_of_workers() -> (usize, usize) {
    let threads = std::fs::read_dir("/proc/self/task").expect("the kernel tells").filter_map(Result::ok);
    let read = |thread: &std::fs::DirEntry, file: &str| std::fs::read_to_string(thread.path().join(file)).ok();
    let sleeps = |thread: &std::fs::DirEntry| {
        let status = read(thread, "status")?;
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse::<usize>().ok()
    };
    let ticks = |thread: &std::fs::DirEntry| {
        let stat = read(thread, "stat")?;
        let after_name = stat.rsplit_once(") ")?.1;
        Some(after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<usize>().ok()).sum::<usize>())
    };
    let workers = threads.filter(|thread| read(thread, "comm").is_some_and(|name| name.starts_with("dhaga-")));
    workers.filter_map(|thread| Some((sleeps(&thread)?, ticks(&thread)?))).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// Waits for a whole second in which no worker woke. One that wakes for ever never lets it pass.
fn wait_for_a_second_of_silence() {
    loop {
        let before = work_of_workers();
        assert!(before.0 > 0, "there are workers, and they have slept");
        std::thread::sleep(Duration::from_secs(1));
        if work_of_workers() == before {
            return;
        }
    }
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_memory_of_a_burst_is_given_back_when_it_is_over() {
    child::succeeds(child::name_of!(the_memory_of_a_burst_is_given_back_when_it_is_over), || {
        const BURST: usize = 10_000;
        let runtime = Runtime::builder().workers(2).build().expect("a runtime");
        let (sender, receiver) = channel::bounded::<()>(1);
        let receiver = Arc::new(receiver);
        let parked = Arc::new(AtomicUsize::new(0));
        let handles: Vec<_> = (0..BURST)
            .map(|_| {
                let (receiver, parked) = (receiver.clone(), parked.clone());
                runtime.spawn(move || {
                    parked.fetch_add(1, Ordering::SeqCst);
                    receiver.recv()
                })
            })
            .collect();
        while parked.load(Ordering::SeqCst) < BURST {
            std::thread::yield_now();
        }
        drop(sender);
        handles.into_iter().for_each(|handle| assert!(handle.join().expect("it ends").is_err()));
        let before = memory();
        assert!(before > BURST * 4096, "each took a page");
        // Nobody asks anything of the workers meanwhile: they wake by themselves until it is done.
        while memory() > before - BURST * 4096 * 9 / 10 {
            std::thread::sleep(Duration::from_millis(10));
        }
        wait_for_a_second_of_silence();
        assert_eq!(runtime.spawn(|| 1).join().expect("the stacks that are left serve"), 1);
    });
}

#[test]
fn a_hundred_thousand_dhagas_wait_in_a_few_hundred_megabytes() {
    child::succeeds(child::name_of!(a_hundred_thousand_dhagas_wait_in_a_few_hundred_megabytes), || {
        let runtime = Runtime::builder().workers(2).build().expect("a runtime");
        runtime.spawn(|| ()).join().expect("the workers run");
        let drops = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = channel::bounded(1);
        let receiver = Arc::new(receiver);
        let parked = Arc::new(AtomicUsize::new(0));
        let before = memory();
        let handles: Vec<_> = (0..DHAGAS)
            .map(|_| {
                let (guard, receiver, parked) = (Guard(drops.clone()), receiver.clone(), parked.clone());
                runtime.spawn(move || {
                    let _guard = guard;
                    parked.fetch_add(1, Ordering::SeqCst);
                    receiver.recv()
                })
            })
            .collect();
        // From here to the park there is nothing to wait for: the next dhaga of a worker runs when the last is parked.
        while parked.load(Ordering::SeqCst) < DHAGAS {
            std::thread::yield_now();
        }
        let bytes = (memory() - before) / DHAGAS;
        println!("{bytes} bytes for each of {DHAGAS} parked dhagas");
        assert!(bytes < BYTES_MAX, "{bytes} bytes for each parked dhaga");
        assert_eq!(drops.load(Ordering::SeqCst), 0);
        for number in 0..DHAGAS {
            sender.send(number).expect("they wait");
        }
        let mut sum = 0;
        for handle in handles {
            sum += handle.join().expect("it ends well").expect("each gets one");
        }
        assert_eq!(sum, DHAGAS * (DHAGAS - 1) / 2);
        assert_eq!(drops.load(Ordering::SeqCst), DHAGAS);
    });
}
