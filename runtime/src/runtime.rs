//! A runtime: its workers, how they start, where a dhaga from outside goes, and how all of it ends.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::audit::Audit;
use crate::fork;
use crate::front::Front;
use crate::job::Job;
use crate::machine;
use crate::overflow;
use crate::panic_message;
use crate::reactor::Reactor;
use crate::run_queue::{Injector, Message};
use crate::scheduler::{Shared, Worker, in_forked_child, run_worker, worker};
use crate::shutdown::{Ending, ShutdownError, shut_down};
use crate::stack::{
    Guards, HighWater, STACK_BYTES_MAX, STACK_BYTES_MIN, StackPool, guards_here, protected_max, stacks_in,
};

pub use crate::stack::{STACK_BYTES_DEFAULT, StackUse};

/// What a parked dhaga takes at least: a page of stack, its share of page tables, and the runtime's own books.
const TASK_BYTES: u64 = 5 << 10;
/// Workers of one runtime at most: a bound on nonsense, far above what a machine has.
const WORKERS_MAX: usize = 1024;

/// Workers with their dhagas. Most programs never name one: [`spawn`](crate::spawn) starts the default runtime at first use.
///
/// [`Runtime::shutdown`] ends a runtime in good order. Dropping one does the same without the first phase: its dhagas are
/// cancelled, so that code that holds something across a wait can hand it back, and what that does not end is unwound. What
/// has not stopped then is left alone and logged. Dhagas unwind in no special order: a `Drop` that locks a mutex which
/// another dhaga of the same worker holds aborts the process, as in any unwinding. So let the waits under a lock be of those
/// that can fail, which end before anything unwinds, or hold no lock across a wait that a `Drop` needs. The default
/// runtime is not shut down at process exit, just as std does not join threads.
///
/// # Panics
///
/// Dropping a runtime inside one of its own dhagas panics: it would wait for itself.
///
/// # Examples
///
/// ```
/// let runtime = dhaga::Runtime::builder().workers(1).build()?;
/// assert_eq!(runtime.spawn(|| 6 * 7).join()?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Runtime {
    shared: Arc<Shared>,
    high_water: Arc<HighWater>,
    /// Empty once it was shut down.
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// How a [`Runtime`] shall be.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `build`"]
pub struct RuntimeBuilder {
    workers: Option<usize>,
    stack_bytes: usize,
    tasks_max: Option<usize>,
    name: String,
    guards: Guards,
    pins_workers: bool,
    descriptors: usize,
}

impl RuntimeBuilder {
    /// OS threads that run dhagas. Default: one a core that the process may use, by its affinity and cgroup quota.
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = Some(count);
        self
    }

    /// Bytes of address space of a stack, guard included. Default: [`STACK_BYTES_DEFAULT`].
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_bytes = bytes;
        self
    }

    /// Dhagas that may live at once, started or not; beyond it [`Builder::spawn`](crate::Builder::spawn) is an error.
    /// Default: three quarters of the available memory at 5 KiB each. Workers reserve in lots, so up to an eighth of the
    /// limit may be held back, and room is free again a moment after the dhaga that took it was joined.
    pub fn tasks_max(mut self, count: usize) -> Self {
        self.tasks_max = Some(count);
        self
    }

    /// First part of the names of the workers' OS threads. Default: `dhaga`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Keeps each worker on a core of its own, in the order of the process's affinity, beginning anew when there are more
    /// workers than cores. Default: the kernel moves them as it likes.
    ///
    /// Worth it where the process has its cores to itself: then no worker shares one, and caches stay warm. Elsewhere a
    /// pinned worker waits for whoever else runs on its core. OS threads that a dhaga starts inherit its worker's core;
    /// those of [`blocking`](crate::blocking()) do not.
    pub fn pin_workers(mut self, pins: bool) -> Self {
        self.pins_workers = pins;
        self
    }

    /// Descriptors that the process is going to have open at once: sockets, most of all. Default: 0, no preparation.
    ///
    /// The kernel's table of descriptors doubles when it is full, and in a process with several threads the call that
    /// makes it grow waits until all processors have passed through the kernel. Opening 19 000 descriptors met seven such
    /// waits of up to 20 ms, 100 ms together, in which a worker does nothing else; with this, none, and the slowest call
    /// took 0.15 ms (`benches/descriptors.rs`, two cores). It takes some milliseconds once, before the workers start, and
    /// 8 bytes a descriptor of the kernel's memory.
    ///
    /// `RLIMIT_NOFILE` is not raised. Where it is lower, that is logged as a warning.
    pub fn expected_descriptors(mut self, count: usize) -> Self {
        self.descriptors = count;
        self
    }

    /// For tests: guards that take `mprotect`, as on kernels that know nothing better.
    #[doc(hidden)]
    pub fn protect_guards(mut self) -> Self {
        self.guards = Guards::Protect;
        self
    }

    /// Starts the workers, and logs at `info` what there is room for, and which limit says so.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: no worker, more than 1024, a limit of no dhagas, or a stack that cannot be given. Otherwise what the
    /// kernel said when it was asked for a thread, an epoll, an eventfd, a core, or the first stack of each worker.
    ///
    /// `Unsupported`: this process was forked from one that had a runtime; see [`SpawnError::Forked`].
    pub fn build(self) -> io::Result<Runtime> {
        fork::watch(in_forked_child)?;
        panic_message::name_dhagas();
        let cores = machine::cores();
        let workers = self.workers.unwrap_or(cores);
        let limit = Limit::new(self.tasks_max);
        let tasks_max = limit.tasks;
        let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        if workers == 0 || workers > WORKERS_MAX || tasks_max == 0 {
            return refuse(format!(
                "a runtime needs 1 to {WORKERS_MAX} workers and room for a dhaga, not {workers} and {tasks_max}"
            ));
        }
        if !(STACK_BYTES_MIN..=STACK_BYTES_MAX).contains(&self.stack_bytes) {
            return refuse(format!(
                "a stack takes {STACK_BYTES_MIN} to {STACK_BYTES_MAX} bytes, not {}",
                self.stack_bytes
            ));
        }
        if self.descriptors > 0 {
            reserve_descriptors(self.descriptors);
        }
        let shared = Arc::new(Shared::new(workers, tasks_max, self.stack_bytes, workers <= cores));
        let mut runtime = Runtime { shared, high_water: Arc::default(), threads: Mutex::default() };
        runtime.start(workers, &self)?;
        log::info!(
            "runtime {:?} has started: {workers} workers for {cores} cores; room for {limit}; {}",
            self.name,
            StacksHere::new(self.stack_bytes, self.guards)
        );
        Ok(runtime)
    }
}

fn reserve_descriptors(expected: usize) {
    match machine::reserve_descriptors(expected) {
        Ok(count) if count < expected => log::warn!(
            "{expected} descriptors are expected and RLIMIT_NOFILE allows {count}: raise it (ulimit -n), or some will be refused"
        ),
        Ok(_) => {}
        Err(error) => log::warn!("no room for {expected} descriptors could be made beforehand: {error}"),
    }
}

/// How many dhagas may live, and where that comes from.
struct Limit {
    tasks: usize,
    /// `None`: the builder.
    memory: Option<machine::Memory>,
}

impl Limit {
    /// As asked for, otherwise as many as fit into three quarters of the memory that is left.
    fn new(asked: Option<usize>) -> Self {
        if let Some(tasks) = asked {
            return Self { tasks, memory: None };
        }
        let memory = machine::memory();
        let tasks = usize::try_from(memory.bytes / 4 * 3 / TASK_BYTES).unwrap_or(usize::MAX).max(1);
        Self { tasks, memory: Some(memory) }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} dhagas ", self.tasks)?;
        match &self.memory {
            None => f.write_str("(as asked for)"),
            Some(memory) => write!(f, "(three quarters of {}, {} MiB)", memory.source, memory.bytes >> 20),
        }
    }
}

/// What stacks are like here, and how many can be out at once where something other than memory ends them: a dhaga that
/// starts beyond that never runs.
struct StacksHere {
    bytes: usize,
    guards: Guards,
    /// How many, and by which limit.
    max: Option<(usize, &'static str)>,
}

impl StacksHere {
    fn new(bytes: usize, asked: Guards) -> Self {
        let guards = guards_here(asked);
        let mappings = (guards == Guards::Protect).then(|| (protected_max(), "vm.max_map_count"));
        let space = machine::address_space_bytes().map(|left| (stacks_in(left, bytes), "RLIMIT_AS"));
        Self { bytes, guards, max: mappings.into_iter().chain(space).min_by_key(|(count, _)| *count) }
    }
}

impl std::fmt::Display for StacksHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let guards = match self.guards {
            Guards::Install => "MADV_GUARD_INSTALL",
            Guards::Protect => "mprotect",
        };
        write!(f, "stacks of {} KiB, guarded by {guards}", self.bytes >> 10)?;
        match self.max {
            Some((count, limit)) => write!(f, ", {count} at once at most ({limit})"),
            None => Ok(()),
        }
    }
}

impl Runtime {
    /// Sets out to build a runtime.
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder {
            workers: None,
            stack_bytes: STACK_BYTES_DEFAULT,
            tasks_max: None,
            name: "dhaga".to_owned(),
            guards: Guards::Install,
            pins_workers: false,
            descriptors: 0,
        }
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.shared.workers
    }

    /// Dhagas that live now, started or not. A snapshot of counters that move meanwhile.
    pub fn tasks(&self) -> usize {
        self.shared.tasks()
    }

    /// Dhagas that may live at once: what [`RuntimeBuilder::tasks_max`] asked for, or what the memory had room for at the
    /// start.
    pub fn tasks_max(&self) -> usize {
        self.shared.tasks_max
    }

    /// How deep dhagas have used their stacks, by the place where they were spawned; the deepest first. Those that
    /// [`with_big_stack`](crate::with_big_stack) lends them count by the place of its call, and so do those for the polls of
    /// [`block_on`](crate::block_on), which are as large as the caller's: it needs room for the deeper of the two.
    ///
    /// Measured by samples when they end: each second dhaga of a worker at first, then ever fewer, down to one of 4096. So a
    /// place that has spawned few may be missing, and one deep dhaga among many shallow ones may have been missed. Choose
    /// [`Builder::stack_size`](crate::Builder::stack_size) with room above what this says: at least twice, and 16 KiB for
    /// the guard, which counts as part of the size. Up to 512 places are kept. Locked memory is not measured.
    ///
    /// # Examples
    ///
    /// ```
    /// let runtime = dhaga::Runtime::builder().workers(1).build()?;
    /// for _ in 0..10 {
    ///     runtime.spawn(|| std::hint::black_box([7_u8; 50_000])[0]).join()?;
    /// }
    /// for site in runtime.stack_high_water() {
    ///     println!("{}: {} of {} bytes ({} samples)", site.site, site.used_bytes, site.stack_bytes, site.samples);
    /// }
    /// # assert!(runtime.stack_high_water()[0].used_bytes >= 50_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stack_high_water(&self) -> Vec<StackUse> {
        self.high_water.sites()
    }

    /// Ends all dhagas in good order, and waits for them. At first they may finish:
    ///
    /// 1. **Drain.** From the call on, spawns from outside the runtime are refused with [`SpawnError::ShuttingDown`], and an
    ///    accept of its dhagas ends with [`ShuttingDown`](crate::ShuttingDown). The dhagas may spawn what their work needs,
    ///    and ask [`is_shutting_down`](crate::is_shutting_down). They have `grace` to end, but for those in the background
    ///    ([`Builder::detached`](crate::Builder::detached)), which hold nothing up.
    /// 2. **Cancel.** What is left then, the background included, is cancelled: waits that can fail return
    ///    [`Interrupt::Cancelled`](crate::Interrupt::Cancelled). `sleep` and `yield_now`, which cannot say so, unwind their
    ///    dhaga, since a loop of them would otherwise go on at full speed. Code in an
    ///    [`uncancellable`](crate::uncancellable) section is not reached. This lasts [`CANCEL_GRACE`](crate::CANCEL_GRACE) at
    ///    most.
    /// 3. **Unwind.** What is left now unwinds: each wait in it throws, so that its `Drop` code runs. What has not started
    ///    never runs. This lasts [`SHUTDOWN_GRACE`](crate::SHUTDOWN_GRACE) at most. Where panics abort it is left out.
    ///
    /// Each phase is over as soon as nothing is left that it waits for. A dhaga in the background that computes without a wait
    /// does hold the drain up, since its worker cannot say what else it has.
    ///
    /// Another call, at the same time or later, waits as well. Parks a dhaga of another runtime, blocks a plain thread.
    ///
    /// # Errors
    ///
    /// Who did not stop, and what each waits for; it is also logged. Their OS threads and stacks are left as they are, since
    /// to free them would pull stacks away under running code.
    ///
    /// # Panics
    ///
    /// Inside a dhaga of this runtime, and in a process that was forked from the one that built it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let runtime = dhaga::Runtime::builder().workers(1).build()?;
    /// let work = runtime.spawn(|| {
    ///     dhaga::sleep(Duration::from_millis(5));
    ///     "finished"
    /// });
    /// runtime.shutdown(Duration::from_secs(30))?; // takes no longer than the work
    /// assert_eq!(work.join()?, "finished");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shutdown(&self, grace: Duration) -> Result<(), ShutdownError> {
        fork::assert_not_forked();
        self.stop(Ending::Drain(grace))
    }

    /// Whether a [`shutdown`](Runtime::shutdown) has begun. Its own dhagas ask [`is_shutting_down`](crate::is_shutting_down()).
    pub fn is_shutting_down(&self) -> bool {
        self.shared.is_shutting_down()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn start(&mut self, workers: usize, builder: &RuntimeBuilder) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        let started = self.start_threads(workers, builder, sender);
        let doors = started.and_then(|()| receiver.iter().collect::<io::Result<Vec<_>>>());
        // On an error the threads that did start find no doors, and end.
        let (mut doors, result) = doors.map_or_else(|error| (Vec::new(), Err(error)), |doors| (doors, Ok(())));
        // As their threads are numbered, not as these were ready.
        doors.sort_by_key(|(number, _)| *number);
        let (injectors, fronts): (Vec<_>, Vec<_>) = doors.into_iter().map(|(_, door)| door).unzip();
        assert!(self.shared.fronts.set(fronts.into()).is_ok(), "a runtime starts once");
        assert!(self.shared.injectors.set(injectors.into()).is_ok(), "a runtime starts once");
        result
    }

    fn start_threads(&mut self, workers: usize, builder: &RuntimeBuilder, doors: mpsc::Sender<Door>) -> io::Result<()> {
        let cores = if builder.pins_workers { machine::core_numbers()? } else { Vec::new() };
        for index in 0..workers {
            let (shared, doors) = (self.shared.clone(), doors.clone());
            let (guards, high_water) = (builder.guards, self.high_water.clone());
            let core = cores.iter().cycle().nth(index).copied();
            let thread = thread::Builder::new().name(format!("{}-{index}", builder.name));
            let run = machine::unpinned(move || {
                run_thread(index, shared, StackPool::measured(guards, high_water), core, doors);
            });
            self.threads().push(thread.spawn(run)?);
        }
        Ok(())
    }

    fn stop(&self, ending: Ending) -> Result<(), ShutdownError> {
        let inside = worker().is_some_and(|worker| Arc::ptr_eq(&worker.shared, &self.shared));
        assert!(
            !inside || thread::panicking(),
            "a runtime cannot be shut down or dropped inside one of its own dhagas: it would wait for itself"
        );
        let result = shut_down(&self.shared, if inside { Ending::Abandon } else { ending });
        let threads = std::mem::take(&mut *self.threads());
        match &result {
            Ok(()) => {
                threads.into_iter().for_each(|thread| thread.join().expect("a worker catches what its dhagas throw"))
            }
            Err(error) => log::error!("{error}"),
        }
        result
    }

    fn threads(&self) -> MutexGuard<'_, Vec<thread::JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if fork::check().is_err() {
            // The threads are the parent's: here are only their names, and nothing to stop.
            std::mem::forget(std::mem::take(&mut *self.threads()));
        }
        let is_running = !self.threads().is_empty();
        if is_running {
            // It was logged.
            let _ = self.stop(Ending::Cancel);
        }
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("workers", &self.workers())
            .field("tasks", &self.tasks())
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Asks each worker what it holds; `None` if one does not answer within `patience`. Blocks the OS thread.
    #[doc(hidden)]
    pub fn audit(&self, patience: Duration) -> Option<Audit> {
        let shared = self.shared();
        let answers: Option<Vec<(Audit, usize)>> = shared
            .injectors()
            .iter()
            .map(|injector| {
                let (sender, answer) = mpsc::channel();
                injector.push(Message::Audit(sender)).ok()?;
                answer.recv_timeout(patience).ok()
            })
            .collect();
        let (counts, unused): (Vec<_>, Vec<_>) = answers?.into_iter().unzip();
        let free = shared.credit() + unused.iter().sum::<usize>();
        Some(Audit { reserved: shared.tasks_max.saturating_sub(free), ..counts.into_iter().sum() })
    }
}

/// The number of a worker, and how others reach it.
type Door = io::Result<(usize, (&'static Injector, Arc<Front>))>;

/// The life of a worker's OS thread.
fn run_thread(number: usize, shared: Arc<Shared>, stacks: StackPool, core: Option<usize>, doors: mpsc::Sender<Door>) {
    let (worker, front) = match prepare(shared.clone(), stacks, core) {
        Ok(prepared) => prepared,
        Err(error) => {
            // Nobody hears it if another worker failed first: the runtime is not built either way.
            let _ = doors.send(Err(error));
            return;
        }
    };
    let _ = doors.send(Ok((number, (worker.injector, front))));
    drop(doors);
    if shared.injectors.wait().is_empty() {
        worker.return_first_stack();
        worker.injector.hang_up();
        return worker.injector.retire();
    }
    overflow::install();
    overflow::ensure_alternate_stack();
    run_worker(worker);
}

/// Makes the worker of this OS thread, with all that it needs before it can run anything.
fn prepare(shared: Arc<Shared>, stacks: StackPool, core: Option<usize>) -> io::Result<(Worker, Arc<Front>)> {
    core.map_or(Ok(()), machine::pin_to)?;
    let (reactor, doorbell) = Reactor::new()?;
    let front = Arc::new(Front::new(reactor));
    let worker = Worker::new(shared, front.clone(), doorbell, stacks);
    if let Err(error) = worker.take_first_stack() {
        worker.injector.hang_up();
        worker.injector.retire();
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, error));
    }
    Ok((worker, front))
}

/// The runtime of everybody who names none: started at first use, never shut down.
///
/// # Panics
///
/// When the kernel refuses its threads or descriptors: nothing could run.
pub(crate) fn default_runtime() -> &'static Runtime {
    static DEFAULT: OnceLock<Runtime> = OnceLock::new();
    DEFAULT.get_or_init(|| match Runtime::builder().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            panic!("the default runtime cannot start: {error}; build one with dhaga::Runtime::builder() to handle this")
        }
    })
}

/// Why a dhaga was not spawned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnError {
    /// As many dhagas live as the runtime has room for.
    TooMany {
        /// The limit, set by [`RuntimeBuilder::tasks_max`].
        limit: usize,
    },
    /// The stack asked for is larger or smaller than what can be given.
    StackSize {
        /// Bytes asked for with [`Builder::stack_size`](crate::Builder::stack_size).
        bytes: usize,
    },
    /// The runtime is being shut down, and takes nothing on from outside.
    ShuttingDown,
    /// The caller is a plain thread, or names a worker that is not there.
    NoWorker,
    /// This process was forked from one that had a runtime, whose threads do not live here: only an exec is safe now. Start
    /// programs with [`std::process::Command`], or fork before the first runtime is built.
    Forked {
        /// The process that built the runtime.
        owner: u32,
    },
}

impl std::fmt::Display for SpawnError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooMany { limit } => write!(
                f,
                "the runtime's limit of {limit} dhagas is reached; wait for some to end, or raise it with RuntimeBuilder::tasks_max"
            ),
            Self::StackSize { bytes } => write!(
                f,
                "a stack of {bytes} bytes cannot be given: Builder::stack_size takes {} to {}",
                STACK_BYTES_MIN, STACK_BYTES_MAX
            ),
            Self::NoWorker => f.write_str(
                "this spawn needs a worker and was called on a plain thread; call it inside a dhaga, or use spawn",
            ),
            Self::Forked { owner } => f.write_str(&fork::words(*owner)),
            Self::ShuttingDown => f.write_str("the runtime is being shut down and takes nothing on from outside"),
        }
    }
}

impl std::error::Error for SpawnError {}

/// The kinds are those that std's spawn has: `WouldBlock` at a limit, `InvalidInput` for a stack that cannot be.
impl From<SpawnError> for io::Error {
    fn from(error: SpawnError) -> Self {
        let kind = match error {
            SpawnError::TooMany { .. } => io::ErrorKind::WouldBlock,
            SpawnError::StackSize { .. } => io::ErrorKind::InvalidInput,
            SpawnError::Forked { .. } => io::ErrorKind::Unsupported,
            SpawnError::ShuttingDown | SpawnError::NoWorker => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Queues a dhaga: in the runtime given, else in the caller's, else in the default one.
#[inline(always)]
pub(crate) fn submit(runtime: Option<&Runtime>, job: Job) -> Result<(), SpawnError> {
    match worker() {
        Some(worker) if runtime.is_none_or(|runtime| Arc::ptr_eq(&runtime.shared, &worker.shared)) => {
            if !worker.take_credit() {
                return Err(SpawnError::TooMany { limit: worker.shared.tasks_max });
            }
            worker.shared.note_spawn(&job);
            worker.push_fresh(job);
            Ok(())
        }
        _ => submit_from_outside(runtime.unwrap_or_else(|| default_runtime()).shared(), job),
    }
}

#[inline(never)]
fn submit_from_outside(shared: &Shared, job: Job) -> Result<(), SpawnError> {
    fork::check().map_err(|owner| SpawnError::Forked { owner })?;
    if shared.is_shutting_down() {
        return Err(SpawnError::ShuttingDown);
    }
    if shared.draw_credit(1) == 0 {
        return Err(SpawnError::TooMany { limit: shared.tasks_max });
    }
    shared.note_spawn(&job);
    let injector = shared.least_loaded().expect("a runtime that was built has a worker");
    injector.push_start(job).map_err(|job| {
        shared.note_end(&job);
        shared.return_credit(1);
        SpawnError::ShuttingDown
    })
}

/// Queues a dhaga that starts on the caller's worker.
pub(crate) fn submit_here(job: Job) -> Result<(), SpawnError> {
    let worker = worker().ok_or(SpawnError::NoWorker)?;
    if !worker.take_credit() {
        return Err(SpawnError::TooMany { limit: worker.shared.tasks_max });
    }
    worker.shared.note_spawn(&job);
    worker.push_local(job);
    Ok(())
}

/// Queues a dhaga that starts on the given worker of the caller's runtime.
pub(crate) fn submit_at(index: usize, job: Job) -> Result<(), SpawnError> {
    let worker = worker().ok_or(SpawnError::NoWorker)?;
    let injector = worker.shared.injectors().get(index).ok_or(SpawnError::NoWorker)?;
    if !worker.take_credit() {
        return Err(SpawnError::TooMany { limit: worker.shared.tasks_max });
    }
    worker.shared.note_spawn(&job);
    injector.push(Message::StartHere(job)).map_err(|message| {
        if let Message::StartHere(job) = message {
            worker.shared.note_end(&job);
        }
        worker.return_one_credit();
        SpawnError::ShuttingDown
    })
}
