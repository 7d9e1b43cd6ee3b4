//! An RPC server whose handlers are ordinary functions: they wait, compute, fail, panic, and call other servers.
//!
//! Run:  cargo run --release -p dhaga-examples --example rpc_server -- --addr 127.0.0.1:7000
//! Then: cargo run --release -p dhaga-examples --example rpc_client -- --addr 127.0.0.1:7000 add 20 22

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga::sync::Mutex;
use dhaga_rpc::{Client, HandlerError, Methods, Server, Value};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Serves echo(x), add(a, b), sleep(ms), spin(ms), fail(text), panic() and relay(addr, method, params).
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:7000")]
    addr: String,
    /// OS threads that run the dhagas [default: one a core]
    #[arg(long)]
    workers: Option<usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    // A connection takes a descriptor, and the usual soft limit is 1024 of them.
    let mut open_files = getrlimit(Resource::Nofile);
    open_files.current = open_files.maximum;
    setrlimit(Resource::Nofile, open_files)?;

    let mut builder = dhaga::Runtime::builder();
    if let Some(workers) = options.workers {
        builder = builder.workers(workers);
    }
    let runtime = builder.build()?;
    let server = Server::builder().methods(methods()).bind_on(&runtime, options.addr.as_str())?;
    println!("listening on {}", server.local_addr());
    loop {
        std::thread::park();
    }
}

fn methods() -> Methods {
    let relay = Relay::default();
    Methods::new()
        .method("echo", |value: Value| Ok(value))
        .method("add", |a: i64, b: i64| {
            a.checked_add(b).ok_or_else(|| HandlerError::new("the sum does not fit 64 bits"))
        })
        .method("sleep", |ms: u64| {
            dhaga::sleep(Duration::from_millis(ms));
            Ok(ms)
        })
        .method("spin", |ms: u64| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(ms) {
                std::hint::spin_loop();
            }
            Ok(ms)
        })
        .method("fail", |text: String| Err::<(), _>(HandlerError::new(text)))
        .method("panic", || -> Result<(), HandlerError> { panic!("a client asked for a panic") })
        .method("relay", move |addr: String, method: String, params: Vec<Value>| relay.call(addr, &method, params))
}

/// Calls other servers for its caller, whom it trusts: whoever may call it can make it connect to anything.
#[derive(Default)]
struct Relay {
    clients: Mutex<HashMap<String, Client>>,
}

impl Relay {
    fn call(&self, addr: String, method: &str, params: Vec<Value>) -> Result<Value, HandlerError> {
        Ok(self.client(addr)?.call(method, params)?)
    }

    /// The lock is not held while a connection is made, so a slow address holds up nobody else.
    fn client(&self, addr: String) -> Result<Client, HandlerError> {
        if let Some(client) = self.clients.lock()?.get(&addr) {
            return Ok(client.clone());
        }
        let client = Client::connect(addr.as_str())?;
        Ok(self.clients.lock()?.entry(addr).or_insert(client).clone())
    }
}
