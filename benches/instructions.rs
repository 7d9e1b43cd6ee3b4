//! Has an operation of the runtime become longer? Counted in instructions, which do not jitter as time does.
//!
//! Run: cargo run --release -p dhaga-benches --bin instructions
//!
//! Each operation runs twice under callgrind, with few and with many repetitions; the difference of the instructions divided
//! by the difference of the repetitions is free of what starting and ending take.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{fs, io};

use clap::Parser;
use dhaga_benches::instruction_work::InstructionWork;
use dhaga_benches::programs;
use dhaga_benches::text_table::{NONE, TextTable, figure};
use serde::{Deserialize, Serialize};

/// Counts the instructions of spawn + join, yield, channel round trip, timer and RPC call, and fails when one takes more than 5 %
/// more than benches/instructions.json says.
#[derive(Parser)]
struct Options {
    /// Write what is counted as what shall be from now on.
    #[arg(long)]
    bless: bool,
}

/// What was blessed.
#[derive(Serialize, Deserialize)]
struct Blessed {
    /// Another compiler makes other instructions.
    compiler: String,
    /// Instructions of one operation.
    instructions: BTreeMap<String, f64>,
}

/// More than this is a regression. What is left of chance, such as how often the clock ends a turn of the loop, is below it.
const GROWTH_MAX: f64 = 0.05;

/// Runs of each, of which the least counts: a worker whose time is taken by others polls more often, for it goes by the clock.
const RUNS: usize = 5;

const FEW: usize = 2_000;
const MANY: usize = 22_000;

/// A coroutine's stack lies far from its thread's. So valgrind shall take no move of the stack pointer for a huge frame.
const STACK_FRAME_MAX: &str = "--max-stackframe=140737488355328";

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Err(
            "valgrind is not installed: `apt-get install valgrind`, or your system's package of that name".into()
        );
    }
    let counted = Blessed { compiler: compiler()?, instructions: count_all(&build()?)? };
    if options.bless {
        fs::write(blessed_file(), serde_json::to_string_pretty(&counted)? + "\n")?;
    }
    let blessed: Blessed = serde_json::from_slice(&fs::read(blessed_file())?)?;
    if blessed.compiler != counted.compiler {
        println!(
            "blessed with {}, this is {}: differences may be the compiler's\n",
            blessed.compiler, counted.compiler
        );
    }
    Ok(judged(&blessed, &counted))
}

fn judged(blessed: &Blessed, counted: &Blessed) -> ExitCode {
    let mut table = TextTable::new(["instructions of one operation", "now", "blessed", "change", ""]);
    let mut code = ExitCode::SUCCESS;
    for (name, &now) in &counted.instructions {
        let Some(&before) = blessed.instructions.get(name) else {
            table.push([name.clone(), figure(now), NONE.to_owned(), NONE.to_owned(), NONE.to_owned()]);
            continue;
        };
        let growth = now / before - 1.0;
        let verdict = if growth > GROWTH_MAX {
            code = ExitCode::FAILURE;
            "TOO MANY"
        } else {
            "ok"
        };
        let change = format!("{:+.1} %", growth * 100.0);
        table.push([name.clone(), figure(now), figure(before), change, verdict.to_owned()]);
    }
    print!("{}", table.plain());
    if code != ExitCode::SUCCESS {
        println!("\nIf that is meant, run this with --bless and commit benches/instructions.json.");
    }
    code
}

fn count_all(program: &Path) -> io::Result<BTreeMap<String, f64>> {
    let count = |work: InstructionWork| -> io::Result<f64> {
        println!("counting {} …", work.option());
        let (few, many) = (least(program, work, FEW)?, least(program, work, MANY)?);
        Ok((many as f64 - few as f64) / (MANY - FEW) as f64)
    };
    let (channel, timed) = (count(InstructionWork::Channel)?, count(InstructionWork::ChannelTimed)?);
    Ok(BTreeMap::from([
        ("channel round trip".to_owned(), channel),
        // A round trip holds two waits.
        ("deadline on a wait: arm + cancel".to_owned(), (timed - channel) / 2.0),
        ("RPC call, 64 in flight, both sides".to_owned(), count(InstructionWork::RpcCall)?),
        ("spawn + join".to_owned(), count(InstructionWork::SpawnJoin)?),
        ("yield".to_owned(), count(InstructionWork::Yield)?),
    ]))
}

fn least(program: &Path, work: InstructionWork, operations: usize) -> io::Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..RUNS {
        least = least.min(instructions(program, work, operations)?);
    }
    Ok(least)
}

fn instructions(program: &Path, work: InstructionWork, operations: usize) -> io::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", STACK_FRAME_MAX])
        .arg(program)
        .args(["--work", &work.option(), "--operations", &operations.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(io::Error::other(format!("valgrind failed: {said}")));
    }
    collected(&said).ok_or_else(|| io::Error::other(format!("valgrind has not said what it collected: {said}")))
}

/// Of the line `==123== Collected : 4567`.
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split("Collected : ").nth(1)?.trim().parse().ok())
}

/// With the same flags for everybody: one unit of code, so that a change elsewhere does not decide what is inlined here, and
/// no flags from the environment.
fn build() -> io::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = programs::directory()?.join("for_instructions");
    let status = Command::new(cargo)
        .args(["build", "--release", "--config", "profile.release.codegen-units=1"])
        .args(["-p", "dhaga-benches", "--bin", "instruction_ops", "--target-dir"])
        .arg(&target)
        .current_dir(programs::sources())
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()?;
    if !status.success() {
        return Err(io::Error::other("the operations could not be built"));
    }
    Ok(target.join("release/instruction_ops"))
}

fn compiler() -> io::Result<String> {
    let output = Command::new("rustc").arg("--version").output()?;
    Ok(format!("{}, {}", String::from_utf8_lossy(&output.stdout).trim(), std::env::consts::ARCH))
}

fn blessed_file() -> PathBuf {
    programs::sources().join("instructions.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_what_valgrind_says() {
        assert_eq!(collected("==7== \n==7== Events    : Ir\n==7== Collected : 4567\n"), Some(4567));
        assert_eq!(collected("==7== nothing\n"), None);
    }
}
