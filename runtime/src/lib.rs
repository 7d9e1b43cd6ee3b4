//! Green threads for network programs: sequential code that scales like callbacks.
#![warn(missing_docs)]

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("dhaga runs on Linux, on x86-64 and aarch64");

mod blocking;
mod context;
mod coroutine;
mod extensions;
mod machine;
pub mod net;
mod overflow;
pub mod park;
mod reactor;
mod run_queue;
mod runtime;
mod scheduler;
mod scope;
mod spawn;
mod stack;
pub mod sync;
mod task;
mod time;
mod timer;
pub mod turn;

pub use blocking::blocking;
pub use context::{Cancelled, Interrupt, Panicking};
pub use park::WaitReason;
pub use runtime::{Runtime, RuntimeBuilder, SHUTDOWN_GRACE, STACK_BYTES_DEFAULT, ShutdownError, SpawnError};
pub use scope::{Scope, ScopedJoinHandle, scope};
pub use spawn::{
    Builder, Dhaga, JoinError, JoinHandle, LocalJoinHandle, Panic, current, spawn, spawn_local, yield_now,
};
pub use time::{sleep, sleep_until};
