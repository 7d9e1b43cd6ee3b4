//! Says which dhaga overflowed its stack, and aborts, as std does for threads.
//!
//! A stack that overflows runs into its guard, the system answers with SIGSEGV, and the handler here asks `stack` whose
//! guard that is. Setting a label at spawn is all that this costs; a switch costs nothing.
//!
//! The handler runs on the thread's alternate stack, since the other one is used up. It reads atomics, fills a buffer
//! on its own stack and calls `write` and `abort`: it neither locks nor allocates. Faults elsewhere go to the handler
//! that was there before, as a rule std's own.

use std::io;
use std::mem;
use std::ptr;
use std::sync::{Once, OnceLock};

use crate::stack::{GuardHit, guard_hit};

/// Alternate stack for threads that have none: 64 KiB, many times the largest register state that a signal saves.
const ALTERNATE_STACK_BYTES: usize = 64 << 10;

/// Room for the message; a source path that does not fit is cut.
const MESSAGE_BYTES_MAX: usize = 512;

/// What the system sends for an access to a guard. Linux sends SIGSEGV; SIGBUS is for other memory, but std listens to
/// both, and so do we.
const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// What was installed before us, in the order of [`SIGNALS`].
static PREVIOUS: [OnceLock<libc::sigaction>; 2] = [const { OnceLock::new() }; 2];

/// Installs the handler for the whole process; the second call does nothing.
///
/// Without it an overflow still ends the process with SIGSEGV, but says nothing.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        for (signal, previous) in SIGNALS.into_iter().zip(&PREVIOUS) {
            // The handler reads this, so it must be there first.
            previous.get_or_init(|| action(signal));
            set_action(signal, &our_action());
        }
    });
}

/// Gives the calling thread an alternate stack for signals unless it has one, as threads that std starts do. It is
/// leaked, one for each such thread.
///
/// If the system refuses the memory, that is logged, and an overflow on this thread ends the process without a message.
pub fn ensure_alternate_stack() {
    if let Err(error) = set_alternate_stack() {
        log::warn!("no memory for a signal stack ({error}): a stack overflow on this thread will not be named");
    }
}

fn set_alternate_stack() -> io::Result<()> {
    let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    let mut current = none;
    // SAFETY: a null new stack only asks for the current one, which is written to a valid place.
    check(unsafe { libc::sigaltstack(ptr::null(), &mut current) })?;
    if current.ss_flags & libc::SS_DISABLE == 0 {
        return Ok(());
    }
    let alternate = libc::stack_t { ss_sp: map_alternate_stack()?, ss_flags: 0, ss_size: ALTERNATE_STACK_BYTES };
    // SAFETY: the stack is mapped, writable, of that size, used for nothing else and never unmapped.
    check(unsafe { libc::sigaltstack(&alternate, ptr::null_mut()) })
}

/// Maps the memory with a guard of one page below it, and returns its low end.
fn map_alternate_stack() -> io::Result<*mut libc::c_void> {
    let guard_bytes = rustix::param::page_size();
    let bytes = guard_bytes + ALTERNATE_STACK_BYTES;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory that exists.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the first page of the new mapping, which nobody uses.
    check(unsafe { libc::mprotect(start, guard_bytes, libc::PROT_NONE) })?;
    Ok(start.wrapping_byte_add(guard_bytes))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
type PlainHandler = extern "C" fn(libc::c_int);

fn our_action() -> libc::sigaction {
    let handler: Handler = on_fault;
    libc::sigaction {
        sa_sigaction: handler as usize,
        sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK,
        ..default_action()
    }
}

fn default_action() -> libc::sigaction {
    // SAFETY: a plain C struct of integers and an optional function, for which zeros mean: default action, empty mask, no
    // flags.
    unsafe { mem::zeroed() }
}

/// The action that is installed for a signal.
fn action(signal: libc::c_int) -> libc::sigaction {
    let mut current = default_action();
    // SAFETY: a null new action only asks for the current one, which is written to a valid place. The signal exists, so
    // there is no error to look at.
    unsafe { libc::sigaction(signal, ptr::null(), &mut current) };
    current
}

fn set_action(signal: libc::c_int, action: &libc::sigaction) {
    // SAFETY: the callers pass `our_action`, whose handler calls only what a signal handler may call, or an action that
    // was installed before. The signal exists and can be caught, so there is no error to look at.
    unsafe { libc::sigaction(signal, action, ptr::null_mut()) };
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the system passes a valid `siginfo_t`.
    let info_read = unsafe { &*info };
    if was_sent_by_a_process(info_read) {
        return forward(signal, info, context);
    }
    // SAFETY: for a fault, as the code says this is, that field holds the address.
    let address = unsafe { info_read.si_addr() }.addr();
    // SAFETY: a fault in the guard of a stack comes from this thread overflowing that stack, which is therefore out; or it
    // is a stray access, and the process dies of it.
    match unsafe { guard_hit(address) } {
        Some(hit) => report_and_abort(&hit),
        None => forward(signal, info, context),
    }
}

fn was_sent_by_a_process(info: &libc::siginfo_t) -> bool {
    info.si_code <= 0
}

fn report_and_abort(hit: &GuardHit) -> ! {
    let message = Message::overflow(hit);
    let text = message.text();
    // SAFETY: the buffer is valid for its length. What does not get through is lost, there is nobody to tell.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: it has no conditions, and a signal handler may call it.
    unsafe { libc::abort() }
}

/// Does what would have happened without us.
fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = usize::from(signal == SIGNALS[1]);
    let previous = PREVIOUS[index].get().copied().unwrap_or_else(default_action);
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The faulting instruction runs again when we return and now ends the process. A signal that some process sent
            // does not come again by itself.
            set_action(signal, &previous);
            // SAFETY: the system passed this `siginfo_t` to our handler.
            if was_sent_by_a_process(unsafe { &*info }) {
                // SAFETY: the signal exists; a handler may call this.
                unsafe { libc::raise(signal) };
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler with SA_SIGINFO, hence has this type.
            let handler: Handler = unsafe { mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was installed as a handler without SA_SIGINFO, hence has this type.
            let handler: PlainHandler = unsafe { mem::transmute::<usize, PlainHandler>(handler) };
            handler(signal);
        }
    }
}

/// A line of text without allocation; what does not fit is cut.
struct Message {
    bytes: [u8; MESSAGE_BYTES_MAX],
    len: usize,
}

impl Message {
    fn overflow(hit: &GuardHit) -> Message {
        let mut message = Message { bytes: [0; MESSAGE_BYTES_MAX], len: 0 };
        message.push_owner(hit);
        message.push(b" has overflowed its stack of ");
        message.push_number(hit.stack_bytes >> 10);
        message.push(b" KiB; give it more with dhaga::");
        message.push(if hit.is_lent() { b"with_stack_size\n".as_slice() } else { b"Builder::stack_size\n" });
        message
    }

    /// `dhaga 'indexer' (spawned at src/main.rs:10:5)`, as far as it is known.
    fn push_owner(&mut self, hit: &GuardHit) {
        let who: &[u8] = if hit.is_of_thread() { b"thread" } else { b"dhaga" };
        if hit.name().is_empty() {
            self.push(b"\na ");
            self.push(who);
            self.push(b" without a name");
        } else {
            self.push(b"\n");
            self.push(who);
            self.push(b" '");
            self.push(hit.name());
            self.push(b"'");
        }
        let Some(site) = hit.site else { return };
        // The rest of the message takes less than half of the room.
        let path = site.file().as_bytes();
        self.push(if hit.is_lent() { b" (on a stack of its own at ".as_slice() } else { b" (spawned at " });
        self.push(path.get(..MESSAGE_BYTES_MAX / 2).unwrap_or(path));
        self.push(b":");
        self.push_number(site.line() as usize);
        self.push(b":");
        self.push_number(site.column() as usize);
        self.push(b")");
    }

    fn push(&mut self, text: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *to = *from;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: usize) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b'0' + (number % 10) as u8]);
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::os::unix::process::ExitStatusExt;
    use std::panic::Location;
    use std::process::Output;
    use std::thread;

    use super::*;
    use crate::coroutine::{Coroutine, Wake};
    use crate::stack::tests::{is_child, run_in_child, test_path};
    use crate::stack::{Guards, StackPool};

    #[expect(unconditional_recursion, reason = "it shall overflow")]
    fn recurse(depth: u64) -> u64 {
        let frame = black_box([depth; 32]);
        recurse(depth + 1) + frame[7]
    }

    /// Overflows a stack in this process.
    fn overflow(guards: Guards, name: Option<&str>, stack_bytes: usize) {
        install();
        let mut pool = StackPool::new(guards);
        let _neighbour = pool.take(stack_bytes).expect("address space for the test");
        let stack = pool.take(stack_bytes).expect("address space for the test");
        assert_eq!(pool.stats().guards, guards, "the kernel of this machine installs guards");
        stack.set_label(name, Location::caller());
        let mut coroutine = Coroutine::new(stack, || {
            black_box(recurse(0));
        });
        let _ = coroutine.resume(Wake::Ready);
    }

    fn stderr(output: &Output) -> String {
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn check_overflow(output: &Output, who: &str, kib: usize) {
        let text = stderr(output);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
        let begin = format!("\n{who} (spawned at ");
        let end = format!(") has overflowed its stack of {kib} KiB; give it more with dhaga::Builder::stack_size\n");
        assert!(text.contains(&begin) && text.contains(&end), "{text}");
        assert!(text.contains("overflow.rs:"), "{text}");
    }

    #[test]
    fn an_overflow_names_the_dhaga_and_aborts() {
        if is_child() {
            return overflow(Guards::Install, Some("indexer"), 256 << 10);
        }
        let output = run_in_child(test_path!(an_overflow_names_the_dhaga_and_aborts));
        check_overflow(&output, "dhaga 'indexer'", 256);
    }

    #[test]
    fn an_overflow_into_a_protected_guard_is_the_same() {
        if is_child() {
            return overflow(Guards::Protect, Some("indexer"), 1 << 20);
        }
        let output = run_in_child(test_path!(an_overflow_into_a_protected_guard_is_the_same));
        check_overflow(&output, "dhaga 'indexer'", 1024);
    }

    #[test]
    fn an_overflow_without_a_name_tells_the_site() {
        if is_child() {
            return overflow(Guards::Protect, None, 0);
        }
        let output = run_in_child(test_path!(an_overflow_without_a_name_tells_the_site));
        check_overflow(&output, "a dhaga without a name", 64);
    }

    #[test]
    fn an_overflow_on_a_thread_without_alternate_stack_is_the_same() {
        fn disable_alternate_stack() {
            let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            // SAFETY: no handler runs on it now; std unmaps its own at the end of the thread, which is not reached.
            check(unsafe { libc::sigaltstack(&none, ptr::null_mut()) }).expect("it can be disabled");
        }
        if is_child() {
            let thread = thread::spawn(|| {
                disable_alternate_stack();
                ensure_alternate_stack();
                ensure_alternate_stack();
                overflow(Guards::Protect, Some("bare"), 0);
            });
            let _ = thread.join();
            return;
        }
        let output = run_in_child(test_path!(an_overflow_on_a_thread_without_alternate_stack_is_the_same));
        check_overflow(&output, "dhaga 'bare'", 64);
    }

    #[test]
    fn a_fault_elsewhere_dies_as_before() {
        if is_child() {
            install();
            let nowhere = ptr::without_provenance::<u8>(black_box(64));
            // SAFETY: none, this test wants the fault; the process ends here.
            black_box(unsafe { nowhere.read_volatile() });
            return;
        }
        let output = run_in_child(test_path!(a_fault_elsewhere_dies_as_before));
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", stderr(&output));
        assert!(!stderr(&output).contains("overflowed"));
    }

    #[test]
    fn a_thread_that_overflows_is_left_to_std() {
        if is_child() {
            install();
            let _ = thread::Builder::new().name("plain".into()).spawn(|| recurse(0)).map(thread::JoinHandle::join);
            return;
        }
        let output = run_in_child(test_path!(a_thread_that_overflows_is_left_to_std));
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", stderr(&output));
        assert!(stderr(&output).contains("thread 'plain'"), "{}", stderr(&output));
    }

    #[test]
    fn a_fault_signal_sent_by_a_process_ends_the_process() {
        if is_child() {
            install();
            for _ in 0..2 {
                // SAFETY: it has no conditions; the process ends here, at the second at the latest, as with std alone.
                unsafe { libc::raise(libc::SIGSEGV) };
            }
            return;
        }
        let output = run_in_child(test_path!(a_fault_signal_sent_by_a_process_ends_the_process));
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", stderr(&output));
    }

    #[test]
    fn a_message_that_does_not_fit_is_cut() {
        let mut message = Message { bytes: [0; MESSAGE_BYTES_MAX], len: 0 };
        message.push(&[b'x'; MESSAGE_BYTES_MAX - 2]);
        message.push_number(12345);
        assert_eq!(message.text().len(), MESSAGE_BYTES_MAX);
        assert!(message.text().ends_with(b"x12"));
    }
}
