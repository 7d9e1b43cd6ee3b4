//! Stretches of code that change what is around them: a frame each, on the stack of who runs it, linked outwards.
//!
//! ```text
//!   dhaga's own scope ◀── within(3 s) ◀── scope ◀── uncancellable ◀── within(1 s) ◀── (the code that waits)
//!                         deadline 3 s    flag      -                 deadline 1 s
//! ```
//!
//! A wait asks the innermost frame for the deadline, and walks outwards for a flag, up to a shield. So to enter and leave
//! a frame allocates nothing and locks nothing.

use std::cell::{Cell, OnceCell};
use std::io::{self, Write};
use std::marker::PhantomPinned;
use std::ptr;
use std::sync::Arc;

use crate::ambient::Ambient;
use crate::context::Scope;

/// Where a dhaga or thread keeps its innermost frame; null: there is none.
pub(crate) type Innermost = Cell<*const Frame>;

/// A stretch of code, while it runs.
pub(crate) struct Frame {
    outer: *const Frame,
    edge: Edge,
    /// All that is in force here, what came from outside included.
    ambient: Ambient,
    /// The same, for the dhagas that are spawned here: made for the first.
    shared: OnceCell<Arc<Ambient>>,
    _stays: PhantomPinned,
}

/// What a frame does to cancellation.
enum Edge {
    /// It lets it through.
    Open,
    /// Nothing from outside reaches in.
    Shield,
    /// It has a flag of its own.
    Scope(*const Scope),
}

impl Frame {
    pub(crate) fn ambient(&self) -> &Ambient {
        &self.ambient
    }

    /// What a dhaga that is spawned here inherits; `None`: nothing.
    pub(crate) fn shared(&self) -> Option<Arc<Ambient>> {
        let make = || Arc::new(self.ambient.clone());
        (!self.ambient.is_empty()).then(|| self.shared.get_or_init(make).clone())
    }

    /// Whether a scope between here and the nearest shield is cancelled; without a shield, `root` is asked last.
    pub(crate) fn is_cancelled(&self, root: impl FnOnce() -> bool) -> bool {
        let mut frame = Some(self);
        while let Some(here) = frame {
            match here.edge {
                Edge::Shield => return false,
                // SAFETY: `inside_scope` borrows the scope for longer than the frame is linked.
                Edge::Scope(scope) if unsafe { &*scope }.is_cancelled() => return true,
                Edge::Scope(_) | Edge::Open => {}
            }
            // SAFETY: an outer frame is linked for longer than an inner one.
            frame = unsafe { here.outer.as_ref() };
        }
        root()
    }

    /// The innermost scope that a cancel reaches from outside this frame: where a new one below shall be linked.
    pub(crate) fn enclosing_scope(&self) -> Enclosing<'_> {
        let mut frame = Some(self);
        while let Some(here) = frame {
            match here.edge {
                Edge::Shield => return Enclosing::None,
                // SAFETY: as in `is_cancelled`.
                Edge::Scope(scope) => return Enclosing::Scope(unsafe { &*scope }),
                Edge::Open => {}
            }
            // SAFETY: as in `is_cancelled`.
            frame = unsafe { here.outer.as_ref() };
        }
        Enclosing::Root
    }
}

/// What lies around code, as far as cancellation goes.
pub(crate) enum Enclosing<'a> {
    /// A shield: nothing.
    None,
    Scope(&'a Scope),
    /// The dhaga itself, or nothing on a plain thread.
    Root,
}

/// Runs `f` in a frame with this ambient.
pub(crate) fn inside<R>(innermost: &Innermost, ambient: Ambient, f: impl FnOnce() -> R) -> R {
    enter(innermost, Edge::Open, ambient, f)
}

/// Runs `f` where no cancel from outside is seen.
pub(crate) fn inside_shield<R>(innermost: &Innermost, ambient: Ambient, f: impl FnOnce() -> R) -> R {
    enter(innermost, Edge::Shield, ambient, f)
}

/// Runs `f` in a scope with a flag of its own.
pub(crate) fn inside_scope<R>(innermost: &Innermost, scope: &Scope, ambient: Ambient, f: impl FnOnce() -> R) -> R {
    enter(innermost, Edge::Scope(scope), ambient, f)
}

fn enter<R>(innermost: &Innermost, edge: Edge, ambient: Ambient, f: impl FnOnce() -> R) -> R {
    let frame = Frame { outer: innermost.get(), edge, ambient, shared: OnceCell::new(), _stays: PhantomPinned };
    innermost.set(ptr::from_ref(&frame));
    // Also when `f` unwinds.
    let _leave = Leave { innermost, frame: &frame };
    f()
}

/// Unlinks a frame before it goes.
struct Leave<'a> {
    innermost: &'a Innermost,
    frame: &'a Frame,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !ptr::eq(self.innermost.get(), self.frame) {
            abort_out_of_order();
        }
        self.innermost.set(self.frame.outer);
    }
}

/// Ends the process: frames that do not nest would leave a pointer to one that is gone. Calls nest by themselves; who breaks
/// that is a coroutine of another library.
#[cold]
pub(crate) fn abort_out_of_order() -> ! {
    // Not by `eprintln`, which unwinds if nobody reads: the caller's frame would stay linked when it is gone.
    let _ = writeln!(
        io::stderr(),
        "
a `within`, `scope`, `uncancellable` or context value ended out of order: a coroutine of another library was switched away \
         from inside of it, and code outside went on. Let none be entered there and left elsewhere: aborting"
    );
    std::process::abort()
}

/// The innermost frame of the caller, whose `innermost` this is.
///
/// # Safety
///
/// `innermost` is changed by [`enter`] only, on the stack of whoever calls this, and the result is not kept beyond the
/// caller's own frame.
#[inline(always)]
pub(crate) unsafe fn innermost(innermost: &Innermost) -> Option<&Frame> {
    // SAFETY: a linked frame lies in a caller's stack frame, which outlives this call; `Leave` unlinks it before it goes.
    unsafe { innermost.get().as_ref() }
}
