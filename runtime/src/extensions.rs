//! One value a type for a worker: where protocol crates keep what belongs to an OS thread.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Values by their type. Dropped when the worker has ended its last dhaga.
#[derive(Default)]
pub(crate) struct Extensions {
    values: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
}

impl Extensions {
    /// The value of type `T`, made by its `Default` at first use.
    pub(crate) fn get<T: Default + 'static>(&self) -> Rc<T> {
        let found = self.values.borrow().get(&TypeId::of::<T>()).cloned();
        let value = found.unwrap_or_else(|| {
            let value: Rc<dyn Any> = Rc::new(T::default());
            self.values.borrow_mut().insert(TypeId::of::<T>(), value.clone());
            value
        });
        value.downcast().expect("a value lies under its own type")
    }

    pub(crate) fn clear(&self) {
        drop(self.values.take());
    }
}
