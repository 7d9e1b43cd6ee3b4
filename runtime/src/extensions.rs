//! One value a type for a worker: where protocol crates keep what belongs to an OS thread.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::rc::Rc;

/// Values by their type, a handful: looked through from the front, in a fraction of what a hash takes. Dropped when the worker
/// has ended its last dhaga.
#[derive(Default)]
pub(crate) struct Extensions {
    values: RefCell<Vec<(TypeId, Rc<dyn Any>)>>,
}

impl Extensions {
    /// The value of type `T`, made by its `Default` at first use.
    #[inline]
    pub(crate) fn get<T: Default + 'static>(&self) -> Rc<T> {
        let found =
            self.values.borrow().iter().find(|(id, _)| *id == TypeId::of::<T>()).map(|(_, value)| value.clone());
        let value = found.unwrap_or_else(|| self.make::<T>());
        value.downcast().expect("a value lies under its own type")
    }

    #[cold]
    fn make<T: Default + 'static>(&self) -> Rc<dyn Any> {
        let value: Rc<dyn Any> = Rc::new(T::default());
        self.values.borrow_mut().push((TypeId::of::<T>(), value.clone()));
        value
    }

    pub(crate) fn clear(&self) {
        drop(self.values.take());
    }
}
