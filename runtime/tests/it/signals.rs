//! Signals of the process as events. Tests share a process, so each that raises one has a process of its own.

use std::io::ErrorKind;
use std::process::Command as StdCommand;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dhaga::Runtime;
use dhaga::signal::{SignalKind, Signals, ctrl_c, signal};
use rustix::process::{Signal, getpid, kill_process};

use crate::child;
use crate::common::{DEADLINE, cancelled_during, everywhere, shut_down_during};

/// Sends a signal to this process, as another process would.
fn send(signal: Signal) {
    kill_process(getpid(), signal).expect("it is this process");
}

fn usr1() -> SignalKind {
    SignalKind::user_defined1()
}

fn usr2() -> SignalKind {
    SignalKind::user_defined2()
}

/// Whether nothing is there to receive.
fn is_silent(signals: &mut Signals) -> bool {
    let late = dhaga::within(Duration::from_millis(5), || signals.recv());
    late.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

#[test]
fn a_signal_wakes_who_waits_for_it() {
    child::succeeds(child::name_of!(a_signal_wakes_who_waits_for_it), || {
        everywhere(|| {
            let mut signals = signal(usr1()).expect("it can be waited for");
            let (tell, told) = mpsc::channel();
            let sender = thread::spawn(move || {
                for () in told {
                    send(Signal::USR1);
                }
            });
            for _ in 0..100 {
                tell.send(()).expect("it listens");
                signals.recv().expect("it comes");
            }
            drop(tell);
            sender.join().expect("it ends");
        });
    });
}

#[test]
fn every_receiver_sees_a_signal_once_from_its_making_on() {
    child::succeeds(child::name_of!(every_receiver_sees_a_signal_once_from_its_making_on), || {
        everywhere(|| {
            let mut receivers: Vec<_> = (0..3).map(|_| Signals::new([usr1()]).expect("it can be waited for")).collect();
            for _ in 0..3 {
                send(Signal::USR1);
                receivers.iter_mut().for_each(|signals| assert_eq!(signals.recv().expect("it comes"), usr1()));
            }
            let mut late = Signals::new([usr1()]).expect("it can be waited for");
            assert!(is_silent(&mut late));
            send(Signal::USR1);
            assert_eq!(late.recv().expect("it comes"), usr1());
            receivers.drain(..2);
            assert_eq!(receivers[0].recv().expect("it came"), usr1());
            assert!(is_silent(&mut receivers[0]));
        });
    });
}

#[test]
fn signals_of_one_kind_are_one_and_several_kinds_are_told_apart() {
    child::succeeds(child::name_of!(signals_of_one_kind_are_one_and_several_kinds_are_told_apart), || {
        everywhere(|| {
            let mut both = Signals::new([usr2(), usr1(), usr2()]).expect("they can be waited for");
            let mut one = Signals::new([usr1()]).expect("it can be waited for");
            for _ in 0..10 {
                send(Signal::USR1);
                one.recv().expect("it comes");
            }
            let mut other = Signals::new([usr2()]).expect("it can be waited for");
            send(Signal::USR2);
            other.recv().expect("it comes");
            assert_eq!(both.recv().expect("it came"), usr2());
            assert_eq!(both.recv().expect("it came"), usr1());
            assert!(is_silent(&mut both));
        });
    });
}

#[test]
fn what_cannot_be_waited_for_is_refused() {
    for number in [libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, 0, -1, 65, 32]
    {
        let refused = signal(SignalKind::from_raw(number)).expect_err("it is forbidden");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{number}");
    }
    assert_eq!(format!("{} {:?}", SignalKind::terminate(), SignalKind::from_raw(40)), "SIGTERM SignalKind(signal 40)");
}

/// The handler that is installed.
fn action(signal: libc::c_int) -> usize {
    // SAFETY: zeros are valid, and a null new action only asks for the current one.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: see above.
    assert_eq!(unsafe { libc::sigaction(signal, std::ptr::null(), &mut current) }, 0);
    current.sa_sigaction
}

#[test]
fn the_handlers_of_faults_stay_as_they_are() {
    child::succeeds(child::name_of!(the_handlers_of_faults_stay_as_they_are), || {
        dhaga::spawn(|| ()).join().expect("the runtime is here");
        let faults = [libc::SIGSEGV, libc::SIGBUS];
        let before = faults.map(action);
        let all = (1..=64).map(SignalKind::from_raw).filter_map(|kind| signal(kind).ok());
        assert!(all.count() > 50);
        assert_eq!(faults.map(action), before);
        let others: Vec<_> = [libc::SIGINT, libc::SIGTERM, libc::SIGALRM].map(action).into();
        assert!(others.iter().all(|other| *other == others[0] && !before.contains(other)));
    });
}

static BEFORE_US: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_before_us(_: libc::c_int) {
    BEFORE_US.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn a_handler_that_was_there_before_is_called_too() {
    child::succeeds(child::name_of!(a_handler_that_was_there_before_is_called_too), || {
        let handler: extern "C" fn(libc::c_int) = count_before_us;
        // SAFETY: the handler adds to an atomic, and nothing else.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
        let mut signals = signal(usr1()).expect("it can be waited for");
        let _another = signal(usr1()).expect("it can be waited for");
        for count in 1..=3 {
            send(Signal::USR1);
            signals.recv().expect("it comes");
            // It is called after ours has rung.
            while BEFORE_US.load(Ordering::SeqCst) < count {
                thread::yield_now();
            }
        }
        assert_eq!(BEFORE_US.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn ctrl_c_comes_as_an_event_and_ends_nothing() {
    child::succeeds(child::name_of!(ctrl_c_comes_as_an_event_and_ends_nothing), || {
        let _on = signal(SignalKind::interrupt()).expect("it can be waited for");
        everywhere(|| {
            let has_come = AtomicBool::new(false);
            dhaga::scope(|s| {
                s.spawn(|| {
                    ctrl_c().expect("it comes");
                    has_come.store(true, Ordering::SeqCst);
                });
                // When it listens, nobody tells: one of them is heard.
                while !has_come.load(Ordering::SeqCst) {
                    send(Signal::INT);
                    dhaga::sleep(Duration::from_millis(1));
                }
            });
        });
    });
}

#[test]
fn a_receiver_is_an_event_of_a_select() {
    child::succeeds(child::name_of!(a_receiver_is_an_event_of_a_select), || {
        everywhere(|| {
            let mut one = signal(usr1()).expect("it can be waited for");
            let mut both = Signals::new([usr1(), usr2()]).expect("they can be waited for");
            let (sender, receiver) = dhaga::sync::channel::bounded::<()>(1);
            let thread = thread::spawn(move || {
                send(Signal::USR1);
                drop(sender);
            });
            let (mut ones, mut boths, mut is_open) = (0, 0, true);
            while ones == 0 || boths == 0 || is_open {
                dhaga::select! {
                    readable(one) => {
                        one.recv().expect("it came");
                        ones += 1;
                    }
                    readable(both) => {
                        assert_eq!(both.recv().expect("it came"), usr1());
                        boths += 1;
                    }
                    recv(receiver) -> closed, if is_open => {
                        closed.expect_err("nothing is sent");
                        is_open = false;
                    }
                    interrupted(why) => panic!("{why}"),
                }
            }
            thread.join().expect("it ends");
            assert_eq!((ones, boths), (1, 1));
            // Of two that have come, the second is still an event when the first was received.
            let mut other = signal(usr2()).expect("it can be waited for");
            send(Signal::USR1);
            one.recv().expect("it comes");
            send(Signal::USR2);
            other.recv().expect("it comes");
            assert_eq!(both.recv().expect("it came"), usr1());
            dhaga::select! {
                readable(both) => assert_eq!(both.recv().expect("it came"), usr2()),
                after(DEADLINE) => panic!("nobody told of it"),
                interrupted(why) => panic!("{why}"),
            }
            // What was received is no event any more.
            dhaga::select! {
                readable(both) => panic!("it was received"),
                readable(one) => panic!("it is of another kind"),
                after(Duration::from_millis(5)) => {}
                interrupted(why) => panic!("{why}"),
            }
        });
    });
}

#[test]
fn a_wait_ends_with_its_scope() {
    let refused = cancelled_during(|| signal(SignalKind::window_change())?.recv());
    assert!(refused.expect_err("it is cancelled").get_ref().is_some_and(|cause| cause.is::<dhaga::Cancelled>()));
    shut_down_during(|| signal(SignalKind::window_change())?.recv());
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the kernel tells").count()
}

#[test]
fn receivers_that_come_and_go_take_no_more_descriptors_and_miss_nothing() {
    const RECEIVERS: usize = 4;
    child::succeeds(child::name_of!(receivers_that_come_and_go_take_no_more_descriptors_and_miss_nothing), || {
        let runtime = Runtime::builder().workers(2).build().expect("a test can start a runtime");
        let _on = signal(usr1()).expect("it can be waited for");
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let until = is_over.clone();
        let storm = thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                send(Signal::USR1);
                thread::yield_now();
            }
        });
        let round = |count: usize| {
            let receive = move || {
                for _ in 0..count {
                    signal(usr1()).expect("it can be waited for").recv().expect("one comes");
                }
            };
            let receivers: Vec<_> = (0..RECEIVERS).map(|_| runtime.spawn(receive)).collect();
            receive();
            receivers.into_iter().for_each(|receiver| receiver.join().expect("it ends well"));
        };
        round(10);
        let before = descriptors();
        round(500);
        // There may never have been all of them at once before.
        assert!(descriptors() <= before + RECEIVERS, "{before} grew to {}", descriptors());
        is_over.store(true, Ordering::SeqCst);
        storm.join().expect("it ends");
    });
}

#[test]
fn a_signal_interrupts_nothing_else() {
    child::succeeds(child::name_of!(a_signal_interrupts_nothing_else), || {
        let mut signals = signal(usr1()).expect("it can be waited for");
        everywhere(|| {
            let (sender, receiver) = dhaga::sync::channel::rendezvous();
            let reader = dhaga::spawn(move || receiver.recv());
            let file = thread::spawn(|| StdCommand::new("sleep").arg("0.1").status());
            for _ in 0..100 {
                send(Signal::USR1);
                dhaga::sleep(Duration::from_micros(100));
            }
            sender.send(1).expect("it waits");
            assert_eq!(reader.join().expect("no panic"), Ok(1));
            assert!(file.join().expect("no panic").expect("it is not interrupted").success());
        });
        signals.recv().expect("they came");
    });
}

#[test]
fn a_forked_process_is_refused_and_takes_nothing_from_its_parent() {
    child::succeeds(child::name_of!(a_forked_process_is_refused_and_takes_nothing_from_its_parent), || {
        let _runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let mut signals = Signals::new([usr1()]).expect("it can be waited for");
        // SAFETY: the child does what this test is about, in a process whose other threads are idle.
        let fork = unsafe { libc::fork() };
        assert!(fork >= 0, "{}", std::io::Error::last_os_error());
        if fork == 0 {
            send(Signal::USR1);
            let is_refused = signals.recv().is_err_and(|error| error.kind() == ErrorKind::Unsupported)
                && signal(usr1()).is_err_and(|error| error.kind() == ErrorKind::Unsupported);
            // SAFETY: ends the process and nothing else.
            unsafe { libc::_exit(i32::from(!is_refused)) };
        }
        let mut status = 0;
        // SAFETY: a place to write to, and a child of our own.
        assert_eq!(unsafe { libc::waitpid(fork, &mut status, 0) }, fork);
        assert_eq!(status, 0);
        assert!(is_silent(&mut signals), "the signal was the child's");
        send(Signal::USR1);
        signals.recv().expect("it comes");
    });
}
