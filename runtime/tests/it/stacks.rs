//! Stacks of all sizes: given, used again, measured, and given back to the system.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dhaga::sync::{Semaphore, channel};
use dhaga::{Builder, Runtime, SpawnError};

use crate::child;
use crate::common::{DEADLINE, within_deadline};

/// Goes down so many bytes, at least, and writes on the way.
fn descend(bytes: usize) -> u64 {
    let frame = [bytes as u64; 128];
    black_box(&frame);
    if bytes < size_of_val(&frame) { 1 } else { descend(bytes - size_of_val(&frame)) + frame[7].min(1) }
}

/// A field of this process's status, in bytes.
fn status(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"));
    line.and_then(|kib| kib.parse::<usize>().ok()).expect("it is a number") << 10
}

#[test]
fn a_stack_has_the_size_that_was_asked_for() {
    fn check(stack_bytes: usize, depth: usize) {
        let handle = Builder::new().stack_size(stack_bytes).spawn(move || descend(depth)).expect("there is room");
        assert!(handle.join().expect("the stack is large enough") > 0);
    }
    fn check_refused(stack_bytes: usize) {
        let error = Builder::new().stack_size(stack_bytes).spawn(|| ()).expect_err("no stack is like that");
        assert_eq!(error, SpawnError::StackSize { bytes: stack_bytes });
        let error = Runtime::builder().stack_size(stack_bytes).build().expect_err("no stack is like that");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    within_deadline(DEADLINE, || {
        check(64 << 10, 16 << 10);
        check((64 << 10) + 1, 64 << 10);
        check(128 << 10, 64 << 10);
        check(256 << 10, 192 << 10);
        check(300 << 10, 400 << 10);
        check(8 << 20, 7 << 20);
        check(1 << 30, 1 << 20);
        check_refused((64 << 10) - 1);
        check_refused((1 << 30) + 1);
        check_refused(usize::MAX);
        let runtime = Runtime::builder().workers(1).stack_size(4 << 20).build().expect("a runtime");
        assert!(runtime.spawn(|| descend(3 << 20)).join().expect("the stack is large enough") > 0);
    });
}

#[test]
fn large_stacks_are_used_again() {
    child::succeeds(child::name_of!(large_stacks_are_used_again), || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let large =
            || Builder::new().stack_size(256 << 20).spawn_on(&runtime, || descend(1 << 20)).expect("there is room");
        large().join().expect("it ends");
        let address_space = status("VmSize:");
        for _ in 0..1000 {
            large().join().expect("it ends");
        }
        assert_eq!(status("VmSize:"), address_space);
    });
}

#[test]
fn large_stacks_give_all_their_memory_back() {
    child::succeeds(child::name_of!(large_stacks_give_all_their_memory_back), || {
        const DEEP: usize = 6 << 20;
        const COUNT: usize = 8;
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        runtime.spawn(|| ()).join().expect("it runs");
        let before = status("VmRSS:");
        let gate = Arc::new(Semaphore::new(0));
        let (deep, are_deep) = mpsc::channel();
        let handles: Vec<_> = (0..COUNT)
            .map(|_| {
                let (gate, deep) = (gate.clone(), deep.clone());
                let body = move || {
                    descend(DEEP);
                    deep.send(()).expect("the test waits");
                    gate.acquire().map(drop)
                };
                Builder::new().stack_size(8 << 20).spawn_on(&runtime, body).expect("there is room")
            })
            .collect();
        (0..COUNT).for_each(|_| are_deep.recv_timeout(DEADLINE).expect("each goes down"));
        assert!(status("VmRSS:") > before + COUNT * DEEP);
        gate.close();
        handles.into_iter().for_each(|handle| assert!(handle.join().expect("it ends").is_err()));
        // Two of that size are what a worker keeps warm.
        while status("VmRSS:") > before + 3 * DEEP {
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn the_depth_of_stacks_is_known_by_spawn_site() {
    within_deadline(DEADLINE, || {
        const DEEP: usize = 150_000;
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        assert_eq!(runtime.stack_high_water(), []);
        let (release, released) = channel::bounded::<()>(1);
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let released = released.clone();
                runtime.spawn(move || (released.recv().is_err(), descend(1)))
            })
            .collect();
        let deep_line = line!() + 2;
        for _ in 0..100 {
            runtime.spawn(|| descend(DEEP)).join().expect("the stack is large enough");
        }
        let at = |line: u32| runtime.stack_high_water().into_iter().find(|site| site.site.line() == line);
        assert!(runtime.stack_high_water().len() == 1, "none of the others has ended");
        let deep = at(deep_line).expect("some of a hundred were measured");
        assert!((DEEP..DEEP + 60_000).contains(&deep.used_bytes), "{deep:?}");
        assert!(
            deep.site.file().ends_with("stacks.rs") && deep.stack_bytes == 256 << 10 && deep.samples > 0,
            "{deep:?}"
        );
        drop(release);
        waiting.into_iter().for_each(|handle| assert!(handle.join().expect("it ends").0));
        let all = runtime.stack_high_water();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0], deep, "the deepest comes first");
        assert!(all[1].used_bytes < 40_000, "{all:?}");
    });
}
