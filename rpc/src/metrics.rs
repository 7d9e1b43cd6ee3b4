//! What is counted of each method, on either side of a call.
//!
//! Each worker counts for itself, in a shard that no other writes, so that a call costs a few additions and no shared line of
//! a cache. Who asks adds the shards up.
//!
//! ```text
//!   row "add"  ─┬─ shard of worker 0: started, finished, bytes, errors by kind, times
//!   row "get"   ├─ shard of worker 1: …
//!     ⋮         └─ one shard for plain threads and for workers beyond the table
//! ```
//!
//! Reading the clock twice would cost more than all else. So of a quick method each eighth call is timed and counts for
//! eight; a method that is slow, or new, has each of its calls timed.

use std::cmp::Reverse;
use std::fmt::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dhaga::{park, turn};

use crate::extension::PREFIX;

/// Shards that belong to one worker each: more than a machine of today has cores for. The workers beyond share the last one.
const OWN_SHARDS: usize = 64;
/// Calls of a method, on one worker, each of which is timed, however quick they are.
const ALL_TIMED: u64 = 1024;
/// Of how many calls of a quick method one is timed.
const TIMED_OF: u64 = 8;
/// What took longer was slow: reading the clock does not count beside it, not even if most of the time others ran.
const SLOW: Duration = Duration::from_millis(1);

/// 2¹⁰ ns, about a microsecond: what takes less shares one bucket.
const FIRST_OCTAVE: u32 = 10;
/// 2³⁶ ns, a good minute: what takes longer shares one bucket.
const END_OCTAVE: u32 = 36;
/// Buckets of each octave, so that a quantile is right within a quarter.
const PER_OCTAVE: u32 = 4;
const BUCKETS: usize = ((END_OCTAVE - FIRST_OCTAVE) * PER_OCTAVE + 2) as usize;

/// Kinds of errors at most.
const KINDS_MAX: usize = 16;

/// The rows of a server's methods, or of those that a client calls.
pub(crate) struct Table {
    kinds: &'static [&'static str],
    rows: Box<[OnceLock<Row>]>,
    /// For what has no row.
    rest: Row,
}

/// One method.
pub(crate) struct Row {
    name: Box<str>,
    shards: Box<[OnceLock<Box<Shard>>]>,
}

/// What one worker has counted of one method. Only that worker writes, so it needs no atomic additions.
struct Shard {
    started: AtomicU64,
    finished: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    errors: [AtomicU64; KINDS_MAX],
    last_was_slow: AtomicU64,
    nanos: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

/// A call that has begun. It ends where it began: neither a dhaga nor a thread ever becomes another worker's.
pub(crate) struct Begun<'t> {
    shard: &'t Shard,
    is_own: bool,
    /// Which of the shard it is, from 1.
    number: u64,
    timing: Option<Timing>,
}

/// When a call began, and for how many it counts.
#[derive(Clone, Copy, Debug)]
struct Timing {
    began: Instant,
    weight: u64,
}

impl Table {
    /// With a row for each of `names`, in this order, and room for `more`. One without letters is one of the rest, whose row
    /// has such a name.
    pub(crate) fn new<'n>(kinds: &'static [&'static str], names: impl Iterator<Item = &'n str>, more: usize) -> Self {
        debug_assert!(kinds.len() <= KINDS_MAX && (more == 0 || more.is_power_of_two()));
        let row = |name: &str| if name.is_empty() { OnceLock::new() } else { OnceLock::from(Row::new(name)) };
        let rows = names.map(row);
        let rows = rows.chain(std::iter::repeat_with(OnceLock::new).take(more)).collect();
        Self { kinds, rows, rest: Row::new("") }
    }

    /// The row of a method by its number; the one for the rest if there is none.
    #[inline]
    pub(crate) fn row(&self, number: u32) -> &Row {
        self.rows.get(number as usize).and_then(OnceLock::get).unwrap_or(&self.rest)
    }

    /// The row for what has none of its own.
    pub(crate) fn rest(&self) -> &Row {
        &self.rest
    }

    /// The row of a name that is our own program's, made at its first use as long as there is room.
    #[inline]
    pub(crate) fn row_named(&self, name: &str) -> &Row {
        if name.is_empty() {
            return &self.rest;
        }
        let first = hash(name) as usize;
        for step in 0..PROBES_MAX.min(self.rows.len()) {
            let row = &self.rows[(first + step) & (self.rows.len() - 1)];
            let row = row.get().unwrap_or_else(|| row.get_or_init(|| Row::new(name)));
            if &*row.name == name {
                return row;
            }
        }
        &self.rest
    }

    /// What all workers have counted up to now.
    pub(crate) fn snapshot(&self, side: Side) -> Metrics {
        self.snapshot_of_most(side, usize::MAX).0
    }

    /// As [`snapshot`](Self::snapshot), of as many methods as given: those that were called most. Returns also how many it leaves
    /// out.
    pub(crate) fn snapshot_of_most(&self, side: Side, rows_max: usize) -> (Metrics, usize) {
        let rows = self.rows.iter().filter_map(OnceLock::get).map(|row| (row.calls(), row));
        // A server has methods of the protocol that nobody may ever call.
        let mut rows: Vec<_> = rows.filter(|(calls, row)| *calls > 0 || !row.name.starts_with(PREFIX)).collect();
        let left_out = rows.len().saturating_sub(rows_max);
        if left_out > 0 {
            rows.sort_by_key(|(calls, _)| Reverse(*calls));
            rows.truncate(rows_max);
        }
        let mut methods: Vec<_> = rows.into_iter().map(|(_, row)| row.sum(self.kinds)).collect();
        methods.sort_by(|a, b| a.method.cmp(&b.method));
        let rest = self.rest.sum(self.kinds);
        methods.extend((rest.calls > 0).then_some(rest));
        (Metrics { side, methods }, left_out)
    }
}

/// Places that a name may have: so many are looked at before it is one of the rest.
const PROBES_MAX: usize = 16;

/// A hash of names that nobody wants to collide: they are written in the program that calls. It takes in eight bytes from
/// either end.
#[inline]
fn hash(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let (first, last) = match (bytes.first_chunk(), bytes.last_chunk()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => (bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)), 0),
    };
    let word = first ^ last.rotate_left(29) ^ (bytes.len() as u64) << 56;
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}

impl Row {
    fn new(name: &str) -> Self {
        Self { name: name.into(), shards: std::iter::repeat_with(OnceLock::new).take(OWN_SHARDS + 1).collect() }
    }

    /// The shard of the caller's worker, and whether nobody else writes it.
    #[inline]
    fn shard(&self) -> (&Shard, bool) {
        let own = turn::worker_id().map(usize::from).filter(|id| *id < OWN_SHARDS);
        let shard = &self.shards[own.unwrap_or(OWN_SHARDS)];
        (shard.get().map_or_else(|| new_shard(shard), |shard| &**shard), own.is_some())
    }

    /// Counts a call that begins, and notes when if it is one of those that are timed.
    #[inline]
    pub(crate) fn begin(&self) -> Begun<'_> {
        let mut begun = self.begin_untimed();
        begun.timing = begun.shard.timing(begun.number, park::now);
        begun
    }

    #[inline]
    fn begin_untimed(&self) -> Begun<'_> {
        let (shard, is_own) = self.shard();
        Begun { shard, is_own, number: add(&shard.started, 1, is_own), timing: None }
    }

    /// Counts a call that was refused as soon as it came.
    pub(crate) fn refuse(&self, bytes_in: usize, error: u8) {
        self.begin_untimed().end(bytes_in, 0, Some(error));
    }

    fn shards_in_use(&self) -> impl Iterator<Item = &Shard> {
        self.shards.iter().filter_map(OnceLock::get).map(|shard| &**shard)
    }

    /// Calls that have begun.
    fn calls(&self) -> u64 {
        self.shards_in_use().map(|shard| shard.started.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }

    fn sum(&self, kinds: &'static [&'static str]) -> MethodMetrics {
        let mut sum = MethodMetrics { method: self.name.to_string(), ..MethodMetrics::default() };
        let mut finished = 0_u64;
        let mut errors = [0_u64; KINDS_MAX];
        // What has ended is read before what has begun, so that nothing seems to end that has not begun.
        for shard in self.shards_in_use() {
            finished = finished.wrapping_add(shard.finished.load(Ordering::Acquire));
            sum.bytes_in = sum.bytes_in.wrapping_add(shard.bytes_in.load(Ordering::Relaxed));
            sum.bytes_out = sum.bytes_out.wrapping_add(shard.bytes_out.load(Ordering::Relaxed));
            sum.durations.nanos = sum.durations.nanos.wrapping_add(shard.nanos.load(Ordering::Relaxed));
            let both = sum.durations.counts.iter_mut().chain(&mut errors).zip(shard.times.iter().chain(&shard.errors));
            both.for_each(|(sum, count)| *sum += count.load(Ordering::Relaxed));
        }
        sum.calls = self.calls();
        sum.in_flight = sum.calls.saturating_sub(finished);
        sum.errors = kinds.iter().copied().zip(errors).filter(|(_, count)| *count > 0).collect();
        sum
    }
}

impl Begun<'_> {
    /// Counts a call that ends.
    #[inline]
    pub(crate) fn end(self, bytes_in: usize, bytes_out: usize, error: Option<u8>) {
        let Self { shard, is_own, timing, .. } = self;
        add(&shard.finished, 1, is_own);
        add(&shard.bytes_in, bytes_in as u64, is_own);
        add(&shard.bytes_out, bytes_out as u64, is_own);
        if let Some(count) = error.and_then(|kind| shard.errors.get(usize::from(kind))) {
            add(count, 1, is_own);
        }
        if let Some(timing) = timing {
            shard.note(timing, park::now(), is_own);
        }
    }
}

#[cold]
fn new_shard(place: &OnceLock<Box<Shard>>) -> &Shard {
    place.get_or_init(|| Box::new(Shard::new()))
}

/// Adds to a counter that one worker writes, or many. Returns the sum.
#[inline]
fn add(counter: &AtomicU64, more: u64, is_own: bool) -> u64 {
    match is_own {
        true => {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
            counter.store(sum, Ordering::Release);
            sum
        }
        false => counter.fetch_add(more, Ordering::AcqRel).wrapping_add(more),
    }
}

impl Shard {
    fn new() -> Self {
        Self {
            started: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            errors: [const { AtomicU64::new(0) }; KINDS_MAX],
            last_was_slow: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// The timing of a call by its number, if it is timed.
    #[inline]
    fn timing(&self, number: u64, now: impl FnOnce() -> Instant) -> Option<Timing> {
        let weight = match number <= ALL_TIMED || self.last_was_slow.load(Ordering::Relaxed) != 0 {
            true => 1,
            false if number.is_multiple_of(TIMED_OF) => TIMED_OF,
            false => return None,
        };
        Some(Timing { began: now(), weight })
    }

    fn note(&self, timing: Timing, now: Instant, is_own: bool) {
        let took = now.saturating_duration_since(timing.began);
        self.last_was_slow.store(u64::from(took > SLOW), Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&self.nanos, nanos.saturating_mul(timing.weight), is_own);
        add(&self.times[bucket_of(nanos)], timing.weight, is_own);
    }
}

/// The bucket of a time: above the bound of the one before, at most its own.
#[inline]
fn bucket_of(nanos: u64) -> usize {
    let below = nanos.saturating_sub(1);
    let octave = u64::BITS - 1 - (below | 1).leading_zeros();
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let quarter = (below >> (octave - PER_OCTAVE.ilog2())) as u32 % PER_OCTAVE;
    (((octave - FIRST_OCTAVE) * PER_OCTAVE + quarter + 1) as usize).min(BUCKETS - 1)
}

/// Nanoseconds that the times of a bucket have at most; `None` for the last one.
fn bound_of(bucket: usize) -> Option<u64> {
    let steps = u32::try_from(bucket).ok().filter(|_| bucket < BUCKETS - 1)?;
    let (octave, quarter) = (FIRST_OCTAVE + steps / PER_OCTAVE, steps % PER_OCTAVE);
    Some((1 << octave) + u64::from(quarter) * (1 << octave) / u64::from(PER_OCTAVE))
}

/// Whose numbers they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// What has been counted of each method until now; see [`Server::metrics`](crate::Server::metrics) and
/// [`Client::metrics`](crate::Client::metrics).
///
/// # Examples
///
/// ```
/// let server = dhaga_rpc::Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).bind("127.0.0.1:0")?;
/// let client = dhaga_rpc::Client::builder().metrics(true).connect(server.local_addr())?;
/// client.call::<_, i64>("add", (20, 22))?;
/// let metrics = client.metrics();
/// assert_eq!(metrics.method("add").map(|method| method.calls), Some(1));
/// assert!(metrics.to_prometheus().contains("dhaga_rpc_client_calls_total{method=\"add\"} 1"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Metrics {
    side: Side,
    methods: Vec<MethodMetrics>,
}

/// What has been counted of one method.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MethodMetrics {
    /// Its name; empty for everything that has no row of its own: at a server the methods that nobody registered, so that
    /// peers cannot make rows; at a client those beyond the first few hundred names.
    pub method: String,
    /// Calls and notifications that have begun.
    pub calls: u64,
    /// Those of them that have not ended.
    pub in_flight: u64,
    /// Those that ended with an error, by its kind; kinds without any are left out.
    pub errors: Vec<(&'static str, u64)>,
    /// Bytes that came: at a server the frames of requests, at a client the values of answers.
    pub bytes_in: u64,
    /// Bytes of frames that went out.
    pub bytes_out: u64,
    /// How long they took: at a server the handler, at a client the whole call.
    pub durations: Durations,
}

/// How long calls took, in buckets of a quarter of a power of two.
///
/// Each call of a method counts as long as the method is new or takes longer than 1 ms; of a quick one every eighth is
/// timed, and counts for eight.
#[derive(Clone)]
pub struct Durations {
    counts: [u64; BUCKETS],
    nanos: u64,
}

impl Metrics {
    pub(crate) fn none(side: Side) -> Self {
        Self { side, methods: Vec::new() }
    }

    /// Of each method that was called or registered, by name.
    pub fn methods(&self) -> &[MethodMetrics] {
        &self.methods
    }

    /// Of one method.
    pub fn method(&self, name: &str) -> Option<&MethodMetrics> {
        self.methods.iter().find(|method| method.method == name)
    }

    /// As text for Prometheus, in its exposition format 0.0.4.
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("a string takes everything");
        text
    }

    fn write(&self, text: &mut String) -> fmt::Result {
        self.family(text, "calls_total", "counter", "Calls and notifications that have begun.", |method| method.calls)?;
        self.write_errors(text)?;
        self.family(text, "in_flight", "gauge", "Calls that have not ended.", |method| method.in_flight)?;
        self.family(text, "received_bytes_total", "counter", "Bytes of frames that came.", |method| method.bytes_in)?;
        self.family(text, "sent_bytes_total", "counter", "Bytes of frames that went out.", |method| method.bytes_out)?;
        self.write_durations(text)
    }

    fn head(&self, text: &mut String, name: &str, kind: &str, help: &str) -> Result<String, fmt::Error> {
        let side = match self.side {
            Side::Server => "server",
            Side::Client => "client",
        };
        let name = format!("dhaga_rpc_{side}_{name}");
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        Ok(name)
    }

    fn family(
        &self,
        text: &mut String,
        name: &str,
        kind: &str,
        help: &str,
        value: impl Fn(&MethodMetrics) -> u64,
    ) -> fmt::Result {
        let name = self.head(text, name, kind, help)?;
        let mut methods = self.methods.iter();
        methods.try_for_each(|method| writeln!(text, "{name}{{{}}} {}", Label(method), value(method)))
    }

    fn write_errors(&self, text: &mut String) -> fmt::Result {
        let name = self.head(text, "errors_total", "counter", "Calls that ended with an error.")?;
        for method in &self.methods {
            for (kind, count) in &method.errors {
                writeln!(text, "{name}{{{},kind=\"{kind}\"}} {count}", Label(method))?;
            }
        }
        Ok(())
    }

    fn write_durations(&self, text: &mut String) -> fmt::Result {
        let name = self.head(text, "duration_seconds", "histogram", "How long calls took.")?;
        for method in &self.methods {
            let (label, durations) = (Label(method), &method.durations);
            let mut below = 0;
            for (bucket, count) in durations.counts.iter().enumerate() {
                below += count;
                // One bound for each power of two is enough for a graph.
                if let Some(bound) = bound_of(bucket).filter(|bound| bound.is_power_of_two()) {
                    writeln!(text, "{name}_bucket{{{label},le=\"{}\"}} {below}", seconds(bound))?;
                }
            }
            writeln!(text, "{name}_bucket{{{label},le=\"+Inf\"}} {below}")?;
            writeln!(text, "{name}_sum{{{label}}} {}\n{name}_count{{{label}}} {below}", seconds(durations.nanos))?;
        }
        Ok(())
    }
}

/// Exactly, and without an exponent.
fn seconds(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `method="…"`, escaped.
struct Label<'a>(&'a MethodMetrics);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("method=\"")?;
        for letter in self.0.method.chars() {
            match letter {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        f.write_char('"')
    }
}

impl Durations {
    /// How many calls they are of.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Of all of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    /// What the part `quantile` of the calls, from 0 to 1, took at most, rounded up by a quarter at most; `None` when there
    /// was no call. A time above a minute reads as one.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((quantile.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(Duration::from_nanos(bound_of(bucket).unwrap_or(1 << END_OCTAVE)))
    }
}

impl Default for Durations {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], nanos: 0 }
    }
}

impl fmt::Debug for Durations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quantiles = [0.5, 0.9, 0.99].map(|quantile| self.quantile(quantile));
        f.debug_struct("Durations").field("count", &self.count()).field("p50, p90, p99", &quantiles).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: &[&str] = &["late", "lost"];

    fn table(names: &[&str], more: usize) -> Table {
        Table::new(KINDS, names.iter().copied(), more)
    }

    #[test]
    fn each_time_is_within_the_bounds_of_its_bucket() {
        let mut seed = 1_u64;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let nanos = seed >> (seed % 64);
            let bucket = bucket_of(nanos);
            assert!(bound_of(bucket).is_none_or(|bound| nanos <= bound), "{nanos} in {bucket}");
            assert!(bucket == 0 || bound_of(bucket - 1).is_some_and(|bound| nanos > bound), "{nanos} in {bucket}");
        }
        for bucket in 0..BUCKETS - 1 {
            let bound = bound_of(bucket).expect("only the last has none");
            assert_eq!((bucket_of(bound), bucket_of(bound + 1)), (bucket, bucket + 1));
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
        assert_eq!(bound_of(BUCKETS - 2), Some(1 << END_OCTAVE));
    }

    #[test]
    fn what_begins_and_ends_is_counted() {
        let table = table(&["a", "b"], 0);
        let begun = table.row(1).begin();
        table.row(1).begin();
        begun.end(10, 20, Some(1));
        table.row(7).refuse(5, 0);
        let metrics = table.snapshot(Side::Server);
        let names: Vec<_> = metrics.methods().iter().map(|method| &*method.method).collect();
        assert_eq!(names, ["a", "b", ""]);
        let b = metrics.method("b").expect("it has a row");
        assert_eq!((b.calls, b.in_flight, b.bytes_in, b.bytes_out), (2, 1, 10, 20));
        assert_eq!((b.errors.as_slice(), b.durations.count()), (&[("lost", 1)][..], 1));
        let rest = metrics.method("").expect("something was refused");
        assert_eq!((rest.calls, rest.in_flight, rest.errors.as_slice()), (1, 0, &[("late", 1)][..]));
    }

    #[test]
    fn a_quick_method_is_timed_now_and_then_and_counts_in_full() {
        let table = table(&["a"], 0);
        let (row, calls) = (table.row(0), ALL_TIMED + 800);
        let now = park::now();
        let (shard, _) = row.shard();
        let timed: Vec<_> = (1..=calls).filter_map(|number| shard.timing(number, || now)).collect();
        assert_eq!(timed.len() as u64, ALL_TIMED + 800 / TIMED_OF);
        timed.into_iter().for_each(|timing| shard.note(timing, now + Duration::from_nanos(100), false));
        let durations = table.snapshot(Side::Client).methods()[0].durations.clone();
        assert_eq!((durations.count(), durations.sum()), (calls, Duration::from_nanos(100 * calls)));
    }

    #[test]
    fn a_slow_method_has_each_of_its_calls_timed() {
        let table = table(&["a"], 0);
        let (row, now) = (table.row(0), park::now());
        let (shard, _) = row.shard();
        let timings = |count: u64| (1..=count).filter_map(|number| shard.timing(ALL_TIMED + number, || now));
        shard.note(Timing { began: now, weight: 1 }, now + SLOW * 2, false);
        assert!(timings(20).all(|timing| timing.weight == 1) && timings(20).count() == 20);
        shard.note(Timing { began: now, weight: 1 }, now + SLOW / 2, false);
        assert_eq!(timings(TIMED_OF).count(), 1);
    }

    #[test]
    fn quantiles_are_right_within_a_quarter() {
        let table = table(&["a"], 0);
        let (shard, _) = table.row(0).shard();
        let now = park::now();
        for micros in 1..=1000 {
            shard.note(Timing { began: now, weight: 1 }, now + Duration::from_micros(micros), false);
        }
        let durations = table.snapshot(Side::Server).methods()[0].durations.clone();
        for (quantile, micros) in [(0.5, 500), (0.9, 900), (0.99, 990), (1.0, 1000)] {
            let shown = durations.quantile(quantile).expect("there were calls");
            let exact = Duration::from_micros(micros);
            assert!(shown >= exact && shown <= exact * 5 / 4, "{quantile}: {shown:?}");
        }
        assert_eq!(Durations::default().quantile(0.5), None);
    }

    #[test]
    fn names_get_rows_as_long_as_there_is_room() {
        let table = table(&[], 16);
        for index in 0..100 {
            let name = format!("method {index}");
            table.row_named(&name).begin();
            table.row_named(&name).begin();
        }
        let metrics = table.snapshot(Side::Client);
        assert_eq!(metrics.methods().len(), 17);
        assert!(metrics.methods()[..16].iter().all(|method| method.calls == 2));
        assert_eq!(metrics.method("").map(|rest| rest.calls), Some(168));
    }

    #[test]
    fn plain_threads_count_together() {
        let table = table(&["a"], 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        table.row(0).begin().end(1, 2, None);
                    }
                });
            }
        });
        let metrics = table.snapshot(Side::Client);
        let method = &metrics.methods()[0];
        assert_eq!((method.calls, method.in_flight, method.bytes_in, method.bytes_out), (4000, 0, 4000, 8000));
    }

    #[test]
    fn names_are_escaped_in_the_text() {
        let table = table(&["a\"b\\c\nd"], 0);
        table.row(0).begin();
        let text = table.snapshot(Side::Server).to_prometheus();
        assert!(text.contains("dhaga_rpc_server_calls_total{method=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
    }

    #[test]
    fn seconds_are_exact() {
        for (nanos, text) in [(0, "0"), (1024, "0.000001024"), (1 << 36, "68.719476736"), (2_000_000_000, "2")] {
            assert_eq!(seconds(nanos), text);
        }
    }
}
