//! Sockets of this host: addresses, listeners, datagrams.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::unix_net::{UnixDatagram, UnixListener, UnixStream};
use crate::common::DEADLINE;
use crate::std_suite::run::{Run, without_numbers};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);

/// Bytes of a path that has no room in an address.
const TOO_LONG: usize = 108;

/// A folder that goes with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(unique());
        std::fs::create_dir(&folder).expect("there is room for a folder");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A name that nobody else has.
fn unique() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let module = module_path!().replace("::", "-");
    format!("{module}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn abstract_address() -> SocketAddr {
    SocketAddr::from_abstract_name(unique()).expect("it is short")
}

fn listener() -> (UnixListener, SocketAddr) {
    let address = abstract_address();
    (UnixListener::bind_addr(&address).expect("the name is free"), address)
}

fn datagram() -> (UnixDatagram, SocketAddr) {
    let address = abstract_address();
    let socket = UnixDatagram::bind_addr(&address).expect("the name is free");
    socket.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    (socket, address)
}

fn pair() -> (UnixDatagram, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().expect("sockets can be had");
    near.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    (near, far)
}

/// What kind of address it is, and its last part.
fn kind(address: io::Result<SocketAddr>) -> io::Result<String> {
    address.map(|address| match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => format!("path {:?}", path.file_name()),
        (_, Some(name)) => format!("name {}", without_numbers(&String::from_utf8_lossy(name)).len() > 8),
        _ => format!("nobody {}", address.is_unnamed()),
    })
}

fn same(one: io::Result<SocketAddr>, other: &SocketAddr) -> bool {
    let one = one.expect("it has one");
    one.as_abstract_name() == other.as_abstract_name() && one.as_pathname() == other.as_pathname()
}

pub fn addresses_with_a_path(run: &mut Run) {
    let folder = Folder::new();
    let path = folder.path("listener");
    let listener = UnixListener::bind(&path).expect("nobody is there");
    let near = UnixStream::connect(&path).expect("it listens");
    let (far, from) = listener.accept().expect("somebody has come");
    run.note_value("the path", listener.local_addr().expect("it is bound").as_pathname() == Some(&*path));
    for address in
        [Ok(from), listener.local_addr(), near.local_addr(), near.peer_addr(), far.local_addr(), far.peer_addr()]
    {
        run.note("address", kind(address));
    }
    let hide = |text: String| text.replace(&folder.0.display().to_string(), "FOLDER");
    run.note_value("printed", hide(format!("{:?}", listener.local_addr())));
    run.note_value("printed", without_numbers(&hide(format!("{near:?} {far:?}"))));
}

pub fn addresses_with_a_name(run: &mut Run) {
    let (listener, address) = listener();
    run.note_value("the name", same(listener.local_addr(), &address));
    let near = UnixStream::connect_addr(&address).expect("it listens");
    let (far, from) = listener.accept().expect("somebody has come");
    run.note_value("the name", same(near.peer_addr(), &address) && same(far.local_addr(), &address));
    for address in [Ok(from), near.local_addr(), far.peer_addr()] {
        run.note("address", kind(address));
    }
    run.note("in use", UnixListener::bind_addr(&address).map(drop));
    drop(listener);
    run.note("free again", UnixListener::bind_addr(&address).map(drop));
}

pub fn addresses_of_nobody(run: &mut Run) {
    let (near, far) = UnixStream::pair().expect("sockets can be had");
    for address in [near.local_addr(), near.peer_addr(), far.local_addr()] {
        run.note("address", kind(address));
    }
    let unbound = UnixDatagram::unbound().expect("a socket can be had");
    run.note("own", kind(unbound.local_addr()));
    run.note("peer", kind(unbound.peer_addr()));
    let any = SocketAddr::from_pathname("").expect("it is nobody's");
    let chosen = UnixListener::bind_addr(&any).expect("a name is free");
    run.note_value("chosen", chosen.local_addr().expect("it is bound").as_abstract_name().map(<[u8]>::len));
    run.note("connect to nobody", UnixStream::connect_addr(&any).map(drop));
}

pub fn addresses_after_the_end(run: &mut Run) {
    let (listener, address) = listener();
    let near = UnixStream::connect_addr(&address).expect("it listens");
    let (far, _) = listener.accept().expect("somebody has come");
    near.shutdown(Shutdown::Both).expect("it is connected");
    run.note_value("when shut", same(near.peer_addr(), &address));
    run.note("own when shut", kind(near.local_addr()));
    drop((far, listener));
    run.note_value("when the peer has gone", same(near.peer_addr(), &address));
}

pub fn addresses_that_cannot_be_had(run: &mut Run) {
    let folder = Folder::new();
    let path = folder.path("taken");
    let _listener = UnixListener::bind(&path).expect("nobody is there");
    run.note("in use", UnixListener::bind(&path).map(drop));
    run.note("in use", UnixDatagram::bind(&path).map(drop));
    run.note("no folder", UnixListener::bind(folder.path("no/folder")).map(drop));
    run.note("no folder", UnixDatagram::bind(folder.path("no/folder")).map(drop));
    std::fs::write(folder.path("file"), "").expect("there is room for a file");
    run.note("a file", UnixListener::bind(folder.path("file")).map(drop));
    run.note("below a file", UnixListener::bind(folder.path("file/below")).map(drop));
}

pub fn paths_that_cannot_be(run: &mut Run) {
    let long = "x".repeat(TOO_LONG);
    run.note("too long", UnixListener::bind(&long).map(drop));
    run.note("too long", UnixStream::connect(&long).map(drop));
    run.note("too long", UnixDatagram::bind(&long).map(drop));
    run.note("with a zero", UnixListener::bind("a\0b").map(drop));
    run.note("with a zero", UnixStream::connect("a\0b").map(drop));
    let unbound = UnixDatagram::unbound().expect("a socket can be had");
    run.note("too long", unbound.connect(&long));
    run.note("too long", unbound.send_to(b"x", &long));
    run.note("with a zero", unbound.send_to(b"x", "a\0b"));
}

pub fn nobody_is_there(run: &mut Run) {
    let folder = Folder::new();
    let path = folder.path("gone");
    run.note("nothing", UnixStream::connect(&path).map(drop));
    drop(UnixListener::bind(&path).expect("nobody is there"));
    run.note("left", UnixStream::connect(&path).map(drop));
    std::fs::write(folder.path("file"), "").expect("there is room for a file");
    run.note("a file", UnixStream::connect(folder.path("file")).map(drop));
    run.note("a folder", UnixStream::connect(&folder.0).map(drop));
    run.note("a name", UnixStream::connect_addr(&abstract_address()).map(drop));
    let unbound = UnixDatagram::unbound().expect("a socket can be had");
    run.note("connect", unbound.connect(folder.path("nothing")));
    run.note("send", unbound.send_to(b"x", folder.path("nothing")));
    run.note("send", unbound.send_to_addr(b"x", &abstract_address()));
}

pub fn the_wrong_type_is_there(run: &mut Run) {
    let ((_listener, stream), (_socket, datagram)) = (listener(), datagram());
    run.note("stream to datagrams", UnixStream::connect_addr(&datagram).map(drop));
    let unbound = UnixDatagram::unbound().expect("a socket can be had");
    run.note("datagrams to a stream", unbound.connect_addr(&stream));
    run.note("a datagram to a stream", unbound.send_to_addr(b"x", &stream));
}

pub fn a_listener_accepts_in_order(run: &mut Run) {
    let (listener, address) = listener();
    let clients = run.peer(move || {
        let clients = (0..3).map(|_| UnixStream::connect_addr(&address).expect("it listens"));
        let tell = |(number, mut client): (u8, UnixStream)| client.write_all(&[number]).map(|()| client);
        (0..).zip(clients).map(tell).collect::<io::Result<Vec<_>>>()
    });
    for stream in listener.incoming().take(3) {
        let mut number = [0];
        run.note("read", stream.expect("somebody comes").read_exact(&mut number));
        run.note_value("number", number);
    }
    run.note("tell", clients.join().map(drop));
}

pub fn a_listener_is_an_iterator(run: &mut Run) {
    let (listener, address) = listener();
    let client = run.peer(move || UnixStream::connect_addr(&address).map(drop));
    let mut streams = (&listener).into_iter();
    run.note("end", streams.next().transpose().and_then(|stream| stream.expect("it never ends").read(&mut [0])));
    run.note("connect", client.join());
}

pub fn a_non_blocking_listener_never_waits(run: &mut Run) {
    let (listener, address) = listener();
    run.note("set", listener.set_nonblocking(true));
    run.note("accept", listener.accept().map(drop));
    run.note("incoming", listener.incoming().next().transpose().map(drop));
    run.note("of a clone", listener.try_clone().and_then(|clone| clone.accept().map(drop)));
    let mut near = UnixStream::connect_addr(&address).expect("it listens");
    let (mut far, _) = listener.accept().expect("somebody has come");
    let writer = run.peer(move || near.write_all(b"x"));
    run.note("the stream waits", far.read_exact(&mut [0]));
    run.note("written", writer.join());
    run.note("set back", listener.set_nonblocking(false));
    run.note("error", listener.take_error().map(|error| error.is_none()));
}

pub fn a_path_stays_when_its_listener_goes(run: &mut Run) {
    let folder = Folder::new();
    let path = folder.path("stays");
    drop(UnixListener::bind(&path).expect("nobody is there"));
    run.note("in use", UnixListener::bind(&path).map(drop));
    std::fs::remove_file(&path).expect("it is there");
    run.note("free again", UnixListener::bind(&path).map(drop));
    drop(UnixDatagram::bind(folder.path("datagrams")).expect("nobody is there"));
    run.note_value("stays", folder.path("datagrams").exists());
}

pub fn what_a_listener_prints(run: &mut Run) {
    let (listener, _) = listener();
    run.note_value("printed", without_numbers(&format!("{listener:?}")).replace("of_dhaga", "of_std"));
    run.note_value("incoming", without_numbers(&format!("{:?}", listener.incoming())).replace("of_dhaga", "of_std"));
}

pub fn datagrams_tell_their_senders(run: &mut Run) {
    let ((near, address), (far, from)) = (datagram(), datagram());
    run.note("send", far.send_to_addr(b"hello", &address));
    let mut buffer = [0; 8];
    let (len, sender) = near.recv_from(&mut buffer).expect("it comes");
    run.note_value("received", (&buffer[..len], same(Ok(sender), &from)));
    let unbound = UnixDatagram::unbound().expect("a socket can be had");
    run.note("send", unbound.send_to_addr(b"hi", &address));
    let (len, sender) = near.recv_from(&mut buffer).expect("it comes");
    run.note_value("received", (len, sender.is_unnamed()));
    let folder = Folder::new();
    let named = UnixDatagram::bind(folder.path("named")).expect("nobody is there");
    run.note("send", near.send_to(b"path", folder.path("named")));
    named.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    run.note("receive", named.recv(&mut buffer));
    run.note("send back", named.send_to_addr(b"back", &address));
    run.note("from", near.recv_from(&mut buffer).and_then(|(_, from)| kind(Ok(from))));
}

pub fn what_has_no_room_is_lost(run: &mut Run) {
    let (near, far) = pair();
    far.send(b"abcdef").expect("there is room");
    far.send(b"next").expect("there is room");
    let mut buffer = [0; 4];
    run.note("receive", near.recv(&mut buffer));
    run.note_value("bytes", buffer);
    run.note("receive into nothing", near.recv(&mut []));
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("no more", near.recv(&mut buffer));
}

pub fn empty_datagrams_arrive(run: &mut Run) {
    let (near, far) = pair();
    run.note("send", far.send(b""));
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("send", far.send(b""));
    run.note("receive from", near.recv_from(&mut [0; 8]).map(|(len, from)| (len, from.is_unnamed())));
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("no more", near.recv(&mut [0; 8]));
}

pub fn too_long_a_datagram_is_refused(run: &mut Run) {
    let (near, far) = pair();
    run.note("too long", far.send(&vec![7; 64 << 20]));
    run.note("long", far.send(&vec![7; 100_000]));
    run.note("receive", near.recv(&mut vec![0; 200_000]));
}

pub fn to_send_needs_an_address(run: &mut Run) {
    let unbound = UnixDatagram::unbound().expect("a socket can be had");
    run.note("send", unbound.send(b"x"));
    run.note("peer", kind(unbound.peer_addr()));
    let nobody = SocketAddr::from_pathname("").expect("it is nobody's");
    run.note("send to nobody", unbound.send_to_addr(b"x", &nobody));
}

pub fn who_is_connected_hears_one(run: &mut Run) {
    let ((near, address), (far, far_address), (other, _)) = (datagram(), datagram(), datagram());
    near.connect_addr(&far_address).expect("it is there");
    run.note_value("peer", same(near.peer_addr(), &far_address));
    run.note("from another", other.send_to_addr(b"other", &address));
    run.note("connect of another", other.connect_addr(&address));
    run.note("from the peer", far.send_to_addr(b"far", &address));
    let mut buffer = [0; 8];
    run.note("receive", near.recv(&mut buffer));
    run.note_value("bytes", &buffer[..3]);
    run.note("send", near.send(b"back"));
    run.note("receive", far.recv(&mut buffer));
}

pub fn a_receiver_that_is_gone_refuses(run: &mut Run) {
    let (near, far) = pair();
    drop(far);
    run.note("send", near.send(b"x"));
    let ((near, address), (far, _)) = (datagram(), datagram());
    far.connect_addr(&address).expect("it is there");
    drop(near);
    run.note("send", far.send(b"x"));
    run.note("send to", far.send_to_addr(b"x", &address));
    run.note("error", far.take_error().map(|error| error.is_none()));
}

pub fn timeouts_are_over(run: &mut Run) {
    let (near, far) = pair();
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("receive from", near.recv_from(&mut [0; 8]).map(drop));
    far.set_write_timeout(Some(SHORT)).expect("it may be set");
    run.note("send", (0..10_000).try_for_each(|_| far.send(&[7; 1000]).map(drop)));
    let ((_near, address), (other, _)) = (datagram(), datagram());
    other.set_write_timeout(Some(SHORT)).expect("it may be set");
    run.note("send to", (0..10_000).try_for_each(|_| other.send_to_addr(&[7; 1000], &address).map(drop)));
    run.note("zero", far.set_write_timeout(Some(Duration::ZERO)));
    near.set_read_timeout(Some(Duration::from_secs(5))).expect("it may be set");
    run.note("of a clone", near.try_clone().and_then(|clone| clone.read_timeout()));
    run.note("write", near.write_timeout());
}

pub fn a_non_blocking_datagram_socket_never_waits(run: &mut Run) {
    let (near, far) = pair();
    near.set_nonblocking(true).expect("it may be set");
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("receive from", near.recv_from(&mut [0; 8]).map(drop));
    run.note("send", (0..10_000).try_for_each(|_| near.send(&[7; 1000]).map(drop)));
    run.note("of a clone", near.try_clone().and_then(|clone| clone.recv(&mut [0; 8])));
    near.set_nonblocking(false).expect("it may be set");
    let sender = run.peer(move || far.send(b"x"));
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("sent", sender.join());
}

pub fn a_shutdown_ends_what_is_received(run: &mut Run) {
    let (near, far) = pair();
    far.send(b"before").expect("there is room");
    run.note("shut", near.shutdown(Shutdown::Read));
    run.note("what came before", near.recv(&mut [0; 8]));
    run.note("end", near.recv(&mut [0; 8]));
    run.note("end", near.recv_from(&mut [0; 8]).map(|(len, from)| (len, from.is_unnamed())));
    run.note("the peer", far.send(b"x"));
}

pub fn a_shutdown_refuses_what_is_sent(run: &mut Run) {
    let (near, far) = pair();
    run.note("shut", near.shutdown(Shutdown::Write));
    run.note("send", near.send(b"x"));
    run.note("the other way", far.send(b"x"));
    run.note("receive", near.recv(&mut [0; 8]));
    run.note("both", near.shutdown(Shutdown::Both));
    run.note("end", near.recv(&mut [0; 8]));
    let unbound = UnixDatagram::unbound().expect("a socket can be had");
    run.note("who has no peer", unbound.shutdown(Shutdown::Both));
}

pub fn clones_share_the_queue(run: &mut Run) {
    let (near, far) = pair();
    let clone = near.try_clone().expect("it is shared");
    far.send(b"1").expect("there is room");
    far.send(b"22").expect("there is room");
    run.note("receive", near.recv(&mut [0; 8]));
    drop(near);
    run.note("receive by the clone", clone.recv(&mut [0; 8]));
    drop(clone);
    run.note("nobody receives", far.send(b"x"));
}

pub fn descriptors_are_handed_on(run: &mut Run) {
    let (near, far) = pair();
    let number = near.as_raw_fd();
    run.note_value("one descriptor", near.as_fd().as_raw_fd() == number);
    let near = UnixDatagram::from(OwnedFd::from(near));
    run.note_value("the same", near.as_raw_fd() == number);
    far.send(b"x").expect("there is room");
    run.note("receive", near.recv(&mut [0; 8]));
    let (listener, address) = listener();
    let listener = UnixListener::from(OwnedFd::from(listener));
    let client = run.peer(move || UnixStream::connect_addr(&address).map(drop));
    run.note("accept", listener.accept().map(drop));
    run.note("connect", client.join());
}

pub fn what_is_printed(run: &mut Run) {
    let (near, _far) = pair();
    run.note_value("printed", without_numbers(&format!("{near:?}")));
    let folder = Folder::new();
    let named = UnixDatagram::bind(folder.path("named")).expect("nobody is there");
    let folder: &Path = &folder.0;
    let printed = format!("{named:#?}").replace(&folder.display().to_string(), "FOLDER");
    run.note_value("at length", without_numbers(&printed));
}
