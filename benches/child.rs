//! Child processes that cannot outlive their benchmark.
//!
//! A child is started through this program itself (`compare pinned …`), which binds its life to the
//! parent's, moves to its processor if it is to have one, and then becomes the wanted program. So the kernel ends it
//! even when the parent is killed, nothing unsafe runs between fork and exec, and the
//! child's process id is the wanted program's.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use clap::{Args, Subcommand};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal};

use crate::machine;

/// The subcommand of every benchmark that starts children.
#[derive(Subcommand)]
pub enum Hidden {
    /// What a child runs first: stay on a processor, die with the parent, become the command.
    #[command(hide = true)]
    Pinned(Pinned),
}

impl Hidden {
    /// Becomes the wanted program; returns only when that fails.
    pub fn exec(&self) -> io::Error {
        let Hidden::Pinned(pinned) = self;
        pinned.exec()
    }
}

/// How a child is to run: the options of `compare pinned`.
#[derive(Args)]
pub struct Pinned {
    /// The process to die with.
    #[arg(long)]
    parent: i32,
    /// The processor to stay on.
    #[arg(long)]
    cpu: Option<usize>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Pinned {
    /// Becomes the wanted program; returns only when that fails.
    pub fn exec(&self) -> io::Error {
        match self.bind() {
            Ok(()) => {
                let error = Command::new(&self.command[0]).args(&self.command[1..]).exec();
                io::Error::new(error.kind(), format!("{}: {error}", self.command[0]))
            }
            Err(error) => error,
        }
    }

    fn bind(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the signal was asked for.
        if getppid().map(Pid::as_raw_pid) != Some(self.parent) {
            return Err(io::Error::other("the benchmark that started this is gone"));
        }
        self.cpu.map_or(Ok(()), machine::pin_to)
    }
}

/// A running child, killed when this is dropped.
pub struct Running {
    child: Option<Child>,
}

impl Running {
    /// Starts a server, on one processor or on all. It prints nowhere, except for what it has to complain of.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn start_server(command: &[String], cpu: Option<usize>) -> io::Result<Running> {
        let child = pinned(command, cpu)?.stdout(Stdio::null()).spawn()?;
        Ok(Running { child: Some(child) })
    }

    /// Starts a load, whose output is kept.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn start_load(command: &[String], cpu: Option<usize>) -> io::Result<Running> {
        let child = pinned(command, cpu)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Running { child: Some(child) })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Whether the program has ended by itself.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        let child = self.child.as_mut().expect(OWNED_UNTIL_OUTPUT);
        Ok(child.try_wait()?.is_some())
    }

    /// Waits, without waking up in between, for the program to end; kills it when it takes longer
    /// than `time_max`. What it prints must fit a pipe.
    ///
    /// # Errors
    ///
    /// The kernel's; `TimedOut`.
    pub fn output(mut self, time_max: Duration) -> io::Result<Output> {
        let ended = pidfd_open(Pid::from_child(self.child()), PidfdFlags::empty())?;
        let timeout = Timespec::try_from(time_max).expect("a benchmark's time fits the kernel's");
        let ready = poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&timeout))?;
        if ready == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the load took too long and was killed"));
        }
        self.child.take().expect(OWNED_UNTIL_OUTPUT).wait_with_output()
    }

    /// What the program prints, when it ends well within `time_max`.
    ///
    /// # Errors
    ///
    /// Those of [`output`](Running::output); what the program complains of when it fails.
    pub fn answer(self, time_max: Duration) -> io::Result<String> {
        let output = self.output(time_max)?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("{}: {}", output.status, complaint.trim())));
        }
        String::from_utf8(output.stdout).map_err(io::Error::other)
    }

    fn child(&self) -> &Child {
        self.child.as_ref().expect(OWNED_UNTIL_OUTPUT)
    }
}

const OWNED_UNTIL_OUTPUT: &str = "the child is taken only by output, which consumes its owner";

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only when the child is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pinned(command: &[String], cpu: Option<usize>) -> io::Result<Command> {
    let mut pinned = Command::new(std::env::current_exe()?);
    pinned.args(["pinned", "--parent", &std::process::id().to_string()]);
    if let Some(cpu) = cpu {
        pinned.args(["--cpu", &cpu.to_string()]);
    }
    pinned.arg("--").args(command).stdin(Stdio::null());
    Ok(pinned)
}
