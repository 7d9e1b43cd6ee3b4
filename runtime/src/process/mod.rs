//! Child processes, with [`std::process`]'s names: a dhaga that waits for one, or for its pipes, parks.
//!
//! ```
//! use dhaga::process::{Command, Stdio};
//!
//! let words = dhaga::spawn(|| Command::new("sh").args(["-c", "echo one; echo two"]).output()).join()??;
//! assert!(words.status.success());
//! assert_eq!(words.stdout, b"one\ntwo\n");
//!
//! let mut first = Command::new("echo").arg("hello").stdout(Stdio::piped()).spawn()?;
//! let second = Command::new("tr").args(["a-z", "A-Z"]).stdin(first.stdout.take().ok_or("piped")?).output()?;
//! assert_eq!(second.stdout, b"HELLO\n");
//! assert!(first.wait()?.success());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What differs from std:
//!
//! - **A time limit is put around the wait.** [`Child::wait`] ends at the deadline around it and with a cancel, and the child
//!   lives on: kill it, or wait again.
//! - **No zombie stays.** A [`Child`] that is dropped lives on as std's does, and what the kernel keeps of it at its end is
//!   collected in the background. [`Command::kill_on_drop`] kills it instead.
//! - **A spawn goes to the [`blocking`](crate::blocking) pool**, since the kernel stops the thread that makes a child until the child
//!   runs its program. So what belongs to a thread and not to the process is that of a thread of the pool; above all, a child
//!   with `PR_SET_PDEATHSIG` would be killed when that thread has been idle for a while. On a plain thread without a deadline
//!   around it, it is made in place.
//! - [`CommandExt`](std::os::unix::process::CommandExt)'s safe methods are [`Command`]'s own. `pre_exec`, and whatever std adds,
//!   is reached by [`Command::as_std_mut`].
//!
//! As in std, children inherit no descriptor but the three they are given. Where a uid, a gid or `pre_exec` asks for it, std
//! forks before the exec instead of using `posix_spawn`; a fork copies the page tables of all stacks, which takes seconds with
//! a million parked dhagas.
//!
//! # Who else waits for children
//!
//! A status can be collected once. If SIGCHLD is ignored (`SIG_IGN`) the kernel throws it away, and a handler of SIGCHLD in some
//! library may call `waitpid(-1)` and take it. Then [`Child::wait`] waits to the child's end all the same, and returns the
//! error [`Reaped`]. No handler of ours is needed: the kernel tells of a child's end by a descriptor.

mod child;
mod command;
mod orphans;
mod pipe;

pub use std::process::{CommandArgs, CommandEnvs, ExitCode, ExitStatus, Output, Stdio, Termination, abort, exit, id};

pub use child::{Child, Ended, Reaped};
pub use command::Command;
pub use pipe::{ChildStderr, ChildStdin, ChildStdout};
