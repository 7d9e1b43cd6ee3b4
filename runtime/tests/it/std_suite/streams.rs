//! What streams of bytes have in common, TCP's and those of this host.

use std::fmt::Debug;
use std::io::{self, BufRead, BufReader, BufWriter, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use super::net::{TcpListener, TcpStream};
use super::unix_net::UnixStream;
use crate::common::DEADLINE;
use crate::std_suite::run::{Run, pattern, wait_for_the_end, without_numbers};

/// A timeout that is only there to be over.
const SHORT: Duration = Duration::from_millis(5);

/// More than the kernel buffers for a stream that nobody reads.
const MANY: usize = 16 << 20;

/// The most slices that one call to the kernel takes.
const SLICES_MAX: usize = 1024;

type Timeout = Option<Duration>;

/// The methods that both have.
pub trait Stream:
    Read + Write + Debug + AsFd + AsRawFd + IntoRawFd + From<OwnedFd> + Into<OwnedFd> + Send + Sync + 'static
{
    fn pair() -> (Self, Self);
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
    fn try_clone(&self) -> io::Result<Self>;
    fn take_error(&self) -> io::Result<Option<io::Error>>;
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
    fn set_read_timeout(&self, timeout: Timeout) -> io::Result<()>;
    fn set_write_timeout(&self, timeout: Timeout) -> io::Result<()>;
    fn read_timeout(&self) -> io::Result<Timeout>;
    fn write_timeout(&self) -> io::Result<Timeout>;
}

macro_rules! stream {
    ($stream:ident, $pair:path) => {
        impl Stream for $stream {
            fn pair() -> (Self, Self) {
                $pair()
            }
            fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                $stream::shutdown(self, how)
            }
            fn try_clone(&self) -> io::Result<Self> {
                $stream::try_clone(self)
            }
            fn take_error(&self) -> io::Result<Option<io::Error>> {
                $stream::take_error(self)
            }
            fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
                $stream::set_nonblocking(self, nonblocking)
            }
            fn set_read_timeout(&self, timeout: Timeout) -> io::Result<()> {
                $stream::set_read_timeout(self, timeout)
            }
            fn set_write_timeout(&self, timeout: Timeout) -> io::Result<()> {
                $stream::set_write_timeout(self, timeout)
            }
            fn read_timeout(&self) -> io::Result<Timeout> {
                $stream::read_timeout(self)
            }
            fn write_timeout(&self) -> io::Result<Timeout> {
                $stream::write_timeout(self)
            }
        }
    };
}

stream!(TcpStream, tcp_pair);
stream!(UnixStream, unix_pair);

pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (far, _) = listener.accept().expect("somebody has come");
    (near, far)
}

fn unix_pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("sockets can be had")
}

/// A pair of which both sides have waited, and so are watched where they are ours.
fn used_pair<S: Stream>(run: &Run) -> (S, S) {
    let (mut near, far) = S::pair();
    let far = run.peer(move || {
        let mut far = far;
        far.write_all(b"1").expect("there is room");
        far.read_exact(&mut [0]).expect("it comes");
        far
    });
    near.read_exact(&mut [0]).expect("it comes");
    near.write_all(b"2").expect("there is room");
    (near, far.join())
}

/// Reads to the end, and tells how much and whether it was the pattern.
fn read_pattern(mut stream: impl Read) -> (usize, bool) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("it ends");
    (all.len(), all == pattern(all.len()))
}

/// Writes until nothing more is taken. Returns the error.
fn fill(mut stream: impl Write) -> io::Result<()> {
    let bytes = vec![7; 1 << 16];
    (0..4 * (MANY >> 16)).try_for_each(|_| stream.write_all(&bytes))
}

pub fn bytes_arrive_in_order<S: Stream>(run: &mut Run) {
    let (near, far) = S::pair();
    let reader = run.peer(move || read_pattern(far));
    let mut near = near;
    for part in pattern(200_000).chunks(777) {
        near.write_all(part).expect("it is read");
    }
    drop(near);
    run.note_value("received", reader.join());
}

pub fn an_end_is_told_again_and_again<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    far.write_all(b"abc").expect("there is room");
    drop(far);
    for _ in 0..4 {
        run.note("read", near.read(&mut [0; 2]));
    }
    let mut rest = String::new();
    run.note("read to the end", near.read_to_string(&mut rest));
}

pub fn nothing_is_read_into_nothing<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    far.write_all(b"abc").expect("there is room");
    run.note("read", near.read_exact(&mut [0]));
    run.note("nothing", near.read(&mut []));
    run.note("exactly nothing", near.read_exact(&mut []));
    run.note("read", near.read(&mut [0; 8]));
    drop(far);
    run.note("end", near.read(&mut [0; 8]));
    run.note("nothing at the end", near.read(&mut []));
    let (mut near, _far) = S::pair();
    near.set_nonblocking(true).expect("it may be set");
    run.note("nothing of nothing", near.read(&mut []));
}

pub fn nothing_is_written<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    run.note("nothing", near.write(&[]));
    run.note("all of nothing", near.write_all(&[]));
    run.note("flush", near.flush());
    far.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("nothing arrives", far.read(&mut [0]));
    near.shutdown(Shutdown::Write).expect("it is connected");
    run.note("nothing, at a shut half", near.write(&[]));
}

pub fn nothing_is_written_to_a_full_socket<S: Stream>(run: &mut Run) {
    let (mut near, _far) = used_pair::<S>(run);
    near.set_write_timeout(Some(SHORT)).expect("it may be set");
    run.note("fill", fill(&mut near));
    run.note("nothing", near.write(&[]));
    run.note("one byte", near.write(&[0]));
}

pub fn more_is_written_than_buffers_hold<S: Stream>(run: &mut Run) {
    let (near, far) = S::pair();
    let reader = run.peer(move || read_pattern(far));
    let mut near = near;
    run.note("write", near.write_all(&pattern(MANY)));
    near.shutdown(Shutdown::Write).expect("it is connected");
    run.note_value("received", reader.join());
}

pub fn too_little_is_an_unexpected_end<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    far.write_all(b"hal").expect("there is room");
    drop(far);
    let mut buffer = [0; 4];
    run.note("read", near.read_exact(&mut buffer));
    run.note_value("what came", &buffer[..3]);
}

pub fn what_is_no_text_is_invalid_data<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    far.write_all(b"a\xff").expect("there is room");
    drop(far);
    let mut text = String::new();
    run.note("read", near.read_to_string(&mut text));
    run.note_value("text", text);
}

pub fn lines_are_cut<S: Stream>(run: &mut Run) {
    let (near, far) = S::pair();
    let writer = run.peer(move || {
        let mut far = far;
        for part in ["one\ntw", "o\r\n\n", "the l", "ast"] {
            far.write_all(part.as_bytes()).expect("there is room");
        }
    });
    for line in BufReader::with_capacity(4, near).lines() {
        run.note("line", line);
    }
    writer.join();
}

pub fn a_buffered_writer_writes_when_it_goes<S: Stream>(run: &mut Run) {
    let (near, mut far) = S::pair();
    let mut writer = BufWriter::new(near);
    write!(writer, "{} and {}", 1, 2).expect("there is room");
    far.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("too early", far.read(&mut [0]));
    drop(writer);
    far.set_read_timeout(None).expect("it may be set");
    let mut text = String::new();
    run.note("read", far.read_to_string(&mut text));
    run.note_value("text", text);
}

pub fn all_is_copied_back<S: Stream>(run: &mut Run) {
    let (near, far) = S::pair();
    let echo = run.peer(move || io::copy(&mut far.try_clone().expect("it is shared"), &mut { far }));
    let mut sending = near.try_clone().expect("it is shared");
    let sender = run.peer(move || {
        sending.write_all(&pattern(1_000_000)).expect("it is read");
        sending.shutdown(Shutdown::Write)
    });
    run.note_value("received", read_pattern(near));
    run.note("sent", sender.join());
    run.note("copied", echo.join());
}

pub fn a_part_is_taken<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    far.write_all(b"abcdef").expect("there is room");
    let mut text = String::new();
    run.note("first", Read::by_ref(&mut near).take(2).read_to_string(&mut text));
    let mut byte = BufReader::with_capacity(1, Read::by_ref(&mut near)).bytes();
    run.note("next", byte.next().transpose());
    drop(far);
    run.note("rest", near.chain(&b"!"[..]).read_to_string(&mut text));
    run.note_value("text", text);
}

pub fn both_ways_at_once<S: Stream>(run: &mut Run) {
    const BYTES: usize = 8 << 20;
    let (near, far) = S::pair();
    let both = |stream: S| {
        let mut writing = stream.try_clone().expect("it is shared");
        let writer = run.peer(move || {
            writing.write_all(&pattern(BYTES)).expect("it is read");
            writing.shutdown(Shutdown::Write)
        });
        (run.peer(move || read_pattern(stream)), writer)
    };
    for (reader, writer) in [both(near), both(far)].into_iter().collect::<Vec<_>>() {
        run.note_value("received", reader.join());
        run.note("sent", writer.join());
    }
}

pub fn slices_are_gathered_and_scattered<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    let slices = [&b"one "[..], b"", b"two ", b"three"].map(IoSlice::new);
    run.note("write", near.write_vectored(&slices));
    let (mut first, mut second, mut third) = ([0; 3], [0; 2], [0; 64]);
    let mut buffers = [&mut first[..], &mut [], &mut second, &mut third].map(IoSliceMut::new);
    run.note("read", far.read_vectored(&mut buffers));
    run.note_value("buffers", (first, second, &third[..8]));
    drop(near);
    run.note("end", far.read_vectored(&mut [IoSliceMut::new(&mut [0])]));
}

pub fn no_slices_and_empty_ones<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = used_pair::<S>(run);
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("read in vain", near.read(&mut [0]));
    near.set_read_timeout(None).expect("it may be set");
    run.note("write no slices", near.write_vectored(&[]));
    run.note("write empty ones", near.write_vectored(&[IoSlice::new(&[]); 2]));
    run.note("read into no buffers", near.read_vectored(&mut []));
    run.note("read into empty ones", near.read_vectored(&mut [IoSliceMut::new(&mut [])]));
    far.write_all(b"abc").expect("there is room");
    run.note("read into no buffers", near.read_vectored(&mut []));
    run.note("read", near.read_exact(&mut [0; 3]));
    drop(far);
    run.note("read into no buffers at the end", near.read_vectored(&mut []));
    run.note("end", near.read(&mut [0; 3]));
}

/// A call takes the first 1024 slices, which says nothing of how much room or how many bytes are left.
pub fn more_slices_than_the_kernel_takes<S: Stream>(run: &mut Run) {
    const SLICES: usize = 3 * SLICES_MAX + 5;
    let (mut near, far) = used_pair::<S>(run);
    let bytes = pattern(SLICES);
    let mut slices: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        let written = near.write_vectored(slices);
        run.note("write", written.as_ref().copied().map_err(|error| error.kind().into()));
        IoSlice::advance_slices(&mut slices, written.expect("there is room"));
    }
    let reader = run.peer(move || {
        let (mut far, mut all, mut counts) = (far, Vec::new(), Vec::new());
        while all.len() < SLICES {
            let mut buffer = [0; SLICES];
            let mut buffers: Vec<_> = buffer.chunks_mut(1).map(IoSliceMut::new).collect();
            let count = far.read_vectored(&mut buffers).expect("it has come");
            all.extend_from_slice(&buffer[..count]);
            counts.push(count <= SLICES_MAX);
        }
        (all == pattern(SLICES), counts.iter().all(|&few| few))
    });
    run.note_value("read", reader.join());
}

pub fn many_large_slices<S: Stream>(run: &mut Run) {
    const BYTES: usize = 1 << 20;
    let (mut near, far) = used_pair::<S>(run);
    let reader = run.peer(move || {
        let (mut far, mut count) = (far, 0);
        let mut buffers = vec![vec![0; 1 << 16]; 8];
        loop {
            let mut buffers: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            match far.read_vectored(&mut buffers).expect("no error") {
                0 => return count,
                more => count += more,
            }
        }
    });
    let bytes = vec![7; BYTES];
    let mut slices = vec![IoSlice::new(&bytes); 2 * SLICES_MAX / 16];
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        let written = near.write_vectored(slices).expect("it is read");
        IoSlice::advance_slices(&mut slices, written);
    }
    drop(near);
    run.note_value("received", reader.join());
}

pub fn a_request_ends_and_its_answer_comes<S: Stream>(run: &mut Run) {
    let (mut near, far) = S::pair();
    let server = run.peer(move || {
        let (mut far, mut request) = (far, String::new());
        far.read_to_string(&mut request).expect("it ends");
        far.write_all(request.to_uppercase().as_bytes()).expect("this half is open");
    });
    run.note("request", near.write_all(b"request"));
    run.note("shut", near.shutdown(Shutdown::Write));
    let mut answer = String::new();
    run.note("read", near.read_to_string(&mut answer));
    run.note_value("answer", answer);
    server.join();
}

pub fn a_half_shut_for_writing<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    run.note("shut", near.shutdown(Shutdown::Write));
    run.note("write", near.write(b"x"));
    // The kernel of a busy machine may yet find room after a write was in vain.
    let mut write = || near.write_vectored(&[IoSlice::new(&[0; 1 << 16])]);
    run.note("write slices", std::iter::repeat_with(&mut write).find(Result::is_err).expect("it is full some time"));
    run.note("end", far.read(&mut [0]));
    run.note("the other way", far.write(b"abc"));
    run.note("read", near.read(&mut [0; 8]));
}

pub fn a_half_shut_for_reading<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    run.note("shut", near.shutdown(Shutdown::Read));
    run.note("read", near.read(&mut [0; 8]));
    run.note("write", near.write(b"x"));
    run.note("the other way", far.read(&mut [0; 8]));
    run.note("what the peer may write", far.write(b"y"));
}

pub fn both_halves_shut<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    far.write_all(b"abc").expect("there is room");
    near.read_exact(&mut [0; 3]).expect("it comes");
    run.note("shut", near.shutdown(Shutdown::Both));
    run.note("read", near.read(&mut [0; 8]));
    run.note("write", near.write(b"x"));
    run.note("end", far.read(&mut [0; 8]));
}

pub fn a_shutdown_told_twice<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    for how in [Shutdown::Write, Shutdown::Write, Shutdown::Both, Shutdown::Read] {
        run.note("while the peer is there", near.shutdown(how));
    }
    run.note("end", far.read(&mut [0]));
    run.note("the peer", far.shutdown(Shutdown::Both));
    run.note("end", near.read(&mut [0]));
    for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
        run.note("the peer again", far.shutdown(how));
    }
}

pub fn who_is_dropped_ends<S: Stream>(run: &mut Run) {
    let (mut near, far) = used_pair::<S>(run);
    let reader = run.peer(move || {
        let mut far = far;
        let end = far.read(&mut [0]);
        (end, far)
    });
    near.write_all(b"").expect("there is room");
    drop(near);
    let (end, _far) = reader.join();
    run.note("end", end);
}

pub fn a_peer_that_leaves_bytes_unread_resets<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    near.write_all(b"unread").expect("there is room");
    far.read_exact(&mut [0]).expect("it comes");
    drop(far);
    run.note("read", near.read(&mut [0; 8]));
    run.note("read again", near.read(&mut [0; 8]));
    run.note("write", near.write(b"x"));
    run.note("shut", near.shutdown(Shutdown::Write));
}

pub fn a_reset_while_waiting<S: Stream>(run: &mut Run) {
    let (mut near, far) = used_pair::<S>(run);
    near.write_all(b"unread").expect("there is room");
    let reader = run.peer(move || near.read(&mut [0; 8]));
    let mut far = far;
    far.read_exact(&mut [0]).expect("it comes");
    drop(far);
    run.note("read", reader.join());
}

pub fn an_error_is_taken_once<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    run.note("none", near.take_error().map(|error| error.is_none()));
    near.write_all(b"unread").expect("there is room");
    far.read_exact(&mut [0]).expect("it comes");
    drop(far);
    wait_for_the_end(&near);
    run.note("error", near.take_error().and_then(|error| error.map_or(Ok("none"), Err)));
    run.note("taken", near.take_error().map(|error| error.is_none()));
    run.note("read", near.read(&mut [0; 8]));
}

pub fn a_read_timeout_is_over<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("read", near.read(&mut [0; 8]));
    run.note("read slices", near.read_vectored(&mut [IoSliceMut::new(&mut [0])]));
    run.note("read exactly", near.read_exact(&mut [0; 8]));
    run.note("read to the end", near.read_to_end(&mut Vec::new()));
    far.write_all(b"abc").expect("there is room");
    near.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    run.note("read what came", near.read(&mut [0; 8]));
}

pub fn a_write_timeout_is_over<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    near.set_write_timeout(Some(SHORT)).expect("it may be set");
    run.note("fill", fill(&mut near));
    // The kernel of a busy machine may yet find room after a write was in vain.
    let mut write = || near.write_vectored(&[IoSlice::new(&[0; 1 << 16])]);
    run.note("write slices", std::iter::repeat_with(&mut write).find(Result::is_err).expect("it is full some time"));
    run.note("read", far.read_exact(&mut vec![0; 1 << 16]));
    near.set_write_timeout(None).expect("it may be set");
    let reader = run.peer(move || io::copy(&mut far, &mut io::sink()).map(drop));
    run.note("write when there is room", near.write_all(b"x"));
    drop(near);
    run.note("drain", reader.join());
}

pub fn timeouts_are_kept<S: Stream>(run: &mut Run) {
    let (near, _far) = S::pair();
    run.note("at first", near.read_timeout());
    run.note("at first", near.write_timeout());
    for seconds in [1, 60, 1_000_000] {
        let timeout = Some(Duration::from_secs(seconds));
        run.note("set", near.set_read_timeout(timeout));
        run.note("read", near.read_timeout());
        run.note("set", near.set_write_timeout(timeout.map(|timeout| timeout * 2)));
        run.note("write", near.write_timeout());
    }
    run.note("unset", near.set_read_timeout(None));
    run.note("read", near.read_timeout());
    run.note("write", near.write_timeout());
}

pub fn timeouts_of_zero_are_refused<S: Stream>(run: &mut Run) {
    let (near, _far) = S::pair();
    near.set_read_timeout(Some(DEADLINE)).expect("it may be set");
    run.note("read", near.set_read_timeout(Some(Duration::ZERO)));
    run.note("write", near.set_write_timeout(Some(Duration::ZERO)));
    run.note("as before", near.read_timeout());
    run.note("as before", near.write_timeout());
}

pub fn timeouts_without_end<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    run.note("set", near.set_read_timeout(Some(Duration::MAX)));
    run.note("set", near.set_write_timeout(Some(Duration::MAX)));
    run.note("read", near.read_timeout());
    run.note("write", near.write_timeout());
    let writer = run.peer(move || far.write_all(b"x"));
    run.note("read", near.read_exact(&mut [0]));
    run.note("write", writer.join());
}

pub fn timeouts_are_shared_by_clones<S: Stream>(run: &mut Run) {
    let (near, _far) = S::pair();
    let mut clone = near.try_clone().expect("it is shared");
    near.set_read_timeout(Some(Duration::from_secs(3))).expect("it may be set");
    run.note("of the clone", clone.read_timeout());
    clone.set_write_timeout(Some(Duration::from_secs(4))).expect("it may be set");
    run.note("of the first", near.write_timeout());
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("read", clone.read(&mut [0]));
}

pub fn a_non_blocking_stream_never_waits<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = used_pair::<S>(run);
    run.note("set", near.set_nonblocking(true));
    run.note("read", near.read(&mut [0]));
    run.note("read slices", near.read_vectored(&mut [IoSliceMut::new(&mut [0])]));
    run.note("fill", fill(&mut near));
    run.note("write", near.write(b"x"));
    // The kernel of a busy machine may yet find room after a write was in vain.
    let mut write = || near.write_vectored(&[IoSlice::new(&[0; 1 << 16])]);
    run.note("write slices", std::iter::repeat_with(&mut write).find(Result::is_err).expect("it is full some time"));
    run.note("set back", near.set_nonblocking(false));
    let writer = run.peer(move || {
        far.write_all(b"abc").expect("there is room");
        far
    });
    run.note("read", near.read_exact(&mut [0; 3]));
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("read in vain", near.read(&mut [0]));
    drop(writer.join());
}

pub fn a_mode_is_shared_by_clones<S: Stream>(run: &mut Run) {
    let (near, _far) = S::pair();
    let mut clone = near.try_clone().expect("it is shared");
    near.set_nonblocking(true).expect("it may be set");
    run.note("read", clone.read(&mut [0]));
    let mut later = clone.try_clone().expect("it is shared");
    run.note("read by a clone of the clone", later.read(&mut [0]));
    drop(near);
    run.note("read when the first has gone", clone.read(&mut [0]));
}

pub fn clones_share_the_position<S: Stream>(run: &mut Run) {
    let (mut near, mut far) = S::pair();
    let mut clone = near.try_clone().expect("it is shared");
    far.write_all(b"abcdef").expect("there is room");
    let mut buffers = [[0; 2]; 3];
    run.note("read", near.read_exact(&mut buffers[0]));
    run.note("read by the clone", clone.read_exact(&mut buffers[1]));
    run.note("read", near.read_exact(&mut buffers[2]));
    run.note_value("bytes", buffers);
}

pub fn a_clone_keeps_the_stream_open<S: Stream>(run: &mut Run) {
    let (near, mut far) = S::pair();
    let mut clone = near.try_clone().expect("it is shared");
    drop(near);
    run.note("write", clone.write_all(b"still here"));
    drop(clone);
    let mut text = String::new();
    run.note("read", far.read_to_string(&mut text));
    run.note_value("text", text);
}

pub fn a_shutdown_reaches_all_clones<S: Stream>(run: &mut Run) {
    let (near, _far) = used_pair::<S>(run);
    let mut clone = near.try_clone().expect("it is shared");
    let reader = run.peer(move || {
        let end = clone.read(&mut [0]);
        (end, clone.write(b"x"))
    });
    near.shutdown(Shutdown::Both).expect("it is connected");
    let (read, written) = reader.join();
    run.note("read", read);
    run.note("write", written);
}

pub fn descriptors_are_handed_on<S: Stream>(run: &mut Run) {
    let (near, mut far) = used_pair::<S>(run);
    let number = near.as_raw_fd();
    run.note_value("one descriptor", near.as_fd().as_raw_fd() == number);
    near.set_read_timeout(Some(Duration::from_secs(3))).expect("it may be set");
    let descriptor: OwnedFd = near.into();
    run.note_value("the same", descriptor.as_raw_fd() == number);
    let mut near = S::from(descriptor);
    run.note_value("the same", near.as_raw_fd() == number);
    run.note("timeout", near.read_timeout());
    near.set_read_timeout(Some(SHORT)).expect("it may be set");
    run.note("read in vain", near.read(&mut [0]));
    far.write_all(b"abc").expect("there is room");
    near.set_read_timeout(None).expect("it may be set");
    run.note("read", near.read_exact(&mut [0; 3]));
    near.set_nonblocking(true).expect("it may be set");
    let mut near = S::from(near.into());
    run.note("write", near.write(b"d"));
    run.note("as std's peer", far.read_exact(&mut [0]));
    run.note_value("number", near.into_raw_fd() == number);
}

pub fn what_is_printed<S: Stream>(run: &mut Run) {
    let (near, far) = S::pair();
    run.note_value("printed", without_numbers(&format!("{near:?}")));
    run.note_value("at length", without_numbers(&format!("{far:#?}")));
    near.shutdown(Shutdown::Both).expect("it is connected");
    run.note_value("when shut", without_numbers(&format!("{near:?}")));
}
