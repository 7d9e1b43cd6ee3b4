//! Children that nobody waits for any more. One thread collects what the kernel keeps of them when they end, so that no zombie
//! stays; there is one only while there are such children, and it sleeps in the kernel until one of them ends.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use slab::Slab;

use crate::machine;

/// Ends taken from the kernel at once. What is over comes the next time.
const EVENTS_MAX: usize = 64;

static NURSERY: Mutex<Option<Nursery>> = Mutex::new(None);

/// What the thread looks after. There is one as long as the thread runs.
struct Nursery {
    epoll: Arc<OwnedFd>,
    children: Slab<Orphan>,
}

struct Orphan {
    pid: Pid,
    /// Readable when the child has ended. Closing it ends the watch.
    _pidfd: OwnedFd,
}

/// Takes over a child that has not ended, as far as the caller knows.
///
/// # Errors
///
/// The process has no descriptor or no thread left: the child stays a zombie from its end to that of this process.
pub(super) fn adopt(pid: Pid, pidfd: OwnedFd) -> io::Result<()> {
    let mut nursery = lock();
    if let Some(nursery) = &mut *nursery {
        return nursery.add(pid, pidfd);
    }
    let mut new = Nursery { epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?), children: Slab::new() };
    new.add(pid, pidfd)?;
    let epoll = new.epoll.clone();
    // It cannot look before the nursery is there, since we hold the lock.
    thread::Builder::new().name("dhaga-orphans".to_owned()).spawn(machine::unpinned(move || collect(&epoll)))?;
    *nursery = Some(new);
    Ok(())
}

impl Nursery {
    fn add(&mut self, pid: Pid, pidfd: OwnedFd) -> io::Result<()> {
        let entry = self.children.vacant_entry();
        let data = epoll::EventData::new_u64(entry.key() as u64);
        epoll::add(&self.epoll, &pidfd, data, epoll::EventFlags::IN)?;
        entry.insert(Orphan { pid, _pidfd: pidfd });
        Ok(())
    }

    /// Collects a child that has ended.
    fn collect(&mut self, key: usize) {
        let has_ended = |orphan: &Orphan| !matches!(waitpid(Some(orphan.pid), WaitOptions::NOHANG), Ok(None));
        if self.children.get(key).is_some_and(has_ended) {
            self.children.remove(key);
        }
    }
}

fn collect(epoll: &OwnedFd) {
    let mut events = Vec::with_capacity(EVENTS_MAX);
    loop {
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("epoll_wait of a live descriptor and a live buffer cannot fail: {error}"),
        }
        let mut nursery = lock();
        let current = nursery.as_mut().expect("it goes with this thread");
        for event in events.drain(..) {
            current.collect(event.data.u64() as usize);
        }
        if current.children.is_empty() {
            *nursery = None;
            return;
        }
    }
}

fn lock() -> MutexGuard<'static, Option<Nursery>> {
    NURSERY.lock().unwrap_or_else(PoisonError::into_inner)
}
