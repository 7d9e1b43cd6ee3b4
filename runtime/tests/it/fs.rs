//! Files: the same results as std's, and no worker held up.

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use dhaga::fs::{self, File};
use dhaga::{Cancelled, Interrupt, JoinError, Runtime};
use rustix::fs::{Mode, mkfifoat};

use crate::child;
use crate::common::{DEADLINE, everywhere, within_deadline};

/// A folder of the test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("dhaga-fs-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("a file for the test");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a program that uses `$fs` sees, line by line.
macro_rules! transcript {
    ($name:ident, $($fs:ident)::+) => {
        fn $name(folder: &Path) -> Vec<String> {
            use std::os::unix::fs::{DirBuilderExt, DirEntryExt, OpenOptionsExt, PermissionsExt};
            use $($fs)::+ as fs;

            fn tell<T: std::fmt::Debug>(result: std::io::Result<T>) -> String {
                format!("{:?}", result.map_err(|error| (error.kind(), error.raw_os_error())))
            }
            let path = |name: &str| folder.join(name);
            let mut told = Vec::new();
            let mut say = |line: String| told.push(line);

            say(tell(fs::exists(path("a"))));
            say(tell(fs::write(path("a"), "one two three")));
            say(tell(fs::exists(path("a"))));
            say(tell(fs::read(path("a"))));
            say(tell(fs::read_to_string(path("a"))));
            say(tell(fs::read_to_string(path("none"))));
            say(tell(fs::metadata(path("a")).map(|metadata| (metadata.len(), metadata.is_file()))));
            say(tell(fs::copy(path("a"), path("b"))));
            say(tell(fs::rename(path("b"), path("c"))));
            say(tell(fs::hard_link(path("c"), path("d"))));
            say(tell(std::os::unix::fs::symlink("c", path("e"))));
            say(tell(fs::read_link(path("e"))));
            say(tell(fs::symlink_metadata(path("e")).map(|metadata| metadata.file_type().is_symlink())));
            say(tell(fs::canonicalize(path("e")).map(|path| path.file_name().map(ToOwned::to_owned))));
            say(tell(fs::set_permissions(path("c"), fs::Permissions::from_mode(0o640))));
            say(tell(fs::metadata(path("c")).map(|metadata| metadata.permissions().mode() & 0o777)));
            say(tell(fs::create_dir(path("f"))));
            say(tell(fs::create_dir(path("f"))));
            say(tell(fs::create_dir_all(path("f/g/h"))));
            say(tell(fs::remove_dir(path("f"))));
            say(tell(fs::DirBuilder::new().recursive(true).mode(0o700).create(path("i/j"))));
            say(tell(fs::metadata(path("i/j")).map(|metadata| metadata.permissions().mode() & 0o777)));

            let entries = fs::read_dir(folder).map(|entries| {
                let mut entries: Vec<_> = entries
                    .map(|entry| {
                        let entry = entry.expect("it is readable");
                        let (file_type, metadata) = (entry.file_type(), entry.metadata());
                        let is_same = fs::symlink_metadata(entry.path()).is_ok_and(|other| {
                            use std::os::unix::fs::MetadataExt;
                            other.ino() == entry.ino()
                        });
                        (entry.file_name(), tell(file_type), tell(metadata.map(|metadata| metadata.is_dir())), is_same)
                    })
                    .collect();
                entries.sort();
                entries
            });
            say(tell(entries));
            say(tell(fs::read_dir(path("none")).map(drop)));
            say(tell(fs::remove_file(path("d"))));
            say(tell(fs::remove_file(path("d"))));
            say(tell(fs::remove_dir_all(path("f"))));

            let mut file = fs::File::create_new(path("k")).expect("it is new");
            say(tell(fs::File::create_new(path("k")).map(drop)));
            say(tell(file.write(b"hello world")));
            say(tell(file.write_vectored(&[std::io::IoSlice::new(b"!"), std::io::IoSlice::new(b"?")])));
            say(tell(write!(file, " {} {}", 1, "two")));
            say(tell(file.flush()));
            say(tell(file.stream_position()));
            say(tell(file.seek(SeekFrom::Start(6))));
            let mut buffer = [0; 5];
            say(tell(file.read(&mut buffer)));
            say(format!("{buffer:?}"));
            say(tell(file.seek(SeekFrom::End(-3))));
            say(tell(file.read(&mut buffer)));
            say(tell(file.read(&mut buffer)));
            say(tell(file.read(&mut [])));
            say(tell(file.read_at(&mut buffer, 2)));
            say(format!("{buffer:?}"));
            say(tell(file.read_exact_at(&mut buffer, 15)));
            say(tell(file.read_at(&mut buffer, u64::MAX)));
            say(tell(file.write_at(b"J", 0)));
            say(tell(file.write_all_at(b"....", 30)));
            say(tell(file.rewind()));
            let mut all = vec![7];
            say(tell(file.read_to_end(&mut all)));
            say(format!("{all:?}"));
            let mut text = "x".to_owned();
            say(tell(file.read_to_string(&mut text)));
            say(tell(file.rewind()));
            say(tell(file.read_to_string(&mut text)));
            say(text);
            let (mut one, mut two) = ([0; 3], [0; 4]);
            say(tell(file.rewind()));
            let mut slices = [std::io::IoSliceMut::new(&mut one), std::io::IoSliceMut::new(&mut two)];
            say(tell(file.read_vectored(&mut slices)));
            say(format!("{one:?} {two:?}"));
            say(tell(file.set_len(4)));
            say(tell(file.metadata().map(|metadata| metadata.len())));
            say(tell(file.sync_all().and_then(|()| file.sync_data())));
            let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
            say(tell(file.set_times(fs::FileTimes::new().set_accessed(time))));
            say(tell(file.set_modified(time)));
            say(tell(file.metadata().and_then(|metadata| Ok((metadata.modified()? == time, metadata.accessed()? == time)))));
            say(tell(file.set_permissions(fs::Permissions::from_mode(0o400))));
            let mut twin = file.try_clone().expect("there are descriptors");
            say(tell(twin.seek(SeekFrom::Start(1)).and_then(|_| file.stream_position())));
            say(tell(fs::File::open(path("none")).map(drop)));
            say(tell(fs::File::open(folder).and_then(|mut folder| folder.read(&mut [0; 3]))));
            say(tell(fs::File::open(path("c")).and_then(|mut file| file.write(b"no"))));
            say(tell(fs::write(path("l"), [0xff, 0xfe])));
            say(tell(fs::read_to_string(path("l"))));
            say(tell(fs::File::open(path("l")).and_then(|mut file| file.read_to_string(&mut String::new()))));
            let appending = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path("m"));
            say(tell(appending.and_then(|mut file| {
                file.write_all(b"one")?;
                file.rewind()?;
                file.write_all(b"two")
            })));
            say(tell(fs::read(path("m"))));
            say(tell(fs::OpenOptions::new().open(path("m")).map(drop)));
            told
        }
    };
}

transcript!(with_std, std::fs);
transcript!(with_ours, dhaga::fs);

#[test]
fn all_results_are_those_of_std() {
    everywhere(|| {
        let (theirs, ours) = (Folder::new(), Folder::new());
        let (theirs, ours) = (with_std(&theirs.0), with_ours(&ours.0));
        for (line, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
            assert_eq!(theirs, ours, "line {line}");
        }
        assert_eq!(theirs.len(), ours.len());
    });
}

#[test]
fn a_large_directory_is_listed_whole() {
    everywhere(|| {
        let folder = Folder::new();
        // No, one and two fetches, and the edges between them.
        for count in [0, 1, 255, 256, 257, 600] {
            let inner = folder.0.join(count.to_string());
            std::fs::create_dir(&inner).expect("a folder");
            (0..count).for_each(|n| std::fs::write(inner.join(n.to_string()), "").expect("a file"));
            let names: std::collections::HashSet<_> =
                fs::read_dir(inner).expect("it is there").map(|entry| entry.expect("readable").file_name()).collect();
            assert_eq!(names.len(), count);
        }
    });
}

#[test]
fn large_reads_and_those_of_other_file_systems_are_whole() {
    everywhere(|| {
        let folder = Folder::new();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let path = folder.file("large", &bytes);
        let mut file = File::open(&path).expect("it is there");
        let mut read = Vec::new();
        assert_eq!(file.read_to_end(&mut read).expect("readable"), bytes.len());
        assert!(read == bytes);
        for size in [1000, 65_536, 65_537, 1 << 20] {
            file.rewind().expect("it has a start");
            let (mut read, mut buffer) = (Vec::new(), vec![0; size]);
            loop {
                match file.read(&mut buffer).expect("readable") {
                    0 => break,
                    count => read.extend_from_slice(&buffer[..count]),
                }
            }
            assert!(read == bytes, "by {size}");
        }
        let name = fs::read_to_string("/proc/self/comm").expect("it is there");
        let mut again = String::new();
        File::open("/proc/self/comm").expect("it is there").read_to_string(&mut again).expect("readable");
        assert!(!name.is_empty() && !again.is_empty());
        let mut file = File::open("/proc/self/status").expect("it is there");
        let (mut status, mut buffer) = (Vec::new(), [0; 64]);
        while let count @ 1.. = file.read(&mut buffer).expect("readable") {
            status.extend_from_slice(&buffer[..count]);
        }
        assert!(status.starts_with(b"Name:") && status.ends_with(b"\n"));
    });
}

/// A FIFO, whose open and whose reads last until the test says so, as those of a slow disk.
struct Slow {
    path: PathBuf,
    _folder: Folder,
}

impl Slow {
    fn new() -> Self {
        let folder = Folder::new();
        let path = folder.0.join("fifo");
        mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).expect("a FIFO");
        Self { path, _folder: folder }
    }

    /// Both ends: what is read from the first one must be written to the other.
    fn open(&self) -> (File, std::fs::File) {
        let both = std::fs::OpenOptions::new().read(true).write(true).open(&self.path).expect("it is there");
        (both.try_clone().expect("a descriptor").into(), both)
    }
}

#[test]
fn an_operation_that_has_begun_goes_on_to_its_end_into_the_callers_buffer() {
    child::succeeds(child::name_of!(an_operation_that_has_begun_goes_on_to_its_end_into_the_callers_buffer), || {
        let slow = Slow::new();
        let (mut reader, mut writer) = slow.open();
        let waiter = dhaga::spawn(move || {
            let mut buffer = [0; 8];
            let count = reader.read(&mut buffer);
            (count.map_err(|error| error.kind()), buffer, dhaga::is_cancelled())
        });
        until_in_a_read();
        waiter.cancel();
        assert!(!waiter.is_finished());
        writer.write_all(b"late").expect("it has room");
        let (count, buffer, is_cancelled) = waiter.join().expect("it ends well");
        assert_eq!((count, &buffer[..4], is_cancelled), (Ok(4), &b"late"[..], true));
    });
}

/// Returns when a thread of the pool is in the kernel, reading a FIFO. For children: elsewhere it may be that of another test.
fn until_in_a_read() {
    while !is_in_a_read() {
        thread::yield_now();
    }
}

fn is_in_a_read() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").expect("a list of threads");
    tasks.flatten().any(|task| {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        // `read` and `readv`, of x86-64 and of aarch64.
        let is_read = |number: &str| ["0", "19", "63", "65"].contains(&number);
        read("comm") == "dhaga-blocking\n" && read("syscall").split(' ').next().is_some_and(is_read)
    })
}

#[test]
fn operations_that_never_end_keep_out_no_others() {
    /// More than go at once.
    const OPENS: usize = 40;
    child::succeeds(child::name_of!(operations_that_never_end_keep_out_no_others), || {
        let slow = Slow::new();
        let opens = (0..OPENS).map(|_| {
            let path = slow.path.clone();
            dhaga::spawn(move || File::open(path).map(drop))
        });
        let opens = opens.collect::<Vec<_>>();
        while dhaga::blocking_pool().stats().threads < OPENS {
            thread::yield_now();
        }
        let other = dhaga::spawn(|| fs::read("/proc/self/stat"));
        assert!(!other.join().expect("it ends well").expect("it is read").is_empty());
        assert!(opens.iter().all(|open| !open.is_finished()), "nobody writes");
        let _writer = std::fs::OpenOptions::new().write(true).open(&slow.path).expect("there are readers");
        opens.into_iter().for_each(|open| open.join().expect("it ends well").expect("it is opened"));
    });
}

#[test]
fn the_scope_is_looked_at_before_an_operation_begins() {
    everywhere(|| {
        let folder = Folder::new();
        let path = folder.file("a", b"a");
        let mut file = File::open(&path).expect("it is there");
        let new = folder.0.join("new");
        dhaga::scope(|s| {
            s.cancel();
            let is_cancelled = |error: std::io::Error| {
                error.kind() == ErrorKind::Other && error.get_ref().is_some_and(|cause| cause.is::<Cancelled>())
            };
            assert!(fs::write(&new, "x").is_err_and(is_cancelled));
            assert!(file.read(&mut [0; 4]).is_err_and(is_cancelled), "also when it is in the page cache");
            assert!(File::open(&path).is_err_and(is_cancelled));
        });
        let late = dhaga::within(Duration::ZERO, || fs::write(&new, "x"));
        assert_eq!(late.expect_err("it is late").kind(), ErrorKind::TimedOut);
        assert!(!new.exists());
    });
}

#[test]
fn an_operation_that_waits_for_a_thread_is_withdrawn() {
    child::succeeds(child::name_of!(an_operation_that_waits_for_a_thread_is_withdrawn), || {
        let folder = Folder::new();
        let ((starts, started), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
        dhaga::blocking_pool().set_threads_max(1);
        let jam = dhaga::spawn_blocking(move || {
            starts.send(()).expect("the test listens");
            ended.recv()
        });
        started.recv().expect("it begins");
        let path = folder.0.join("never");
        let write = |path: PathBuf| move || fs::write(path, "x").map_err(|error| error.to_string());
        let late = write(path.clone());
        let late = dhaga::spawn(move || dhaga::within(Duration::from_millis(5), late)).join().expect("it ends well");
        assert!(late.is_err_and(|text| text.contains("deadline")));
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let unwound = write(path.clone());
        let unwound = runtime.spawn(move || dhaga::uncancellable(unwound));
        while dhaga::blocking_pool().stats().queued == 0 {
            thread::yield_now();
        }
        runtime.shutdown(Duration::ZERO).expect("it does not wait for a thread");
        assert!(matches!(unwound.join(), Err(JoinError::Unwound)));
        drop(end);
        jam.join().expect("it ends").expect_err("nothing was sent");
        dhaga::spawn_blocking(|| ()).join().expect("the pool goes on");
        assert!(!path.exists());
    });
}

#[test]
fn a_shutdown_waits_for_what_has_begun_before_it_unwinds() {
    child::succeeds(child::name_of!(a_shutdown_waits_for_what_has_begun_before_it_unwinds), || {
        let slow = Slow::new();
        let (mut reader, mut writer) = slow.open();
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let unwound = Arc::new(AtomicBool::new(false));
        let has_unwound = unwound.clone();
        let waiter = runtime.spawn(move || {
            struct Tell(Arc<AtomicBool>);
            impl Drop for Tell {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::SeqCst);
                }
            }
            let _tell = Tell(has_unwound);
            let mut buffer = [0; 8];
            dhaga::uncancellable(|| reader.read(&mut buffer))
        });
        until_in_a_read();
        thread::scope(|s| {
            let ending = s.spawn(|| runtime.shutdown(Duration::ZERO));
            // The order to unwind comes after the second in which it may end by its cancel.
            thread::sleep(dhaga::CANCEL_GRACE + Duration::from_millis(200));
            assert!(!unwound.load(Ordering::SeqCst), "its buffer is in use");
            writer.write_all(b"late").expect("it has room");
            ending.join().expect("no panic").expect("it ends after all");
        });
        assert!(unwound.load(Ordering::SeqCst));
        assert!(matches!(waiter.join(), Err(JoinError::Unwound)));
    });
}

#[test]
fn what_never_ends_is_reported_by_the_shutdown() {
    child::succeeds(child::name_of!(what_never_ends_is_reported_by_the_shutdown), || {
        let slow = Slow::new();
        let (mut reader, _writer) = slow.open();
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        dhaga::Builder::new().name("reader").spawn_on(&runtime, move || reader.read(&mut [0])).expect("room").detach();
        until_in_a_read();
        let error = runtime.shutdown(Duration::ZERO).expect_err("it never ends");
        assert!(error.to_string().contains("\"reader\"") && error.to_string().contains("Blocking"), "{error}");
    });
}

#[test]
fn while_the_stack_unwinds_files_are_used_in_place() {
    everywhere(|| {
        struct Note(PathBuf);
        impl Drop for Note {
            fn drop(&mut self) {
                fs::write(&self.0, "good-bye").expect("it is done in place");
            }
        }
        let folder = Folder::new();
        let path = folder.0.join("note");
        let note = Note(path.clone());
        let panicked = std::panic::catch_unwind(move || {
            let _note = note;
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.is_err());
        assert_eq!(fs::read_to_string(path).expect("it was written"), "good-bye");
    });
}

#[test]
fn a_wait_for_a_file_is_refused_where_no_wait_was_promised() {
    within_deadline(DEADLINE, || {
        let folder = Folder::new();
        let path = folder.file("a", b"abc");
        let refused = dhaga::spawn(move || {
            let mut file = File::open(&path).expect("it is there");
            let _promise = dhaga::no_suspend();
            // What is in memory needs no wait, unless this file system cannot say so.
            let _ = file.seek(SeekFrom::Start(1)).expect("no wait");
            fs::metadata(&path).map(drop)
        });
        let error = refused.join().expect_err("it panics").to_string();
        assert!(error.contains("Blocking"), "{error}");
    });
}

#[test]
fn a_thousand_files_are_read_at_once_on_one_worker_while_a_ticker_goes_on() {
    const FILES: usize = 1000;
    within_deadline(DEADLINE, || {
        let folder = Folder::new();
        let paths: Vec<_> = (0..FILES).map(|n| folder.file(&n.to_string(), &[n as u8; 5000])).collect();
        let slow = Slow::new();
        let (mut reader, mut writer) = slow.open();
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let body = move || {
            // One that lasts until all others are done: no worker may wait for it.
            let last = dhaga::spawn(move || {
                let mut byte = [0];
                reader.read_exact(&mut byte).map(|()| byte)
            });
            let readers: Vec<_> = paths
                .into_iter()
                .map(|path| {
                    dhaga::spawn(move || {
                        let mut file = File::open(path)?;
                        let (mut bytes, mut buffer) = (Vec::new(), [0; 777]);
                        while let count @ 1.. = file.read(&mut buffer)? {
                            bytes.extend_from_slice(&buffer[..count]);
                        }
                        Ok::<_, std::io::Error>(bytes)
                    })
                })
                .collect();
            let (ticks, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let (ticking, is_over) = (ticks.clone(), over.clone());
            let ticker = dhaga::spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    dhaga::sleep(Duration::from_micros(100));
                    ticking.fetch_add(1, Ordering::SeqCst);
                }
            });
            for (n, reader) in readers.into_iter().enumerate() {
                assert_eq!(reader.join().expect("it ends well").expect("readable"), vec![n as u8; 5000]);
            }
            while ticks.load(Ordering::SeqCst) < 10 {
                dhaga::yield_now();
            }
            assert!(!last.is_finished());
            writer.write_all(b"z").expect("it has room");
            assert_eq!(last.join().expect("it ends well").expect("readable"), *b"z");
            over.store(true, Ordering::SeqCst);
            ticker.join().expect("it ends well");
        };
        runtime.spawn(body).join().expect("the body ends well");
    });
}

#[test]
fn what_the_page_cache_has_needs_no_thread() {
    child::succeeds(child::name_of!(what_the_page_cache_has_needs_no_thread), || {
        let folder = Folder::new();
        let path = folder.file("a", &[7; 100_000]);
        let probe = std::fs::File::open(&path).expect("it is there");
        let mut bytes = [0; 10];
        let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
        if rustix::io::preadv2(&probe, &mut slices, 0, rustix::io::ReadWriteFlags::NOWAIT).is_err() {
            return println!("this file system or kernel cannot say what is in memory");
        }
        let mut file = File::open(&path).expect("it is there");
        let ((starts, started), (_end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
        dhaga::blocking_pool().set_threads_max(1);
        dhaga::spawn_blocking(move || {
            starts.send(()).expect("the test listens");
            ended.recv()
        })
        .detach();
        started.recv().expect("it begins");
        let read = dhaga::spawn(move || {
            let _promise = dhaga::no_suspend();
            let mut buffer = vec![0; 50_000];
            file.read_exact(&mut buffer)?;
            file.read_exact_at(&mut buffer[..7], 99_993)?;
            file.seek(SeekFrom::Start(100_000))?;
            file.read(&mut buffer)
        });
        assert_eq!(read.join().expect("it ends well").expect("readable"), 0, "the end, too");
    });
}

#[test]
fn one_who_reads_what_is_in_memory_gives_way_to_others() {
    within_deadline(DEADLINE, || {
        let folder = Folder::new();
        let path = folder.file("a", &[7; 60_000]);
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        let (stop, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_over, reads) = (stop.clone(), stopped.clone());
        let greedy = runtime.spawn(move || {
            let file = File::open(path)?;
            let mut buffer = vec![0; 60_000];
            while !is_over.load(Ordering::SeqCst) {
                file.read_exact_at(&mut buffer, 0)?;
                reads.fetch_add(1, Ordering::SeqCst);
            }
            Ok::<_, std::io::Error>(())
        });
        while stopped.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        // The only worker comes to this one although the other never waits.
        runtime.spawn(move || stop.store(true, Ordering::SeqCst)).join().expect("it has its turn");
        greedy.join().expect("it ends well").expect("readable");
    });
}

#[test]
fn no_descriptor_is_left() {
    child::succeeds(child::name_of!(no_descriptor_is_left), || {
        fn open_descriptors() -> usize {
            std::fs::read_dir("/proc/self/fd").expect("a list").count()
        }
        let folder = Folder::new();
        let path = folder.file("a", b"abc");
        let next = AtomicUsize::new(0);
        let work = move || {
            let file = File::open(&path).expect("it is there");
            let twin = file.try_clone().expect("a descriptor");
            assert!(fs::read_dir(path.parent().expect("it has one")).expect("readable").count() >= 1);
            drop(OwnedFd::from(twin));
            drop(std::fs::File::from(file));
            let copy = path.with_extension(next.fetch_add(1, Ordering::Relaxed).to_string());
            fs::copy(&path, &copy).expect("it is copied");
            fs::remove_file(&copy).expect("it is there");
            let _ = dhaga::within(Duration::ZERO, || File::open(&path));
        };
        let work = Arc::new(work);
        // The runtime has its own, which stay.
        let first = work.clone();
        dhaga::spawn(move || first()).join().expect("it ends well");
        let before = open_descriptors();
        let dhagas: Vec<_> = (0..100).map(|_| work.clone()).map(|work| dhaga::spawn(move || work())).collect();
        dhagas.into_iter().for_each(|dhaga| drop(dhaga.join()));
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn a_deadline_between_two_pieces_ends_a_long_read() {
    everywhere(|| {
        let mut endless = File::open("/dev/zero").expect("it is there");
        let mut bytes = Vec::new();
        let late = dhaga::within(Duration::from_millis(1), || endless.read_to_end(&mut bytes));
        let error = late.expect_err("it would never end");
        assert!(matches!(
            error.get_ref().and_then(|cause| cause.downcast_ref()),
            Some(Interrupt::DeadlineExceeded { .. })
        ));
        assert_eq!(bytes.len() % (1 << 20), 0, "what was read is there");
    });
}

/// A deadline between two pieces of a long read is such an error.
#[test]
fn what_was_read_of_a_text_before_an_error_is_not_lost() {
    fn check(bytes: &[u8]) {
        let read = |reader: &mut dyn Read| {
            let mut text = "before ".to_owned();
            let error = reader.read_to_string(&mut text).map_err(|error| error.kind());
            (error, text)
        };
        let pipe = || {
            let (reader, mut writer) = pipe().expect("a test can make a pipe");
            rustix::io::ioctl_fionbio(&reader, true).expect("it has the mode");
            writer.write_all(bytes).expect("it has room");
            (OwnedFd::from(reader), writer)
        };
        let (theirs, _open) = pipe();
        let (ours, _open_too) = pipe();
        assert_eq!(read(&mut File::from(ours)), read(&mut std::fs::File::from(theirs)));
    }
    everywhere(|| {
        check(b"half");
        check(b"");
        check(b"half \xff");
    });
}
