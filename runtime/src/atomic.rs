//! What threads hand things over with: std's, or loom's in the models, which try every order in which threads may come.
//!
//! Whoever uses these shows in a model at its foot that its protocol holds. loom takes a sequentially consistent access
//! for an acquire or release one, so a protocol that needs one order of all its accesses says so with fences.

use std::sync::PoisonError;

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering, fence};
#[cfg(all(test, loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(all(test, loom))]
pub(crate) use loom::{cell::UnsafeCell, hint::spin_loop, thread::yield_now};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering, fence};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard};
#[cfg(not(all(test, loom)))]
pub(crate) use std::{hint::spin_loop, thread::yield_now};

/// A cell that loom watches for two threads at once, with loom's two ways in.
#[cfg(not(all(test, loom)))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(all(test, loom)))]
impl<T> UnsafeCell<T> {
    #[inline(always)]
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Locks for some nanoseconds, and never across foreign code: nothing panics inside, so what std calls poisoned is sound.
#[inline(always)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a model in every order in which no more than `preemptions` threads are interrupted where they could go on: few
/// suffice for nearly every fault, and all of them would take hours.
#[cfg(all(test, loom))]
pub(crate) fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

/// Stands for a lock that spins, which no model can try in every order: there a thread that waits must say so.
#[cfg(all(test, loom))]
pub(crate) struct ModelLock<S>(Mutex<S>);

#[cfg(all(test, loom))]
impl<S> ModelLock<S> {
    pub(crate) fn new(inside: S) -> Self {
        Self(Mutex::new(inside))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, S> {
        lock(&self.0)
    }
}
