//! What `rpc_table` measures, as tables and plots.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::facts::Facts;
use crate::limit_rows::LimitRow;
use crate::pairs::Comparison;
use crate::plot::{Bar, Panel, Plot, Scale};
use crate::rival_rows::{Measure, RivalGoal, RivalRow};
use crate::rows::{Goal, RPC};
use crate::section::Section;
use crate::server_lines;
use crate::server_memory::{self, ServerMemory};
use crate::spread::Spread;
use crate::text_table::{NONE, TextTable, count, figure};
use crate::window::Report;

/// All rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RpcResults {
    /// On what they were measured.
    pub facts: Facts,
    /// Our server beside the bare loop, under the bare load.
    pub servers: Vec<ServerRow>,
    /// Our server and client beside those of the rivals.
    pub pairs: Vec<PairRow>,
    /// One hop and two.
    pub relays: Vec<RelayRow>,
    /// Handlers that wait.
    pub waiting: Option<WaitingRow>,
    /// What an idle connection takes of each server's memory.
    pub memory: Vec<ServerMemory>,
    /// Who could not be run, and why.
    pub missing: Vec<(Contender, String)>,
}

/// One load on servers alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerRow {
    /// Connections.
    pub connections: usize,
    /// Calls in flight on each.
    pub in_flight: usize,
    /// Who took part: ours, the blocking and the dozing limit, ours with an inline handler.
    pub contenders: Vec<Contender>,
    /// Their runs, in the same order.
    pub comparison: Comparison,
}

/// One load on servers, each by its own client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PairRow {
    /// Calls in flight on each connection.
    pub in_flight: usize,
    /// Everything else.
    pub row: RivalRow,
}

/// A server of ours alone, and behind a relay of ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RelayRow {
    /// Calls in flight on the one connection.
    pub in_flight: usize,
    /// One hop, then two.
    pub comparison: Comparison,
}

/// A server of ours of which all handlers are alike, and of which 1 % wait 5 ms.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WaitingRow {
    /// Connections.
    pub connections: usize,
    /// Calls a second that the same server answers in a closed loop, beside its load.
    pub capacity: f64,
    /// Calls a second.
    pub rate: u32,
    /// Whether the load ran before all other processes.
    pub realtime: bool,
    /// All alike, then with those that wait.
    pub comparison: Comparison,
}

/// The share of its capacity that the server with waiting handlers is asked for.
pub const WAITING_LOAD: f64 = 0.3;

/// What we mean an idle connection to take.
pub const MEMORY_GOAL: f64 = 1024.0;

/// How much of the single hop's rate two hops shall reach.
const RELAY_GOAL: f64 = 0.45;

/// How much later the others may be when some wait.
const WAITING_GOAL: f64 = 1.10;

/// A larger share of time taken by others, and a ratio says more of them than of the servers.
const DISTURBED_MAX: f64 = 0.05;

impl ServerRow {
    fn goal(&self) -> &'static Goal {
        let row = RPC.iter().find(|row| (row.connections, row.in_flight) == (self.connections, self.in_flight));
        &row.expect("only rows of the table are measured").goal
    }

    fn titled<'a>(&'a self, title: &'a str) -> LimitRow<'a> {
        LimitRow { title, contenders: &self.contenders, comparison: &self.comparison, goal: self.goal() }
    }

    fn table(&self) -> (String, TextTable) {
        let title = format!("Our server, {}", title(self.connections, self.in_flight));
        let row = self.titled(&title);
        (row.caption(), row.table())
    }

    fn panel(&self) -> Panel {
        let title = title(self.connections, self.in_flight);
        self.titled(&title).panel(Scale::Linear, |report| report.rate, Some(self.goal().rate_min))
    }
}

impl PairRow {
    fn goals(&self) -> Vec<RivalGoal> {
        let faster = |against, ratio| RivalGoal { against, measure: Measure::Rate, ratio };
        match (self.row.connections, self.in_flight) {
            (1, 1) => RPC_RIVALS.map(|rival| faster(rival, 2.5)).to_vec(),
            (1, 64) => vec![faster(Contender::Tarpc, 4.0)],
            (1, 1024) => vec![faster(Contender::Tarpc, 8.0), faster(Contender::Tonic, 20.0)],
            (100, 1) => vec![faster(Contender::Tarpc, 1.4)],
            (100, 16) => vec![faster(Contender::Tarpc, 8.0)],
            (1_000, 1) => vec![faster(Contender::Tarpc, 1.5)],
            _ => Vec::new(),
        }
    }
}

/// All rivals.
pub const RPC_RIVALS: [Contender; 3] = [Contender::Tarpc, Contender::Tonic, Contender::Go];

/// As the tables write a load.
pub fn title(connections: usize, in_flight: usize) -> String {
    let plural = if connections == 1 { "" } else { "s" };
    format!("{} connection{plural} × {} in flight", count(connections), count(in_flight))
}

impl RelayRow {
    /// Two hops against one.
    fn ratio(&self) -> Spread {
        self.comparison.ratio_between(1, 0, |report| report.rate)
    }

    /// `None` where each hop waits for the other: with one call at a time they take turns, and what counts is how soon a
    /// processor wakes.
    fn goal(&self) -> Option<f64> {
        (self.in_flight > 1).then_some(RELAY_GOAL)
    }

    fn caption(&self) -> String {
        let (ratio, itself) = (self.ratio(), self.comparison.self_ratio(|report| report.rate));
        let verdict = self.goal().map_or_else(String::new, |goal| {
            let (doubt, judged) = (doubt(&self.comparison), judged(ratio.median >= goal));
            format!("Goal: rate ≥ {goal} × one hop's: {doubt}{:.2}, {judged}. ", ratio.median)
        });
        let title = title(1, self.in_flight);
        format!("**A relay, {title}.** {verdict}One hop against itself: {:.2}–{:.2}.", itself.min, itself.max)
    }

    fn panel(&self) -> Panel {
        let colours = [Contender::DhagaRpc, Contender::Dhaga].map(Contender::colour);
        let bars = self.comparison.contestants.iter().zip(colours);
        let one_hop = self.comparison.contestants[0].median(|report| report.rate);
        Panel {
            title: format!("A relay, {}", title(1, self.in_flight)),
            bars: bars.map(|(runs, colour)| Bar::new(&runs.name, colour, runs.median(|report| report.rate))).collect(),
            goal: self.goal().map(|goal| (goal * one_hop, format!("goal {goal} × one hop"))),
            scale: Scale::Linear,
            reach: Vec::new(),
        }
    }

    fn table(&self) -> TextTable {
        let mut table = server_lines::table("rate / one hop");
        for (index, runs) in self.comparison.contestants.iter().enumerate() {
            let ratio = if index == 0 { NONE.to_owned() } else { server_lines::written(self.ratio()) };
            table.push(server_lines::line(runs, ratio));
        }
        table
    }
}

impl WaitingRow {
    /// The others' p99 with those that wait against the one without.
    fn ratio(&self) -> Spread {
        self.comparison.ratio_between(1, 0, |report| report.p99_us)
    }

    fn caption(&self) -> String {
        let (ratio, itself) = (self.ratio(), self.comparison.self_ratio(|report| report.p99_us));
        let late = if self.realtime { "" } else { " The load could not be given real-time priority." };
        format!(
            "**1 % of the handlers wait 5 ms.** Two workers on two cores, which the load shares; {} connections in an open loop \
             at {} calls a second, {:.0} % of what they reach in a closed one. Goal: the others' p99 ≤ {WAITING_GOAL} × that \
             without them: {}, {}. Without them against itself: {:.2}–{:.2}.{late}",
            count(self.connections),
            figure(self.rate.into()),
            WAITING_LOAD * 100.0,
            server_lines::written(ratio),
            judged(ratio.median <= WAITING_GOAL),
            itself.min,
            itself.max
        )
    }

    fn table(&self) -> TextTable {
        let mut table = TextTable::new([
            "handlers",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "p99 / without",
            "answers/s",
            "sent late, p99 µs",
            "disturbed",
        ]);
        for (index, runs) in self.comparison.contestants.iter().enumerate() {
            let median = |value: fn(&Report) -> f64| figure(runs.median(value));
            table.push([
                runs.name.clone(),
                median(|report| report.p50_us),
                median(|report| report.p99_us),
                median(|report| report.p999_us),
                if index == 0 { NONE.to_owned() } else { server_lines::written(self.ratio()) },
                median(|report| report.rate),
                median(|report| report.sent_late_p99_us.unwrap_or(f64::NAN)),
                format!("{:.0} %", runs.median(|report| report.disturbed) * 100.0),
            ]);
        }
        table
    }
}

fn judged(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

fn doubt(comparison: &Comparison) -> &'static str {
    let is_disturbed = comparison.contestants.iter().any(|runs| runs.median(|report| report.disturbed) > DISTURBED_MAX);
    if is_disturbed { "doubtful, disturbed: " } else { "" }
}

impl RpcResults {
    /// For the terminal and for the page.
    pub fn section(&self) -> Section {
        let missing = self.missing.iter().map(|(contender, why)| format!("\n\n{}: {why}.", contender.name()));
        Section {
            title: "RPC",
            introduction: INTRODUCTION.to_owned() + &missing.collect::<String>(),
            tables: self.tables(),
            plots: self.plots(),
            facts: self.facts.clone(),
        }
    }

    fn tables(&self) -> Vec<(String, TextTable)> {
        let mut tables = self.summary().into_iter().collect::<Vec<_>>();
        tables.extend(self.servers.iter().map(ServerRow::table));
        tables.extend(self.pairs.iter().map(|pair| (pair.row.caption(&pair.goals()), pair.row.table())));
        tables.extend(self.relays.iter().map(|relay| (relay.caption(), relay.table())));
        tables.extend(self.waiting.iter().map(|waiting| (waiting.caption(), waiting.table())));
        if !self.memory.is_empty() {
            tables.push((self.memory_caption(), server_memory::table(&self.memory)));
        }
        tables
    }

    /// The rates of all loads side by side; `None` when there are none.
    fn summary(&self) -> Option<(String, TextTable)> {
        let loads = RPC.iter().map(|row| (row.connections, row.in_flight));
        let lines: Vec<_> = loads.filter_map(|load| self.summary_line(load)).collect();
        let mut table = TextTable::new([
            "connections × in flight",
            "our server, calls/s",
            "/ limit",
            "client and server, calls/s",
            "/ tarpc",
            "/ tonic",
            "/ Go",
        ]);
        lines.iter().cloned().for_each(|line| table.push(line));
        let caption = "**All loads**: our rate, and how many times the others' it is; by the median over the rounds.";
        (!lines.is_empty()).then(|| (caption.to_owned(), table))
    }

    fn summary_line(&self, load: (usize, usize)) -> Option<Vec<String>> {
        let server = self.servers.iter().find(|row| (row.connections, row.in_flight) == load);
        let pair = self.pairs.iter().find(|pair| (pair.row.connections, pair.in_flight) == load);
        if server.is_none() && pair.is_none() {
            return None;
        }
        let rate = |comparison: &Comparison| comparison.contestants[0].median(|report| report.rate);
        let times = |rival| pair.map_or(f64::NAN, |pair| pair.row.ratio(rival, Measure::Rate));
        let mut line = vec![
            format!("{} × {}", count(load.0), count(load.1)),
            figure(server.map_or(f64::NAN, |row| rate(&row.comparison))),
            figure(server.map_or(f64::NAN, |row| row.titled("").ratio())),
            figure(pair.map_or(f64::NAN, |pair| rate(&pair.row.comparison))),
        ];
        line.extend(RPC_RIVALS.map(|rival| figure(times(rival))));
        Some(line)
    }

    fn memory_caption(&self) -> String {
        let ours = self.memory.iter().find(|runs| runs.contender == Contender::DhagaRpc);
        let verdict = ours.map_or("not measured", |runs| judged(runs.median() <= MEMORY_GOAL));
        format!(
            "**Memory of an idle connection** after one call: growth of the server's resident memory and page tables. Goal: ≤ {} \
             bytes: {verdict}.",
            figure(MEMORY_GOAL)
        )
    }

    fn plots(&self) -> Vec<Plot> {
        let servers = Plot {
            name: "rpc_server",
            title: "RPC, our server beside the bare loop, calls/s".to_owned(),
            subtitle: "One worker on one core, the bare load on another. Longer is better.".to_owned(),
            panels: self.servers.iter().map(ServerRow::panel).collect(),
        };
        let pairs = Plot {
            name: "rpc",
            title: "RPC, client and server, calls/s, and memory".to_owned(),
            subtitle: "Server and client with one worker on a core each. Longer is better, but for memory.".to_owned(),
            panels: self.pair_panels(),
        };
        [servers, pairs].into_iter().filter(|plot| !plot.panels.is_empty()).collect()
    }

    fn pair_panels(&self) -> Vec<Panel> {
        let panel = |pair: &PairRow| pair.row.panel(Scale::Linear, |report| report.rate);
        let mut panels: Vec<_> = self.pairs.iter().map(panel).collect();
        panels.extend(self.relays.iter().map(RelayRow::panel));
        if !self.memory.is_empty() {
            panels.push(server_memory::panel("Memory of an idle connection, bytes", &self.memory, Some(MEMORY_GOAL)));
        }
        panels
    }
}

const INTRODUCTION: &str = "\
Calls of `echo` with 32 bytes, which each server decodes to an owned value and encodes again, over loopback TCP with `TCP_NODELAY`; the \
server has one worker (`GOMAXPROCS=1`) on one core, the load runs on another. *Our server* is asked by a bare pipelining load that \
does as little as an honest client can, and held against a bare event loop that runs each request on a coroutine and decodes it by \
serde, blocking at once or polling for 50 µs first; its handler is a plain method of a `#[dhaga_rpc::service]` trait in a dhaga of its \
own; *inline* is the same with `#[rpc(inline)]`, and judged by no goal. *Client and server* is each library by its own client with one worker: a task for each call in flight, which calls, waits and \
calls again. tarpc sends bincode over TCP, with buffers as large as the row wants; tonic speaks gRPC without TLS, with as many streams \
and a window of 1 MiB; both run on tokio's scheduler with one worker each. Go runs net/rpc with gob. A *relay* is a server of ours \
whose handler asks a second one; on a machine of two cores that one runs beside the load, where both poll before they block, and processor time and system calls are the relay's alone. Latencies of a \
closed loop at full load say who is unfair, not how late a server answers at ease. System calls are counted in a run of its own. \
*Disturbed* is the share of the time in which other processes had the processor of the load or of the server.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::Runs;

    fn runs(name: &str, rate: f64, syscalls: f64) -> Runs {
        Runs { name: name.to_owned(), reports: vec![report(rate)], syscalls: Some(syscalls) }
    }

    fn report(rate: f64) -> Report {
        let json = format!(
            r#"{{"requests":1,"seconds":1.0,"rate":{rate},"p50_us":1.0,"p99_us":2.0,"p999_us":3.0,"server_cpu_us":1.0,"disturbed":0.0}}"#
        );
        serde_json::from_str(&json).expect("the report is well formed")
    }

    fn comparison(contestants: Vec<Runs>) -> Comparison {
        Comparison { load: String::new(), again: contestants[0].reports.clone(), contestants }
    }

    fn server_row(rate: f64, syscalls: f64) -> ServerRow {
        use Contender::{Bare, BareDozing, DhagaRpc, DhagaRpcInline};
        let limits = [runs("limit", 50.0, 1.0), runs("limit (dozing)", 100.0, 1.0)];
        let ours = runs("dhaga-rpc", rate, syscalls);
        let comparison = comparison([vec![ours.clone()], limits.to_vec(), vec![ours]].concat());
        let contenders = vec![DhagaRpc, Bare, BareDozing, DhagaRpcInline];
        ServerRow { connections: 1, in_flight: 64, contenders, comparison }
    }

    #[test]
    fn a_server_is_judged_by_rate_processor_and_system_calls() {
        let check = |rate, syscalls, expected: &str| {
            let caption = server_row(rate, syscalls).table().0;
            assert!(caption.contains(expected), "{caption}");
        };
        check(60.0, 0.2, "rate >= 0.6 met, CPU <= 2.5 met, system calls <= 0.2 met");
        check(59.0, 0.3, "rate >= 0.6 MISSED, CPU <= 2.5 met, system calls <= 0.2 MISSED");
    }

    #[test]
    fn a_pair_is_judged_beside_each_rival_that_took_part() {
        let row = RivalRow {
            title: String::new(),
            connections: 1,
            contenders: vec![Contender::DhagaRpc, Contender::Tarpc],
            comparison: comparison(vec![runs("dhaga-rpc", 90.0, 1.0), runs("tarpc", 10.0, 1.0)]),
        };
        let pair = PairRow { in_flight: 1024, row };
        let caption = pair.row.caption(&pair.goals());
        assert!(caption.contains("rate ≥ 8 × tarpc's: 9.00, met"), "{caption}");
        assert!(!caption.contains("tonic"), "{caption}");
    }

    #[test]
    fn a_relay_has_a_goal_only_where_calls_are_in_flight_together() {
        let check = |in_flight, expected: &str| {
            let hops = vec![runs("one hop", 100.0, 1.0), runs("two hops", 44.0, 1.0)];
            let caption = RelayRow { in_flight, comparison: comparison(hops) }.caption();
            assert!(caption.contains(expected), "{caption}");
        };
        check(64, "Goal: rate ≥ 0.45 × one hop's: 0.44, MISSED");
        check(1, "in flight.** One hop against itself");
    }

    #[test]
    fn loads_that_were_not_measured_have_no_line() {
        let results = RpcResults {
            facts: Facts::now("rpc_table", 1),
            servers: vec![server_row(60.0, 0.2)],
            pairs: Vec::new(),
            relays: Vec::new(),
            waiting: None,
            memory: Vec::new(),
            missing: Vec::new(),
        };
        let (_, summary) = results.summary().expect("one load was measured");
        assert_eq!(summary.markdown().lines().nth(2), Some("| 1 × 64 | 60.0 | 0.600 | – | – | – | – |"));
    }
}
