//! Sockets as futures-util sees them, polled in dhagas and elsewhere.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{future, io, thread};

use dhaga::future::sleep;
use dhaga::net::{Async, TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use futures::executor::ThreadPool;
use futures::future::{Either, join, join_all, select};
use futures::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy};
use futures::stream::{FuturesUnordered, StreamExt};
use futures::task::SpawnExt;

use crate::common::{DEADLINE, connected, in_dhaga, in_dhagas, on_thread, pattern};

/// More than the buffers of both ends of a connection hold at first.
const MORE_THAN_FITS: usize = 4 << 20;

#[test]
fn what_is_written_is_read_and_a_close_is_the_end() {
    in_dhagas(|| {
        let (near, far) = connected();
        dhaga::block_on(to_and_fro(Async::new(near), Async::new(far)));
        let (near, far) = UnixStream::pair().expect("a test can make a pair");
        dhaga::block_on(to_and_fro(Async::new(near), Async::new(far)));
    });
}

#[test]
fn so_it_is_on_plain_threads_and_in_other_executors() {
    on_thread(|| {
        let (near, far) = connected();
        dhaga::block_on(to_and_fro(Async::new(near), Async::new(far)));
        let (near, far) = connected();
        futures::executor::block_on(to_and_fro(Async::new(near), Async::new(far)));
        let (near, far) = UnixStream::pair().expect("a test can make a pair");
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("tokio can start");
        tokio.block_on(async {
            tokio::spawn(to_and_fro(Async::new(near), Async::new(far))).await.expect("the task ends well");
        });
    });
}

/// Both ends write more than fits and read it, at the same time.
async fn to_and_fro<S: AsyncRead + AsyncWrite + Unpin>(near: S, far: S) {
    let data = pattern(MORE_THAN_FITS);
    let end = |stream: S| {
        let (mut reader, mut writer) = stream.split();
        let (mut received, data) = (Vec::new(), &data);
        async move {
            let write = async {
                writer.write_all(data).await?;
                writer.close().await
            };
            let (written, read) = join(write, reader.read_to_end(&mut received)).await;
            written.expect("the peer reads");
            read.expect("the peer writes");
            assert!(received == *data, "bytes are lost or out of order");
        }
    };
    join(end(near), end(far)).await;
}

#[test]
fn a_copy_and_a_buffered_reader_work() {
    in_dhagas(|| {
        let (near, far) = connected();
        let echo = dhaga::spawn(move || {
            let (reader, mut writer) = Async::new(far).split();
            dhaga::block_on(async {
                let copied = copy(reader, &mut writer).await?;
                writer.close().await?;
                io::Result::Ok(copied)
            })
        });
        let lines = dhaga::block_on(async {
            let (reader, mut writer) = Async::new(near).split();
            writer.write_all(b"one\ntwo\nthree").await?;
            writer.close().await?;
            let lines: Vec<_> = BufReader::new(reader).lines().collect().await;
            lines.into_iter().collect::<io::Result<Vec<_>>>()
        });
        assert_eq!(lines.expect("the echo answers"), ["one", "two", "three"]);
        assert_eq!(echo.join().expect("it ends well").expect("nothing fails"), 13);
    });
}

#[test]
fn vectored_calls_fill_and_take_several_buffers() {
    in_dhagas(|| {
        let (near, far) = connected();
        let (mut near, mut far) = (Async::new(near), Async::new(far));
        dhaga::block_on(async {
            let written = near.write_vectored(&[IoSlice::new(b"hel"), IoSlice::new(b"lo")]).await.expect("it has room");
            assert_eq!(written, 5);
            let (mut first, mut second) = ([0; 2], [0; 8]);
            let mut slices = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
            assert_eq!(far.read_vectored(&mut slices).await.expect("something was written"), 5);
            assert_eq!((&first, &second[..3]), (b"he", b"llo".as_slice()));
        });
    });
}

/// The kernel takes 1024 slices at once. What it leaves of others is no sign that the socket is full, or empty.
#[test]
fn more_slices_than_the_kernel_takes_do_not_stop_a_stream() {
    const SLICES: usize = 1500;
    in_dhagas(|| {
        let (near, far) = connected();
        let (mut near, mut far) = (Async::new(near), Async::new(far));
        let passed = dhaga::within(DEADLINE / 6, || {
            dhaga::try_block_on(async {
                // Each has waited once, and makes no attempt from now on before an event has come.
                let mut byte = [0];
                let (read, written) = join(near.read_exact(&mut byte), far.write_all(b"x")).await;
                read.and(written)?;
                let (read, written) = join(far.read_exact(&mut byte), near.write_all(b"x")).await;
                read.and(written)?;
                let mut written = 0;
                while written < SLICES {
                    written += near.write_vectored(&vec![IoSlice::new(b"y"); SLICES - written]).await?;
                }
                let (mut bytes, mut read) = (vec![[0]; SLICES], 0);
                while read < SLICES {
                    let mut slices: Vec<_> = bytes[read..].iter_mut().map(|byte| IoSliceMut::new(byte)).collect();
                    read += far.read_vectored(&mut slices).await?;
                }
                io::Result::Ok(bytes == vec![[b'y']; SLICES])
            })
        });
        assert!(passed.expect("nobody waits for what is there").expect("nothing fails"));
    });
}

/// Each future of it has a waker of its own, which is not ours.
#[test]
fn many_sockets_in_one_dhaga_are_each_woken_by_their_own_waker() {
    const SOCKETS: usize = 200;
    in_dhagas(|| {
        let (nears, fars): (Vec<_>, Vec<_>) = (0..SOCKETS).map(|_| connected()).unzip();
        let reader = dhaga::spawn(move || {
            let mut reads: FuturesUnordered<_> = fars
                .into_iter()
                .map(|far| async {
                    let mut received = String::new();
                    Async::new(far).read_to_string(&mut received).await.map(|_| received)
                })
                .collect();
            dhaga::block_on(async {
                let mut received = Vec::new();
                while let Some(one) = reads.next().await {
                    received.push(one.expect("nothing fails"));
                }
                received
            })
        });
        for (index, mut near) in nears.into_iter().enumerate().rev() {
            write!(near, "{index} ").expect("it has room");
            dhaga::yield_now();
            write!(near, "end").expect("it has room");
        }
        let mut received = reader.join().expect("it ends well");
        received.sort();
        let mut expected: Vec<_> = (0..SOCKETS).map(|index| format!("{index} end")).collect();
        expected.sort();
        assert_eq!(received, expected);
    });
}

/// The waker of the latest poll is woken, and those of other handles as well.
#[test]
fn futures_and_dhagas_that_wait_for_one_socket_are_all_woken() {
    const EACH: usize = 4;
    in_dhagas(|| {
        let (near, mut far) = connected();
        let counted = Arc::new(AtomicUsize::new(0));
        let mut waiting = Vec::new();
        for _ in 0..EACH {
            let (socket, also) = (near.try_clone().expect("it never fails"), near.try_clone().expect("it never fails"));
            let (count, again) = (counted.clone(), counted.clone());
            waiting.push(dhaga::spawn(move || {
                let mut one = [0];
                dhaga::block_on(Async::new(socket).read_exact(&mut one)).expect("a byte comes for each");
                count.fetch_add(1, Ordering::Relaxed);
            }));
            waiting.push(dhaga::spawn(move || {
                (&also).read_exact(&mut [0]).expect("a byte comes for each");
                again.fetch_add(1, Ordering::Relaxed);
            }));
        }
        for _ in 0..2 * EACH {
            dhaga::sleep(Duration::from_millis(1));
            far.write_all(b"x").expect("it has room");
        }
        waiting.into_iter().for_each(|one| one.join().expect("it ends well"));
        assert_eq!(counted.load(Ordering::Relaxed), 2 * EACH);
    });
}

#[test]
fn a_future_that_is_dropped_while_it_waits_takes_nothing_from_others() {
    in_dhagas(|| {
        let (near, mut far) = connected();
        let mut kept = Async::new(near.try_clone().expect("it never fails"));
        dhaga::block_on(async {
            for round in 0..100_u8 {
                let mut dropped = Async::new(near.try_clone().expect("it never fails"));
                let (mut mine, mut theirs) = ([0], [0]);
                let pause = Box::pin(sleep(Duration::from_micros(200)));
                match select(dropped.read_exact(&mut theirs), pause).await {
                    Either::Left(_) => panic!("nothing was written"),
                    Either::Right(((), waiting)) => drop(waiting),
                }
                far.write_all(&[round]).expect("it has room");
                kept.read_exact(&mut mine).await.expect("something was written");
                assert_eq!(mine, [round]);
            }
        });
    });
}

/// As a foreign executor moves a task between its threads.
#[test]
fn a_socket_may_be_polled_by_one_thread_after_another() {
    on_thread(|| {
        let pool = ThreadPool::builder().pool_size(3).create().expect("a test can start threads");
        let pairs = (0..20).map(|_| {
            let (near, far) = connected();
            pool.spawn_with_handle(ping_pong(Async::new(near), Async::new(far))).expect("the pool lives")
        });
        futures::executor::block_on(join_all(pairs));
    });
}

async fn ping_pong(near: Async<TcpStream>, far: Async<TcpStream>) {
    const ROUNDS: u32 = 200;
    let begin = async |mut stream: Async<TcpStream>| {
        for round in 0..ROUNDS {
            stream.write_all(&round.to_ne_bytes()).await.expect("the peer lives");
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).await.expect("the peer answers");
            assert_eq!(u32::from_ne_bytes(answer), round + 1);
        }
    };
    let answer = async |mut stream: Async<TcpStream>| {
        for _ in 0..ROUNDS {
            let mut call = [0; 4];
            stream.read_exact(&mut call).await.expect("the peer calls");
            stream.write_all(&(u32::from_ne_bytes(call) + 1).to_ne_bytes()).await.expect("the peer lives");
        }
    };
    join(begin(near), answer(far)).await;
}

/// What is nested waits in the middle of a poll, and takes no wake from the future around it.
#[test]
fn a_poll_may_wait_by_itself() {
    in_dhagas(|| {
        let (near, far) = connected();
        let (mut near, mut far) = (Async::new(near), Async::new(far));
        let other_side = dhaga::spawn(move || {
            for word in [b"ping", b"pong"] {
                dhaga::block_on(far.write_all(word)).expect("it has room");
                dhaga::sleep(Duration::from_millis(2));
            }
        });
        dhaga::block_on(async {
            let mut word = [0; 4];
            let read = async {
                near.read_exact(&mut word).await.expect("the peer writes");
                near.read_exact(&mut word).await.expect("the peer writes");
            };
            let wait = async {
                for _ in 0..20 {
                    dhaga::sleep(Duration::from_micros(300));
                    let (sender, receiver) = dhaga::sync::oneshot::channel();
                    dhaga::spawn(move || sender.send(())).detach();
                    receiver.recv().expect("it is sent");
                    sleep(Duration::from_micros(100)).await;
                }
            };
            join(read, wait).await;
            assert_eq!(&word, b"pong");
        });
        other_side.join().expect("it ends well");
    });
}

#[test]
fn connections_come_as_a_stream() {
    in_dhagas(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a test can listen");
        let address = listener.local_addr().expect("it is bound");
        let clients = dhaga::spawn(move || {
            (0..10).map(|_| TcpStream::connect(address)).collect::<io::Result<Vec<_>>>().expect("it listens")
        });
        let taken = dhaga::block_on(Async::new(listener).take(10).collect::<Vec<_>>());
        assert!(taken.iter().all(Result::is_ok));
        drop(clients.join());
    });
    in_dhagas(|| {
        let folder = tempfile();
        let listener = UnixListener::bind(&folder).expect("a test can listen");
        let client = {
            let folder = folder.clone();
            dhaga::spawn(move || UnixStream::connect(folder))
        };
        let (stream, _) = dhaga::block_on(Async::new(listener).accept()).expect("a client comes");
        drop((stream, client.join()));
        std::fs::remove_file(folder).expect("it is there");
    });
}

fn tempfile() -> std::path::PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("dhaga-bridge-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    std::env::temp_dir().join(name)
}

#[test]
fn any_socket_tells_when_it_is_ready() {
    in_dhagas(|| {
        let (near, far) = (udp(), udp());
        let mut near = Async::new(near);
        let address = near.get_ref().local_addr().expect("it is bound");
        let sender = dhaga::spawn(move || far.send_to(b"hello", address));
        dhaga::block_on(near.readable()).expect("a datagram comes");
        let mut buffer = [0; 16];
        assert_eq!(near.get_ref().recv(&mut buffer).expect("it is there"), 5);
        dhaga::block_on(near.writable()).expect("there is room");
        assert!(sender.join().expect("it ends well").is_ok());
    });
}

fn udp() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").expect("a test can bind")
}

/// A scope that is over stops an attempt, and `try_block_on` ends the wait.
#[test]
fn a_deadline_ends_a_future_that_reads() {
    in_dhagas(|| {
        let (near, far) = connected();
        let mut near = Async::new(near);
        let read = || dhaga::try_block_on(near.read(&mut [0]));
        let ended = dhaga::within(Duration::from_millis(5), read);
        assert!(matches!(ended, Err(dhaga::Interrupt::DeadlineExceeded { .. })), "{ended:?}");
        drop(far);
    });
}

#[test]
fn a_sleep_is_ready_in_time_wherever_it_is_polled() {
    let check = || {
        let begun = Instant::now();
        dhaga::block_on(async {
            let pauses: FuturesUnordered<_> = (1..20).map(|index| sleep(Duration::from_millis(index))).collect();
            assert_eq!(pauses.count().await, 19);
        });
        assert!(begun.elapsed() >= Duration::from_millis(19));
    };
    in_dhagas(check);
    on_thread(check);
    on_thread(|| futures::executor::block_on(sleep(Duration::from_millis(5))));
}

#[test]
fn a_sleep_that_is_dropped_or_reset_leaves_no_timer() {
    in_dhagas(|| {
        dhaga::block_on(async {
            for _ in 0..1000 {
                let mut long = sleep(Duration::from_secs(3600));
                future::poll_fn(|context| {
                    assert!(std::pin::Pin::new(&mut long).poll(context).is_pending());
                    std::task::Poll::Ready(())
                })
                .await;
                // In both directions: later, then at once.
                long.reset(Instant::now() + Duration::from_secs(7200));
                long.reset(Instant::now());
                long.await;
            }
            let pending = join_all((0..100).map(|_| sleep(Duration::from_secs(3600))));
            match select(pending, sleep(Duration::from_millis(1))).await {
                Either::Left(_) => panic!("an hour has passed"),
                Either::Right(_) => {}
            }
        });
    });
}

/// A future that has armed its timer on one worker, and is polled by a plain thread or dropped by another worker then.
#[test]
fn a_sleep_may_move_between_workers_and_threads() {
    in_dhaga(2, || {
        for round in 0..50_u64 {
            let mut pause = Box::pin(sleep(Duration::from_millis(2)));
            let first = dhaga::spawn(move || {
                dhaga::block_on(future::poll_fn(|context| {
                    let _ = pause.as_mut().poll(context);
                    std::task::Poll::Ready(())
                }));
                pause
            });
            let pause = first.join().expect("it ends well");
            if round % 2 == 0 {
                let thread = thread::spawn(move || futures::executor::block_on(pause));
                dhaga::blocking(move || thread.join()).expect("it is joined").expect("it ends well");
            } else {
                drop(pause);
            }
        }
    });
}

/// A foreign executor's task waits for a socket that a worker watches, and that worker ends.
#[test]
fn a_future_outlives_the_runtime_that_watched_its_socket() {
    on_thread(|| {
        let runtime = dhaga::Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let (near, mut far) = connected();
        let watched = runtime.spawn(move || {
            let mut near = Async::new(near);
            dhaga::block_on(async { assert!(futures::poll!(near.read(&mut [0])).is_pending()) });
            near
        });
        let mut near = watched.join().expect("it ends well");
        let (waits, has_waited) = std::sync::mpsc::channel();
        let reader = thread::spawn(move || {
            let mut byte = [0];
            futures::executor::block_on(async {
                let mut read = near.read_exact(&mut byte);
                assert!(futures::poll!(&mut read).is_pending());
                waits.send(()).expect("the test waits");
                read.await.expect("a byte comes");
            });
            byte
        });
        has_waited.recv().expect("it polls");
        runtime.shutdown(DEADLINE).expect("nothing is left");
        far.write_all(b"x").expect("it has room");
        assert_eq!(&reader.join().expect("it ends well"), b"x");
    });
}
