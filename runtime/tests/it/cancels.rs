//! A cancel that comes while scopes open and close and dhagas start: it reaches everything below, and nothing outlives its
//! scope.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dhaga::sync::channel;
use dhaga::{Interrupt, JoinError, Runtime, SpawnError};

use crate::common::{DEADLINE, within_deadline};

const ROUNDS: u32 = if cfg!(any(feature = "sanitizer", debug_assertions)) { 1000 } else { 10_000 };

/// On the stack of a parent. Its borrowers must be gone when it goes.
#[derive(Default)]
struct Borrowed(AtomicUsize);

impl Borrowed {
    fn lend(&self) -> Borrower<'_> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Borrower(self)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        assert_eq!(*self.0.get_mut(), 0, "a child still borrows");
    }
}

struct Borrower<'a>(&'a Borrowed);

impl Drop for Borrower<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ends by a cancel alone.
fn wait() -> Interrupt {
    let (_sender, receiver) = channel::bounded::<()>(1);
    match receiver.recv() {
        Err(channel::RecvError::Interrupted(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn tree(depth: u32) {
    let borrowed = Borrowed::default();
    dhaga::scope(|s| {
        for child in 0..2 {
            let borrower = borrowed.lend();
            s.spawn(move || {
                let _borrower = borrower;
                match depth {
                    0 => assert_eq!(wait(), Interrupt::Cancelled),
                    _ if child == 0 => tree(depth - 1),
                    _ => {
                        let failed: Result<(), Interrupt> = dhaga::try_scope(|group| {
                            group.spawn(|| Err::<(), _>(wait()));
                            group.spawn(|| {
                                tree(depth - 1);
                                Ok(())
                            });
                            Err(wait())
                        });
                        assert_eq!(failed, Err(Interrupt::Cancelled));
                    }
                }
            });
        }
        dhaga::scope(|_| ());
        dhaga::uncancellable(dhaga::yield_now);
        assert_eq!(wait(), Interrupt::Cancelled);
    });
}

fn spin(rounds: u32) {
    (0..rounds).for_each(|_| spin_loop());
}

#[test]
fn a_cancel_at_any_moment_reaches_everything_below() {
    within_deadline(2 * DEADLINE, || {
        let runtime = Runtime::builder().workers(3).build().expect("a test can start a runtime");
        for round in 0..ROUNDS {
            let parent = runtime.spawn(|| tree(2));
            spin(round % 977 * 40);
            parent.cancel();
            let ended = parent.join_timeout(Duration::from_secs(30));
            assert!(ended.is_ok(), "round {round}: {ended:?}");
        }
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

#[test]
fn a_shutdown_at_any_moment_by_two_leaves_nothing() {
    within_deadline(2 * DEADLINE, || {
        for round in 0..ROUNDS / 10 {
            let runtime = Runtime::builder().workers(2).build().expect("a test can start a runtime");
            let alive = Arc::new(());
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    loop {
                        let alive = alive.clone();
                        let detached = dhaga::Builder::new();
                        let detached =
                            if Arc::strong_count(&alive).is_multiple_of(3) { detached.detached() } else { detached };
                        let spawned = detached.spawn_on(&runtime, move || {
                            let _alive = &alive;
                            dhaga::spawn(|| dhaga::sleep(Duration::from_secs(3600))).detach();
                            tree(1);
                        });
                        match spawned {
                            Ok(_) => {}
                            Err(SpawnError::ShuttingDown) => break,
                            Err(other) => panic!("{other}"),
                        }
                        dhaga::sleep(Duration::from_micros(50));
                    }
                });
                spin(round % 97 * 1000);
                let end = |grace| {
                    let start = Instant::now();
                    let ended = runtime.shutdown(grace);
                    assert!(ended.is_ok(), "round {round}: {ended:?}");
                    assert!(start.elapsed() < Duration::from_secs(3), "round {round} takes {:?}", start.elapsed());
                };
                threads.spawn(move || end(Duration::from_micros(u64::from(round % 5) * 200)));
                threads.spawn(move || end(Duration::ZERO));
            });
            assert_eq!(Arc::strong_count(&alive), 1, "round {round}: a closure is left");
        }
    });
}

#[test]
fn a_deep_chain_of_scopes_is_cancelled_and_ends() {
    fn chain(depth: u32) {
        dhaga::scope(|s| {
            s.spawn(|| if depth == 0 { assert_eq!(wait(), Interrupt::Cancelled) } else { chain(depth - 1) });
        });
    }
    within_deadline(2 * DEADLINE, || {
        for pause in [0, 1, 10, 50] {
            let root = dhaga::spawn(|| chain(5000));
            dhaga::sleep(Duration::from_millis(pause));
            root.cancel();
            let ended: Result<(), JoinError<()>> = root.join();
            ended.expect("it ends");
        }
    });
}
