//! Runs shell commands, a few at a time, each with a time limit, and shows their lines as they come.
//!
//! Run:  cargo run --release -p dhaga-examples --example subprocess -- --at-once 2 --limit-s 3 'seq 3' 'sleep 9' 'ls /no/such'
//! You will see each line behind the number of its command, what became of each, and on a terminal how many have ended.
//! Ctrl-C asks those that run to end, and starts no more.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dhaga::JoinError;
use dhaga::process::{Child, Command, ExitStatus, Stdio};
use dhaga::signal::{SignalKind, Signals};
use dhaga::sync::{Semaphore, channel};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a command that is asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of a line that are shown as one. What is over is shown as the next.
const LINE_BYTES_MAX: u64 = 4096;

/// Runs shell commands, a few at a time, and shows their lines as they come.
#[derive(Parser)]
struct Options {
    /// How many run at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// How long each may take, in seconds.
    #[arg(long, value_name = "N", default_value_t = 60)]
    limit_s: u64,
    /// The commands, for `sh -c`. Put each into quotes.
    #[arg(value_name = "COMMAND", required = true)]
    commands: Vec<String>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = Options::parse();
    let mut stop = Signals::new([SignalKind::interrupt(), SignalKind::terminate()])?;
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} have ended, {elapsed}")?;
    let bar = ProgressBar::new(options.commands.len() as u64).with_style(style);
    let room = Semaphore::new(options.at_once as usize);
    let limit = Duration::from_secs(options.limit_s);
    let (tell, told) = channel::unbounded();

    let mut succeeded = 0;
    let mut report = |number: usize, outcome: String, is_success: bool| {
        succeeded += usize::from(is_success);
        bar.inc(1);
        bar.suspend(|| eprintln!("{number}: {outcome}"));
    };
    dhaga::scope(|s| -> Result<(), Box<dyn Error>> {
        for (command, number) in options.commands.iter().zip(1..) {
            let (tell, room, bar) = (tell.clone(), &room, &bar);
            s.spawn(move || {
                let outcome = run(number, command, room, limit, bar);
                let is_success = outcome.as_ref().is_ok_and(ExitStatus::success);
                let text = outcome.map_or_else(|error| error.to_string(), |status| status.to_string());
                tell.send((number, text, is_success))
            });
        }
        drop(tell);
        loop {
            dhaga::select! {
                recv(told) -> outcome => match outcome {
                    Ok((number, text, is_success)) => report(number, text, is_success),
                    Err(_) => return Ok(()), // none is left to tell
                },
                readable(stop) => {
                    let kind = stop.recv()?;
                    bar.suspend(|| eprintln!("{kind}: asking them to end"));
                    s.cancel();
                    return Ok(());
                }
            }
        }
    })?;
    told.try_iter().for_each(|(number, text, is_success)| report(number, text, is_success));
    bar.finish_and_clear();
    Ok(if succeeded == options.commands.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(number: usize, command: &str, room: &Semaphore, limit: Duration, bar: &ProgressBar) -> io::Result<ExitStatus> {
    let _room = room.acquire().map_err(|_| io::Error::other("was not started"))?;
    let mut command_line = Command::new("sh");
    // A group of its own: Ctrl-C does not reach it, and what we send reaches all that it starts.
    command_line.args(["-c", command]).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    let mut child = command_line.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (child.stdout.take().expect("it is piped"), child.stderr.take().expect("it is piped"));
    let bar = bar.clone();
    // Not in the scope that is cancelled: what the command says while it ends is shown, too.
    let shown = dhaga::spawn(move || {
        dhaga::scope(|s| {
            let of_stdout = s.spawn(|| show(number, stdout, &bar));
            show(number, stderr, &bar).and(of_stdout.join().unwrap_or(Ok(())))
        })
    });
    // Its end is asked for after that of the pipes: until then nobody else gets the number of its group.
    let begun = dhaga::within(limit, || match shown.join() {
        Err(JoinError::Stopped(_, shown)) => Err(shown),
        _ => Ok(child.wait()),
    });
    dhaga::uncancellable(|| match begun {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(_)) => end(&mut child),
        Err(shown) => {
            let status = end(&mut child);
            // Who has left the group lives on, and may keep the pipes for ever.
            if let Err(JoinError::Stopped(_, shown)) = dhaga::within(GRACE, || shown.join()) {
                shown.cancel();
            }
            status
        }
    })
}

fn show(number: usize, pipe: impl Read, bar: &ProgressBar) -> io::Result<()> {
    let (mut reader, mut line) = (BufReader::new(pipe), Vec::new());
    while reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        bar.suspend(|| writeln!(io::stdout(), "{number}> {}", text.trim_end()))?;
        line.clear();
    }
    Ok(())
}

/// Asks a command to end, and ends it if it does not.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let group = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    kill_process_group(group, Signal::TERM)?;
    dhaga::within(GRACE, || child.wait()).or_else(|_| {
        kill_process_group(group, Signal::KILL)?;
        child.wait()
    })
}
