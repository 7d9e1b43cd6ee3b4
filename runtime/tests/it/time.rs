//! Ticks at equal distances.

use std::time::{Duration, Instant};

use dhaga::park::{self, Parked, WaitReason};
use dhaga::{Interrupt, MissedTicks, interval, interval_at};

use crate::common::{DEADLINE, everywhere, within_deadline};

const PERIOD: Duration = Duration::from_millis(2);

#[test]
fn ticks_are_a_period_apart_and_never_early() {
    everywhere(|| {
        let mut ticks = interval(PERIOD);
        let first = ticks.tick().expect("nothing stops it");
        for beat in 1..10 {
            let due = ticks.tick().expect("nothing stops it");
            assert_eq!(due, first + PERIOD * beat);
            assert!(Instant::now() >= due);
        }
    });
}

#[test]
fn missed_ticks_are_made_up_for_or_left_out() {
    everywhere(|| {
        let start = Instant::now().checked_sub(PERIOD * 10).expect("the machine has run that long");
        let mut burst = interval_at(start, PERIOD);
        for beat in 0..10 {
            assert_eq!(burst.tick(), Ok(start + PERIOD * beat));
        }
        let mut skip = interval_at(start, PERIOD).missed_ticks(MissedTicks::Skip);
        assert_eq!(skip.tick(), Ok(start));
        let next = skip.tick().expect("nothing stops it");
        assert!(next >= start + PERIOD * 10 && (next - start).as_nanos().is_multiple_of(PERIOD.as_nanos()));
        let mut delay = interval_at(start, PERIOD).missed_ticks(MissedTicks::Delay);
        let before = Instant::now();
        assert_eq!(delay.tick(), Ok(start));
        assert!(delay.tick().expect("nothing stops it") >= before + PERIOD);
    });
}

#[test]
fn a_tick_that_was_stopped_is_still_to_come() {
    everywhere(|| {
        let start = Instant::now() + PERIOD * 5;
        let mut ticks = interval_at(start, PERIOD);
        let late = dhaga::within(Duration::from_millis(1), || ticks.tick());
        assert!(matches!(late, Err(Interrupt::DeadlineExceeded { .. })), "{late:?}");
        assert_eq!(ticks.tick(), Ok(start));
    });
}

#[test]
fn a_beat_that_is_never_caught_up_starves_nobody() {
    within_deadline(DEADLINE, || {
        let runtime = dhaga::Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let ticks = runtime.spawn(|| {
            let mut ticks = interval_at(Instant::now(), Duration::from_nanos(1));
            while ticks.tick().is_ok() {}
        });
        assert_eq!(runtime.spawn(|| 7).join().expect("it gets its turn"), 7);
        ticks.cancel();
        ticks.join().expect("it ends");
    });
}

#[test]
fn a_wait_ends_by_its_own_deadline_whatever_that_of_the_one_before() {
    within_deadline(DEADLINE, || {
        let runtime = dhaga::Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let waits = runtime.spawn(|| {
            for (before, own) in [(PERIOD * 10, PERIOD * 20), (DEADLINE * 100, PERIOD)] {
                let waiter = park::unparker();
                dhaga::spawn(move || waiter.unpark()).detach();
                park::park_until(WaitReason::Park, Some(Instant::now() + before));
                let due = Instant::now() + own;
                while park::park_until(WaitReason::Park, Some(due)) != Parked::TimedOut {}
                assert!(Instant::now() >= due, "the wait before has ended this one");
            }
        });
        waits.join().expect("each wait ends");
    });
}
