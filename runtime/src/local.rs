//! Variables of which each dhaga has its own.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::ptr;
use std::rc::Rc;

use crate::around;
use crate::local_slots::{Found, Key};

/// Declares variables of which each dhaga, and each plain thread, has its own; as `std::thread_local!`, whose variables all
/// dhagas of a worker share.
///
/// A variable is made at its first use in a dhaga and dropped at its end, before anybody learns of that end, the last made
/// first. See [`LocalKey`].
///
/// # Examples
///
/// ```
/// use std::cell::Cell;
///
/// dhaga::local! {
///     static DEPTH: Cell<u32> = Cell::new(0);
/// }
///
/// DEPTH.set(7);
/// let inside = dhaga::spawn(|| DEPTH.get()).join()?;
/// assert_eq!((DEPTH.get(), inside), (7, 0));
/// # Ok::<(), dhaga::JoinError<u32>>(())
/// ```
#[macro_export]
macro_rules! local {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = const $value:block);+ $(;)?) => {
        $crate::local! { $($(#[$attribute])* $visibility static $name: $type = $value);+ }
    };
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $value:expr);+ $(;)?) => {
        $(
            $(#[$attribute])*
            $visibility static $name: $crate::LocalKey<$type> = {
                fn make() -> $type {
                    $value
                }
                $crate::LocalKey::new(make)
            };
        )+
    };
}

/// A variable of which each dhaga has its own. Declared by [`local!`](crate::local).
///
/// The methods are those of `std::thread::LocalKey`.
pub struct LocalKey<T: 'static> {
    make: fn() -> T,
}

/// The variable was dropped already: its dhaga or thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessError;

impl<T: 'static> LocalKey<T> {
    #[doc(hidden)]
    pub const fn new(make: fn() -> T) -> Self {
        Self { make }
    }

    /// Calls `f` with the caller's variable, which is made if need be. `f` may wait, and use the variable again.
    ///
    /// # Panics
    ///
    /// When the variable was dropped already, which only the `Drop` of another one can see.
    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        match self.try_with(f) {
            Ok(result) => result,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`with`](Self::with), with an error instead of the panic.
    ///
    /// # Errors
    ///
    /// The variable was dropped already.
    pub fn try_with<R>(&'static self, f: impl FnOnce(&T) -> R) -> Result<R, AccessError> {
        let value = self.value()?;
        Ok(f(value.downcast_ref().expect("only this key stores under its address")))
    }

    fn value(&'static self) -> Result<Rc<dyn Any>, AccessError> {
        match self.find()? {
            Some(value) => Ok(value),
            None => self.make(),
        }
    }

    fn find(&'static self) -> Result<Option<Rc<dyn Any>>, AccessError> {
        match around::with_locals(|slots| slots.find(self.key())).ok_or(AccessError)? {
            Found::Value(value) => Ok(Some(value)),
            Found::Nothing => Ok(None),
            Found::Gone => Err(AccessError),
        }
    }

    #[cold]
    fn make(&'static self) -> Result<Rc<dyn Any>, AccessError> {
        let value: Rc<dyn Any> = Rc::new((self.make)());
        // The initialiser may have used the variable itself: then that one is in use already.
        if let Some(first) = self.find()? {
            return Ok(first);
        }
        around::with_locals(|slots| slots.insert(self.key(), value.clone())).ok_or(AccessError)?;
        Ok(value)
    }

    fn key(&'static self) -> Key {
        ptr::from_ref(self).addr()
    }
}

impl<T: 'static> LocalKey<Cell<T>> {
    /// Sets the variable.
    ///
    /// # Panics
    ///
    /// As [`with`](LocalKey::with).
    pub fn set(&'static self, value: T) {
        self.with(|cell| cell.set(value));
    }

    /// A copy of the variable.
    ///
    /// # Panics
    ///
    /// As [`with`](LocalKey::with).
    pub fn get(&'static self) -> T
    where
        T: Copy,
    {
        self.with(Cell::get)
    }

    /// The variable, which is left at its default.
    ///
    /// # Panics
    ///
    /// As [`with`](LocalKey::with).
    pub fn take(&'static self) -> T
    where
        T: Default,
    {
        self.with(Cell::take)
    }

    /// Sets the variable and returns what it was.
    ///
    /// # Panics
    ///
    /// As [`with`](LocalKey::with).
    pub fn replace(&'static self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

impl<T: 'static> LocalKey<RefCell<T>> {
    /// Calls `f` with the borrowed content.
    ///
    /// # Panics
    ///
    /// When it is borrowed mutably, and as [`with`](LocalKey::with).
    pub fn with_borrow<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        self.with(|cell| f(&cell.borrow()))
    }

    /// Calls `f` with the mutably borrowed content.
    ///
    /// # Panics
    ///
    /// When it is borrowed, and as [`with`](LocalKey::with).
    pub fn with_borrow_mut<R>(&'static self, f: impl FnOnce(&mut T) -> R) -> R {
        self.with(|cell| f(&mut cell.borrow_mut()))
    }

    /// Sets the content.
    ///
    /// # Panics
    ///
    /// When it is borrowed, and as [`with`](LocalKey::with).
    pub fn set(&'static self, value: T) {
        self.replace(value);
    }

    /// The content, which is left at its default.
    ///
    /// # Panics
    ///
    /// When it is borrowed, and as [`with`](LocalKey::with).
    pub fn take(&'static self) -> T
    where
        T: Default,
    {
        self.with(RefCell::take)
    }

    /// Sets the content and returns what it was.
    ///
    /// # Panics
    ///
    /// When it is borrowed, and as [`with`](LocalKey::with).
    pub fn replace(&'static self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

impl<T> fmt::Debug for LocalKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").finish_non_exhaustive()
    }
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a `local!` variable was used after it was dropped at the end of its dhaga or thread")
    }
}

impl Error for AccessError {}
