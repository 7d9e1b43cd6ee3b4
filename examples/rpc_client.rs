//! One call to any MessagePack-RPC server, from the command line.
//!
//! Run: cargo run --release -p dhaga-examples --example rpc_client -- --addr 127.0.0.1:7000 add 20 22
//! You will see the result as JSON, or the error on stderr and a status other than 0. It also asks Neovim:
//!      nvim --headless --listen 127.0.0.1:7000 & …  rpc_client -- --addr 127.0.0.1:7000 nvim_eval '"6*7"'

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dhaga_examples::json;
use dhaga_rpc::{Client, Value};

/// Calls a method of a MessagePack-RPC server, and prints the result as JSON.
#[derive(Parser)]
struct Options {
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:7000")]
    addr: String,
    /// How long to wait for the answer, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    timeout_ms: u64,
    /// Send a notification, which has no answer.
    #[arg(long)]
    notify: bool,
    /// The method's name. Options come before it.
    method: String,
    /// The arguments, each a JSON value, or {"$bin":"HEX"} for bytes, or {"$ext":[TYPE,"HEX"]}.
    #[arg(value_name = "JSON", trailing_var_arg = true, allow_hyphen_values = true)]
    params: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(Some(result)) => println!("{result}"),
        Ok(None) => {}
        Err(error) => {
            eprintln!("{error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The result as JSON; none for a notification.
fn run(options: &Options) -> Result<Option<String>, Box<dyn Error>> {
    let params: Vec<Value> = options.params.iter().map(|param| json::read(param)).collect::<Result<_, _>>()?;
    let client = Client::builder().timeout(Duration::from_millis(options.timeout_ms)).connect(options.addr.as_str())?;
    if options.notify {
        client.notify(&options.method, params)?;
        return Ok(None);
    }
    let result: Value = client.call(&options.method, params)?;
    Ok(Some(json::write(&result)))
}
