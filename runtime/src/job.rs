//! What was spawned, as everybody below its public face knows it: one thin pointer to one allocation.
//!
//! The allocation belongs to a *pair*: the right to run it ([`Job`]) and the right to its result (the join handle). They
//! settle between them who frees it (see `packet`), with no count. Whoever else refers to it holds a counted
//! [`JobRef`]: the few who ask for `current()`, and scopes that hand cancellation down.
//!
//! ```text
//!   Job ─────────┐   ┌────────────────────────────────────────────┐
//!   JoinHandle ──┼──▶│ Head: operations, count, label, scope, home │ closure, later its result │
//!   JobRef … ────┘   └────────────────────────────────────────────┘
//! ```

use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64};

use crate::ambient::{Ambient, Deadline};
use crate::atomic::{AtomicU32, Ordering};
use crate::context::{Node, Scope};
use crate::stack::STACK_BYTES_MIN;

/// What a spawn said about its dhaga.
#[derive(Debug)]
pub(crate) struct Label {
    /// Boxed twice, to be one word in each dhaga: few have a name.
    pub(crate) name: Option<Box<Box<str>>>,
    pub(crate) site: &'static Location<'static>,
}

impl Label {
    /// The label of a dhaga that a library keeps.
    pub(crate) fn of_site(site: &'static Location<'static>) -> Self {
        Self { name: None, site }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref().map(|name| &**name)
    }

    /// The name, or a stand-in for a dhaga that was given none.
    pub(crate) fn display_name(&self) -> &str {
        self.name().unwrap_or("<unnamed>")
    }
}

/// What depends on the type of the closure and of its result.
///
/// Each is called with the head of an allocation that it was made for.
pub(crate) struct Operations {
    /// Runs the closure and keeps its result, or does a step and says that it is not the last: then it returns false, and is
    /// called again. Only by the owner of the [`Job`], and never after it has returned true.
    pub(crate) execute: unsafe fn(NonNull<Head>) -> bool,
    /// Whether it runs in steps, between which it needs no stack.
    pub(crate) is_stepped: bool,
    /// Drops the closure. Only by the owner of the [`Job`], once, instead of an `execute` that returns true.
    pub(crate) discard: unsafe fn(NonNull<Head>),
    /// Drops the result if nobody will take it. Only by the owner of the [`Job`], after one of the above.
    pub(crate) drop_unwanted: unsafe fn(NonNull<Head>),
    /// Tells whoever joins, and gives the job's half of the pair up, unless nobody wants the result: then false.
    pub(crate) complete: unsafe fn(NonNull<Head>) -> bool,
    /// Frees the allocation, in which neither a closure nor a result is left.
    pub(crate) free: unsafe fn(NonNull<Head>),
    /// From the head to what follows the handshake.
    pub(crate) payload_offset: usize,
    /// Wakes the dhaga that lives at this address, out of the words that [`Head::settle`] was given.
    pub(crate) wake: fn(Home),
}

/// The part of the allocation that is the same for all.
pub(crate) struct Head {
    operations: &'static Operations,
    references: References,
    wish: Wish,
    /// What `thread::unpark` left for it, and `thread::park` has not taken yet.
    token: AtomicBool,
    label: Label,
    scope: Scope,
    ambient: Inherited,
    /// Its number in the process; 0 until somebody asks.
    number: AtomicU64,
    /// Its worker's door, and its id there; null before it first waits. Words without meaning on this floor.
    home: AtomicPtr<()>,
    id: AtomicU64,
}

/// What unwinds a dhaga at shutdown. Private, so that nobody else can throw it.
pub(crate) struct Unwound;

/// Drops user values by `drop`, where a panic in their `Drop` has nobody to go to.
pub(crate) fn quietly(label: &Label, drop: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(drop))
        && !payload.is::<Unwound>()
    {
        log::error!("a Drop panicked in dhaga {:?} spawned at {}", label.display_name(), label.site);
        std::mem::forget(payload);
    }
}

/// How a dhaga shall be: its stack, in units of the smallest one and at most 1 GiB, and whether it runs in the background.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wish(u16);

impl Wish {
    const BACKGROUND: u16 = 1 << 15;

    /// 0: the runtime's default.
    #[inline(always)]
    pub(crate) fn of_stack(bytes: u32) -> Self {
        let units = bytes.div_ceil(STACK_BYTES_MIN as u32);
        debug_assert!(units < u32::from(Self::BACKGROUND), "a stack is at most 1 GiB");
        Self(units as u16)
    }

    /// An orderly shutdown does not wait until it has finished.
    pub(crate) fn in_background(self) -> Self {
        Self(self.0 | Self::BACKGROUND)
    }

    #[inline(always)]
    fn is_background(self) -> bool {
        self.0 & Self::BACKGROUND != 0
    }

    #[inline(always)]
    fn stack_bytes(self) -> usize {
        usize::from(self.0 & !Self::BACKGROUND) * STACK_BYTES_MIN
    }
}

/// What a dhaga inherited, until its end: whoever frees the allocation later may be anybody, and must meet no user code.
/// A pointer made by `Arc::into_raw`, or null. Only whoever runs the job comes here, one call at a time.
struct Inherited(AtomicPtr<Ambient>);

impl Inherited {
    #[inline(always)]
    fn new(ambient: Option<Arc<Ambient>>) -> Self {
        Self(AtomicPtr::new(ambient.map_or(ptr::null_mut(), |ambient| Arc::into_raw(ambient).cast_mut())))
    }

    #[inline(always)]
    fn is_nothing(&self) -> bool {
        self.0.load(Ordering::Relaxed).is_null()
    }

    #[inline(always)]
    fn deadline(&self) -> Option<Deadline> {
        // SAFETY: it is null or counted here, and nobody takes it during this call.
        unsafe { self.0.load(Ordering::Relaxed).as_ref() }.and_then(|ambient| ambient.deadline)
    }

    #[inline(always)]
    fn share(&self) -> Option<Arc<Ambient>> {
        let ambient = NonNull::new(self.0.load(Ordering::Relaxed))?.as_ptr();
        // SAFETY: it came from `Arc::into_raw` and is counted here, and nobody takes it during this call.
        unsafe {
            Arc::increment_strong_count(ambient);
            Some(Arc::from_raw(ambient))
        }
    }

    fn take(&self) -> Option<Arc<Ambient>> {
        let ambient = NonNull::new(self.0.load(Ordering::Relaxed))?;
        self.0.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: it came from `Arc::into_raw`, and its count is handed on.
        Some(unsafe { Arc::from_raw(ambient.as_ptr()) })
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// One for the pair, one for each [`JobRef`].
struct References(AtomicU32);

impl References {
    #[inline(always)]
    fn of_a_pair() -> Self {
        Self(AtomicU32::new(1))
    }

    fn add(&self) {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(before < u32::MAX / 2, "more references to one dhaga than memory has room for");
    }

    /// Returns whether it was the last.
    fn release(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// As `release`, and in the usual case without a locked instruction: if no other reference is there, nobody can make one.
    #[inline(always)]
    fn release_pair(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1 || self.release()
    }

    fn is_last(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 1
    }
}

/// Where a dhaga lives, in words that the floors above can read.
#[derive(Clone, Copy)]
pub(crate) struct Home {
    pub(crate) door: NonNull<()>,
    pub(crate) id: u64,
}

impl Head {
    #[inline(always)]
    pub(crate) fn payload_offset(&self) -> usize {
        self.operations.payload_offset
    }

    #[inline(always)]
    pub(crate) fn new(
        operations: &'static Operations,
        label: Label,
        wish: Wish,
        ambient: Option<Arc<Ambient>>,
    ) -> Self {
        Self {
            operations,
            references: References::of_a_pair(),
            wish,
            token: AtomicBool::new(false),
            label,
            scope: Scope::default(),
            ambient: Inherited::new(ambient),
            number: AtomicU64::new(0),
            home: AtomicPtr::new(ptr::null_mut()),
            id: AtomicU64::new(0),
        }
    }

    pub(crate) fn label(&self) -> &Label {
        &self.label
    }

    /// Bytes of stack asked for; 0: the runtime's default.
    #[inline(always)]
    pub(crate) fn stack_bytes(&self) -> usize {
        self.wish.stack_bytes()
    }

    /// Whether an orderly shutdown does not wait until it has finished.
    #[inline(always)]
    pub(crate) fn is_background(&self) -> bool {
        self.wish.is_background()
    }

    /// What was in force where it was spawned; most often nothing. Only for whoever runs the job.
    #[inline(always)]
    pub(crate) fn ambient(&self) -> Option<Arc<Ambient>> {
        self.ambient.share()
    }

    /// As [`Head::ambient`], which afterwards is nothing. What is dropped with it is user code.
    pub(crate) fn take_ambient(&self) -> Option<Arc<Ambient>> {
        self.ambient.take()
    }

    /// Whether it inherited neither a deadline nor anything else.
    #[inline(always)]
    pub(crate) fn inherits_nothing(&self) -> bool {
        self.ambient.is_nothing()
    }

    /// As [`Head::ambient`].
    #[inline(always)]
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.ambient.deadline()
    }

    /// Its number in the process, which nobody else ever has. `next` gives one that was never given.
    pub(crate) fn number(&self, next: impl FnOnce() -> u64) -> u64 {
        let number = self.number.load(Ordering::Relaxed);
        if number != 0 {
            return number;
        }
        let next = next();
        self.number.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed).map_or_else(|first| first, |_| next)
    }

    /// Says where the dhaga lives, before its first wait. After this either a canceller finds it there, or the caller
    /// sees the flag: both sides write, then read, all four in one sequentially consistent order. So too with the token.
    pub(crate) fn settle(&self, home: Home) {
        self.id.store(home.id, Ordering::Relaxed);
        self.home.swap(home.door.as_ptr(), Ordering::SeqCst);
    }

    /// Leaves the token that `thread::park` waits for, and wakes the dhaga to see it. A token that is there already will be
    /// seen by itself.
    pub(crate) fn leave_token(&self) {
        if !self.token.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Takes the token. Returns whether it was there.
    pub(crate) fn take_token(&self) -> bool {
        self.token.swap(false, Ordering::SeqCst)
    }

    /// Whether whoever wakes it before its first wait could not have found it: see [`Head::settle`].
    pub(crate) fn was_woken_unsettled(&self) -> bool {
        self.scope.is_cancelled_by_now() || self.token.load(Ordering::SeqCst)
    }

    fn home(&self) -> Option<Home> {
        let door = NonNull::new(self.home.load(Ordering::SeqCst))?;
        Some(Home { door, id: self.id.load(Ordering::Relaxed) })
    }

    /// Gives up the pair's reference. The caller owns both halves, and uses neither again.
    ///
    /// # Safety
    ///
    /// `head` lives, in an allocation that holds neither closure nor result any more, and this is called once.
    #[inline(always)]
    pub(crate) unsafe fn release_pair(head: NonNull<Self>) {
        // SAFETY: it lives, by the caller's promise.
        let this = unsafe { head.as_ref() };
        if this.references.release_pair() {
            // SAFETY: the last reference is gone, so nobody else reads it.
            unsafe { (this.operations.free)(head) };
        }
    }

    /// A counted reference.
    ///
    /// # Safety
    ///
    /// `head` lives, and cannot be freed during this call.
    pub(crate) unsafe fn reference(head: NonNull<Self>) -> JobRef {
        // SAFETY: by the caller's promise.
        unsafe { head.as_ref() }.references.add();
        JobRef(head)
    }
}

impl Node for Head {
    #[inline(always)]
    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn wake(&self) {
        if let Some(home) = self.home() {
            (self.operations.wake)(home);
        }
    }
}

/// The right, and the duty, to run a dhaga's closure or to drop it. An unstarted dhaga is nothing more, so it may go to
/// any worker.
pub(crate) struct Job(NonNull<Head>);

// SAFETY: a `Job` of a closure that is not `Send` is made by `spawn_local` only, whose queue never leaves its worker (see
// `packet`). Everything else behind the pointer is for all threads: atomics, and a label that nobody changes.
unsafe impl Send for Job {}

impl Job {
    /// # Safety
    ///
    /// `head` is the head of a live allocation whose job's half nobody else owns.
    pub(crate) unsafe fn new(head: NonNull<Head>) -> Self {
        Self(head)
    }

    /// The pointer, for the task that will run it. It is good until [`Job::complete`].
    #[inline(always)]
    pub(crate) fn pointer(&self) -> NonNull<Head> {
        self.0
    }

    #[inline(always)]
    pub(crate) fn head(&self) -> &Head {
        // SAFETY: the job's half of the pair keeps it alive.
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn label(&self) -> &Label {
        self.head().label()
    }

    /// As [`Head::stack_bytes`].
    #[inline(always)]
    pub(crate) fn stack_bytes(&self) -> usize {
        self.head().stack_bytes()
    }

    /// Whether it runs in steps, between which it needs no stack.
    #[inline(always)]
    pub(crate) fn is_stepped(&self) -> bool {
        self.head().operations.is_stepped
    }

    /// Runs the closure to its end. Never unwinds. What is left to do is [`Execution::drop_unwanted`] and
    /// [`Execution::complete`].
    #[inline(always)]
    pub(crate) fn execute(self) -> Execution {
        debug_assert!(!self.is_stepped(), "what runs in steps is run by `step`");
        let execution = Execution(self.0);
        std::mem::forget(self);
        // SAFETY: the job's half was ours, and is used up here.
        unsafe { (execution.head().operations.execute)(execution.0) };
        execution
    }

    /// Does a step. Never unwinds.
    ///
    /// # Errors
    ///
    /// The job comes back when this was not its last step.
    pub(crate) fn step(self) -> Result<Execution, Self> {
        // SAFETY: the job's half is ours, and was not used up: we would not have it any more.
        if !unsafe { (self.head().operations.execute)(self.0) } {
            return Err(self);
        }
        let execution = Execution(self.0);
        std::mem::forget(self);
        Ok(execution)
    }

    /// Drops the closure unrun. The closure's `Drop` is user code.
    pub(crate) fn discard(self) -> Execution {
        let execution = Execution(self.0);
        std::mem::forget(self);
        // SAFETY: as in `execute`.
        unsafe { (execution.head().operations.discard)(execution.0) };
        execution
    }
}

impl Drop for Job {
    /// Nobody ran it: whoever joins learns that it never will.
    fn drop(&mut self) {
        // SAFETY: nobody uses this value again.
        unsafe { ptr::read(self) }.discard().finish();
    }
}

/// A job whose closure is gone and whose result is there.
#[must_use = "somebody may wait for it: finish it"]
pub(crate) struct Execution(NonNull<Head>);

impl Execution {
    #[inline(always)]
    pub(crate) fn head(&self) -> &Head {
        // SAFETY: the job's half of the pair keeps it alive, up to `complete`, which takes this value.
        unsafe { self.0.as_ref() }
    }

    /// Drops the result, which is user code, if nobody will take it.
    #[inline(always)]
    pub(crate) fn drop_unwanted(&self) {
        // SAFETY: the job's half is ours, and its closure is gone.
        unsafe { (self.head().operations.drop_unwanted)(self.0) };
    }

    /// Tells whoever joins. From here on the allocation is theirs.
    ///
    /// # Errors
    ///
    /// It comes back when the handle went away at this very moment: call [`Execution::drop_unwanted`] again, and then this.
    #[inline(always)]
    pub(crate) fn complete(self) -> Result<(), Self> {
        // SAFETY: the job's half is ours, and given up by this call unless it says no.
        if unsafe { (self.head().operations.complete)(self.0) } { Ok(()) } else { Err(self) }
    }

    /// All that is left to do, where no dhaga runs it.
    pub(crate) fn finish(self) {
        let mut execution = self;
        loop {
            execution.drop_unwanted();
            let ambient = execution.head().take_ambient();
            quietly(execution.head().label(), || drop(ambient));
            match execution.complete() {
                Ok(()) => return,
                Err(again) => execution = again,
            }
        }
    }
}

/// A counted reference to what was spawned. It keeps the label and the scope, not the result.
pub(crate) struct JobRef(NonNull<Head>);

// SAFETY: it gives access to the head only, which is for all threads; and whoever drops the last one frees an allocation
// in which neither closure nor result is left.
unsafe impl Send for JobRef {}
// SAFETY: as above.
unsafe impl Sync for JobRef {}

impl JobRef {
    #[inline(always)]
    pub(crate) fn head(&self) -> &Head {
        // SAFETY: the count keeps it alive.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for JobRef {
    fn clone(&self) -> Self {
        // SAFETY: our own count keeps it alive.
        unsafe { Head::reference(self.0) }
    }
}

impl Drop for JobRef {
    fn drop(&mut self) {
        let head = self.head();
        if head.references.release() {
            // SAFETY: the last reference is gone, the pair's included.
            unsafe { (head.operations.free)(self.0) };
        }
    }
}

impl Node for JobRef {
    fn scope(&self) -> &Scope {
        self.head().scope()
    }

    fn wake(&self) {
        self.head().wake();
    }

    fn is_over(&self) -> bool {
        // The pair is gone when we are the last: a sweep is worth no more than this.
        self.head().references.is_last()
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::References;
    use crate::atomic::{UnsafeCell, model};
    use loom::sync::Arc;
    use loom::thread;

    struct Counted {
        references: References,
        memory: UnsafeCell<u32>,
    }

    // SAFETY: what the model checks: who frees is alone.
    unsafe impl Sync for Counted {}

    #[test]
    fn loom_the_last_reference_frees_and_no_other() {
        model(3, || {
            let counted = Arc::new(Counted { references: References::of_a_pair(), memory: UnsafeCell::new(0) });
            counted.references.add();
            let end = |counted: &Counted, release: fn(&References) -> bool| {
                // A look at the memory, as of one that holds a reference.
                counted.memory.with(|_| ());
                let is_last = release(&counted.references);
                if is_last {
                    counted.memory.with_mut(|_| ());
                }
                is_last
            };
            let other = counted.clone();
            let other = thread::spawn(move || end(&other, References::release));
            let by_pair = end(&counted, References::release_pair);
            let by_other = other.join().expect("it ends");
            assert!(by_pair != by_other, "one of the two frees");
        });
    }
}
