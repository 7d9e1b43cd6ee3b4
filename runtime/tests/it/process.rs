//! Child processes: how they start, end, and are waited for, in a dhaga and on a plain thread.

use std::fs;
use std::io::{self, ErrorKind, Read, Write, pipe};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use dhaga::process::{Child, Command, Reaped, Stdio};
use dhaga::signal::SignalKind;
use dhaga::sync::{Semaphore, oneshot};
use dhaga::{Cancelled, Runtime, within};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, kill_process, setrlimit, test_kill_process, waitid,
};

use crate::child;
use crate::common::{DEADLINE, cancelled_during, everywhere, shut_down_during, within_deadline};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// A child that ends when its standard input does.
fn cat() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("there is a cat")
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").kill_on_drop(true).spawn().expect("it can sleep")
}

fn one_worker() -> Runtime {
    Runtime::builder().workers(1).build().expect("a test can start a runtime")
}

#[test]
fn a_status_is_that_of_the_program() {
    everywhere(|| {
        assert!(Command::new("true").status().expect("it runs").success());
        assert_eq!(shell("exit 7").status().expect("it runs").code(), Some(7));
        let killed = shell("kill -TERM $$").status().expect("it runs");
        assert_eq!((killed.code(), killed.signal()), (None, Some(libc::SIGTERM)));
    });
}

#[test]
fn output_is_captured_and_the_input_is_empty() {
    everywhere(|| {
        let output = shell("cat; echo out; echo err >&2; exit 3").output().expect("it runs");
        assert_eq!((output.status.code(), &*output.stdout, &*output.stderr), (Some(3), &b"out\n"[..], &b"err\n"[..]));
    });
}

#[test]
fn streams_that_were_set_stay_so_and_others_go_back_to_their_defaults() {
    everywhere(|| {
        let mut command = shell("echo out; echo err >&2");
        command.stderr(Stdio::null());
        let output = command.output().expect("it runs");
        assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b""[..]));
        let mut command = shell("cat > /dev/null");
        command.output().expect("it runs");
        command.stdin(Stdio::piped());
        let child = command.spawn().expect("it runs again");
        assert!(child.stdin.is_some() && child.stdout.is_none() && child.stderr.is_none());
        assert!(child.wait_with_output().expect("it ends").status.success());
    });
}

#[test]
fn the_rest_of_a_command_is_stds() {
    everywhere(|| {
        let mut command = Command::new("sh");
        command.arg("-c").args(["echo $0 $ONE $TWO $THREE; pwd"]).arg0("another").current_dir("/");
        command.env("ONE", "1").env("TWO", "2").envs([("THREE", "3")]).env_remove("TWO").process_group(0);
        assert_eq!((command.get_program(), command.get_args().len()), ("sh".as_ref(), 2));
        assert_eq!(command.get_current_dir(), Some("/".as_ref()));
        assert_eq!(command.get_envs().count(), 3);
        let same = command.as_std_mut().output().expect("it runs");
        let output = command.output().expect("it runs");
        assert_eq!((&*output.stdout, &same.stdout), (&b"another 1 3\n/\n"[..], &output.stdout));
        let mut same = std::process::Command::from(command);
        assert!(same.stdout(Stdio::null()).status().expect("it runs").success());
        let mut nothing = Command::from(std::process::Command::new("env"));
        assert_eq!(nothing.env_clear().output().expect("it runs").stdout, b"");
    });
}

#[test]
fn a_program_that_is_not_there_is_not_found_and_the_command_stays_good() {
    everywhere(|| {
        let mut command = Command::new("/no/such/program");
        for _ in 0..2 {
            assert_eq!(command.spawn().expect_err("it is not there").kind(), ErrorKind::NotFound);
        }
        assert_eq!(command.get_program(), "/no/such/program");
        let error = Command::new("/").status().expect_err("it is a folder");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn a_forked_child_is_no_fork_of_the_runtime() {
    everywhere(|| {
        // With a uid std forks; with a closure, too.
        let me = rustix::process::getuid().as_raw();
        let output = shell("echo forked").uid(me).output().expect("it runs");
        assert_eq!(output.stdout, b"forked\n");
        let mut command = Command::new("true");
        // SAFETY: it does nothing.
        unsafe { command.as_std_mut().pre_exec(|| Ok(())) };
        assert!(command.status().expect("it runs").success());
        dhaga::spawn(|| ()).join().expect("the runtime is here");
    });
}

#[test]
fn what_is_written_to_a_child_comes_back() {
    everywhere(|| {
        let mut child = cat();
        let (mut stdin, mut stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        for round in 0..100_u8 {
            stdin.write_all(&[round; 100]).expect("it reads");
            let mut echo = [0; 100];
            stdout.read_exact(&mut echo).expect("it writes");
            assert_eq!(echo, [round; 100]);
        }
        drop(stdin);
        assert_eq!(stdout.read(&mut [0]).expect("it ends"), 0);
        assert!(child.wait().expect("it ends").success());
    });
}

#[test]
fn many_share_the_pipes_of_a_child() {
    const LINES: usize = 200;
    everywhere(|| {
        let mut child = cat();
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut text = String::new();
        dhaga::scope(|s| {
            s.spawn(|| {
                let stdin = stdin;
                dhaga::scope(|s| {
                    for writer in 0..4 {
                        let mut stdin = &stdin;
                        // Whole: so little is written at once or not at all.
                        let line = format!("{writer}\n");
                        s.spawn(move || {
                            (0..LINES).for_each(|_| stdin.write_all(line.as_bytes()).expect("it reads"));
                        });
                    }
                });
            });
            (&stdout).read_to_string(&mut text).expect("it is text");
        });
        assert_eq!(text.lines().filter(|line| *line == "3").count(), LINES);
        assert_eq!(text.lines().count(), 4 * LINES);
    });
}

#[test]
fn a_pipe_goes_from_child_to_child() {
    everywhere(|| {
        let mut first = shell("printf 'b\\na\\n'").stdout(Stdio::piped()).spawn().expect("it runs");
        let second = Command::new("sort").stdin(first.stdout.take().expect("piped")).output().expect("it runs");
        assert_eq!(second.stdout, b"a\nb\n");
        assert!(first.wait().expect("it ends").success());
    });
}

#[test]
fn much_output_in_both_pipes_is_read_at_once() {
    everywhere(|| {
        let script = "head -c 3000000 /dev/zero & head -c 2000000 /dev/zero >&2; wait";
        let output = shell(script).output().expect("it runs");
        assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 2_000_000));
        // One after the other, in the order that would fill the pipe that is not read.
        let script = "head -c 2000000 /dev/zero >&2; head -c 3000000 /dev/zero";
        let output = shell(script).output().expect("it runs");
        assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 2_000_000));
    });
}

#[test]
fn a_write_to_a_child_that_has_gone_is_a_broken_pipe() {
    everywhere(|| {
        let mut child = Command::new("true").stdin(Stdio::piped()).spawn().expect("it runs");
        let mut stdin = child.stdin.take().expect("piped");
        child.wait().expect("it ends");
        assert_eq!(stdin.write(b"x").expect_err("nobody reads").kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn wait_closes_the_input_and_says_the_same_again() {
    everywhere(|| {
        let mut child = cat();
        assert!(child.try_wait().expect("it is ours").is_none());
        let status = child.wait().expect("it ends with its input");
        assert!(status.success() && child.stdin.is_none());
        assert_eq!(child.wait().expect("it has ended"), status);
        assert_eq!(child.try_wait().expect("it has ended"), Some(status));
        child.kill().expect("there is nothing to kill");
        child.send_signal(SignalKind::terminate()).expect("there is nobody to tell");
    });
}

#[test]
fn a_wait_ends_at_a_deadline_and_the_child_can_be_killed_then() {
    everywhere(|| {
        let mut child = sleeper();
        for _ in 0..3 {
            let late = within(Duration::from_millis(2), || child.wait());
            assert_eq!(late.expect_err("it sleeps").kind(), ErrorKind::TimedOut);
        }
        assert!(child.try_wait().expect("it is ours").is_none());
        child.kill().expect("it is ours");
        assert_eq!(child.wait().expect("it dies").signal(), Some(libc::SIGKILL));
        let mut child = sleeper();
        child.send_signal(SignalKind::terminate()).expect("it is ours");
        assert_eq!(child.wait().expect("it dies").signal(), Some(libc::SIGTERM));
        let unknown = child.send_signal(SignalKind::from_raw(0)).expect_err("it is none");
        assert_eq!(unknown.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_wait_that_is_cancelled_leaves_a_child_that_can_be_waited_for() {
    within_deadline(DEADLINE, || {
        let mut child = sleeper();
        let (error, mut child) = cancelled_during(move || {
            let error = child.wait().expect_err("it sleeps");
            (error, child)
        });
        assert!(error.get_ref().is_some_and(|cause| cause.is::<Cancelled>()), "{error:?}");
        child.kill().expect("it is ours");
        assert_eq!(child.wait().expect("it dies").signal(), Some(libc::SIGKILL));
    });
}

/// Whether a process is there, as a zombie at least.
fn is_there(id: u32) -> bool {
    let id = Pid::from_raw(id.cast_signed()).expect("an id is not 0");
    test_kill_process(id).is_ok()
}

/// Returns when a process has gone and was collected. A test that waits for ever fails at its deadline.
fn await_gone(id: u32) {
    while is_there(id) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_shutdown_during_a_wait_kills_whom_it_is_asked_to_kill() {
    within_deadline(DEADLINE, || {
        let mut child = sleeper();
        let id = child.id();
        shut_down_during(move || child.wait());
        await_gone(id);
    });
}

#[test]
fn a_child_that_is_dropped_lives_on_and_leaves_no_zombie() {
    everywhere(|| {
        let mut child = cat();
        let (id, stdin, stdout) = (child.id(), child.stdin.take(), child.stdout.take());
        let (mut stdin, mut stdout) = (stdin.expect("piped"), stdout.expect("piped"));
        drop(child);
        stdin.write_all(b"x").expect("it lives");
        stdout.read_exact(&mut [0]).expect("it lives");
        drop(stdin);
        await_gone(id);
    });
}

#[test]
fn a_child_that_is_killed_on_drop_dies() {
    everywhere(|| {
        let mut child = sleeper();
        let id = child.id();
        let _ = within(Duration::from_millis(2), || child.wait());
        drop(child);
        await_gone(id);
        let mut command = Command::new("sleep");
        command.arg("1000").kill_on_drop(true).stdout(Stdio::piped());
        let late = within(Duration::from_millis(20), || command.output());
        assert_eq!(late.expect_err("it sleeps").kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn the_end_of_a_child_is_an_event() {
    everywhere(|| {
        let mut child = cat();
        let (_sender, receiver) = dhaga::sync::channel::bounded::<()>(1);
        for is_over in [false, true] {
            if is_over {
                drop(child.stdin.take());
            }
            let pause = if is_over { DEADLINE } else { Duration::from_millis(2) };
            let ended = dhaga::select! {
                readable(child.ended().expect("there is a descriptor")) => true,
                recv(receiver) -> _ => false,
                after(pause) => false,
            };
            assert_eq!(ended, is_over);
        }
        assert!(child.wait().expect("it has ended").success());
        for _ in 0..20 {
            // It may have ended before anybody looks.
            let child = Command::new("true").spawn().expect("it runs");
            dhaga::select! {
                readable(child.ended().expect("nobody has collected it")) => {}
                interrupted(why) => panic!("{why}"),
            }
        }
        let mut child = Command::new("true").spawn().expect("it runs");
        while child.try_wait().expect("it is ours").is_none() {
            dhaga::yield_now();
        }
        assert_eq!(child.ended().expect_err("it is collected").kind(), ErrorKind::NotFound);
    });
}

#[test]
fn stds_children_and_pipes_are_taken_over_and_handed_over() {
    everywhere(|| {
        let mut std = std::process::Command::new("cat");
        let std = std.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("there is a cat");
        let mut child = Child::try_from(std).expect("it is a child");
        child.stdin.as_ref().expect("piped").write_all(b"x").expect("it reads");
        let stdout = child.stdout.take().expect("piped");
        let mut stdout = std::process::ChildStdout::try_from(stdout).expect("it is a pipe");
        stdout.read_exact(&mut [0]).expect("it writes");
        assert!(child.wait().expect("it ends").success());
        let mut std = std::process::Command::new("true").spawn().expect("it runs");
        let status = std.wait().expect("it ends");
        assert_eq!(Child::try_from(std).expect("it was one").wait().expect("it has ended"), status);
    });
}

/// A child that says when it has begun, and that std cannot have started before the gate opens.
fn gated(begins: io::PipeWriter, gate: io::PipeReader) -> Command {
    let mut command = Command::new("true");
    let wait = move || {
        // It has a copy of the gate's other end, and would wait for ever if the test failed.
        // SAFETY: it has no conditions, and is allowed between fork and exec.
        unsafe { libc::alarm(DEADLINE.as_secs() as u32) };
        (&begins).write_all(b"x")?;
        (&gate).read_exact(&mut [0])
    };
    // SAFETY: writes and reads are allowed between fork and exec.
    unsafe { command.as_std_mut().pre_exec(wait) };
    command
}

#[test]
fn a_spawn_does_not_hold_up_its_worker() {
    within_deadline(DEADLINE, || {
        let ((_begun, begins), (gate, mut opens)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let runtime = one_worker();
        let spawner = runtime.spawn(move || gated(begins, gate).status());
        // It runs on the same worker, behind the spawner.
        runtime.spawn(move || opens.write_all(b"x")).join().expect("no panic").expect("there is room");
        assert!(spawner.join().expect("no panic").expect("it runs").success());
    });
}

#[test]
fn a_wait_does_not_hold_up_its_worker() {
    within_deadline(DEADLINE, || {
        let runtime = one_worker();
        let mut child = cat();
        let stdin = child.stdin.take();
        let waiter = runtime.spawn(move || child.wait());
        runtime.spawn(move || drop(stdin)).join().expect("no panic");
        assert!(waiter.join().expect("no panic").expect("it ends").success());
    });
}

#[test]
fn a_spawn_that_has_begun_is_not_lost_to_a_cancel() {
    within_deadline(DEADLINE, || {
        let ((mut begun, begins), (gate, mut opens)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let runtime = one_worker();
        let spawner = runtime.spawn(move || {
            let mut command = gated(begins, gate);
            let child = command.spawn();
            (child, command, dhaga::is_cancelled())
        });
        begun.read_exact(&mut [0]).expect("it begins");
        spawner.cancel();
        // The spawner has run behind its cancel when two others have.
        (0..2).for_each(|_| runtime.spawn(|| ()).join().expect("no panic"));
        assert!(!spawner.is_finished());
        opens.write_all(b"x").expect("there is room");
        let (child, command, is_cancelled) = spawner.join().expect("no panic");
        assert_eq!((command.get_program(), is_cancelled), ("true".as_ref(), true));
        assert!(child.expect("it had begun").wait().expect("it ends").success());
    });
}

#[test]
fn a_spawn_that_has_not_begun_is_given_up_and_its_command_stays_good() {
    /// More than the pool has threads.
    const CLOSURES: usize = 600;
    child::succeeds(child::name_of!(a_spawn_that_has_not_begun_is_given_up_and_its_command_stays_good), || {
        let path: PathBuf = std::env::temp_dir().join(format!("dhaga-spawned-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let runtime = one_worker();
        let (gate, opened) = mpsc::channel::<()>();
        let opened = Arc::new(std::sync::Mutex::new(opened));
        for _ in 0..CLOSURES {
            let opened = opened.clone();
            runtime.spawn(move || dhaga::blocking(move || drop(opened.lock().map(|opened| opened.recv())))).detach();
        }
        let script = format!("echo x >> {}", path.display());
        let spawner = runtime.spawn(move || {
            let mut command = shell(&script);
            let late = within(Duration::from_millis(50), || command.status());
            assert_eq!(late.expect_err("there is no thread").kind(), ErrorKind::TimedOut);
            drop(gate);
            command.status()
        });
        assert!(spawner.join().expect("no panic").expect("there are threads again").success());
        assert_eq!(fs::read_to_string(&path).expect("it was made"), "x\n");
        fs::remove_file(&path).expect("it was made");
    });
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("the kernel tells").count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("the kernel tells").count()
}

/// Whether this process has a child, a zombie included.
fn has_children() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::All, options).map_err(|error| assert_eq!(error, Errno::CHILD)).is_ok()
}

#[test]
fn a_thousand_children_leave_nothing() {
    const CHILDREN: usize = 1000;
    let name = child::name_of!(a_thousand_children_leave_nothing);
    child::succeeds_in(name, 4 * DEADLINE, || {
        let runtime = one_worker();
        let room = Arc::new(Semaphore::new(8));
        // All of them need the one dhaga that answers, and that needs the worker.
        let (asks, asked) = dhaga::sync::channel::bounded::<oneshot::Sender<()>>(1);
        let answerer = runtime.spawn(move || asked.iter().map(|asker| asker.send(())).filter(Result::is_ok).count());
        let run = |count: usize| {
            let one = |_| {
                let (room, asks) = (room.clone(), asks.clone());
                runtime.spawn(move || {
                    let _room = room.acquire().expect("nobody closes it");
                    let mut child = Command::new("/bin/true").stdout(Stdio::piped()).spawn().expect("it starts");
                    let (asker, answer) = oneshot::channel();
                    asks.send(asker).expect("somebody answers");
                    answer.recv().expect("an answer comes");
                    assert!(child.wait().expect("it ends").success());
                })
            };
            let children: Vec<_> = (0..count).map(one).collect();
            children.into_iter().for_each(|child| child.join().expect("it ends well"));
        };
        run(16);
        let before = descriptors();
        run(CHILDREN);
        assert_eq!(descriptors(), before);
        assert!(!has_children());
        drop(asks);
        assert_eq!(answerer.join().expect("it ends well"), CHILDREN + 16);
    });
}

#[test]
fn children_that_are_dropped_leave_nothing() {
    child::succeeds(child::name_of!(children_that_are_dropped_leave_nothing), || {
        let drop_some = || {
            for _ in 0..20 {
                drop(cat());
                drop(sleeper());
                drop(Command::new("true").spawn().expect("it runs"));
            }
            while has_children() {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        dhaga::spawn(drop_some).join().expect("it ends well");
        let before = descriptors();
        drop_some();
        dhaga::spawn(drop_some).join().expect("it ends well");
        // The thread that collects ends with the last of them, and has descriptors of its own until then.
        while descriptors() > before {
            std::thread::yield_now();
        }
        assert!(threads() < 60, "{} threads", threads());
    });
}

#[test]
fn children_get_no_descriptor_but_their_three() {
    child::succeeds(child::name_of!(children_get_no_descriptor_but_their_three), || {
        let script = "ls /proc/self/fd";
        let inherited = std::process::Command::new("sh").args(["-c", script]).output().expect("it runs").stdout;
        let runtime = one_worker();
        let _busy = (cat(), dhaga::net::TcpListener::bind("127.0.0.1:0").expect("a port is free"));
        let _signals = dhaga::signal::signal(SignalKind::user_defined1()).expect("it can be waited for");
        let list = || shell(script).output().expect("it runs").stdout;
        assert_eq!(runtime.spawn(list).join().expect("no panic"), inherited);
        assert_eq!(list(), inherited);
    });
}

/// Leaves this process as many descriptors as it has now, and so many more.
fn limit_descriptors(more: u64) {
    let highest = fs::read_dir("/proc/self/fd").expect("the kernel tells").flatten();
    let highest = highest.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max();
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(highest.expect("there are some") + more);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("it is not above the hard one");
}

#[test]
fn without_descriptors_a_spawn_fails_and_a_wait_does_not() {
    child::succeeds(child::name_of!(without_descriptors_a_spawn_fails_and_a_wait_does_not), || {
        let before = getrlimit(Resource::Nofile);
        let runtime = one_worker();
        let mut child = sleeper();
        let id = Pid::from_raw(child.id().cast_signed()).expect("an id is not 0");
        // The lowest numbers that are free.
        let mut fillers = Vec::new();
        limit_descriptors(1);
        while let Ok(filler) = fs::File::open("/dev/null") {
            fillers.push(filler);
        }
        let refused = runtime.spawn(|| shell("true").output()).join().expect("no panic");
        assert_eq!(refused.expect_err("there are none").raw_os_error(), Some(libc::EMFILE));
        let (tell, told) = mpsc::channel();
        let waiter = runtime.spawn(move || {
            for _ in 0..30 {
                let late = within(Duration::from_millis(2), || child.wait());
                assert_eq!(late.expect_err("it sleeps").kind(), ErrorKind::TimedOut);
            }
            tell.send(()).expect("the test listens");
            child.wait()
        });
        told.recv().expect("it is about to wait");
        kill_process(id, Signal::KILL).expect("it was not waited for");
        assert_eq!(waiter.join().expect("no panic").expect("it dies").signal(), Some(libc::SIGKILL));
        drop(fillers);
        setrlimit(Resource::Nofile, before).expect("it was so");
        // Those of the pool stay for a while: not one for each wait that was stopped.
        assert!(threads() < 20, "{} threads", threads());
        assert!(shell("true").output().expect("there are some again").status.success());
    });
}

#[test]
fn a_status_that_is_thrown_away_is_an_error() {
    child::succeeds(child::name_of!(a_status_that_is_thrown_away_is_an_error), || {
        // SAFETY: nobody else in this process sets an action.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        let is_reaped = |error: &io::Error| error.get_ref().is_some_and(|cause| cause.is::<Reaped>());
        everywhere(move || {
            let mut child = cat();
            let stdin = child.stdin.take();
            let late = within(Duration::from_millis(5), || child.wait());
            assert_eq!(late.expect_err("it lives").kind(), ErrorKind::TimedOut);
            drop(stdin);
            assert!(is_reaped(&child.wait().expect_err("it is thrown away")));
            assert!(is_reaped(&child.try_wait().expect_err("it still is")));
            child.kill().expect("there is nobody");
            for _ in 0..20 {
                assert!(is_reaped(&Command::new("true").status().expect_err("it is thrown away")));
            }
        });
    });
}

#[test]
fn a_forked_process_leaves_its_parents_children_alone() {
    child::succeeds(child::name_of!(a_forked_process_leaves_its_parents_children_alone), || {
        let runtime = one_worker();
        let mut command = Command::new("cat");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("a cat");
        // SAFETY: the child does what this test is about, in a process whose other threads are idle.
        let fork = unsafe { libc::fork() };
        assert!(fork >= 0, "{}", io::Error::last_os_error());
        if fork == 0 {
            drop(child);
            // SAFETY: ends the process and nothing else.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: a child of our own, and no place to write to.
        assert_eq!(unsafe { libc::waitpid(fork, std::ptr::null_mut(), 0) }, fork);
        // It would have ended by now, or end instead of an answer.
        child.stdin.as_mut().expect("piped").write_all(b"x").expect("it lives");
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it lives");
        assert!(child.wait().expect("it is ours").success());
        drop(runtime);
    });
}
