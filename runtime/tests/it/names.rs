//! Host names: what std finds, without blocking a worker, within limits.

use std::ffi::CStr;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use dhaga::net::{
    LOOKUPS_MAX, LookupError, TcpListener, TcpStream, ToSocketAddrs, UdpSocket, lookup_host, lookup_host_by,
};
use dhaga::{Interrupt, Runtime, within};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(2);

fn answer() -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))]
}

fn with_port(port: u16) -> Vec<SocketAddr> {
    answer().into_iter().map(|address| SocketAddr::new(address.ip(), port)).collect()
}

/// A name server that is silent until it is told to answer, and counts who asks.
#[derive(Clone)]
struct Silent {
    asked: Arc<AtomicUsize>,
    gate: Arc<Mutex<Option<mpsc::Sender<()>>>>,
    opened: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Silent {
    fn new() -> Self {
        let (gate, opened) = mpsc::channel();
        Self { asked: Arc::default(), gate: Arc::new(Some(gate).into()), opened: Arc::new(opened.into()) }
    }

    fn resolve(&self) -> impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static {
        let Self { asked, opened, .. } = self.clone();
        move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            let _ = opened.lock().expect("nobody panicked").recv();
            Ok(answer())
        }
    }

    fn look_up(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(lookup_host_by(host, 80, self.resolve())?.collect())
    }

    fn speak(&self) {
        drop(self.gate.lock().expect("nobody panicked").take());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn is_deadline(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    error.kind() == ErrorKind::TimedOut && matches!(inner, Some(Interrupt::DeadlineExceeded { .. }))
}

#[test]
fn numbers_are_resolved_in_place_as_in_std() {
    everywhere(|| {
        let _promise = dhaga::no_suspend();
        fn check<T: ToSocketAddrs + std::net::ToSocketAddrs + ?Sized>(address: &T) {
            let ours: Vec<_> = ToSocketAddrs::to_socket_addrs(address).expect("it is a number").collect();
            let stds: Vec<_> = std::net::ToSocketAddrs::to_socket_addrs(address).expect("it is a number").collect();
            assert_eq!(ours, stds);
        }
        let (v4, v6) = (Ipv4Addr::new(10, 1, 2, 3), Ipv6Addr::LOCALHOST);
        check(&SocketAddr::from((v4, 1)));
        check(&SocketAddrV4::new(v4, 2));
        check(&SocketAddrV6::new(v6, 3, 4, 5));
        check(&(IpAddr::from(v4), 6));
        check(&(v4, 7));
        check(&(v6, 8));
        check(&("10.1.2.3", 9));
        check(&("::1", 10));
        check(&("::1".to_owned(), 11));
        check("10.1.2.3:12");
        check("[::1]:13");
        check("::1:14");
        check(&"[::1]:15".to_owned());
        check(&&"[::1]:15");
        check(&&[SocketAddr::from((v4, 16)), SocketAddr::from((v6, 17))][..]);
        check(&&[][..]);
    });
}

#[test]
fn names_are_what_std_finds() {
    everywhere(|| {
        let stds: Vec<_> = std::net::ToSocketAddrs::to_socket_addrs("localhost:80").expect("it is known").collect();
        assert_eq!(lookup_host("localhost:80").expect("it is known").collect::<Vec<_>>(), stds);
        assert_eq!(lookup_host(("localhost", 80)).expect("it is known").collect::<Vec<_>>(), stds);
        assert_eq!(("localhost".to_owned(), 80).to_socket_addrs().expect("it is known").collect::<Vec<_>>(), stds);
        assert_eq!("localhost:80".to_owned().to_socket_addrs().expect("it is known").collect::<Vec<_>>(), stds);
    });
}

#[test]
fn what_is_no_address_is_refused_as_in_std() {
    everywhere(|| {
        for text in ["localhost", "localhost:", "localhost:65536", "localhost:http", "\0:80", ""] {
            let ours = lookup_host(text).expect_err("it is no address").kind();
            let stds = std::net::ToSocketAddrs::to_socket_addrs(text).expect_err("it is no address").kind();
            assert_eq!(ours, stds, "{text:?}");
        }
    });
}

#[test]
fn all_sockets_take_names() {
    everywhere(|| {
        let listener = TcpListener::bind("localhost:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        TcpStream::connect(("localhost", port)).expect("it listens");
        let (receiver, sender) = (UdpSocket::bind("localhost:0"), UdpSocket::bind(("localhost", 0)));
        let (receiver, sender) = (receiver.expect("a port is free"), sender.expect("a port is free"));
        let port = receiver.local_addr().expect("it is bound").port();
        assert_eq!(sender.send_to(b"one", ("localhost", port)).expect("there is room"), 3);
        sender.connect(("localhost", port)).expect("it is there");
        assert_eq!(sender.send(b"four").expect("there is room"), 4);
        let mut buffer = [0; 8];
        assert_eq!(receiver.recv(&mut buffer).expect("it has come"), 3);
        assert_eq!(receiver.recv(&mut buffer).expect("it has come"), 4);
    });
}

#[test]
fn an_error_names_the_host_and_has_the_resolvers_kind() {
    everywhere(|| {
        let refuse = |_: &str| Err(io::Error::new(ErrorKind::NotFound, "no such name"));
        let error = lookup_host_by("nobody", 80, refuse).expect_err("it is not known");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let inner: &LookupError = error.get_ref().and_then(|inner| inner.downcast_ref()).expect("it is typed");
        assert_eq!((inner.host(), inner.is_timeout()), ("nobody", false));
        assert_eq!(inner.to_string(), "cannot look up the host \"nobody\": no such name");
        assert_eq!(std::error::Error::source(inner).expect("there is one").to_string(), "no such name");
    });
}

/// By its words, which is all that std passes on.
#[test]
fn a_resolver_that_gives_up_on_its_servers_has_timed_out() {
    // SAFETY: it returns a text that nobody changes or takes away, whatever the number.
    let words = unsafe { CStr::from_ptr(libc::gai_strerror(libc::EAI_AGAIN)) };
    let words = words.to_str().expect("it is text").to_owned();
    everywhere(move || {
        let words = format!("failed to lookup address information: {words}");
        let fail = |_: &str| Err(io::Error::other(words));
        let error = lookup_host_by("unreachable", 80, fail).expect_err("it is not known");
        let inner: &LookupError = error.get_ref().and_then(|inner| inner.downcast_ref()).expect("it is typed");
        assert!(inner.is_timeout(), "{inner}");
        assert_eq!(error.kind(), ErrorKind::Other, "the kind is the resolver's");
    });
}

#[test]
fn a_plain_thread_looks_up_in_place_unless_the_wait_may_have_to_end() {
    within_deadline(DEADLINE, || {
        let here = thread::current().id();
        let resolver_of = |host: &str| {
            let (tell, told) = mpsc::channel();
            let resolve = move |_: &str| {
                tell.send(thread::current().id()).expect("the test listens");
                Ok(answer())
            };
            lookup_host_by(host, 80, resolve).expect("it is known");
            told.recv().expect("it has told")
        };
        assert_eq!(resolver_of("in-place"), here);
        assert_ne!(within(DEADLINE, || resolver_of("in-a-frame")), here);
        assert_ne!(dhaga::scope(|_| resolver_of("in-a-scope")), here);
    });
}

#[test]
fn two_hundred_look_ups_at_once_hold_up_nobody() {
    const ASKING: usize = 200;
    const TICKS: usize = 1000;
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let body = || {
            let (ticks, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let started = Arc::new(AtomicUsize::new(0));
            let asking: Vec<_> = (0..ASKING)
                .map(|_| {
                    let (ticks, started) = (ticks.clone(), started.clone());
                    // The resolver is slow: the worker's other dhaga has to tick a thousand times until it answers.
                    let resolve = move |host: &str| {
                        while ticks.load(Ordering::SeqCst) < TICKS {
                            thread::yield_now();
                        }
                        Ok(std::net::ToSocketAddrs::to_socket_addrs(&(host, 0))?.collect())
                    };
                    dhaga::spawn(move || {
                        started.fetch_add(1, Ordering::SeqCst);
                        lookup_host_by("localhost", 80, resolve).expect("it is known").collect::<Vec<_>>()
                    })
                })
                .collect();
            let (ticking, over) = (ticks.clone(), is_over.clone());
            let ticker = dhaga::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    dhaga::yield_now();
                    if started.load(Ordering::SeqCst) == ASKING {
                        ticking.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            let expected: Vec<_> = lookup_host("localhost:80").expect("it is known").collect();
            for handle in asking {
                assert_eq!(handle.join().expect("it ends well"), expected);
            }
            is_over.store(true, Ordering::SeqCst);
            ticker.join().expect("it ends well");
            assert!(ticks.load(Ordering::SeqCst) >= TICKS);
        };
        runtime.spawn(body).join().expect("the body ends well");
    });
}

#[test]
fn who_asks_for_the_same_name_shares_one_look_up() {
    within_deadline(DEADLINE, || {
        let server = Silent::new();
        let asking: Vec<_> = (0..50)
            .map(|_| {
                let server = server.clone();
                dhaga::spawn(move || server.look_up("shared").expect("it is known"))
            })
            .collect();
        // Each of these gives up at once, and its look-up runs on.
        let impatient = server.clone();
        let gave_up = dhaga::spawn(move || {
            (0..300).all(|_| within(SHORT, || impatient.look_up("shared")).is_err_and(|error| is_deadline(&error)))
        });
        assert!(gave_up.join().expect("it ends well"), "each ends with its deadline");
        assert_eq!(server.asked(), 1);
        let other = dhaga::spawn(|| lookup_host("localhost:80").map(drop));
        other.join().expect("it ends well").expect("other names are found meanwhile");
        server.speak();
        for handle in asking {
            assert_eq!(handle.join().expect("it ends well"), with_port(80));
        }
        let again = server.clone();
        let again = dhaga::spawn(move || again.look_up("shared").expect("it is known"));
        assert_eq!(again.join().expect("it ends well"), with_port(80));
        assert_eq!(server.asked(), 2, "an answer is not kept");
    });
}

/// They tell each other of it: nobody who is cancelled or out of time may be the last who knows.
#[test]
fn an_answer_reaches_all_who_wait_for_it_while_others_leave() {
    const ROUNDS: usize = 30;
    const ASKING: usize = 100;
    within_deadline(DEADLINE, || {
        let runtime = Runtime::builder().workers(2).build().expect("a runtime");
        for round in 0..ROUNDS {
            let server = Silent::new();
            let host = format!("left-{round}");
            let asking: Vec<_> = (0..ASKING)
                .map(|number| {
                    let (server, host) = (server.clone(), host.clone());
                    let patience = if number % 5 == 4 { SHORT } else { DEADLINE };
                    runtime.spawn(move || within(patience, || server.look_up(&host)))
                })
                .collect();
            let plain = thread::spawn({
                let (server, host) = (server.clone(), host.clone());
                move || within(DEADLINE, || server.look_up(&host))
            });
            while server.asked() == 0 {
                thread::yield_now();
            }
            asking.iter().step_by(3).for_each(dhaga::JoinHandle::cancel);
            server.speak();
            asking.iter().skip(1).step_by(6).for_each(dhaga::JoinHandle::cancel);
            for (number, handle) in asking.into_iter().enumerate() {
                let may_leave = number % 5 == 4 || number % 3 == 0 || number % 6 == 1;
                match handle.join().expect("it ends well") {
                    Ok(found) => assert_eq!(found, with_port(80)),
                    Err(error) => assert!(may_leave, "{number} of round {round}: {error}"),
                }
            }
            assert_eq!(plain.join().expect("it ends well").expect("it is known"), with_port(80));
        }
    });
}

/// Looks a name up when its thread ends.
struct LooksUpAtTheEnd;

impl Drop for LooksUpAtTheEnd {
    fn drop(&mut self) {
        let found = within(DEADLINE, || lookup_host_by("of-an-ending-thread", 80, |_| Ok(answer())));
        assert_eq!(found.expect("it is known").collect::<Vec<_>>(), with_port(80));
    }
}

#[test]
fn names_are_known_to_a_plain_thread_whose_locals_are_being_destroyed() {
    child::succeeds(child::name_of!(names_are_known_to_a_plain_thread_whose_locals_are_being_destroyed), || {
        thread_local!(static LAST: LooksUpAtTheEnd = const { LooksUpAtTheEnd });
        // What the runtime keeps for a thread goes before `LAST` or after it, as it was made after it or before it.
        let look_up = || within(DEADLINE, || lookup_host_by("of-a-plain-thread", 80, |_| Ok(answer()))).map(drop);
        for turns in [[false, true], [true, false]] {
            let ends = thread::spawn(move || {
                within(DEADLINE, || ());
                for is_look_up in turns {
                    if is_look_up {
                        look_up().expect("it is known");
                    } else {
                        LAST.with(|_| ());
                    }
                }
            });
            ends.join().expect("it ends well");
        }
    });
}

#[test]
fn silent_name_servers_leave_the_pool_to_others() {
    child::succeeds(child::name_of!(silent_name_servers_leave_the_pool_to_others), || {
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let servers: Vec<_> = (0..LOOKUPS_MAX).map(|_| Silent::new()).collect();
        let asking: Vec<_> = servers
            .iter()
            .enumerate()
            .map(|(index, server)| {
                let server = server.clone();
                runtime.spawn(move || server.look_up(&format!("silent-{index}")).expect("it is known"))
            })
            .collect();
        while servers.iter().any(|server| server.asked() == 0) {
            thread::yield_now();
        }
        let more = Silent::new();
        more.speak();
        let (late, patient) = (more.clone(), more.clone());
        let late = runtime.spawn(move || within(SHORT, || late.look_up("late")));
        assert!(is_deadline(&late.join().expect("it ends well").expect_err("there is no room")));
        let patient = runtime.spawn(move || patient.look_up("patient").expect("it is known"));
        let other = runtime.spawn(|| dhaga::blocking(|| 7).expect("the pool has threads left"));
        assert_eq!(other.join().expect("it ends well"), 7);
        assert_eq!(more.asked(), 0, "there is no room");
        // One that ends makes room for the next.
        servers[LOOKUPS_MAX - 1].speak();
        assert_eq!(patient.join().expect("it ends well"), with_port(80));
        assert_eq!(more.asked(), 1, "who gave up is not looked up any more");
        servers.iter().for_each(Silent::speak);
        for handle in asking {
            assert_eq!(handle.join().expect("it ends well"), with_port(80));
        }
    });
}

#[test]
fn a_runtime_that_is_dropped_meanwhile_does_not_wait_for_the_resolver() {
    within_deadline(DEADLINE, || {
        let server = Silent::new();
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let asking = server.clone();
        let asking = runtime.spawn(move || asking.look_up("of-a-dropped-runtime").map(drop));
        while server.asked() == 0 {
            thread::yield_now();
        }
        drop(runtime);
        let error = asking.join().expect("it ends well").expect_err("it is cancelled");
        assert!(error.get_ref().is_some_and(|inner| inner.is::<dhaga::Cancelled>()), "{error}");
        server.speak();
    });
}
