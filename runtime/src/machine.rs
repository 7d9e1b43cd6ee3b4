//! What this machine lets the process use: cores, memory and address space, containers included.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Assumed where the kernel tells nothing: a small machine.
const MEMORY_FALLBACK_BYTES: u64 = 1 << 30;

/// What the process might use before a thread of it was pinned.
#[derive(Clone, Copy)]
struct Unpinned {
    cores: usize,
    affinity: CpuSet,
}

static UNPINNED: OnceLock<Unpinned> = OnceLock::new();

thread_local! {
    /// This thread was pinned here, so that its affinity is not that of the process.
    static IS_PINNED: Cell<bool> = const { Cell::new(false) };
}

/// Cores that the process may use: the smaller of its affinity and its cgroup's quota (of either version), one at least.
pub(crate) fn cores() -> usize {
    match UNPINNED.get() {
        Some(unpinned) if IS_PINNED.get() => unpinned.cores,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// The cores that the caller's affinity names, or those of the process if the caller was pinned to one.
pub(crate) fn core_numbers() -> io::Result<Vec<usize>> {
    let affinity = match UNPINNED.get() {
        Some(unpinned) if IS_PINNED.get() => unpinned.affinity,
        _ => sched_getaffinity(None)?,
    };
    Ok((0..CpuSet::MAX_CPU).filter(|core| affinity.is_set(*core)).collect())
}

/// Keeps the calling thread on one core.
pub(crate) fn pin_to(core: usize) -> io::Result<()> {
    let affinity = sched_getaffinity(None)?;
    UNPINNED.get_or_init(|| Unpinned { cores: cores(), affinity });
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only)?;
    IS_PINNED.set(true);
    Ok(())
}

/// The body of a new thread that shall run wherever the process may, also when the caller is pinned: threads inherit.
pub(crate) fn unpinned<R>(body: impl FnOnce() -> R) -> impl FnOnce() -> R {
    let inherits = IS_PINNED.get();
    move || {
        if inherits {
            unpin();
        }
        body()
    }
}

fn unpin() {
    if let Some(unpinned) = UNPINNED.get() {
        // Refused if the process has lost these cores since, and then the thread stays where it is.
        let _ = sched_setaffinity(None, &unpinned.affinity);
    }
}

/// Lets the kernel make room for so many descriptors now. Returns for how many there is room: the limit may be lower.
pub(crate) fn reserve_descriptors(count: usize) -> io::Result<usize> {
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    let count = count.min(limit.unwrap_or(usize::MAX)).min(i32::MAX as usize);
    let (any, _) = io::pipe()?;
    // The table grows to hold the number, and does not shrink when the descriptor is closed, which is at once.
    fcntl_dupfd_cloexec(&any, count.saturating_sub(1) as i32)?;
    Ok(count)
}

/// Memory that the process could still take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: u64,
    pub(crate) source: MemorySource,
}

/// Whose memory it is that ends first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MemorySource {
    Machine,
    Cgroup,
    /// The kernel told nothing.
    Assumed,
}

impl fmt::Display for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemorySource::Machine => "the machine's available memory",
            MemorySource::Cgroup => "what its cgroup has left of memory",
            MemorySource::Assumed => "memory that is assumed, since the kernel does not tell",
        })
    }
}

/// The smaller of what the machine and what the process's cgroup has left.
pub(crate) fn memory() -> Memory {
    let of = |source| move |bytes| Memory { bytes, source };
    let machine = read("/proc/meminfo").and_then(|text| available_bytes(&text)).map(of(MemorySource::Machine));
    let cgroup = read("/proc/self/cgroup").and_then(|text| cgroup_bytes(&text)).map(of(MemorySource::Cgroup));
    let assumed = Memory { bytes: MEMORY_FALLBACK_BYTES, source: MemorySource::Assumed };
    machine.into_iter().chain(cgroup).min_by_key(|memory| memory.bytes).unwrap_or(assumed)
}

/// Bytes of address space that the process could still take; `None` where nothing limits it.
pub(crate) fn address_space_bytes() -> Option<u64> {
    let limit = getrlimit(Resource::As).current?;
    let pages: u64 = read("/proc/self/statm")?.split(' ').next()?.parse().ok()?;
    Some(limit.saturating_sub(pages * rustix::param::page_size() as u64))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// What is left in the process's cgroup, itself or one above it, in the hierarchy of version 2 or in that of version 1.
fn cgroup_bytes(membership: &str) -> Option<u64> {
    let unified = membership.lines().find_map(|line| line.strip_prefix("0::/"));
    let unified = unified.map(|path| left_in(Path::new("/sys/fs/cgroup"), path, "memory.max", "memory.current"));
    let first = membership.lines().find_map(|line| line.split_once(":memory:/"));
    let first = first.map(|(_, path)| {
        let root = Path::new("/sys/fs/cgroup/memory");
        left_in(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    });
    unified.into_iter().chain(first).flatten().min()
}

/// The least that is left in a folder or one above it.
fn left_in(root: &Path, path: &str, limit: &str, usage: &str) -> Option<u64> {
    let number = |folder: &Path, name: &str| read(folder.join(name))?.trim().parse::<u64>().ok();
    let left = |folder: &Path| Some(number(folder, limit)?.saturating_sub(number(folder, usage)?));
    root.join(path).ancestors().take_while(|folder| folder.starts_with(root)).filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kibibytes() {
        let check = |text, expected| assert_eq!(available_bytes(text), expected, "{text:?}");
        check("MemTotal: 9 kB\nMemAvailable:    2048 kB\n", Some(2 << 20));
        check("MemTotal: 9 kB\n", None);
        check("MemAvailable: many kB\n", None);
    }

    #[test]
    fn the_tightest_cgroup_counts() {
        let root = std::env::temp_dir().join(format!("dhaga-cgroup-{}", std::process::id()));
        let inner = root.join("outer/inner");
        fs::create_dir_all(&inner).expect("a folder for the test");
        let write = |folder: &str, limit: &str, usage: &str| {
            fs::write(root.join(folder).join("limit"), limit).expect("a file");
            fs::write(root.join(folder).join("usage"), usage).expect("a file");
        };
        let left = || left_in(&root, "outer/inner", "limit", "usage");
        assert_eq!(left(), None);
        write("outer/inner", "max\n", "5\n");
        assert_eq!(left(), None);
        write("outer", "100\n", "30\n");
        assert_eq!(left(), Some(70));
        write("outer/inner", "50\n", "60\n");
        assert_eq!(left(), Some(0));
        fs::remove_dir_all(&root).expect("it was made above");
    }

    #[test]
    fn this_machine_has_a_core_and_some_memory() {
        assert!(cores() >= 1);
        let memory = memory();
        assert!(memory.bytes > 1 << 20 && memory.source != MemorySource::Assumed, "{memory:?}");
    }
}
