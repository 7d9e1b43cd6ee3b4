//! A process that was forked from one with a runtime is told so, and does no harm to its parent.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::oneshot;
use dhaga::{Runtime, SpawnError, WaitReason};

use crate::child;
use crate::common::DEADLINE;

/// Runs `body` in a fork of this process. Returns the child's status, as waitpid(2) tells it.
fn forked(body: impl FnOnce()) -> libc::c_int {
    // SAFETY: what the child does beyond what a fork allows is what these tests are about. It runs in a process with few
    // threads, none of which allocates or prints meanwhile.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        let ended = catch_unwind(AssertUnwindSafe(body));
        // SAFETY: ends the process and nothing else.
        unsafe { libc::_exit(if ended.is_ok() { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: a place to write to, and a child of our own.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    status
}

fn succeeded(status: libc::c_int) -> bool {
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn aborted(status: libc::c_int) -> bool {
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT
}

fn runtime() -> Runtime {
    Runtime::builder().workers(1).build().expect("a test can start a runtime")
}

/// A connection, both ends of which wait at the runtime's poll.
fn connection(runtime: &Runtime) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let client = runtime.spawn(move || TcpStream::connect(address).expect("it listens"));
    let server = runtime.spawn(move || listener.accept().expect("a client comes").0);
    let ends = (client.join().expect("it ends well"), server.join().expect("it ends well"));
    ping(runtime, ends)
}

/// Sends a byte to and fro, so that both ends wait for the poll.
fn ping(runtime: &Runtime, (mut client, mut server): (TcpStream, TcpStream)) -> (TcpStream, TcpStream) {
    let echo = runtime.spawn(move || {
        let mut byte = [0];
        server.read_exact(&mut byte).expect("a byte comes");
        server.write_all(&byte).expect("there is room");
        server
    });
    let asks = runtime.spawn(move || {
        dhaga::yield_now();
        client.write_all(b"x").expect("there is room");
        client.read_exact(&mut [0]).expect("it comes back");
        client
    });
    (asks.join().expect("it ends well"), echo.join().expect("it ends well"))
}

fn panics_in_words(body: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(body)).expect_err("it is refused");
    let text = panic.downcast_ref::<String>().expect("it panics in words");
    assert!(text.contains("was forked from process"), "{text}");
}

/// Everything that a child may ask of a runtime.
fn is_refused(runtime: Runtime, owner: u32) {
    let spawned = dhaga::Builder::new().spawn_on(&runtime, || 1);
    assert_eq!(spawned.expect_err("it is refused"), SpawnError::Forked { owner });
    let built = Runtime::builder().workers(1).build();
    assert_eq!(built.expect_err("it is refused").kind(), io::ErrorKind::Unsupported);
    panics_in_words(|| drop(dhaga::spawn(|| 1)));
    panics_in_words(|| dhaga::park::park(WaitReason::Park));
    let (_sender, receiver) = dhaga::sync::channel::rendezvous::<()>();
    panics_in_words(|| assert!(receiver.recv_timeout(DEADLINE).is_err()));
    panics_in_words(|| drop(runtime.shutdown(DEADLINE)));
}

#[test]
fn a_forked_process_is_refused_in_words_and_its_parent_goes_on() {
    child::succeeds(child::name_of!(a_forked_process_is_refused_in_words_and_its_parent_goes_on), || {
        let runtime = runtime();
        let (stay, stays) = oneshot::channel::<()>();
        let waits = runtime.spawn(move || stays.recv().is_err());
        let mut ends = Some(connection(&runtime));
        let (mut kept, owner) = (Some(runtime), std::process::id());
        let status = forked(|| {
            // The sockets' copies go first, while the parent waits for events of its own.
            drop(ends.take());
            panics_in_words(|| drop(waits.join()));
            is_refused(kept.take().expect("it is there"), owner);
        });
        assert!(succeeded(status), "{status:#x}");
        let runtime = kept.expect("the child has taken its copy");
        ping(&runtime, ends.expect("the child has taken its copy"));
        drop(stay);
        runtime.shutdown(DEADLINE).expect("nothing is left");
    });
}

#[test]
fn to_drop_the_copy_of_a_runtime_is_nothing() {
    child::succeeds(child::name_of!(to_drop_the_copy_of_a_runtime_is_nothing), || {
        let mut kept = Some(runtime());
        assert!(succeeded(forked(|| drop(kept.take()))));
        assert_eq!(kept.expect("the child has dropped its copy").spawn(|| 1).join().expect("it ends well"), 1);
    });
}

/// What a dhaga does in the fork that it made, beside another that tells which processes it runs in.
fn check_aborts(test: &str, in_child: fn()) {
    let output = child::run(test, || {
        let runtime = runtime();
        let (mut reader, mut writer) = io::pipe().expect("a test can make a pipe");
        let witness = runtime.spawn(move || {
            for _ in 0..100 {
                writer.write_all(&std::process::id().to_le_bytes()).expect("a pipe has room");
                dhaga::sleep(Duration::from_micros(200));
            }
        });
        let forks = runtime.spawn(move || {
            dhaga::yield_now();
            // SAFETY: as in `forked`; the child ends by an abort.
            let child = unsafe { libc::fork() };
            if child == 0 {
                return in_child();
            }
            let mut status = 0;
            // SAFETY: a place to write to, and a child of our own.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert!(aborted(status), "{status:#x}");
        });
        forks.join().expect("it ends well");
        witness.join().expect("it ends well");
        let mut said = Vec::new();
        reader.read_to_end(&mut said).expect("the writer is gone");
        let processes: Vec<_> =
            said.chunks(4).map(|id| u32::from_le_bytes(id.try_into().expect("four bytes"))).collect();
        assert_eq!(processes, [std::process::id(); 100], "no other dhaga runs in the child");
    });
    let Some(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("only an exec is safe"), "{output:?}");
}

#[test]
fn a_dhaga_that_sleeps_in_a_fork_ends_it() {
    check_aborts(child::name_of!(a_dhaga_that_sleeps_in_a_fork_ends_it), || dhaga::sleep(DEADLINE));
}

#[test]
fn a_dhaga_that_yields_in_a_fork_ends_it() {
    check_aborts(child::name_of!(a_dhaga_that_yields_in_a_fork_ends_it), dhaga::yield_now);
}

#[test]
fn a_dhaga_that_joins_in_a_fork_ends_it() {
    check_aborts(child::name_of!(a_dhaga_that_joins_in_a_fork_ends_it), || {
        let _ = dhaga::spawn(|| 1).join();
    });
}

#[test]
fn a_dhaga_that_leaves_a_scope_in_a_fork_ends_it() {
    check_aborts(child::name_of!(a_dhaga_that_leaves_a_scope_in_a_fork_ends_it), || {
        dhaga::scope(|s| drop(s.spawn(|| 1)));
    });
}

#[test]
fn a_dhaga_that_ends_in_a_fork_ends_it() {
    check_aborts(child::name_of!(a_dhaga_that_ends_in_a_fork_ends_it), || {});
}

#[test]
fn a_dhaga_starts_programs() {
    child::succeeds(child::name_of!(a_dhaga_starts_programs), || {
        let runtime = runtime();
        let program = runtime.spawn(|| {
            let mut command = Command::new("true");
            // SAFETY: it does nothing. With a hook std forks, so that the handler runs; without one it does not.
            unsafe { command.pre_exec(|| Ok(())) };
            let hooked = command.status().expect("there is such a program");
            dhaga::sleep(Duration::from_millis(1));
            hooked.success() && Command::new("true").status().is_ok_and(|status| status.success())
        });
        assert!(program.join().expect("it ends well"));
    });
}
