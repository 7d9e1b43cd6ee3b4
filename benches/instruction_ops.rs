//! A fixed number of operations on one worker, for counting their instructions. A child of `instructions`.

use std::io;

use clap::Parser;
use dhaga_benches::dhaga_work::{
    far_off, in_one_worker, recv, recv_before, round_trips, spawn_and_join, yield_in_turn,
};
use dhaga_benches::instruction_work::InstructionWork;

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
    })
}
