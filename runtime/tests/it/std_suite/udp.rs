//! UDP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use super::net::UdpSocket;
use crate::common::DEADLINE;
use crate::std_suite::run::{Run, pattern, wait_for_the_end, without_numbers};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Kept for documents: no host has it.
const FOREIGN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// The address of all on the loopback interface.
const ALL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 255, 255, 255));
/// A group that is everybody's own.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 77, 3);
/// What is left of 65535 bytes behind the headers of IP and UDP.
const LONGEST: usize = 65_507;

fn socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((LOCALHOST, 0)).expect("a port is free");
    let address = socket.local_addr().expect("it is bound");
    socket.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    (socket, address)
}

/// Two sockets that are connected with each other.
fn pair() -> (UdpSocket, UdpSocket) {
    let ((near, near_address), (far, far_address)) = (socket(), socket());
    near.connect(far_address).expect("it is an address");
    far.connect(near_address).expect("it is an address");
    (near, far)
}

/// Without its port, which is another each time.
fn host(address: io::Result<SocketAddr>) -> io::Result<SocketAddr> {
    address.map(|mut address| {
        address.set_port(0);
        address
    })
}

pub fn a_datagram_and_its_answer(run: &mut Run) {
    let ((near, near_address), (far, address)) = (socket(), socket());
    let echo = run.peer(move || {
        let mut buffer = [0; 64];
        let (len, from) = far.recv_from(&mut buffer).expect("it comes");
        (far.send_to(&buffer[..len], from), from == near_address)
    });
    run.note("send", near.send_to(b"hello", address));
    let mut buffer = [0; 64];
    let (len, from) = near.recv_from(&mut buffer).expect("it comes");
    run.note_value("received", (&buffer[..len], from == address));
    let (sent, is_mine) = echo.join();
    run.note("answer", sent);
    run.note_value("sender", is_mine);
}

pub fn what_has_no_room_is_lost(run: &mut Run) {
    let (near, far) = pair();
    run.note("send", far.send(b"abcdef"));
    run.note("send", far.send(b"next"));
    let mut buffer = [0; 4];
    run.note("receive", near.recv(&mut buffer));
    run.note_value("bytes", buffer);
    run.note("the next one", near.recv(&mut buffer));
    run.note_value("bytes", buffer);
    run.note("send", far.send(b"lost"));
    run.note("send", far.send(b"last"));
    run.note("receive into nothing", near.recv(&mut []));
    run.note("receive", near.recv_from(&mut buffer).map(|(len, _)| len));
    run.note_value("bytes", buffer);
}

pub fn empty_datagrams_arrive(run: &mut Run) {
    let (near, far) = pair();
    let address = near.local_addr().expect("it is bound");
    run.note("send", far.send(b""));
    run.note("send to", far.send_to(b"", address));
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("receive from", near.recv_from(&mut [0; 8]).map(|(len, _)| len));
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("no more", near.recv(&mut [0; 8]));
}

pub fn the_longest_datagram_arrives(run: &mut Run) {
    let ((near, address), (far, _)) = (socket(), socket());
    let bytes = pattern(LONGEST + 1);
    run.note("too long", far.send_to(&bytes, address));
    run.note("send", far.send_to(&bytes[..LONGEST], address));
    let mut buffer = vec![0; 1 << 16];
    let len = near.recv(&mut buffer).expect("it comes");
    run.note_value("received", (len, buffer[..len] == bytes[..len]));
}

pub fn a_peek_takes_nothing(run: &mut Run) {
    let (near, far) = pair();
    let address = far.local_addr().expect("it is bound");
    far.send(b"abc").expect("there is room");
    let mut buffer = [0; 2];
    run.note("peek", near.peek(&mut buffer));
    run.note("peek from", near.peek_from(&mut buffer).map(|(len, from)| (len, from == address)));
    run.note_value("bytes", buffer);
    run.note("receive", near.recv(&mut [0; 8]));
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("peek in vain", near.peek(&mut buffer));
    run.note("peek from in vain", near.peek_from(&mut buffer).map(drop));
    near.set_nonblocking(true).expect("it may be set");
    run.note("peek without a wait", near.peek(&mut buffer));
}

pub fn to_send_needs_an_address(run: &mut Run) {
    let (near, _) = socket();
    run.note("send", near.send(b"x"));
    run.note("peer", near.peer_addr());
    run.note("send to no address", near.send_to(b"x", &[][..]));
    run.note("connect to no address", near.connect(&[][..]));
    run.note("send to what is none", near.send_to(b"x", "nonsense"));
    run.note("send to port zero", near.send_to(b"x", (LOCALHOST, 0)));
}

pub fn who_is_connected_hears_one(run: &mut Run) {
    let ((near, address), (far, far_address), (other, _)) = (socket(), socket(), socket());
    near.connect(far_address).expect("it is an address");
    run.note_value("peer", near.peer_addr().expect("it is connected") == far_address);
    run.note_value("own", near.local_addr().expect("it is bound") == address);
    other.send_to(b"other", address).expect("there is room");
    far.send_to(b"far", address).expect("there is room");
    let mut buffer = [0; 8];
    run.note("receive", near.recv(&mut buffer));
    run.note_value("bytes", &buffer[..3]);
    let other_address = other.local_addr().expect("it is bound");
    run.note("connect to another", near.connect(other_address));
    run.note_value("peer", near.peer_addr().expect("it is connected") == other_address);
    other.send_to(b"again", address).expect("there is room");
    run.note("receive from", near.recv_from(&mut buffer).map(|(len, from)| (len, from == other_address)));
    let unbound = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
    unbound.connect(address).expect("it is an address");
    run.note("bound by the connect", host(unbound.local_addr()));
}

pub fn who_is_connected_may_send_elsewhere(run: &mut Run) {
    let ((near, _), (_far, far_address), (other, address)) = (socket(), socket(), socket());
    near.connect(far_address).expect("it is an address");
    run.note("send", near.send_to(b"x", address));
    run.note("receive", other.recv(&mut [0; 8]));
}

pub fn nobody_is_there(run: &mut Run) {
    let (near, _) = socket();
    let (gone, address) = socket();
    drop(gone);
    near.connect(address).expect("it is an address");
    run.note("send", near.send(b"x"));
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("send", near.send(b"x"));
    wait_for_the_end(&near);
    run.note("what is told", near.send(b"x"));
    run.note("send", near.send(b"x"));
    wait_for_the_end(&near);
    run.note("error", near.take_error().and_then(|error| error.map_or(Ok("none"), Err)));
    run.note("taken", near.take_error().map(|error| error.is_none()));
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("receive in vain", near.recv(&mut [0; 8]));
    let (lone, _) = socket();
    run.note("send without a connection", lone.send_to(b"x", address));
    lone.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("nobody tells", lone.recv(&mut [0; 8]));
}

pub fn addresses_that_cannot_be_had(run: &mut Run) {
    let (_socket, address) = socket();
    run.note("in use", UdpSocket::bind(address).map(drop));
    run.note("foreign", UdpSocket::bind((FOREIGN, 0)).map(drop));
    run.note("none", UdpSocket::bind(&[][..]).map(drop));
    run.note("no port", UdpSocket::bind("127.0.0.1").map(drop));
    let second = UdpSocket::bind(&[address, (LOCALHOST, 0).into()][..]);
    run.note("the second", host(second.and_then(|socket| socket.local_addr())));
}

pub fn addresses_of_version_6(run: &mut Run) {
    let near = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0));
    run.note("bind", near.as_ref().map(|_| ()).map_err(|error| error.kind().into()));
    // A host may be without it.
    let Ok(near) = near else { return };
    near.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    let far = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a port is free");
    run.note("send", far.send_to(b"six", near.local_addr().expect("it is bound")));
    run.note("receive", near.recv_from(&mut [0; 8]).and_then(|(len, from)| Ok((len, host(Ok(from))?))));
    let (four, address) = socket();
    let mapped = (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), address.port());
    run.note("send to version 4", far.send_to(b"four", mapped));
    let (len, from) = four.recv_from(&mut [0; 8]).expect("it comes");
    run.note_value("received", (len, host(Ok(from)).expect("it is one")));
    run.note("answer", four.send_to(b"back", from));
    far.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    run.note("receive", far.recv_from(&mut [0; 8]).and_then(|(len, from)| Ok((len, host(Ok(from))?))));
}

pub fn addresses_of_the_wrong_version(run: &mut Run) {
    let (four, address) = socket();
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
    run.note("send to version 6", four.send_to(b"x", six));
    run.note("connect to version 6", four.connect(six));
    let Ok(only_six) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
    run.note("send to version 4", only_six.send_to(b"x", address));
    run.note("connect to version 4", only_six.connect(address));
}

pub fn timeouts_are_over(run: &mut Run) {
    let (near, far) = pair();
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("receive from", near.recv_from(&mut [0; 8]).map(drop));
    near.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    let sender = run.peer(move || far.send(b"x"));
    run.note("receive in time", near.recv(&mut [0; 8]));
    run.note("send", sender.join());
    run.note("timeout", near.read_timeout());
    run.note("set", near.set_write_timeout(Some(Duration::from_secs(2))));
    run.note("timeout", near.write_timeout());
    run.note("of a clone", near.try_clone().and_then(|clone| clone.write_timeout()));
}

pub fn timeouts_of_zero_are_refused(run: &mut Run) {
    let (near, _) = socket();
    run.note("read", near.set_read_timeout(Some(Duration::ZERO)));
    run.note("write", near.set_write_timeout(Some(Duration::ZERO)));
    run.note("as before", near.read_timeout());
}

pub fn a_non_blocking_socket_never_waits(run: &mut Run) {
    let (near, far) = pair();
    run.note("set", near.set_nonblocking(true));
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("receive from", near.recv_from(&mut [0; 8]).map(drop));
    run.note("of a clone", near.try_clone().and_then(|clone| clone.recv(&mut [0; 8])));
    run.note("send", near.send(b"x"));
    run.note("set back", near.set_nonblocking(false));
    let sender = run.peer(move || far.send(b"x"));
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("sent", sender.join());
}

pub fn options_are_kept(run: &mut Run) {
    let (near, _) = socket();
    run.note("broadcast", near.broadcast());
    run.note("set", near.set_broadcast(true));
    run.note("broadcast", near.broadcast());
    run.note("ttl", near.ttl());
    run.note("set", near.set_ttl(7));
    run.note("ttl", near.ttl());
    run.note("loop", near.multicast_loop_v4());
    run.note("set", near.set_multicast_loop_v4(false));
    run.note("loop", near.multicast_loop_v4());
    run.note("ttl of groups", near.multicast_ttl_v4());
    run.note("set", near.set_multicast_ttl_v4(9));
    run.note("ttl of groups", near.multicast_ttl_v4());
    run.note("of version 6", near.multicast_loop_v6());
    run.note("set", near.set_multicast_loop_v6(false));
    let Ok(six) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
    run.note("loop", six.multicast_loop_v6());
    run.note("set", six.set_multicast_loop_v6(false));
    run.note("loop", six.multicast_loop_v6());
    run.note("ttl", six.ttl());
}

pub fn options_out_of_range(run: &mut Run) {
    let (near, _) = socket();
    for ttl in [0, 256, u32::MAX] {
        run.note("ttl", near.set_ttl(ttl));
        run.note("ttl of groups", near.set_multicast_ttl_v4(ttl));
    }
    run.note("as before", near.ttl());
    run.note("of groups", near.multicast_ttl_v4());
}

pub fn to_all_needs_permission(run: &mut Run) {
    let (near, _) = socket();
    run.note("without", near.send_to(b"x", (ALL, 9)));
    near.set_broadcast(true).expect("it may be set");
    let all = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
    let port = all.local_addr().expect("it is bound").port();
    let sent = near.send_to(b"x", (ALL, port));
    run.note("with", sent.as_ref().copied().map_err(|error| error.kind().into()));
    if sent.is_ok() {
        all.set_read_timeout(Some(DEADLINE)).expect("it may be set");
        run.note("received", all.recv(&mut [0; 8]));
    }
}

pub fn groups_are_joined_and_left(run: &mut Run) {
    let (near, _) = socket();
    let here = Ipv4Addr::LOCALHOST;
    run.note("leave before", near.leave_multicast_v4(&GROUP, &here));
    run.note("join", near.join_multicast_v4(&GROUP, &here));
    run.note("join again", near.join_multicast_v4(&GROUP, &here));
    run.note("leave", near.leave_multicast_v4(&GROUP, &here));
    run.note("leave again", near.leave_multicast_v4(&GROUP, &here));
    run.note("no group", near.join_multicast_v4(&here, &here));
    let six = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x77);
    run.note("of version 6", near.join_multicast_v6(&six, 1));
    let Ok(near) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
    run.note("join", near.join_multicast_v6(&six, 1));
    run.note("join again", near.join_multicast_v6(&six, 1));
    run.note("leave", near.leave_multicast_v6(&six, 1));
    run.note("leave again", near.leave_multicast_v6(&six, 1));
    run.note("no interface", near.join_multicast_v6(&six, 1 << 30));
    run.note("no group", near.join_multicast_v6(&Ipv6Addr::LOCALHOST, 1));
}

pub fn a_group_hears(run: &mut Run) {
    let member = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
    member.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    let port = member.local_addr().expect("it is bound").port();
    let joined = member.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST);
    let can_join = joined.is_ok();
    run.note("join", joined);
    let (near, _) = socket();
    let sent = near.send_to(b"to all", (GROUP, port));
    let can_send = sent.is_ok();
    run.note("send", sent);
    if can_join && can_send {
        run.note("receive", member.recv_from(&mut [0; 8]).and_then(|(len, from)| Ok((len, host(Ok(from))?))));
    }
}

pub fn clones_share_the_queue(run: &mut Run) {
    let (near, far) = pair();
    let clone = near.try_clone().expect("it is shared");
    far.send(b"1").expect("there is room");
    far.send(b"22").expect("there is room");
    run.note("receive", near.recv(&mut [0; 8]));
    drop(near);
    run.note("receive by the clone", clone.recv(&mut [0; 8]));
}

pub fn descriptors_are_handed_on(run: &mut Run) {
    let (near, far) = pair();
    let number = near.as_raw_fd();
    run.note_value("one descriptor", near.as_fd().as_raw_fd() == number);
    let descriptor = OwnedFd::from(near);
    let near = UdpSocket::from(descriptor);
    run.note_value("the same", near.as_raw_fd() == number);
    run.note("timeout", near.read_timeout());
    far.send(b"x").expect("there is room");
    run.note("receive", near.recv(&mut [0; 8]));
}

pub fn what_is_printed(run: &mut Run) {
    let (near, _far) = pair();
    run.note_value("printed", without_numbers(&format!("{near:?}")));
    run.note_value("at length", without_numbers(&format!("{near:#?}")));
}
