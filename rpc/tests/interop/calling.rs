//! Our client calls their server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use dhaga_rpc::{CallError, Client, ClientBuilder, Extensions, HandlerError, Value};

use crate::cases::{Case, LEFT_MS, SLOW_MS, Step, same, says, shown};
use crate::golden;
use crate::known::CUT;
use crate::matrix::{Outcome, Role, is_quotable, patience};
use crate::peers::{Dialect, Peer, Running, kill};

/// For a peer that went down to be seen gone.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// How the peer is reached.
#[derive(Clone)]
enum Way {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// A new child for each connection.
    Child(&'static Peer),
    /// The connection that is there.
    Same(Client),
}

impl Way {
    fn open(&self, builder: ClientBuilder) -> Result<Client, Outcome> {
        match self {
            Self::Tcp(address) => builder.connect(address).map_err(failed),
            Self::Unix(path) => builder.connect_unix(path).map_err(failed),
            Self::Child(peer) => builder.spawn(&mut peer.embed()).map_err(failed),
            Self::Same(client) => Ok(client.clone()),
        }
    }
}

/// Runs all cases, each on a connection of its own.
pub fn run(peer: &'static Peer, cases: &[Case]) -> Vec<Outcome> {
    // One worker, and so one connection a client.
    let runtime = dhaga::Runtime::builder().workers(1).build().expect("a runtime can be had");
    let (mut server, mut child) = (Listening::default(), Embedded::default());
    let mut outcomes = Vec::new();
    for case in cases {
        let was_cut = matches!(outcomes.last(), Some(Outcome::Failed(how)) if how.starts_with(CUT));
        let way = if peer.is_embedded {
            child.way(peer, &case.step, was_cut)
        } else {
            Way::Tcp(server.address(peer, was_cut))
        };
        let step = case.step.clone();
        let patience = patience(Role::Server, peer.name, &case.name);
        let dialect = peer.dialect;
        let ends = match case.step {
            Step::Nested(_) if !peer.calls_both_ways => Ok(Err(Outcome::Unable)),
            Step::ServerLeaves => {
                let (called, is_called) = mpsc::channel();
                let call = runtime.spawn(move || Remote::connect(way, dialect, patience)?.be_left(&called));
                // Once it is gone there is nobody to wait for: the call ends with an error.
                match is_called.recv() {
                    Ok(Some(child)) => kill(child),
                    _ => server.end(),
                }
                call.join()
            }
            _ => runtime.spawn(move || Remote::connect(way, dialect, patience)?.carry_out(&step)).join(),
        };
        outcomes.push(match ends {
            Ok(Ok(())) => Outcome::Ok,
            Ok(Err(how)) => how,
            Err(_) => failed("our side panicked"),
        });
    }
    outcomes
}

/// A child that serves one case after the other, for they take their time to start.
#[derive(Default)]
struct Embedded(Option<Client>);

impl Embedded {
    fn way(&mut self, peer: &'static Peer, step: &Step, was_cut: bool) -> Way {
        let wants_its_own = matches!(step, Step::Hello | Step::Nested(_) | Step::ClientLeaves | Step::ServerLeaves);
        if wants_its_own {
            return Way::Child(peer);
        }
        if was_cut {
            self.0 = None;
        }
        let builder = || Client::builder().timeout(Duration::from_secs(60)).extensions(Extensions::Plain);
        Way::Same(self.0.get_or_insert_with(|| Way::Child(peer).open(builder()).expect("it starts")).clone())
    }
}

/// The server of a peer, started anew whenever it is gone.
#[derive(Default)]
struct Listening(Option<(Running, SocketAddr)>);

impl Listening {
    fn address(&mut self, peer: &Peer, may_be_ending: bool) -> SocketAddr {
        let is_gone = |running: &mut Running| running.has_ended() || may_be_ending && running.ends_within(END_TIMEOUT);
        if self.0.as_mut().is_some_and(|(running, _)| is_gone(running)) {
            self.0 = None;
        }
        self.0.get_or_insert_with(|| peer.serve()).1
    }

    fn end(&mut self) {
        self.0 = None;
    }
}

/// Nested calls with a server that listens at a path of this host.
pub fn nest_at_a_path(peer: &'static Peer, path: &Path) {
    let (_running, path) = peer.serve_at(&path.to_string_lossy());
    let runtime = dhaga::Runtime::builder().workers(1).build().expect("a runtime can be had");
    let dialect = peer.dialect;
    let spawned = runtime.spawn(move || {
        let remote = Remote::connect(Way::Unix(path.into()), dialect, Duration::from_secs(60))?;
        remote.expect("echo", vec!["x".repeat(1 << 20).into()], &"x".repeat(1 << 20).into())?;
        remote.nest(20)
    });
    let ends = spawned.join().unwrap_or_else(|_| Err(failed("our side panicked")));
    assert_eq!(ends, Ok(()), "{}", peer.name);
}

/// How a call of Neovim ends that we answer while a later one of its own still waits: its calls are a stack.
pub fn answer_the_first_first(peer: &'static Peer) -> Result<i64, CallError> {
    const CALL: &str = "return vim.rpcrequest(...)";
    let caller = Arc::new(OnceLock::<(Client, u64)>::new());
    let (second, has_second) = dhaga::sync::channel::unbounded();
    let called = caller.clone();
    let first = move || -> Result<i64, HandlerError> {
        let (client, channel) = called.get().ok_or_else(|| HandlerError::new("nobody is there"))?.clone();
        dhaga::spawn(move || client.call::<_, Value>("nvim_exec_lua", (CALL, (channel, "second")))).detach();
        has_second.recv()?;
        Ok(1)
    };
    let second = move || {
        let _ = second.send(());
        dhaga::sleep(Duration::from_millis(LEFT_MS));
        Ok(2)
    };
    let builder = Client::builder().extensions(Extensions::Plain).method("first", first).method("second", second);
    let client = builder.spawn(&mut peer.embed())?;
    let (channel, _): (u64, Value) = client.call("nvim_get_api_info", ())?;
    caller.get_or_init(|| (client.clone(), channel));
    client.call("nvim_exec_lua", (CALL, (channel, "first")))
}

/// Runs what is small and goes well on one connection, and keeps what went over it.
pub fn record(peer: &'static Peer, cases: &[Case]) {
    let runtime = dhaga::Runtime::builder().workers(1).build().expect("a runtime can be had");
    let (_running, address) = peer.serve();
    let (address, recording) = golden::tap(address);
    let steps: Vec<Step> =
        cases.iter().filter(|case| is_quotable(Role::Server, peer, case)).map(|case| case.step.clone()).collect();
    let dialect = peer.dialect;
    let spawned = runtime.spawn(move || {
        let remote = Remote::connect(Way::Tcp(address), dialect, Duration::from_secs(60))?;
        steps.iter().try_for_each(|step| remote.carry_out(step))
    });
    let ends = spawned.join().unwrap_or_else(|_| Err(failed("our side panicked")));
    assert_eq!(ends, Ok(()), "{}", peer.name);
    recording.keep(peer, Role::Server);
}

/// A connection to the peer.
#[derive(Clone)]
struct Remote {
    client: Client,
    way: Way,
    dialect: Dialect,
    patience: Duration,
}

type Ends = Result<(), Outcome>;

fn failed(how: impl ToString) -> Outcome {
    Outcome::Failed(how.to_string())
}

impl Remote {
    fn connect(way: Way, dialect: Dialect, patience: Duration) -> Result<Self, Outcome> {
        // Who is asked for extensions is asked on purpose.
        let builder = Client::builder().timeout(patience).extensions(Extensions::Plain);
        Ok(Self { client: way.open(builder)?, way, dialect, patience })
    }

    fn carry_out(&self, step: &Step) -> Ends {
        match step {
            Step::Echo(value) => self.expect("echo", vec![value.clone()], value),
            Step::Add(i, j) => self.expect_sum(*i, *j),
            Step::Hello => self.hello(),
            // An error of Neovim is always [type, text].
            Step::Fail(error, _) if self.dialect == Dialect::Neovim && !error.is_str() => Err(Outcome::Unable),
            Step::Fail(error, text) => self.expect_error(error, text),
            Step::Refused(method, params) => self.expect_refusal(method, params.clone()),
            Step::Surplus => {
                let _either_way = self.call("add", vec![1.into(), 2.into(), 3.into()]);
                self.expect_sum(20, 22)
            }
            Step::Note(value) => self.note(value),
            Step::Unheard(method) => {
                self.notify(method, vec!["unheard".into()])?;
                self.expect_sum(20, 22)
            }
            Step::Pipelined(count) => self.pipeline(*count),
            Step::Overtaking => self.overtake(),
            Step::ClientLeaves => self.leave(),
            Step::Nested(depth) => self.nest(*depth),
            Step::ServerLeaves => Err(Outcome::Void),
        }
    }

    fn call(&self, method: &str, params: Vec<Value>) -> Result<Value, CallError> {
        let (method, params) = self.dialect.request(method, params);
        self.client.call(&method, params)
    }

    fn notify(&self, method: &str, params: Vec<Value>) -> Ends {
        let (method, params) = self.dialect.request(method, params);
        self.client.notify(&method, params).map_err(failed)
    }

    /// Asks as a client does by itself, and goes on with a plain peer on the same connection.
    fn hello(&self) -> Ends {
        match self.client.call::<_, Value>("$/hello", (Value::Map(vec![("v".into(), 1.into())]),)) {
            Err(CallError::Remote(_)) => {}
            other => return Err(failed(format!("the answer to $/hello was {other:?}"))),
        }
        self.expect_sum(20, 22)?;
        let builder = Client::builder().timeout(self.patience).extensions(Extensions::Auto);
        Self { client: self.way.open(builder)?, ..self.clone() }.expect_sum(20, 22)
    }

    fn expect(&self, method: &str, params: Vec<Value>, expected: &Value) -> Ends {
        match self.call(method, params) {
            Ok(result) if same(&result, expected) => Ok(()),
            Ok(result) => Err(failed(format!("came back as {}", shown(&result)))),
            Err(error) => Err(failed(error)),
        }
    }

    fn expect_sum(&self, i: i64, j: i64) -> Ends {
        self.expect("add", vec![i.into(), j.into()], &(i + j).into())
    }

    fn expect_error(&self, error: &Value, text: &str) -> Ends {
        match self.call("fail", vec![error.clone()]) {
            Err(CallError::Remote(remote)) => {
                let came: Value = remote.decode().map_err(failed)?;
                if same(&came, error) || says(&came, text) {
                    return self.expect_sum(20, 22);
                }
                Err(failed(format!("the error came as {}", shown(&came))))
            }
            Err(error) => Err(failed(error)),
            Ok(result) => Err(failed(format!("it succeeded with {}", shown(&result)))),
        }
    }

    fn expect_refusal(&self, method: &str, params: Vec<Value>) -> Ends {
        match self.call(method, params) {
            Err(CallError::Remote(_)) => self.expect_sum(20, 22),
            Err(error) => Err(failed(error)),
            Ok(result) => Err(failed(format!("it succeeded with {}", shown(&result)))),
        }
    }

    fn note(&self, value: &Value) -> Ends {
        self.notify("note", vec![value.clone()])?;
        self.expect("notes", vec![], &Value::Array(vec![value.clone()]))
    }

    /// Started in one turn, so that they leave together.
    fn pipeline(&self, count: usize) -> Ends {
        let calls: Vec<_> = (0..count as i64)
            .map(|i| {
                let remote = self.clone();
                dhaga::spawn_local(move || remote.expect_sum(i, 1))
            })
            .collect();
        calls.into_iter().try_for_each(|call| call.join().unwrap_or_else(|_| Err(failed("a call panicked"))))
    }

    /// The quick answer must come while the slow one is not even due.
    fn overtake(&self) -> Ends {
        let remote = self.clone();
        let (begun, has_begun) = dhaga::sync::mpsc::channel();
        let slow = dhaga::spawn_local(move || {
            // On one worker the receiver goes on when this one waits for its answer.
            let _ = begun.send(());
            remote.call("sleep", vec![SLOW_MS.into()])
        });
        has_begun.recv().map_err(failed)?;
        self.expect_sum(20, 22)?;
        // What came with it, or before it, is seen by now.
        dhaga::sleep(Duration::from_millis(50));
        let is_overtaken = !slow.is_finished();
        match slow.join() {
            Ok(Ok(_)) if is_overtaken => Ok(()),
            Ok(Ok(_)) => Err(failed("answered in the order of the calls")),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(failed("the call panicked")),
        }
    }

    /// Gives a call up and its connection with it; the server must serve the next one.
    fn leave(&self) -> Ends {
        let other = Self::connect(self.way.clone(), self.dialect, self.patience)?;
        let (method, params) = self.dialect.request("sleep", vec![LEFT_MS.into()]);
        match other.client.call_timeout::<_, Value>(&method, params, Duration::from_millis(100)) {
            Err(CallError::DeadlineExceeded) => {}
            result => return Err(failed(format!("it did not wait: {result:?}"))),
        }
        drop(other);
        self.expect_sum(20, 22)
    }

    /// Calls what calls us back, over a connection on which we serve as well.
    fn nest(&self, depth: u64) -> Ends {
        let other = Arc::new(OnceLock::<Remote>::new());
        let called = other.clone();
        let nest = move |depth: u64| -> Result<u64, HandlerError> {
            let other = called.get().ok_or_else(|| HandlerError::new("nobody is there"))?;
            if depth == 0 { Ok(0) } else { Ok(1 + other.call("nest", vec![(depth - 1).into()])?.as_u64().unwrap_or(0)) }
        };
        let client = self.way.open(Client::builder().timeout(self.patience).method("nest", nest))?;
        // Its own methods own this client, which so lives as long as the test.
        let other = other.get_or_init(|| Remote { client, ..self.clone() });
        if self.dialect == Dialect::Neovim {
            let info: Value = other.client.call("nvim_get_api_info", ()).map_err(failed)?;
            other.client.call::<_, ()>("nvim_set_var", ("channel", &info[0])).map_err(failed)?;
        }
        other.expect("nest", vec![depth.into()], &depth.into())
    }

    /// Has a call in flight when the server goes.
    fn be_left(&self, called: &mpsc::Sender<Option<i64>>) -> Ends {
        self.expect_sum(20, 22)?;
        let child = match self.way {
            Way::Child(_) => Some(self.client.call("nvim_call_function", ("getpid", [0_u8; 0])).map_err(failed)?),
            Way::Tcp(_) | Way::Unix(_) | Way::Same(_) => None,
        };
        let remote = self.clone();
        let call = dhaga::spawn_local(move || remote.call("sleep", vec![(10 * LEFT_MS).into()]));
        // The call runs up to its wait, and the end of the turn sends it.
        dhaga::sleep(Duration::from_millis(50));
        let _ = called.send(child);
        match call.join() {
            Ok(Err(CallError::Disconnected { maybe_executed: true, .. })) => Ok(()),
            Ok(other) => Err(failed(format!("it ended with {other:?}"))),
            Err(_) => Err(failed("the call panicked")),
        }
    }
}
