//! A call as a wait, under every condition: its row of `docs/waits.md`, a test for each cell.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use dhaga::{JoinError, JoinHandle, Runtime, with_deadline, within};
use dhaga_rpc::{CallError, Client};

use crate::common::*;

const SHORT: Duration = Duration::from_millis(20);

/// Runs a body with a client, the gate that holds its calls of `hold`, and a runtime of one worker.
fn with(body: impl FnOnce(&Client, &Gate, &Runtime) + Send + 'static) {
    within_deadline(|| {
        let gate = Gate::default();
        let server = serve(&gate);
        let client = connect(&server);
        let runtime = Runtime::builder().workers(1).build().expect("the kernel gives threads");
        body(&client, &gate, &runtime);
        assert_eq!(add(&client, 40, 2).ok(), Some(42), "the client is as good as before");
        gate.open();
    });
}

fn hold(client: &Client) -> Result<(), CallError> {
    client.call("hold", ())
}

/// A call that waits for its answer.
fn start(client: &Client, gate: &Gate, runtime: &Runtime) -> JoinHandle<Result<(), CallError>> {
    let (client, arrived) = (client.clone(), gate.arrived());
    let caller = runtime.spawn(move || hold(&client));
    eventually("the handler has begun", || gate.arrived() > arrived);
    caller
}

#[test]
fn ready() {
    with(|client, gate, runtime| {
        gate.admit(1);
        let client = client.clone();
        assert!(runtime.spawn(move || hold(&client)).join().expect("it ends").is_ok());
    });
}

#[test]
fn woken() {
    with(|client, gate, runtime| {
        let caller = start(client, gate, runtime);
        gate.admit(1);
        assert!(caller.join().expect("it ends").is_ok());
    });
}

#[test]
fn deadline() {
    with(|client, _, runtime| {
        for passed in [false, true] {
            let (client, at) = (client.clone(), Instant::now());
            let call = move || hold(&client);
            let caller = runtime.spawn(move || if passed { with_deadline(at, call) } else { within(SHORT, call) });
            let late = caller.join().expect("it ends");
            assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
        }
    });
}

#[test]
fn cancelled() {
    with(|client, gate, runtime| {
        let caller = start(client, gate, runtime);
        caller.cancel();
        let outcome = caller.join().expect("it ends");
        assert!(matches!(outcome, Err(CallError::Cancelled)), "{outcome:?}");
    });
}

#[test]
fn plain_thread() {
    with(|client, gate, _| {
        gate.admit(1);
        assert!(hold(client).is_ok());
        let late = within(SHORT, || hold(client));
        assert!(matches!(late, Err(CallError::DeadlineExceeded)), "{late:?}");
        let outcome = dhaga::scope(|s| {
            s.cancel();
            hold(client)
        });
        assert!(matches!(outcome, Err(CallError::Cancelled)), "{outcome:?}");
    });
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn panicking() {
    with(|client, _, runtime| {
        let client = client.clone();
        let caller = runtime.spawn(move || {
            let mut outcome = None;
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _calls = OnDrop(|| outcome = Some(hold(&client)));
                resume_unwind(Box::new(ON_PURPOSE));
            }));
            assert!(panicked.is_err());
            outcome.expect("the guard was dropped")
        });
        let outcome = caller.join().expect("it ends");
        assert!(matches!(outcome, Err(CallError::Panicking)), "{outcome:?}");
    });
}

#[test]
fn shutdown() {
    with(|client, gate, runtime| {
        let caller = start(client, gate, runtime);
        runtime.shutdown(Duration::ZERO).expect("all end");
        match caller.join() {
            Ok(outcome) => assert!(matches!(outcome, Err(CallError::Cancelled)), "{outcome:?}"),
            Err(JoinError::Unwound) => panic!("it was not told first"),
            Err(error) => panic!("{error}"),
        }
    });
}
