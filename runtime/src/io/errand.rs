//! Work that a thread of the pool does for whoever comes: if the one who sent it gives up, the next one has its result.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::blocking::spawn_blocking;
use crate::interrupt::Interrupt;
use crate::sync::{AcquireError, Semaphore};
use crate::within::uncancellable;

/// Something on its way to a thread, or done.
pub(super) struct Errand<T>(Arc<Shared<T>>);

struct Shared<T> {
    result: Mutex<Option<T>>,
    /// Has a permit when the thread is done.
    done: Semaphore,
}

/// Says that it is done, also if there was no thread for it.
struct Done<T>(Arc<Shared<T>>);

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        self.0.done.add_permits(1);
    }
}

impl<T: Send + 'static> Errand<T> {
    pub(super) fn send(work: impl FnOnce() -> T + Send + 'static) -> Self {
        let shared = Arc::new(Shared { result: Mutex::new(None), done: Semaphore::new(0) });
        let done = Done(shared.clone());
        // A deadline or cancel of who sends it is not one of who comes after.
        uncancellable(|| {
            spawn_blocking(move || *done.0.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(work()))
                .detach();
        });
        Self(shared)
    }

    /// Waits until it is done. Once this has said so, [`take`](Self::take) its result.
    ///
    /// # Errors
    ///
    /// Those of the scope around it; it goes on all the same.
    pub(super) fn wait(&self) -> Result<(), Interrupt> {
        if let Ok(permit) = self.0.done.try_acquire() {
            drop(permit);
            return Ok(());
        }
        match self.0.done.acquire() {
            Ok(_) | Err(AcquireError::Closed) => Ok(()),
            Err(AcquireError::Interrupted(interrupt)) => Err(interrupt),
        }
    }

    /// # Errors
    ///
    /// There was no thread for it.
    pub(super) fn take(self) -> io::Result<T> {
        let result = self.0.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.ok_or_else(|| io::Error::other("the machine has no thread for the blocking pool"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::within::within;

    #[test]
    fn the_result_is_kept_for_whoever_comes_when_its_sender_gave_up() {
        let (finish, finished) = mpsc::channel::<u32>();
        let errand = Errand::send(move || finished.recv());
        for _ in 0..2 {
            let late = within(Duration::from_millis(2), || errand.wait());
            assert!(matches!(late, Err(Interrupt::DeadlineExceeded { .. })));
        }
        finish.send(7).expect("it runs");
        errand.wait().expect("no deadline");
        errand.wait().expect("it stays done");
        assert_eq!(errand.take().expect("it ran"), Ok(7));
    }

    #[test]
    fn an_errand_that_never_ran_is_an_error_and_no_wait() {
        let shared = Arc::new(Shared { result: Mutex::new(None), done: Semaphore::new(0) });
        let errand = Errand::<u32>(shared.clone());
        drop(Done(shared));
        errand.wait().expect("it is done");
        assert!(errand.take().is_err());
    }
}
