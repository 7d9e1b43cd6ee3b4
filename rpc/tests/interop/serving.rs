//! Their client calls our server, which tells it what to call.

use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::sync::Mutex;
use dhaga_rpc::{Client, HandlerError, Methods, Server, Value};

use crate::cases::{Case, LEFT_MS, SLOW_MS, Step, same, says, shown};
use crate::golden::{self, Recording};
use crate::matrix::{Outcome, Role, is_quotable, patience};
use crate::peers::{Dialect, Peer, Running};

/// Runs all cases on one connection, for as long as it holds.
pub fn run(peer: &'static Peer, cases: &[Case]) -> Vec<Outcome> {
    let mut talk = None;
    let mut outcomes = Vec::new();
    for case in cases {
        let skipped = match case.step {
            Step::ServerLeaves => Some(Outcome::Void),
            Step::Nested(_) if !peer.calls_both_ways => Some(Outcome::Unable),
            _ => None,
        };
        if let Some(outcome) = skipped {
            outcomes.push(outcome);
            continue;
        }
        let mut current: Talk = talk.take().unwrap_or_else(|| Talk::begin(peer));
        let outcome = current.carry_out(&case.step, patience(Role::Client, peer.name, &case.name));
        // A connection on which something went wrong shows nothing about the cases after it.
        let goes_on = outcome != Outcome::Void && !matches!(case.step, Step::ClientLeaves);
        let goes_on =
            goes_on && !current.client.has_ended() && !matches!(&outcome, Outcome::Failed(how) if is_fatal(how));
        if goes_on {
            talk = Some(current);
        }
        outcomes.push(outcome);
    }
    outcomes
}

/// As [`calling::record`](crate::calling::record).
pub fn record(peer: &'static Peer, cases: &[Case]) {
    let (mut talk, recording) = Talk::begin_on_tape(peer);
    for case in cases.iter().filter(|case| is_quotable(Role::Client, peer, case)) {
        assert_eq!(talk.carry_out(&case.step, Duration::from_secs(60)), Outcome::Ok, "{}: {}", peer.name, case.name);
    }
    recording.keep(peer, Role::Client);
}

/// What a client reports that is there no more.
pub const ENDED: &str = "the client ended";
/// What one reports that waits for ever.
pub const HANGS: &str = "no report came";

fn is_fatal(how: &str) -> bool {
    how == ENDED || how == HANGS
}

/// What the other side is to do, and what it did.
struct Talk {
    client: Running,
    server: Server,
    /// The connection of the client, from our side: for the handler that calls back.
    caller: Arc<OnceLock<Client>>,
    steps: dhaga::sync::mpsc::Sender<Value>,
    reports: mpsc::Receiver<Value>,
    notes: mpsc::Receiver<Value>,
}

impl Talk {
    fn begin(peer: &Peer) -> Self {
        Self::begin_by(peer, |address| address)
    }

    fn begin_on_tape(peer: &Peer) -> (Self, Recording) {
        let mut recording = Recording::default();
        let talk = Self::begin_by(peer, |address| {
            let (address, tape) = golden::tap(address);
            recording = tape;
            address
        });
        (talk, recording)
    }

    /// `way` is where the client shall connect to, to reach the server.
    fn begin_by(peer: &Peer, way: impl FnOnce(SocketAddr) -> SocketAddr) -> Self {
        let (steps, next) = dhaga::sync::mpsc::channel();
        let (reported, reports) = mpsc::channel();
        let (noted, notes) = mpsc::channel();
        let caller = Arc::default();
        let builder = Server::builder().methods(methods(noted)).methods(script(next, reported));
        let builder = builder.method("nest", nest(peer.dialect, &caller)).error_profile(peer.errors);
        let server = builder.bind("127.0.0.1:0").expect("the kernel has a port");
        let client = peer.call(way(server.local_addr()));
        Self { client, server, caller, steps, reports, notes }
    }

    fn carry_out(&mut self, step: &Step, patience: Duration) -> Outcome {
        if let Step::Nested(_) = step {
            let peers = self.server.peers();
            let peer = peers.first().expect("it has connected, or the steps before had failed");
            self.caller.get_or_init(|| peer.clone());
        }
        let (kind, method, params) = order(step);
        let order = Value::Array(vec![kind.into(), method.into(), Value::Array(params)]);
        let _ = self.steps.send(order);
        if let Step::ClientLeaves = step {
            return self.is_left(patience);
        }
        let report = match self.report(patience) {
            Ok(report) => report,
            Err(how) => return Outcome::Failed(how.to_owned()),
        };
        match judge(step, &report) {
            Outcome::Ok => self.has_noted(step, patience),
            other => other,
        }
    }

    /// What the client reports, or why it does not.
    fn report(&mut self, patience: Duration) -> Result<Value, &'static str> {
        let end = Instant::now() + patience;
        loop {
            match self.reports.recv_timeout(Duration::from_millis(20)) {
                Ok(report) => return Ok(report),
                Err(RecvTimeoutError::Disconnected) => return Err(ENDED),
                // What it had said before it ended may still be on its way through our server.
                Err(RecvTimeoutError::Timeout) if self.client.has_ended() => {
                    return self.reports.recv_timeout(Duration::from_millis(200)).map_err(|_| ENDED);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > end => return Err(HANGS),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn has_noted(&self, step: &Step, patience: Duration) -> Outcome {
        let Step::Note(value) = step else { return Outcome::Ok };
        match self.notes.recv_timeout(patience) {
            Ok(noted) if same(&noted, value) => Outcome::Ok,
            Ok(noted) => Outcome::Failed(format!("noted was {}", shown(&noted))),
            Err(_) => Outcome::Failed("the notification did not come".to_owned()),
        }
    }

    /// The client is gone, nothing of it stays, and nobody is blamed.
    fn is_left(&mut self, patience: Duration) -> Outcome {
        let end = Instant::now() + patience;
        loop {
            let stats = self.server.stats();
            let is_gone = self.client.has_ended() && stats.connections == 0 && stats.in_flight == 0;
            match is_gone {
                true if stats.closed_for_fault == 0 => return Outcome::Ok,
                true => return Outcome::Failed("the client was blamed for something".to_owned()),
                false if Instant::now() > end => return Outcome::Failed(format!("something stays: {stats:?}")),
                false => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// What the foreign client is told to do.
fn order(step: &Step) -> (&'static str, &'static str, Vec<Value>) {
    match step {
        Step::Echo(value) => ("call", "echo", vec![value.clone()]),
        Step::Add(i, j) => ("call", "add", vec![(*i).into(), (*j).into()]),
        Step::Hello => {
            ("call", "$/hello", vec![Value::Map(vec![("v".into(), 1.into()), ("caps".into(), Value::Array(vec![]))])])
        }
        Step::Fail(error, _) => ("call", "fail", vec![error.clone()]),
        Step::Refused(method, params) => ("call", method, params.clone()),
        Step::Surplus => ("call", "add", vec![20.into(), 22.into(), "surplus".into()]),
        Step::Note(value) => ("notify", "note", vec![value.clone()]),
        Step::Unheard(method) => ("notify", method, vec!["unheard".into()]),
        Step::Pipelined(count) => {
            let call = |i: i64| Value::Array(vec!["add".into(), Value::Array(vec![i.into(), 1.into()])]);
            ("many", "", (0..*count as i64).map(call).collect())
        }
        Step::Overtaking => {
            let slow = Value::Array(vec!["sleep".into(), Value::Array(vec![SLOW_MS.into()])]);
            let quick = Value::Array(vec!["add".into(), Value::Array(vec![20.into(), 22.into()])]);
            ("many", "", vec![slow, quick])
        }
        Step::Nested(depth) => ("call", "nest", vec![(*depth).into()]),
        Step::ClientLeaves | Step::ServerLeaves => ("leave", "sleep", vec![LEFT_MS.into()]),
    }
}

fn judge(step: &Step, report: &Value) -> Outcome {
    let (how, value) = match report.as_array().map(Vec::as_slice) {
        Some([how, value]) => (how.as_str().unwrap_or_default(), value),
        _ => return Outcome::Failed(format!("the report is {}", shown(report))),
    };
    if how == "unable" {
        return Outcome::Unable;
    }
    let is_right = match step {
        Step::Echo(expected) => how == "ok" && same(value, expected),
        Step::Add(i, j) => how == "ok" && *value == (i + j).into(),
        // The answer is a map, and the report comes on the same connection.
        Step::Hello => how == "ok" && value.is_map(),
        Step::Surplus => how == "ok" && *value == 42.into(),
        Step::Fail(error, text) => how == "error" && (same(value, error) || says(value, text)),
        Step::Refused(..) => how == "error",
        Step::Note(_) | Step::Unheard(_) | Step::ClientLeaves | Step::ServerLeaves => how == "ok",
        Step::Pipelined(count) => has_all(value, *count),
        Step::Overtaking => {
            let order = ended(value).map(|(index, _)| index).collect::<Vec<_>>();
            order == [Some(1), Some(0)]
        }
        Step::Nested(depth) => how == "ok" && *value == (*depth).into(),
    };
    match is_right {
        true => Outcome::Ok,
        false => Outcome::Failed(format!("{how}: {}", shown(value))),
    }
}

/// Index and outcome of calls that were made together, in the order in which they ended.
fn ended(value: &Value) -> impl Iterator<Item = (Option<u64>, &Value)> {
    let pairs = value.as_array().map_or(&[][..], Vec::as_slice);
    pairs.iter().filter_map(|pair| match pair.as_array().map(Vec::as_slice) {
        Some([index, outcome]) => Some((index.as_u64(), outcome)),
        _ => None,
    })
}

fn has_all(value: &Value, count: usize) -> bool {
    let mut all = vec![false; count];
    for (index, outcome) in ended(value) {
        let Some(index) = index else { return false };
        let expected = Value::Array(vec!["ok".into(), (index + 1).into()]);
        match all.get_mut(index as usize) {
            Some(place) if same(outcome, &expected) => *place = true,
            _ => return false,
        }
    }
    all.iter().all(|is_there| *is_there)
}

/// The methods of README.md. The npm package for Neovim asks for the API first, and takes the first element as its channel.
fn methods(noted: mpsc::Sender<Value>) -> Methods {
    let noted = std::sync::Mutex::new(noted);
    Methods::new()
        .method("echo", |value: Value| Ok(value))
        .method("add", |i: i64, j: i64| i.checked_add(j).ok_or_else(|| HandlerError::new("the sum does not fit")))
        .method("fail", |error: Value| {
            Err::<(), _>(match error.as_str() {
                Some(text) => HandlerError::new(text),
                None => HandlerError::value(&error),
            })
        })
        .method("sleep", |ms: u64| {
            dhaga::sleep(Duration::from_millis(ms));
            Ok(ms)
        })
        .method("note", move |value: Value| {
            let _ = noted.lock().expect("nobody panics with it").send(value);
            Ok(())
        })
        .method("nvim_get_api_info", || Ok((1, Value::Map(vec![("types".into(), Value::Map(vec![]))]))))
}

/// Calls the caller back, who calls us back, and so on.
fn nest(dialect: Dialect, caller: &Arc<OnceLock<Client>>) -> impl Fn(u64) -> Result<u64, HandlerError> + use<> {
    let caller = caller.clone();
    move |depth| {
        if depth == 0 {
            return Ok(0);
        }
        let caller = caller.get().ok_or_else(|| HandlerError::new("nobody is there"))?;
        let (method, params) = dialect.request("nest", vec![(depth - 1).into()]);
        Ok(1 + caller.call::<_, u64>(&method, params)?)
    }
}

/// What tells the client what to do, and hears what came of it.
fn script(next: dhaga::sync::mpsc::Receiver<Value>, reported: mpsc::Sender<Value>) -> Methods {
    let (next, reported) = (Mutex::new(next), std::sync::Mutex::new(reported));
    Methods::new().method("next", move || Ok(next.lock()?.recv().ok())).method("report", move |outcome: Value| {
        let _ = reported.lock().expect("nobody panics with it").send(outcome);
        Ok(())
    })
}
