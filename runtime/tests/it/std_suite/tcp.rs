//! TCP: addresses, options, listeners, and what only its streams have.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::SendFlags;

use super::net::{TcpListener, TcpStream};
use super::streams::tcp_pair;
use crate::common::DEADLINE;
use crate::std_suite::run::{Run, wait_for_the_end, without_numbers};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Kept for documents: no host has it.
const FOREIGN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn any_port(ip: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::from((ip.into(), 0))
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(any_port(LOCALHOST)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// An address without its port, which is another each time.
fn host(address: io::Result<SocketAddr>) -> io::Result<SocketAddr> {
    address.map(|mut address| {
        address.set_port(0);
        address
    })
}

pub fn addresses_of_a_connection(run: &mut Run) {
    let (listener, address) = listener();
    let near = TcpStream::connect(address).expect("it listens");
    let (far, from) = listener.accept().expect("somebody has come");
    run.note_value("who came", from == near.local_addr().expect("it is bound"));
    run.note_value("to whom", near.peer_addr().expect("it is connected") == address);
    run.note_value("the other side", far.peer_addr().expect("it is connected") == from);
    run.note_value("its own", far.local_addr().expect("it is bound") == address);
    for address in [near.local_addr(), near.peer_addr(), far.local_addr(), far.peer_addr(), listener.local_addr()] {
        run.note("host", host(address));
    }
}

pub fn addresses_after_the_end(run: &mut Run) {
    let (near, mut far) = tcp_pair();
    near.shutdown(Shutdown::Both).expect("it is connected");
    run.note("own when shut", host(near.local_addr()));
    run.note("other when shut", host(near.peer_addr()));
    run.note("end", far.read(&mut [0]));
    run.note("own at the end", host(far.local_addr()));
    run.note("other at the end", host(far.peer_addr()));
    let (mut near, mut far) = tcp_pair();
    near.write_all(b"unread").expect("there is room");
    far.read_exact(&mut [0]).expect("it comes");
    drop(far);
    wait_for_the_end(&near);
    run.note("own after a reset", host(near.local_addr()));
    run.note("other after a reset", host(near.peer_addr()));
}

pub fn addresses_of_version_6(run: &mut Run) {
    let listener = TcpListener::bind(any_port(Ipv6Addr::LOCALHOST));
    run.note("bind", listener.as_ref().map(|_| ()).map_err(|error| error.kind().into()));
    // A host may be without it.
    let Ok(listener) = listener else { return };
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (far, from) = listener.accept().expect("somebody has come");
    for address in [Ok(from), near.local_addr(), near.peer_addr(), far.local_addr(), far.peer_addr()] {
        run.note("host", host(address));
    }
    let parts = |address| match address {
        SocketAddr::V6(address) => (address.flowinfo(), address.scope_id()),
        SocketAddr::V4(_) => (u32::MAX, u32::MAX),
    };
    run.note("flow and scope", near.peer_addr().map(parts));
    run.note_value("printed", without_numbers(&format!("{near:?} {listener:?}")));
}

pub fn addresses_of_version_4_in_version_6(run: &mut Run) {
    let both = TcpListener::bind(any_port(Ipv6Addr::UNSPECIFIED));
    run.note("bind", both.as_ref().map(|_| ()).map_err(|error| error.kind().into()));
    let Ok(both) = both else { return };
    let port = both.local_addr().expect("it is bound").port();
    let near = TcpStream::connect((LOCALHOST, port)).expect("it listens to both");
    let (far, from) = both.accept().expect("somebody has come");
    for address in [Ok(from), near.local_addr(), near.peer_addr(), far.local_addr(), far.peer_addr()] {
        run.note("host", host(address));
    }
    let (four, address) = listener();
    let mapped = (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), address.port());
    let near = TcpStream::connect(mapped).expect("it is the same address");
    let (far, from) = four.accept().expect("somebody has come");
    for address in [Ok(from), near.local_addr(), near.peer_addr(), far.local_addr(), far.peer_addr()] {
        run.note("host", host(address));
    }
}

pub fn unspecified_is_this_host(run: &mut Run) {
    let all = TcpListener::bind(any_port(Ipv4Addr::UNSPECIFIED)).expect("a port is free");
    run.note("bound to", host(all.local_addr()));
    let port = all.local_addr().expect("it is bound").port();
    let near = TcpStream::connect((Ipv4Addr::UNSPECIFIED, port)).expect("it means this host");
    run.note("connected to", host(near.peer_addr()));
    let (far, _) = all.accept().expect("somebody has come");
    run.note("accepted at", host(far.local_addr()));
}

pub fn addresses_that_cannot_be_had(run: &mut Run) {
    let (_listener, address) = listener();
    run.note("in use", TcpListener::bind(address).map(drop));
    run.note("foreign", TcpListener::bind((FOREIGN, 0)).map(drop));
    run.note("of a group", TcpListener::bind(any_port(Ipv4Addr::new(224, 0, 0, 1))).map(drop));
}

pub fn links_need_a_scope(run: &mut Run) {
    let link = |scope| SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 0, 0, scope));
    run.note("bind without a scope", TcpListener::bind(link(0)).map(drop));
    run.note("bind with that of another link", TcpListener::bind(link(1)).map(drop));
    run.note("bind with that of no link", TcpListener::bind(link(u32::MAX)).map(drop));
    let mut peer = link(0);
    peer.set_port(1);
    run.note("connect without a scope", TcpStream::connect(peer).map(drop));
}

pub fn no_address_at_all(run: &mut Run) {
    run.note("bind", TcpListener::bind(&[][..]).map(drop));
    run.note("connect", TcpStream::connect(&[][..]).map(drop));
    run.note("bind to no address", TcpListener::bind("127.0.0.1").map(drop));
    run.note("bind to no port", TcpListener::bind("127.0.0.1:65536").map(drop));
    run.note("connect to nothing", TcpStream::connect("").map(drop));
}

pub fn the_second_address_is_taken(run: &mut Run) {
    let (taken, address) = listener();
    let listener = TcpListener::bind(&[address, any_port(LOCALHOST)][..]);
    run.note("bound", host(listener.and_then(|listener| listener.local_addr())));
    run.note("neither", TcpListener::bind(&[(FOREIGN, 0).into(), address][..]).map(drop));
    drop(taken);
}

pub fn nobody_listens(run: &mut Run) {
    let (listener, address) = listener();
    drop(listener);
    run.note("connect", TcpStream::connect(address).map(drop));
    run.note("connect in time", TcpStream::connect_timeout(&address, DEADLINE).map(drop));
    run.note("connect in no time", TcpStream::connect_timeout(&address, Duration::ZERO).map(drop));
}

pub fn a_peek_takes_nothing(run: &mut Run) {
    let (mut near, mut far) = tcp_pair();
    let writer = run.peer(move || {
        far.write_all(b"abc").expect("there is room");
        far
    });
    let mut buffer = [0; 2];
    run.note("peek", near.peek(&mut buffer[..1]));
    let far = writer.join();
    run.note("peek", near.peek(&mut buffer));
    run.note_value("bytes", buffer);
    run.note("peek into nothing", near.peek(&mut []));
    let mut all = [0; 3];
    run.note("read", near.read_exact(&mut all));
    run.note_value("bytes", all);
    drop(far);
}

pub fn a_peek_does_not_wait_for_ever(run: &mut Run) {
    let (near, _far) = tcp_pair();
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("over", near.peek(&mut [0]));
    near.set_nonblocking(true).expect("it may be set");
    run.note("never", near.peek(&mut [0]));
}

pub fn a_peek_sees_the_end(run: &mut Run) {
    let (near, mut far) = tcp_pair();
    far.write_all(b"x").expect("there is room");
    drop(far);
    run.note("peek", near.peek(&mut [0; 2]));
    run.note("peek", near.peek(&mut [0; 2]));
    run.note("read", (&near).read_exact(&mut [0]));
    run.note("end", near.peek(&mut [0]));
    near.shutdown(Shutdown::Both).expect("it has an end only");
    run.note("end", near.peek(&mut [0]));
}

/// A read stops at a byte that was sent as urgent, and leaves what comes behind it.
pub fn what_is_urgent_hides_nothing(run: &mut Run) {
    let (mut near, mut far) = tcp_pair();
    let reader = run.peer(move || {
        let (mut text, mut buffer) = (Vec::new(), [0; 64]);
        far.write_all(b"!").expect("there is room");
        while !text.ends_with(b"f") {
            match far.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => text.extend_from_slice(&buffer[..count]),
            }
        }
        (text, far)
    });
    near.read_exact(&mut [0]).expect("it comes");
    for (bytes, flags) in [(b"abc", SendFlags::empty()), (b"--u", SendFlags::OOB), (b"def", SendFlags::empty())] {
        rustix::net::send(near.as_fd(), bytes, flags).expect("there is room");
    }
    let (text, far) = reader.join();
    run.note_value("read", text);
    drop(far);
}

pub fn options_of_streams(run: &mut Run) {
    let (near, far) = tcp_pair();
    run.note("nodelay at first", near.nodelay());
    run.note("set", near.set_nodelay(true));
    run.note("nodelay", near.nodelay());
    run.note("of the peer", far.nodelay());
    run.note("of a clone", near.try_clone().and_then(|clone| clone.nodelay()));
    run.note("unset", near.set_nodelay(false));
    run.note("nodelay", near.nodelay());
    run.note("ttl at first", near.ttl());
    run.note("set", near.set_ttl(42));
    run.note("ttl", near.ttl());
}

pub fn options_out_of_range(run: &mut Run) {
    let (near, _far) = tcp_pair();
    for ttl in [0, 256, u32::MAX] {
        run.note("ttl", near.set_ttl(ttl));
    }
    run.note("as before", near.ttl());
}

pub fn shared_references_read_and_write(run: &mut Run) {
    let (near, far) = tcp_pair();
    let (mut near, mut far) = (&near, &far);
    run.note("write", write!(near, "{}", 42));
    run.note("flush", near.flush());
    let mut buffer = [0; 2];
    run.note("read", far.read_exact(&mut buffer));
    run.note_value("bytes", buffer);
    let mut text = String::new();
    near.shutdown(Shutdown::Write).expect("it is connected");
    run.note("end", far.read_to_string(&mut text));
}

pub fn a_listener_accepts_in_order(run: &mut Run) {
    let (listener, address) = listener();
    let clients = run.peer(move || {
        let clients = (0..3).map(|_| TcpStream::connect(address).expect("it listens"));
        clients.map(|client| (client.local_addr().expect("it is bound"), client)).collect::<Vec<_>>()
    });
    let accepted: Vec<_> = listener.incoming().take(3).map(|stream| stream.expect("somebody comes")).collect();
    let clients = clients.join();
    for ((from, _), stream) in clients.iter().zip(&accepted) {
        run.note_value("in order", stream.peer_addr().expect("it is connected") == *from);
    }
}

pub fn a_non_blocking_listener_never_waits(run: &mut Run) {
    let (listener, address) = listener();
    run.note("set", listener.set_nonblocking(true));
    run.note("accept", listener.accept().map(drop));
    run.note("incoming", listener.incoming().next().transpose().map(drop));
    run.note("set back", listener.set_nonblocking(false));
    let client = run.peer(move || TcpStream::connect(address).expect("it listens"));
    run.note("accept", listener.accept().map(drop));
    drop(client.join());
}

pub fn the_mode_of_a_listener_is_not_inherited(run: &mut Run) {
    let (listener, address) = listener();
    let mut near = TcpStream::connect(address).expect("it listens");
    let (mut far, _) = listener.accept().expect("somebody has come");
    listener.set_nonblocking(true).expect("it may be set");
    let next = TcpStream::connect(address).expect("it listens");
    wait_to_accept(&listener);
    let (mut accepted, _) = listener.accept().expect("somebody has come");
    let writer = run.peer(move || {
        near.write_all(b"x").expect("there is room");
        (&next).write_all(b"y").expect("there is room");
        (near, next)
    });
    run.note("read", accepted.read_exact(&mut [0]));
    run.note("read", far.read_exact(&mut [0]));
    run.note("timeout", accepted.read_timeout());
    drop(writer.join());
}

fn wait_to_accept(listener: &impl AsFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec::try_from(DEADLINE).expect("it is short");
    let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit)).expect("it can be polled");
    assert_eq!(ready, 1, "nobody comes");
}

pub fn clones_of_a_listener_share_the_queue(run: &mut Run) {
    let (listener, address) = listener();
    let clone = listener.try_clone().expect("it is shared");
    let clients = [TcpStream::connect(address), TcpStream::connect(address)];
    run.note("accept", listener.accept().map(drop));
    drop(listener);
    run.note("accept by the clone", clone.accept().map(drop));
    run.note("address", host(clone.local_addr()));
    drop(clone);
    run.note("nobody listens", TcpStream::connect(address).map(drop));
    drop(clients);
}

pub fn a_listener_that_goes_refuses(run: &mut Run) {
    let (listener, address) = listener();
    let mut waiting = TcpStream::connect(address).expect("it listens");
    drop(listener);
    run.note("who waited in the queue", waiting.read(&mut [0]));
    run.note("who comes later", TcpStream::connect(address).map(drop));
    let again = TcpListener::bind(address);
    run.note("again", again.map(drop));
}

pub fn a_listener_of_another_version(run: &mut Run) {
    let (_listener, address) = listener();
    let six = TcpStream::connect((Ipv6Addr::LOCALHOST, address.port()));
    run.note("of the other version", six.map(drop));
}

#[allow(deprecated, reason = "std still has them")]
pub fn options_of_listeners(run: &mut Run) {
    let (listener, _) = listener();
    run.note("ttl at first", listener.ttl());
    run.note("set", listener.set_ttl(33));
    run.note("ttl", listener.ttl());
    run.note("ttl of zero", listener.set_ttl(0));
    run.note("error", listener.take_error().map(|error| error.is_none()));
    run.note("set only version 6", listener.set_only_v6(true));
    run.note("only version 6", listener.only_v6());
    let Ok(six) = TcpListener::bind(any_port(Ipv6Addr::LOCALHOST)) else { return };
    run.note("only version 6", six.only_v6());
    run.note("set only version 6", six.set_only_v6(true));
}

pub fn what_a_listener_prints(run: &mut Run) {
    let (listener, _) = listener();
    run.note_value("printed", without_numbers(&format!("{listener:?}")));
    run.note_value("at length", without_numbers(&format!("{listener:#?}")));
    run.note_value("incoming", without_numbers(&format!("{:?}", listener.incoming())));
}
