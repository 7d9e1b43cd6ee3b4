//! A stack that overflows.

use dhaga::sync::Semaphore;
use dhaga::{Builder, Runtime};

use crate::child;

/// Recurses as deep as `levels` says, which no optimiser can know.
fn recurse(levels: u64) -> u64 {
    let frame = std::hint::black_box([levels; 64]);
    if levels == 0 { 0 } else { recurse(levels - 1) + frame[7] }
}

#[test]
fn an_overflow_names_the_one_dhaga_among_many() {
    const PARKED: usize = 1000;
    let text = child::aborts(child::name_of!(an_overflow_names_the_one_dhaga_among_many), || {
        let runtime = Runtime::builder().workers(2).build().expect("a runtime");
        let body = || {
            let gate = Semaphore::new(0);
            dhaga::scope(|s| {
                for _ in 0..PARKED {
                    s.spawn(|| drop(gate.acquire()));
                }
                dhaga::yield_now();
                let deep = Builder::new().name("the deep one").stack_size(128 << 10);
                let deep = deep.spawn(|| recurse(std::hint::black_box(u64::MAX))).expect("there is room");
                deep.join().expect("it aborts first");
            });
        };
        runtime.spawn(body).join().expect("it aborts first");
    });
    let Some(text) = text else { return };
    assert!(text.contains("dhaga 'the deep one'") && text.contains("overflow.rs:"), "{text}");
    assert!(text.contains("has overflowed its stack of 128 KiB"), "{text}");
}
