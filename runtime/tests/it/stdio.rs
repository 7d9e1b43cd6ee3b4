//! The standard streams, of children: pipes, files and a terminal at the other end.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write, pipe};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dhaga::io::{self, ErrorKind, stderr, stdin, stdout};
use dhaga::{Runtime, within};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::child;
use crate::common::{DEADLINE, within_deadline};

/// A child whose streams are pipes.
fn start(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the test binary can be run again")
}

/// Reads lines until one ends with `mark`, which begins anew after whatever the test harness has printed before.
fn read_to(mark: &str, from: &mut impl BufRead) {
    let mut line = String::new();
    while !line.trim_end().ends_with(mark) {
        line.clear();
        assert_ne!(from.read_line(&mut line).expect("readable"), 0, "the child has ended without {mark:?}");
    }
}

fn expect_success(mut child: Child) {
    let mut text = String::new();
    if let Some(mut errors) = child.stderr.take() {
        errors.read_to_string(&mut text).expect("readable");
    }
    assert!(child.wait().expect("it ends").success(), "{text}");
}

/// Runs a body in a dhaga of a runtime with one worker.
fn on_one_worker<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let runtime = Runtime::builder().workers(1).build().expect("a runtime");
    let ended = runtime.spawn(body).join().expect("the body ends well");
    runtime.shutdown(Duration::ZERO).expect("nothing is left");
    ended
}

/// Whether this kernel can be asked to read a pipe without blocking, as Linux from 6.4 on.
fn reads_without_blocking() -> bool {
    let (empty, _writer) = pipe().expect("a pipe");
    let mut byte = [0];
    let mut slices = [std::io::IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(&empty, &mut slices, u64::MAX, rustix::io::ReadWriteFlags::NOWAIT);
    read == Err(rustix::io::Errno::AGAIN)
}

/// Returns when a dhaga of the same worker has slept ten times, however the caller's others wait.
fn tick() {
    dhaga::spawn(|| (0..10).for_each(|_| dhaga::sleep(Duration::from_micros(100)))).join().expect("it ends well");
}

#[test]
fn who_waits_for_input_holds_up_nobody() {
    let Some(command) = child::command(child::name_of!(who_waits_for_input_holds_up_nobody), || {
        let lines = on_one_worker(|| {
            let reader = dhaga::spawn(|| stdin().lines().collect::<io::Result<Vec<_>>>().expect("readable"));
            dhaga::yield_now();
            tick();
            writeln!(stdout(), "ticked").expect("it has room");
            reader.join().expect("it ends well")
        });
        assert_eq!(lines, ["one", "two", "", "last, without an end"]);
        assert_eq!(stdin().read_line(&mut String::new()).expect("still the end"), 0);
        if reads_without_blocking() {
            assert_eq!(dhaga::blocking_pool().stats().threads, 0, "pipes need no thread");
        }
    }) else {
        return;
    };
    within_deadline(DEADLINE, || {
        let mut child = start(command);
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        read_to("ticked", &mut output);
        let mut input = child.stdin.take().expect("a pipe");
        for part in ["one\ntw", "o\r\n\nlast, with", "out an end"] {
            input.write_all(part.as_bytes()).expect("it reads");
        }
        drop(input);
        output.read_to_end(&mut Vec::new()).expect("readable");
        expect_success(child);
    });
}

#[test]
fn a_stopped_wait_for_input_loses_nothing() {
    let Some(command) = child::command(child::name_of!(a_stopped_wait_for_input_loses_nothing), || {
        let body = || {
            let mut line = String::new();
            let late = within(Duration::from_millis(30), || stdin().read_line(&mut line));
            assert_eq!(late.expect_err("there is no line yet").kind(), ErrorKind::TimedOut);
            let cancelled = dhaga::scope(|s| {
                s.cancel();
                stdin().read_line(&mut line)
            });
            assert!(
                cancelled.expect_err("it is cancelled").get_ref().is_some_and(|cause| cause.is::<dhaga::Cancelled>())
            );
            assert_eq!(line, "");
            writeln!(stdout(), "late").expect("it has room");
            let mut lines = stdin().lines();
            dhaga::scope(|s| {
                s.cancel();
                assert!((0..3).all(|_| matches!(lines.next(), Some(Err(_)))), "an error is no end");
                assert_eq!(lines.by_ref().map_while(Result::ok).count(), 0);
            });
            assert_eq!(lines.next().expect("there is a line").expect("in time"), "partial");
        };
        on_one_worker(body);
        thread::spawn(body).join().expect("the same on a plain thread");
    }) else {
        return;
    };
    within_deadline(DEADLINE, || {
        let mut child = start(command);
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut input = child.stdin.take().expect("a pipe");
        for _ in 0..2 {
            input.write_all(b"par").expect("it reads");
            read_to("late", &mut output);
            input.write_all(b"tial\n").expect("it reads");
        }
        output.read_to_end(&mut Vec::new()).expect("readable");
        expect_success(child);
    });
}

#[test]
fn input_that_does_not_come_holds_up_neither_shutdown_nor_exit() {
    let Some(command) =
        child::command(child::name_of!(input_that_does_not_come_holds_up_neither_shutdown_nor_exit), || {
            let runtime = Runtime::builder().workers(1).build().expect("a runtime");
            let waiter = runtime.spawn(|| stdin().read(&mut [0]).map_err(|error| error.to_string()));
            runtime.spawn(|| ()).join().expect("it ends well");
            runtime.shutdown(Duration::ZERO).expect("it is cancelled");
            assert!(waiter.join().expect("it ends well").is_err_and(|text| text.contains("cancelled")));
            // Another one, of the runtime that is never shut down, waits while the process ends.
            let (starts, started) = mpsc::channel();
            dhaga::spawn(move || {
                starts.send(()).expect("the test listens");
                stdin().read(&mut [0])
            })
            .detach();
            started.recv().expect("it starts");
        })
    else {
        return;
    };
    within_deadline(DEADLINE, || {
        let mut child = start(command);
        let _input = child.stdin.take();
        child.stdout.take().expect("a pipe").read_to_end(&mut Vec::new()).expect("readable");
        expect_success(child);
    });
}

#[test]
fn a_slow_reader_of_the_output_holds_up_nobody_but_the_writer() {
    const LINES: usize = 5000;
    let line = |n: usize| format!("{n:0>200}");
    let Some(command) =
        child::command(child::name_of!(a_slow_reader_of_the_output_holds_up_nobody_but_the_writer), || {
            on_one_worker(move || {
                let writer = dhaga::spawn(move || {
                    (0..LINES).try_for_each(|n| writeln!(stdout(), "line {}", line(n)))?;
                    stdout().flush()
                });
                dhaga::yield_now();
                tick();
                assert!(!writer.is_finished());
                let late = within(Duration::from_millis(5), || stdout().write(b"never"));
                assert_eq!(late.expect_err("others are before it").kind(), ErrorKind::TimedOut);
                writeln!(stderr(), "ticked").expect("it has room");
                writer.join().expect("it ends well").expect("all was written");
            });
        })
    else {
        return;
    };
    within_deadline(DEADLINE, move || {
        let mut child = start(command);
        let mut errors = BufReader::new(child.stderr.take().expect("a pipe"));
        read_to("ticked", &mut errors);
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let lines: Vec<_> = output.lines().map(|line| line.expect("readable")).collect();
        let lines: Vec<_> = lines.iter().filter_map(|line| line.split_once("line ").map(|(_, rest)| rest)).collect();
        assert_eq!(lines.len(), LINES);
        assert!(lines.iter().enumerate().all(|(n, found)| *found == line(n)));
        expect_success(child);
    });
}

#[test]
fn lines_of_many_writers_are_whole() {
    const WRITERS: usize = 8;
    const LINES: usize = 200;
    let Some(command) = child::command(child::name_of!(lines_of_many_writers_are_whole), || {
        let write = |writer: usize| {
            let text = writer.to_string().repeat(2000);
            (0..LINES).for_each(|_| writeln!(stdout(), "line {text} {writer}").expect("all goes out"));
        };
        let dhagas: Vec<_> = (0..WRITERS / 2).map(|n| dhaga::spawn(move || write(n))).collect();
        let threads: Vec<_> = (WRITERS / 2..WRITERS).map(|n| thread::spawn(move || write(n))).collect();
        dhagas.into_iter().for_each(|dhaga| dhaga.join().expect("it ends well"));
        threads.into_iter().for_each(|thread| thread.join().expect("it ends well"));
    }) else {
        return;
    };
    within_deadline(DEADLINE, || {
        let mut child = start(command);
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut counts = [0; WRITERS];
        for line in output.lines().map(|line| line.expect("readable")) {
            let Some((_, line)) = line.split_once("line ") else { continue };
            let (text, writer) = line.split_once(' ').expect("it is whole");
            assert_eq!(text, writer.repeat(2000));
            counts[writer.parse::<usize>().expect("a number")] += 1;
        }
        assert_eq!(counts, [LINES; WRITERS]);
        expect_success(child);
    });
}

#[test]
fn the_mode_of_shared_descriptors_stays_as_it_is() {
    let Some(command) = child::command(child::name_of!(the_mode_of_shared_descriptors_stays_as_it_is), || {
        on_one_worker(|| {
            let late = within(Duration::from_millis(5), || stdin().read(&mut [0]));
            assert_eq!(late.expect_err("there is nothing to read").kind(), ErrorKind::TimedOut);
            writeln!(stdout(), "now").expect("it has room");
            assert_eq!(stdin().read(&mut [0; 4]).expect("readable"), 1);
            writeln!(stderr(), "written").expect("it has room");
        });
        assert!(!stdin().is_terminal() && !stdout().is_terminal() && !stderr().is_terminal());
    }) else {
        return;
    };
    within_deadline(DEADLINE, || {
        let mut command = command;
        // The child has duplicates of these, so their mode is ours.
        let ((input, mut to_input), (from_output, output)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        command.stdin(input.try_clone().expect("a descriptor")).stdout(output.try_clone().expect("a descriptor"));
        let child = command.stderr(Stdio::piped()).spawn().expect("the test binary can be run again");
        drop(command);
        let mut from_output = BufReader::new(from_output);
        read_to("now", &mut from_output);
        to_input.write_all(b"x").expect("it has room");
        expect_success(child);
        for shared in [input.as_fd(), output.as_fd()] {
            assert!(!fcntl_getfl(shared).expect("it is open").contains(OFlags::NONBLOCK));
        }
    });
}

#[test]
fn files_are_read_and_written_at_their_place() {
    let folder = std::env::temp_dir().join(format!("dhaga-stdio-{}", std::process::id()));
    let Some(mut command) = child::command(child::name_of!(files_are_read_and_written_at_their_place), || {
        let body = || {
            let mut line = String::new();
            assert!(stdin().read_line(&mut line).expect("readable") > 0);
            write!(stdout(), "line {line}").expect("writable");
            stdout().flush().expect("writable");
        };
        on_one_worker(body);
        thread::spawn(body).join().expect("it ends well");
        on_one_worker(|| assert_eq!(stdin().read(&mut [0; 10]).expect("the end"), 0));
    }) else {
        return;
    };
    within_deadline(DEADLINE, move || {
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("in"), "one\ntwo\n").expect("a file");
        let (input, output) = (File::open(folder.join("in")), File::create(folder.join("out")));
        command.stdin(input.expect("it is there")).stdout(output.expect("it is there")).stderr(Stdio::piped());
        expect_success(command.spawn().expect("the test binary can be run again"));
        let output = std::fs::read_to_string(folder.join("out")).expect("it is there");
        assert!(output.contains("line one\nline two\n"), "{output:?}");
        std::fs::remove_dir_all(&folder).expect("it is there");
    });
}

#[test]
fn nothing_is_read_from_nowhere_and_written_there() {
    let Some(mut command) = child::command(child::name_of!(nothing_is_read_from_nowhere_and_written_there), || {
        on_one_worker(|| {
            assert_eq!(stdin().lines().count(), 0);
            writeln!(stdout(), "gone").expect("it has room");
        });
    }) else {
        return;
    };
    within_deadline(DEADLINE, move || {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        expect_success(command.spawn().expect("the test binary can be run again"));
    });
}

/// A terminal: the end of the user, and that of the program.
fn terminal() -> Option<(File, File)> {
    let (mut user, mut program) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: two valid places for the descriptors; without a name, modes and size.
    let opened = unsafe { libc::openpty(&mut user, &mut program, none, std::ptr::null(), std::ptr::null()) };
    use std::os::fd::FromRawFd;
    // SAFETY: it has opened both, and nobody else has them.
    (opened == 0).then(|| unsafe { (File::from_raw_fd(user), File::from_raw_fd(program)) })
}

#[test]
fn a_terminal_is_read_line_by_line() {
    let Some(mut command) = child::command(child::name_of!(a_terminal_is_read_line_by_line), || {
        on_one_worker(|| {
            assert!(stdin().is_terminal() && stdout().is_terminal());
            let reader = dhaga::spawn(|| {
                let late = within(Duration::from_millis(5), || stdin().read(&mut [0]));
                assert_eq!(late.expect_err("nobody has typed").kind(), ErrorKind::TimedOut);
                writeln!(stdout(), "who?").expect("it has room");
                let mut line = String::new();
                stdin().read_line(&mut line).map(|_| line)
            });
            tick();
            let line = reader.join().expect("it ends well").expect("readable");
            writeln!(stdout(), "hello {}", line.trim_end()).expect("it has room");
        });
    }) else {
        return;
    };
    within_deadline(DEADLINE, move || {
        let Some((user, program)) = terminal() else {
            return println!("this machine gives no terminal");
        };
        command.stdin(program.try_clone().expect("a descriptor")).stdout(program).stderr(Stdio::piped());
        let child = command.spawn().expect("the test binary can be run again");
        drop(command);
        let mut typing = user.try_clone().expect("a descriptor");
        let mut screen = BufReader::new(user);
        read_to("who?", &mut screen);
        typing.write_all(b"world\n").expect("it has room");
        read_to("hello world", &mut screen);
        expect_success(child);
    });
}
