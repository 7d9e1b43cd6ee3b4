//! What does one kind of work take in one runtime? A child of `runtime_table`, in a process of its own so that each
//! contender starts clean; by hand it answers the same question once.

use std::io;

use clap::Parser;
use dhaga_benches::contender::Contender;
use dhaga_benches::runtime_work::Work;
use dhaga_benches::{bare_work, dhaga_work, may_work, thread_work, tokio_work};

/// Measures one row of the runtime table for one contender and prints it: nanoseconds or bytes, NaN where the contender
/// has no such work.
#[derive(Parser)]
struct Options {
    /// Whose runtime. Go has a program of its own.
    #[arg(long)]
    contender: Contender,
    /// Which work.
    #[arg(long)]
    row: Work,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    println!("{}", measure(options.contender, options.row)?);
    Ok(())
}

/// One worker each.
fn measure(contender: Contender, work: Work) -> io::Result<f64> {
    match contender {
        Contender::Dhaga => dhaga_work::measure(work),
        Contender::Tokio => tokio_work::measure(&tokio_work::current_thread()?, work),
        Contender::TokioMulti => tokio_work::measure(&tokio_work::multi_thread(1)?, work),
        Contender::May => {
            may_work::configure(1);
            may_work::measure(work)
        }
        Contender::Threads => thread_work::measure(work),
        Contender::Bare => Ok(bare_work::measure(work)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "this contender has no rows in this program")),
    }
}
