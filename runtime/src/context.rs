//! The cancel tree: who is cancelled with whom.
//!
//! A *scope* is a stretch of code with a cancel flag: a dhaga from its start to its end, or the body of a `scope`. Scopes
//! form a tree; cancelling one flags everything below it:
//!
//! ```text
//!   request ──┬── scope ──┬── scoped child      linked: cancelled with the scope, and with the request
//!             │           └── scoped child
//!             └╌╌ plain spawn                   not linked, so not cancelled
//! ```
//!
//! This floor only keeps the books. Whoever cancels gets a call of [`Node::wake`] for each flagged scope; the floors
//! above decide how a sleeper is woken. Deadlines are in `ambient`: they need no tree, since they never come later.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whatever carries a scope: a spawned dhaga, or the body of a `scope`.
pub(crate) trait Node: Send + Sync {
    /// The scope that this node carries.
    fn scope(&self) -> &Scope;
    /// Makes whoever waits in this scope look at its flag.
    fn wake(&self);
    /// Whether nobody can wait in this scope any more.
    fn is_over(&self) -> bool {
        false
    }
}

/// One node's share of the tree.
#[derive(Default)]
pub(crate) struct Scope {
    cancelled: AtomicBool,
    /// Who is flagged with this scope.
    children: Family,
}

/// A list that is made with its first entry, because most scopes never have a child: one word in each dhaga.
#[derive(Default)]
struct Family(AtomicPtr<Mutex<Children>>);

impl Family {
    #[inline(always)]
    fn get(&self) -> Option<&Mutex<Children>> {
        // In one order with the flag of the scope: see `Scope::adopt`.
        // SAFETY: it is null, or was made from a box in `get_or_make` that lives as long as `self`.
        unsafe { self.0.load(Ordering::SeqCst).as_ref() }
    }

    fn get_or_make(&self) -> &Mutex<Children> {
        if let Some(children) = self.get() {
            return children;
        }
        let made = Box::into_raw(Box::<Mutex<Children>>::default());
        if self.0.compare_exchange(ptr::null_mut(), made, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            // SAFETY: it was made above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(made) });
        }
        self.get().expect("it was made here or by another thread")
    }
}

impl Drop for Family {
    #[inline(always)]
    fn drop(&mut self) {
        let children = *self.0.get_mut();
        if !children.is_null() {
            // SAFETY: it was made from a box in `get_or_make`, and nobody refers to it any more.
            drop(unsafe { Box::from_raw(children) });
        }
    }
}

struct Children {
    list: Vec<Box<dyn Node>>,
    /// The length at which links to what is over are swept.
    sweep_at: usize,
}

impl Default for Children {
    fn default() -> Self {
        Self { list: Vec::new(), sweep_at: CHILDREN_SWEEP_MIN }
    }
}

/// Links to what is over are swept when a scope's list has this many entries, and then whenever it is twice as long as what was alive.
const CHILDREN_SWEEP_MIN: usize = 32;

impl Scope {
    #[inline(always)]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// As `is_cancelled`, in one order with what else is sequentially consistent: for whoever has just said where a cancel
    /// finds it.
    pub(crate) fn is_cancelled_by_now(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Makes `child` follow this scope's cancellation from now on. A scope that is cancelled already flags it at once.
    pub(crate) fn adopt(&self, child: impl Node + Clone + 'static) {
        let mut children = lock(self.children.get_or_make());
        let Children { list, sweep_at } = &mut *children;
        if list.len() >= *sweep_at {
            list.retain(|link| !link.is_over());
            *sweep_at = (2 * list.len()).max(CHILDREN_SWEEP_MIN);
        }
        list.push(Box::new(child.clone()));
        drop(children);
        // Behind the push: either `cancel` finds the link, or this load sees its flag.
        if self.is_cancelled_by_now() {
            cancel(&child);
        }
    }

    /// Whether anybody was ever adopted.
    #[inline]
    pub(crate) fn has_had_children(&self) -> bool {
        self.children.get().is_some()
    }

    /// Hands its cancellation down no more: all who were adopted have ended.
    #[inline(always)]
    pub(crate) fn forget_children(&self) {
        if self.children.get().is_some() {
            drop(self.take_children());
        }
    }

    fn take_children(&self) -> Vec<Box<dyn Node>> {
        self.children.get().map_or_else(Vec::new, |children| std::mem::take(&mut lock(children).list))
    }
}

fn lock(children: &Mutex<Children>) -> MutexGuard<'_, Children> {
    children.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Flags `node` and everything below it, and wakes whoever waits there. Iterative: a tree may be deep.
pub(crate) fn cancel(node: &dyn Node) {
    let mut pending = flag(node);
    while let Some(child) = pending.pop() {
        pending.append(&mut flag(&*child));
    }
}

fn flag(node: &dyn Node) -> Vec<Box<dyn Node>> {
    let scope = node.scope();
    if scope.cancelled.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    node.wake();
    scope.take_children()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Probe {
        scope: Scope,
        wakes: AtomicUsize,
    }

    impl Node for Probe {
        fn scope(&self) -> &Scope {
            &self.scope
        }
        fn wake(&self) {
            self.wakes.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Node for Arc<Probe> {
        fn scope(&self) -> &Scope {
            &self.scope
        }
        fn wake(&self) {
            (**self).wake();
        }
        fn is_over(&self) -> bool {
            Arc::strong_count(self) == 1
        }
    }

    fn child_of(parent: &Probe) -> Arc<Probe> {
        let child = Arc::new(Probe::default());
        parent.scope.adopt(child.clone());
        child
    }

    #[test]
    fn cancelling_a_scope_flags_all_below_it_and_nothing_beside_it() {
        let root = Probe::default();
        let (left, right) = (child_of(&root), child_of(&root));
        let leaf = child_of(&left);
        cancel(&*left);
        let flags = [&root, &*left, &*leaf, &*right].map(|probe| probe.scope.is_cancelled());
        assert_eq!(flags, [false, true, true, false]);
    }

    #[test]
    fn each_scope_is_woken_once_however_often_it_is_cancelled() {
        let root = Probe::default();
        let leaf = child_of(&root);
        cancel(&root);
        cancel(&root);
        cancel(&*leaf);
        assert_eq!(leaf.wakes.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_child_adopted_after_the_cancel_is_flagged_at_once() {
        let root = Probe::default();
        cancel(&root);
        assert!(child_of(&root).scope.is_cancelled());
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_scopes_is_cancelled_without_recursion() {
        let root = Arc::new(Probe::default());
        let mut chain = vec![root.clone()];
        for _ in 0..100_000 {
            let next = child_of(chain.last().expect("the chain starts with the root"));
            chain.push(next);
        }
        cancel(&*root);
        assert!(chain.iter().all(|probe| probe.scope.is_cancelled()));
    }

    #[test]
    fn links_to_dropped_children_are_swept() {
        let root = Probe::default();
        for _ in 0..10_000 {
            drop(child_of(&root));
        }
        let links = lock(root.scope.children.get().expect("it has had some")).list.len();
        assert!(links <= CHILDREN_SWEEP_MIN, "{links} dead links are kept");
    }

    #[test]
    fn a_sweep_that_frees_little_is_not_repeated_at_once() {
        let root = Probe::default();
        let alive: Vec<_> = (0..1023).map(|_| child_of(&root)).collect();
        drop(child_of(&root));
        drop(child_of(&root));
        let children = lock(root.scope.children.get().expect("there are some"));
        assert!(children.sweep_at >= children.list.len() + alive.len() / 2);
    }
}
