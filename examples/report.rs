//! The table of the quickstart.

use crate::meter::Outcome;

/// A line of the table: what, how much by dhagas and by threads, and how many times better dhagas are.
struct Row {
    name: &'static str,
    dhagas: String,
    threads: String,
    better: Option<f64>,
}

/// Both halves side by side.
pub fn table(dhagas: &Outcome, threads: &Outcome) -> String {
    let mut table = format!("  {:<28}{:>12}{:>14}\n", "", "dhagas", "threads");
    for Row { name, dhagas, threads, better } in rows(dhagas, threads) {
        let better = better.filter(|ratio| ratio.is_normal()).map(shown_ratio).unwrap_or_default();
        let line = format!("  {name:<28}{dhagas:>12}{threads:>14}     {better}");
        table = table + line.trim_end() + "\n";
    }
    table
}

/// What the reader must know besides: how it was measured, and whatever went wrong.
pub fn notes(callers: u64, dhagas: &Outcome, threads: &Outcome) -> String {
    let mut notes = vec![MEASURED.to_owned()];
    if (threads.in_flight_peak as u64) < callers {
        notes.push(format!(
            "Threads: this machine had room, or in those 2 s time, for {} callers and {} calls in flight at once.",
            grouped(threads.callers as u64),
            grouped(threads.in_flight_peak as u64)
        ));
    }
    if cfg!(debug_assertions) {
        notes.push("This is a debug build. Its figures mean nothing: build with --release.".to_owned());
    }
    for (name, half) in [("dhagas", dhagas), ("threads", threads)] {
        if let Some(error) = &half.first_error {
            notes.push(format!("WARNING: {} calls with {name} went wrong, the first: {error}", grouped(half.errors)));
        }
    }
    notes.join("\n") + "\n"
}

const MEASURED: &str = "\
Client and server together. At the start the backend answers nobody until all calls are in flight, or for 2 s.
Memory: resident pages and page tables (/proc/self/status) and 16 KiB of kernel stack a thread, looked at every 20 ms.
CPU time: the clock of the process. OS threads: two of them only watch.";

fn rows(dhagas: &Outcome, threads: &Outcome) -> [Row; 9] {
    let row =
        |name, show: fn(&Outcome) -> String, better| Row { name, dhagas: show(dhagas), threads: show(threads), better };
    // Of most things, less is better.
    let less = |of: fn(&Outcome) -> f64| Some(of(threads) / of(dhagas));
    [
        row("callers", |half| grouped(half.callers as u64), None),
        row("calls in flight, at most", |half| grouped(half.in_flight_peak as u64), None),
        row("calls a second", |half| grouped(rate(half) as u64), Some(rate(dhagas) / rate(threads))),
        row("half of the calls within", |half| milliseconds(half.p50_ms), less(|half| half.p50_ms)),
        row("99 % of the calls within", |half| milliseconds(half.p99_ms), less(|half| half.p99_ms)),
        row("CPU time of a call", |half| format!("{:.1} µs", cpu_us(half)), less(cpu_us)),
        row("CPU time, both sides", |half| format!("{:.1} s", half.cpu_seconds), None),
        row("memory, at most", |half| mebibytes(half.memory_bytes), less(|half| half.memory_bytes as f64)),
        row("OS threads, at most", |half| grouped(half.threads), less(|half| half.threads as f64)),
    ]
}

fn rate(half: &Outcome) -> f64 {
    half.calls as f64 / half.seconds
}

fn cpu_us(half: &Outcome) -> f64 {
    half.cpu_seconds * 1e6 / half.calls as f64
}

fn milliseconds(ms: f64) -> String {
    format!("{ms:.0} ms")
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", grouped(bytes >> 20))
}

/// Two digits are enough, and a twentieth is noise.
fn shown_ratio(ratio: f64) -> String {
    match ratio {
        10.0.. => format!("{} × better", grouped(ratio.round() as u64)),
        1.05.. => format!("{ratio:.1} × better"),
        0.95.. => "the same".to_owned(),
        _ => format!("{:.1} × worse", 1.0 / ratio),
    }
}

/// `1234567` as `1 234 567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().collect();
    let groups = groups.join(&b' ');
    String::from_utf8(groups).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1 000");
        assert_eq!(grouped(12_345_678), "12 345 678");
    }

    #[test]
    fn the_table_says_by_how_much_dhagas_are_better() {
        let dhagas = Outcome {
            calls: 100_000,
            seconds: 2.0,
            p50_ms: 30.0,
            p99_ms: 40.0,
            cpu_seconds: 4.0,
            memory_bytes: 100 << 20,
            threads: 4,
            ..Outcome::default()
        };
        let threads =
            Outcome { calls: 10_000, p50_ms: 25.0, memory_bytes: 150 << 20, threads: 10_000, ..dhagas.clone() };
        let table = table(&dhagas, &threads);
        let ends = |start: &str, end: &str| {
            let line = table.lines().find(|line| line.trim_start().starts_with(start));
            assert!(line.expect(start).ends_with(end), "{table}");
        };
        ends("calls a second", "50 000         5 000     10 × better");
        ends("half of", "30 ms         25 ms     1.2 × worse");
        ends("memory", "100 MiB       150 MiB     1.5 × better");
        ends("99 %", "40 ms         40 ms     the same");
        ends("OS threads", "2 500 × better");
    }

    #[test]
    fn a_half_without_calls_has_no_ratio() {
        let nothing = Outcome::default();
        assert!(!table(&nothing, &nothing).contains("×"));
    }
}
