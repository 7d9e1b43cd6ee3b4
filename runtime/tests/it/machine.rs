//! What a runtime takes from the machine: cores and descriptors.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsRawFd;

use dhaga::Runtime;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::child;

fn cores() -> Vec<usize> {
    let affinity = sched_getaffinity(None).expect("the kernel tells");
    (0..CpuSet::MAX_CPU).filter(|core| affinity.is_set(*core)).collect()
}

/// The cores that each worker may use.
fn cores_of_workers(runtime: &Runtime) -> HashSet<Vec<usize>> {
    let threads = fs::read_dir("/proc/self/task").expect("the kernel tells").filter_map(Result::ok);
    let mut found = HashSet::new();
    for thread in threads {
        let is_worker = fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("dhaga-"));
        let id = thread.file_name().to_str().and_then(|id| id.parse().ok()).and_then(rustix::process::Pid::from_raw);
        if is_worker {
            let affinity = sched_getaffinity(id).expect("the kernel tells");
            found.insert((0..CpuSet::MAX_CPU).filter(|core| affinity.is_set(*core)).collect());
        }
    }
    assert!(runtime.workers() > 0, "the runtime lives meanwhile");
    found
}

#[test]
fn there_are_as_many_workers_as_cores_in_the_affinity() {
    child::succeeds(child::name_of!(there_are_as_many_workers_as_cores_in_the_affinity), || {
        assert!(Runtime::builder().build().expect("a runtime").workers() <= cores().len());
        let mut one = CpuSet::new();
        one.set(cores()[0]);
        sched_setaffinity(None, &one).expect("a thread may give cores up");
        let runtime = Runtime::builder().build().expect("a runtime");
        assert_eq!(runtime.workers(), 1);
        assert_eq!(cores_of_workers(&runtime), [vec![cores()[0]]].into());
    });
}

#[test]
fn pinned_workers_have_a_core_each_and_others_do_not() {
    child::succeeds(child::name_of!(pinned_workers_have_a_core_each_and_others_do_not), || {
        let cores = cores();
        let runtime = Runtime::builder().workers(cores.len() + 1).pin_workers(true).build().expect("a runtime");
        let each: HashSet<_> = cores.iter().map(|core| vec![*core]).collect();
        assert_eq!(cores_of_workers(&runtime), each);
        // Whoever blocks may do so anywhere, and a runtime that starts on a pinned worker counts all cores.
        let (of_blocking, workers) = runtime
            .spawn(|| {
                let of_blocking = dhaga::blocking(self::cores).expect("it runs");
                let inner = Runtime::builder().name("inner").build().expect("a runtime");
                assert_eq!(inner.spawn(self::cores).join().expect("it ends"), of_blocking);
                (of_blocking, inner.workers())
            })
            .join()
            .expect("it ends");
        assert_eq!(of_blocking, cores);
        assert!((1..=cores.len()).contains(&workers) && (workers > 1 || cores.len() == 1), "{workers} workers");
        drop(runtime);
        let runtime = Runtime::builder().workers(1).build().expect("a runtime");
        assert_eq!(cores_of_workers(&runtime), [cores].into());
    });
}

/// Descriptors that the kernel's table has room for.
fn table_size() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("the kernel tells");
    line.trim().parse().expect("a number")
}

#[test]
fn expected_descriptors_are_made_room_for_at_the_start() {
    child::succeeds(child::name_of!(expected_descriptors_are_made_room_for_at_the_start), || {
        let open = fs::read_dir("/proc/self/fd").expect("the kernel tells").count();
        assert!(table_size() < 900, "the table is small at first");
        let runtime = Runtime::builder().workers(1).expected_descriptors(900).build().expect("a runtime");
        assert!((900..4000).contains(&table_size()), "{}", table_size());
        drop(runtime);
        assert_eq!(fs::read_dir("/proc/self/fd").expect("the kernel tells").count(), open);

        // More than the limit is no error, and what is allowed is made room for.
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum.map_or(Some(5000), |maximum| Some(maximum.min(5000)));
        setrlimit(Resource::Nofile, limit).expect("up to the hard limit");
        let _runtime = Runtime::builder().workers(1).expected_descriptors(1 << 30).build().expect("a runtime");
        assert!(table_size() as u64 >= limit.current.expect("it was set"), "{}", table_size());
        fs::File::open("/dev/null").map(|file| assert!(file.as_raw_fd() < 100)).expect("there are descriptors");
    });
}
