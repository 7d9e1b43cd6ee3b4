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
//! hold no OS lock, thread-local borrow or scoped thread-local across a wait.
//!
//! The modules, from the ground up:
//!
//! | floor | modules |
//! |---|---|
//! | 0 | `atomic`: what threads share, real or modelled; `fork`: what a forked process is told; `stack`: guarded stacks, reused; `overflow`: names the dhaga that overflowed |
//! | 1 | `coroutine`: a stack and a closure |
//! | 2 | `context`: deadlines and cancellation; `job`, `handshake`: what was spawned; `timer`; `task`, `ready_queue`; `audit`: what a runtime holds; `run_queue`: how other threads reach a worker, by its `inbox` and as `thieves` |
//! | 3 | `reactor`: who became ready; `front`: where an idle worker serves for one that is late; `extensions` |
//! | 4 | `scheduler`: the loop |
//! | 5 | [`park`]: the one way to wait |
//! | 6 | [`sync`]; `machine` |
//! | 7 | `packet`, `runtime`, `spawn`, `scope` |
//! | 8 | `time`, `blocking`, [`net`] |
//! | 9 | [`mod@select`]: the first of several events; [`turn`]: the seam for protocol crates |

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("dhaga runs on Linux, on x86-64 and aarch64");

mod atomic;
mod fork;
mod stack;

mod overflow;

mod coroutine;

mod audit;
mod context;
mod handshake;
mod inbox;
mod job;
mod ready_queue;
mod run_queue;
mod task;
mod thieves;
mod timer;

mod extensions;
mod front;
mod reactor;

mod scheduler;

pub mod park;

mod machine;
pub mod sync;

mod packet;
mod runtime;
mod scope;
mod spawn;

mod blocking;
pub mod net;
mod time;

pub mod select;
pub mod turn;

#[doc(hidden)]
pub use audit::Audit;
pub use blocking::blocking;
pub use context::{Cancelled, Interrupt, Panicking};
pub use park::WaitReason;
pub use runtime::{Runtime, RuntimeBuilder, SHUTDOWN_GRACE, STACK_BYTES_DEFAULT, ShutdownError, SpawnError, StackUse};
pub use scope::{Scope, ScopedJoinHandle, scope};
pub use spawn::{Builder, Dhaga, JoinError, JoinHandle, Panic, current, spawn, spawn_local, yield_now};
pub use time::{sleep, sleep_until};
