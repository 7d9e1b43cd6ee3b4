//! What this machine lets the process use: cores and memory, containers included.

use std::fs;
use std::path::Path;

/// Assumed where the kernel tells nothing: a small machine.
const MEMORY_FALLBACK_BYTES: u64 = 1 << 30;

/// Cores that the process may use: the smaller of its affinity and its cgroup's quota, one at least.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of memory that the process could still take: the smaller of what the machine and what its cgroup has left.
pub(crate) fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_bytes(&text));
    let machine = machine.unwrap_or(MEMORY_FALLBACK_BYTES);
    cgroup_bytes().map_or(machine, |cgroup| cgroup.min(machine))
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// What is left in the process's cgroup (version 2), itself or one above it.
fn cgroup_bytes() -> Option<u64> {
    let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    root.join(path).ancestors().take_while(|folder| folder.starts_with(root)).filter_map(left_in).min()
}

fn left_in(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
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
    fn this_machine_has_a_core_and_some_memory() {
        assert!(cores() >= 1);
        assert!(memory_bytes() > 1 << 20);
    }
}
