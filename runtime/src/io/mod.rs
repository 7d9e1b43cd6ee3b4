//! Standard input, output and error, for dhagas: who reads and writes there parks, and holds up no worker.
//!
//! [`stdin`], [`stdout`] and [`stderr`] are named as in std, and the traits and types of `std::io` that go with them are here as
//! well. What is at the other end may be a terminal, a pipe, a socket or a file. The descriptors are shared with other
//! processes, so their mode is left alone: where the kernel takes a single read or write that does not block, the worker does
//! it once the descriptor is ready; otherwise, as with terminals and files, a thread of the [blocking pool](crate::blocking_pool)
//! does, also only once it is ready.
//!
//! - Each wait ends at the deadline and the cancel around it. Input that was read already stays for the next read: nothing is
//!   lost. Output that was handed to a thread by then goes out later, before anything else.
//! - No shutdown and no exit waits for input that does not come.
//! - Output is not buffered: each call goes out before it returns, and one of [`write_all`](Write::write_all), `write!` or `writeln!` is
//!   not mixed with those of others. Wrap it in a [`BufWriter`] where there are many.
//! - std's own `stdin()` has a buffer of its own: use one or the other. `println!` and `print!` go by std's, and stop their worker
//!   while the other end does not read: a program whose output may be piped into a slow reader uses `writeln!` to [`stdout`].
//!
//! ```no_run
//! use dhaga::io::{self, Write};
//!
//! dhaga::spawn(|| {
//!     for line in io::stdin().lines() {
//!         writeln!(io::stdout(), "{}", line?.to_uppercase())?;
//!     }
//!     io::Result::Ok(())
//! })
//! .join()??;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod descriptor;
mod errand;
mod input;
mod output;
pub(crate) mod take;

pub use std::io::{
    BufRead, BufReader, BufWriter, Cursor, Error, ErrorKind, IoSlice, IoSliceMut, IsTerminal, LineWriter, Read, Result,
    Seek, SeekFrom, Write, copy, empty, read_to_string, repeat, sink,
};

pub use self::input::{Lines, Stdin, stdin};
pub use self::output::{Stderr, Stdout, stderr, stdout};
