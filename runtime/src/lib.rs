//! Green threads for network programs: sequential code that scales like callbacks.
//!
//! A *dhaga* is a light thread with a stack of its own. While it waits, for a socket, a lock, a channel or the end of another,
//! it gives its OS thread to other dhagas. There is one OS thread a core, a *worker*; a dhaga that has started stays on its
//! worker, so thread-locals stay valid, and one that has not may be taken over by any idle worker.
//!
//! ```
//! use std::io::{Read, Write};
//!
//! let listener = dhaga::net::TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! let server = dhaga::spawn(move || {
//!     let (mut stream, _) = listener.accept()?;
//!     stream.write_all(b"hello")
//! });
//! let mut greeting = String::new();
//! dhaga::net::TcpStream::connect(address)?.read_to_string(&mut greeting)?;
//! assert_eq!(greeting, "hello");
//! server.join()??;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every call that waits parks a dhaga and blocks a plain OS thread, so `main` needs no preparation. Three rules are the
//! user's: do not block outside the runtime ([`blocking`] is there for it), mind the stack ([`Builder::stack_size`]), and
//! hold no OS lock, thread-local borrow or scoped thread-local across a wait. `docs/guide` leads through all of it.
//!
//! The modules, from the ground up:
//!
//! | floor | modules |
//! |---|---|
//! | 0 | `atomic`: what threads share, real or modelled; `fork`: what a forked process is told; `stack`: guarded stacks, reused; `overflow`: names the dhaga that overflowed |
//! | 1 | `coroutine`: a stack and a closure |
//! | 2 | `interrupt`, `context`, `ambient`, `frame`: cancellation, deadlines and values, and the code they are in force for; `local_slots`; `job`, `handshake`: what was spawned; `blocks`: memory for it; `timer`; `task`, `ready_queue`; `audit`: what a runtime holds; `phase`, `stuck`: how far its shutdown has come, and who has not stopped; `run_queue`: how other threads reach a worker, by its `inbox` and as `thieves` |
//! | 3 | `reactor`: who became ready; `front`: where an idle worker serves for one that is late; `extensions` |
//! | 4 | `scheduler`: the loop |
//! | 5 | `relay`: a wake for a future; `plain_thread`; `around`: what is around the caller; [`park`]: the one way to wait; `owner`: who holds something |
//! | 6 | [`sync`]; `machine` |
//! | 7 | `within`, `context_key`, `local`, `no_suspend`, `identity`, `panic_message`, `big_stack`: code on a stack of its own; `region`; `packet`, `shutdown`, `runtime`, `spawn`, `scope`, `try_scope` |
//! | 8 | `time`, `interval`, `blocking`, [`future`]: the bridge to `async` code; [`fs`]: files; [`net`]; [`io`](mod@io): the standard streams |
//! | 9 | `hyper`: the bridge to HTTP, with the feature of that name; [`thread`]: `std::thread`'s names; [`mod@select`]: the first of several events; [`signal`]: signals of the process; [`process`]: its children |
//! | 10 | [`turn`]: the seam for protocol crates |

#[cfg(doctest)]
mod programs_of_the_pages {
    #[doc = include_str!("../../docs/safety.md")]
    struct Safety;
    #[doc = include_str!("../../docs/guide/first-spawn.md")]
    struct FirstSpawn;
    #[doc = include_str!("../../docs/guide/deadlines-and-cancellation.md")]
    struct DeadlinesAndCancellation;
    #[doc = include_str!("../../docs/guide/three-rules.md")]
    struct ThreeRules;
    #[doc = include_str!("../../docs/guide/network.md")]
    struct Network;
    #[doc = include_str!("../../docs/guide/processes-and-signals.md")]
    struct ProcessesAndSignals;
    #[doc = include_str!("../../docs/guide/files-and-blocking.md")]
    struct FilesAndBlocking;
    #[doc = include_str!("../../docs/guide/coming-from-threads.md")]
    struct ComingFromThreads;
    #[doc = include_str!("../../docs/guide/coming-from-go.md")]
    struct ComingFromGo;
    #[doc = include_str!("../../docs/guide/coming-from-tokio.md")]
    struct ComingFromTokio;
    #[doc = include_str!("../../docs/guide/coming-from-gevent.md")]
    struct ComingFromGevent;
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("dhaga runs on Linux, on x86-64 and aarch64");

mod atomic;
mod fork;
mod stack;

mod overflow;

mod coroutine;

mod ambient;
mod audit;
mod blocks;
mod context;
mod frame;
mod handshake;
mod inbox;
mod interrupt;
mod job;
mod local_slots;
mod phase;
mod ready_queue;
mod run_queue;
mod stuck;
mod task;
mod thieves;
mod timer;

mod extensions;
mod front;
mod reactor;

mod scheduler;

mod around;
mod owner;
pub mod park;
mod plain_thread;
mod relay;

mod machine;
pub mod sync;

mod big_stack;
mod context_key;
mod identity;
mod local;
mod no_suspend;
mod panic_message;
mod within;

mod packet;
mod region;
mod runtime;
mod scope;
mod shutdown;
mod spawn;
mod try_scope;

mod blocking;
pub mod fs;
pub mod future;
pub mod io;
pub mod net;
mod time;

#[cfg(feature = "hyper")]
pub mod hyper;

mod interval;

pub mod select;
pub mod thread;

pub mod signal;

pub mod process;

pub mod turn;

pub use around::is_shutting_down;
#[doc(hidden)]
pub use audit::Audit;
pub use big_stack::{BIG_STACK_BYTES, with_big_stack, with_stack_size};
pub use blocking::{
    BLOCKING_KEEP_ALIVE, BLOCKING_QUEUED_MAX, BLOCKING_THREADS_MAX, BlockingPool, BlockingStats, blocking,
    blocking_pool, spawn_blocking,
};
pub use context_key::ContextKey;
pub use future::{block_on, spawn_future, try_block_on};
pub use identity::{Dhaga, DhagaId, current};
pub use interrupt::{Cancelled, Interrupt, Panicking, ShuttingDown};
pub use interval::{Interval, MissedTicks, interval, interval_at};
pub use local::{AccessError, LocalKey};
pub use no_suspend::{NoSuspend, no_suspend};
pub use park::WaitReason;
pub use runtime::{Runtime, RuntimeBuilder, STACK_BYTES_DEFAULT, SpawnError, StackUse};
pub use scope::{Scope, ScopedJoinHandle, scope};
pub use shutdown::{CANCEL_GRACE, SHUTDOWN_GRACE, STUCK_REPORTED_MAX, ShutdownError};
pub use spawn::{Builder, JoinError, JoinHandle, Panic, spawn, spawn_local, yield_now};
pub use stuck::StuckDhaga;
pub use time::{sleep, sleep_until};
pub use try_scope::{TryJoinHandle, TryScope, try_scope};
pub use within::{checkpoint, deadline, is_cancelled, uncancellable, with_deadline, within};
