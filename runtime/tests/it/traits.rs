//! The types that carry std's names are as free to go between threads, and through panics, as std's.

use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;

/// Whether a type has a trait: the constant of the type itself goes before that of a trait.
macro_rules! has {
    ($type:ty: $trait:path) => {{
        struct Of<T: ?Sized>(PhantomData<T>);
        #[allow(dead_code, reason = "unused where the type has the trait")]
        trait Not {
            const HAS: bool = false;
        }
        impl<T: ?Sized> Not for Of<T> {}
        #[allow(dead_code, reason = "unused where the type has it not")]
        impl<T: ?Sized + $trait> Of<T> {
            const HAS: bool = true;
        }
        Of::<$type>::HAS
    }};
}

type Traits = [bool; 5];

macro_rules! traits {
    ($type:ty) => {
        [
            has!($type: Send),
            has!($type: Sync),
            has!($type: UnwindSafe),
            has!($type: RefUnwindSafe),
            has!($type: Unpin),
        ]
    };
}

macro_rules! of_all {
    ($($type:ty),* $(,)?) => {
        vec![$((stringify!($type), traits!($type))),*]
    };
}

macro_rules! with_value {
    ($t:ty) => {{
        type T = $t;
        let mut all = of_all![
            Mutex<T>, MutexGuard<'static, T>, RwLock<T>, RwLockReadGuard<'static, T>, RwLockWriteGuard<'static, T>,
            OnceLock<T>, LazyLock<T>, LazyLock<u8, T>, mpsc::Sender<T>, mpsc::SyncSender<T>, mpsc::Receiver<T>,
            mpsc::Iter<'static, T>, mpsc::TryIter<'static, T>, mpsc::IntoIter<T>,
            thread::ScopedJoinHandle<'static, T>,
        ];
        all.iter_mut().for_each(|one| one.0 = Box::leak(format!("{} with {}", one.0, stringify!($t)).into_boxed_str()));
        all
    }};
}

macro_rules! everything {
    () => {{
        let mut all = of_all![
            Barrier,
            BarrierWaitResult,
            Condvar,
            Once,
            WaitTimeoutResult,
            thread::Thread,
            thread::ThreadId,
            thread::Builder,
            thread::JoinHandle<u8>,
            thread::Scope<'static, 'static>,
            thread::LocalKey<Cell<u8>>,
            thread::AccessError,
            process::Command,
            process::Child,
            process::ChildStdin,
            process::ChildStdout,
            process::ChildStderr,
        ];
        all.extend(with_value!(u8));
        all.extend(with_value!(Cell<u8>));
        all.extend(with_value!(Rc<u8>));
        all.extend(with_value!(&'static Cell<u8>));
        all.extend(with_value!(&'static mut u8));
        all.extend(with_value!(std::sync::MutexGuard<'static, u8>));
        all.extend(with_value!(std::marker::PhantomPinned));
        all
    }};
}

mod of_std {
    use super::*;
    use std::sync::*;
    use std::{process, thread};
    pub fn all() -> Vec<(&'static str, Traits)> {
        everything!()
    }
}

mod of_dhaga {
    use super::*;
    use dhaga::sync::*;
    use dhaga::{process, thread};
    pub fn all() -> Vec<(&'static str, Traits)> {
        everything!()
    }
}

#[test]
fn whatever_has_a_name_of_stds_is_as_free_as_stds() {
    let differences: Vec<_> = of_std::all().into_iter().zip(of_dhaga::all()).filter(|(std, own)| std != own).collect();
    for ((name, std), (_, own)) in &differences {
        println!("{name}: std {std:?}, here {own:?} (Send, Sync, UnwindSafe, RefUnwindSafe, Unpin)");
    }
    assert!(differences.is_empty());
}
