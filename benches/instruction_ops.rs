//! A fixed number of operations on one worker, for counting their instructions. A child of `instructions`.

use std::error::Error;
use std::io;

use clap::Parser;
use dhaga_benches::dhaga_work::{
    far_off, in_one_worker, recv, recv_before, round_trips, spawn_and_join, yield_in_turn,
};
use dhaga_benches::instruction_work::InstructionWork;
use dhaga_rpc::{CallError, Client, Server};

/// Does one kind of operation so many times, and nothing else.
#[derive(Parser)]
struct Options {
    /// Which.
    #[arg(long)]
    work: InstructionWork,
    /// How often.
    #[arg(long)]
    operations: usize,
}

/// Tasks that take turns, and closures spawned before the first is joined.
const BATCH: usize = 100;

fn main() -> io::Result<()> {
    let Options { work, operations } = Options::parse();
    in_one_worker(move || match work {
        InstructionWork::SpawnJoin => (0..operations / BATCH).for_each(|_| spawn_and_join(BATCH)),
        InstructionWork::Yield => yield_in_turn(BATCH, operations / BATCH, dhaga::yield_now),
        InstructionWork::Channel => round_trips(operations, recv()),
        InstructionWork::ChannelTimed => round_trips(operations, recv_before(far_off())),
        InstructionWork::RpcCall => calls(operations).expect("a server and its client on this machine do not fail"),
    })
}

/// Calls in flight.
const CALLERS: usize = 64;

fn calls(operations: usize) -> Result<(), Box<dyn Error>> {
    let server = Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).bind("127.0.0.1:0")?;
    let client = Client::connect(server.local_addr())?;
    let call_in_turn = |client: Client| -> Result<(), CallError> {
        for number in 0..operations / CALLERS {
            let sum: usize = client.call("add", (number, 1))?;
            assert_eq!(sum, number + 1, "an RPC server that can add");
        }
        Ok(())
    };
    dhaga::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| call_in_turn(client.clone()))).collect();
        callers.into_iter().try_for_each(|caller| caller.join().expect("a caller does not panic"))
    })?;
    Ok(())
}
