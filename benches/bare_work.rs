//! The rows of the runtime table for corosensei's coroutines with no scheduler at all: the limit.

use std::hint::black_box;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::runtime_work::{ROUND_TRIPS, SPAWN_BATCH, Work, YIELDERS, YIELDS};
use crate::sample::Sample;

const STACK_BYTES: usize = 64 << 10;

type Waits = Yielder<(), ()>;

/// Measures one row, in its unit; NaN where a coroutine alone has no such work.
pub fn measure(work: Work) -> f64 {
    match work {
        Work::SpawnJoin => create_and_run().median,
        Work::Yield => resumptions(Waits::suspend).median,
        Work::YieldDeep => resumptions(suspend_three_calls_deep).median,
        Work::Channel => switches_between_two(Waits::suspend).median,
        Work::ChannelDeep => switches_between_two(suspend_three_calls_deep).median,
        Work::Timer | Work::Memory | Work::Park => f64::NAN,
    }
}

fn create_and_run() -> Sample {
    let mut stack = Some(new_stack());
    Sample::take(SPAWN_BATCH, || {
        for value in 0..SPAWN_BATCH {
            let reused = stack.take().expect("each coroutine gives it back");
            let mut coroutine: Coroutine<(), (), usize, _> =
                Coroutine::with_stack(reused, move |_, ()| black_box(value));
            let CoroutineResult::Return(_) = coroutine.resume(()) else { unreachable!("it never suspends") };
            stack = Some(coroutine.into_stack());
        }
    })
}

/// One coroutine that is resumed again and again, so that no cache miss is in it.
fn resumptions(suspend: impl Fn(&Waits, ()) + 'static) -> Sample {
    let mut coroutine = endless(suspend);
    Sample::take(YIELDERS * YIELDS, || (0..YIELDERS * YIELDS).for_each(|_| resume(&mut coroutine)))
}

/// A round trip is a turn of each.
fn switches_between_two(suspend: impl Fn(&Waits, ()) + Copy + 'static) -> Sample {
    let (mut asker, mut echo) = (endless(suspend), endless(suspend));
    Sample::take(ROUND_TRIPS, || {
        for _ in 0..ROUND_TRIPS {
            resume(&mut asker);
            resume(&mut echo);
        }
    })
}

/// Never resumed to its end: the drop unwinds it.
#[inline(always)]
fn endless(suspend: impl Fn(&Waits, ()) + 'static) -> Coroutine<(), (), (), DefaultStack> {
    Coroutine::with_stack(new_stack(), move |waits: &Waits, ()| {
        loop {
            suspend(waits, ());
        }
    })
}

#[inline(always)]
fn resume(coroutine: &mut Coroutine<(), (), (), DefaultStack>) {
    let CoroutineResult::Yield(()) = coroutine.resume(()) else { unreachable!("it never returns") };
}

#[inline(never)]
fn suspend_three_calls_deep(waits: &Waits, (): ()) {
    #[inline(never)]
    fn two(waits: &Waits) {
        one(waits);
        black_box(());
    }
    #[inline(never)]
    fn one(waits: &Waits) {
        waits.suspend(());
        black_box(());
    }
    two(waits);
    black_box(());
}

fn new_stack() -> DefaultStack {
    DefaultStack::new(STACK_BYTES).expect("there is address space for one small stack")
}
