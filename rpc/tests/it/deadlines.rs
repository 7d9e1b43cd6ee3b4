//! The time that a caller has left goes with its calls, through every hop.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dhaga_rpc::{CallError, Client, HandlerError, Server, ServerBuilder, Value};

use crate::common::*;

/// Microseconds that the handler has left, by what its caller has said and by the deadline around it.
fn left() -> Result<(Option<u64>, Option<u64>), HandlerError> {
    let said = dhaga_rpc::current().ok_or_else(|| HandlerError::new("nobody calls"))?.time_left();
    let around = dhaga::deadline().map(|deadline| deadline.saturating_duration_since(dhaga::park::now()));
    let micros = |left: Duration| left.as_micros() as u64;
    Ok((said.map(micros), around.map(micros)))
}

fn hop(next: Option<Client>) -> ServerBuilder {
    Server::builder().method("left", left).method("chain", move || {
        let mut budgets = vec![left()?.0];
        if let Some(next) = &next {
            budgets.extend(next.call::<_, Vec<Option<u64>>>("chain", ())?);
        }
        Ok(budgets)
    })
}

fn bind(builder: ServerBuilder) -> (Server, Client) {
    let server = builder.bind("127.0.0.1:0").expect("there is a port");
    let client = connect(&server);
    (server, client)
}

#[test]
fn a_handler_knows_how_long_its_caller_waits_if_that_has_said_so() {
    within_deadline(|| {
        let (_server, client) = bind(hop(None));
        let call = || client.call::<_, (Option<u64>, Option<u64>)>("left", ()).expect("it answers");
        assert_eq!(call(), (None, None), "a mere default is not told");
        let check = |(said, around): (Option<u64>, Option<u64>)| {
            let (said, around) = (said.expect("it is told"), around.expect("it is in force"));
            assert!(said <= 20_000_000 && around <= said && said - around < 1_000_000, "{said} and {around}");
        };
        check(dhaga::within(Duration::from_secs(20), call));
        check(client.call_timeout("left", (), Duration::from_secs(20)).expect("it answers"));
        assert_eq!(call(), (None, None), "it was told for one call");
    });
}

#[test]
fn each_hop_has_less_left_than_the_one_before() {
    within_deadline(|| {
        let (_third, to_third) = bind(hop(None));
        let (_second, to_second) = bind(hop(Some(to_third)));
        let (_first, client) = bind(hop(Some(to_second)));
        let budgets = dhaga::within(Duration::from_secs(20), || client.call::<_, Vec<Option<u64>>>("chain", ()));
        let budgets: Option<Vec<u64>> = budgets.expect("all answer").into_iter().collect();
        let budgets = budgets.expect("all are told");
        assert!(budgets.len() == 3 && budgets.is_sorted_by(|before, after| before > after), "{budgets:?}");
        assert!(budgets[0] < 10_000_000 && budgets[2] > 1000, "{budgets:?}");
        assert_eq!(client.call("chain", ()).ok(), Some(vec![None::<u64>; 3]));
    });
}

#[test]
fn the_waits_of_a_handler_end_when_its_caller_is_out_of_time() {
    within_deadline(|| {
        let (ended, has_ended) = mpsc::channel();
        let (_server, client) = bind(Server::builder().method("wait", move || {
            let (_sender, receiver) = dhaga::sync::channel::bounded::<()>(1);
            ended.send(receiver.recv().map_err(|error| error.to_string()))?;
            Ok(())
        }));
        let late = client.call_timeout::<_, ()>("wait", (), Duration::from_millis(30));
        assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
        assert!(has_ended.recv_timeout(PATIENCE).expect("the handler ends").is_err());
    });
}

/// What one hop of a chain has seen: when it began, its deadline, when it called the next, and when its wait ended.
struct Seen {
    chain: usize,
    hop: usize,
    began: Instant,
    deadline: Option<Instant>,
    called: Instant,
    ended: Instant,
}

/// Calls the next hop, or at the end of the chain waits for what never comes.
fn relay(hop: usize, next: Option<Client>, seen: mpsc::Sender<Seen>) -> ServerBuilder {
    Server::builder().method("wait", move |chain: usize| {
        let (began, deadline) = (Instant::now(), dhaga::deadline());
        let called = Instant::now();
        match &next {
            Some(next) => next.call::<_, ()>("wait", (chain,)).map_err(|error| error.to_string()),
            None => {
                let (_sender, receiver) = dhaga::sync::channel::bounded::<()>(1);
                receiver.recv().map_err(|error| error.to_string())
            }
        }
        .expect_err("nobody ever answers");
        Ok(seen.send(Seen { chain, hop, began, deadline, called, ended: Instant::now() })?)
    })
}

/// All hops are in one process, so that their instants can be compared. A deadline comes earlier by what is rounded on the wire,
/// and later by the time that the call took to its handler: by no more.
#[test]
fn a_deadline_arrives_at_each_hop_as_it_was_set_and_ends_each_handler() {
    const CHAINS: usize = 20;
    const HOPS: usize = 3;
    const ROUNDING: Duration = Duration::from_micros(1);
    within_deadline(|| {
        let (seen, all_seen) = mpsc::channel();
        let (mut servers, mut next) = (Vec::new(), None);
        for hop in (0..HOPS).rev() {
            let (server, client) = bind(relay(hop, next.take(), seen.clone()));
            servers.push(server);
            next = Some(client);
        }
        let client = next.expect("there are hops");
        let call = |chain| {
            dhaga::within(Duration::from_secs(1), || {
                let (called, deadline) = (Instant::now(), dhaga::deadline().expect("it is three lines above"));
                let end = client.call::<_, ()>("wait", (chain,));
                assert!(matches!(end, Err(CallError::DeadlineExceeded)), "{end:?}");
                (called, deadline)
            })
        };
        let began: Vec<_> = thread::scope(|scope| {
            let call = &call;
            let callers: Vec<_> = (0..CHAINS).map(|chain| scope.spawn(move || call(chain))).collect();
            callers.into_iter().map(|caller| caller.join().expect("its call ends so")).collect()
        });
        eventually("all handlers have ended", || servers.iter().all(|server| server.stats().in_flight == 0));
        let mut all: Vec<_> = all_seen.try_iter().collect();
        all.sort_by_key(|seen| (seen.chain, seen.hop));
        // Whose time is over before it has begun is not run, on a machine that is very busy.
        assert!(all.len() * 2 >= CHAINS * HOPS, "{} handlers ran", all.len());
        let mut late = Vec::new();
        for chain in all.chunk_by(|before, after| before.chain == after.chain) {
            let (mut called, mut deadline) = began[chain[0].chain];
            for (hop, seen) in chain.iter().enumerate() {
                assert_eq!(seen.hop, hop);
                let own = seen.deadline.expect("it is told");
                assert!(own + ROUNDING >= deadline, "hop {hop} has {:?} less", deadline - own);
                assert!(own <= deadline + (seen.began - called), "hop {hop} has {:?} more", own - deadline);
                assert!(own - seen.began < deadline - called, "what is left does not fall at hop {hop}");
                assert!(seen.ended + ROUNDING >= began[seen.chain].1, "hop {hop} ended before its time");
                late.push(seen.ended.saturating_duration_since(own));
                (called, deadline) = (seen.called, own);
            }
        }
        late.sort_unstable();
        // On a machine that does nothing else it is a millisecond.
        assert!(late[late.len() / 2] < Duration::from_millis(100), "{late:?}");
    });
}

/// `[2, "$/meta", [id, {d: …}]]` and its request.
fn request_within(id: u32, method: &str, millis: u64) -> Vec<u8> {
    let meta = Value::Map(vec![("d".into(), millis.into())]);
    [notification("$/meta", vec![id.into(), meta]), request(id, method, vec![])].concat()
}

#[test]
fn a_call_that_is_out_of_time_when_its_turn_comes_is_not_run() {
    within_deadline(|| {
        let (ran, runs) = mpsc::channel();
        let server = Server::builder().method("run", move || Ok(ran.send(())?)).bind("127.0.0.1:0");
        let mut peer = Peer::extended(server.as_ref().expect("there is a port").local_addr());
        peer.send(&request_within(7, "run", 0));
        let (id, refused) = peer.receive_answer();
        assert!(id == 7 && refused.is_err_and(|error| error.contains("deadline")));
        assert!(runs.try_recv().is_err(), "it ran");
        peer.send(&request_within(8, "run", u64::MAX));
        assert_eq!(peer.receive_answer(), (8, Ok(Value::Nil)));
    });
}
