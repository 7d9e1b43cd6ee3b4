//! Everything that is published, measured by one command, which alone writes docs/benchmarks.md.
//!
//! Run: cargo run --release -p dhaga-benches --features rivals --bin report

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{fs, io};

use clap::{Parser, ValueEnum};
use dhaga_benches::echo_results::EchoResults;
use dhaga_benches::http_results::HttpResults;
use dhaga_benches::programs;
use dhaga_benches::rpc_results::RpcResults;
use dhaga_benches::runtime_results::RuntimeResults;
use dhaga_benches::section::Section;
use dhaga_benches::tail_results::TailResults;
use dhaga_benches::tls_results::TlsResults;
use serde::de::DeserializeOwned;

/// Measures all tables and writes docs/benchmarks.md with its plots and the single runs as JSON.
///
/// Parts that are not measured are taken from the JSON of the last time, so the page can be refreshed part by part. About
/// an hour for everything, on a machine that should do nothing else; a few minutes with --quick.
#[derive(Parser)]
struct Options {
    /// Measure only these parts; the others are rendered from what was saved.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure nothing: render the page from what was saved.
    #[arg(long, conflicts_with_all = ["only", "quick"])]
    render: bool,
    /// Two short rounds of each: a glance, and no result.
    #[arg(long)]
    quick: bool,
    /// Where the page goes, with a directory of the same name beside it for plots and JSON [default: docs/benchmarks.md]
    #[arg(long)]
    page: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Inside a process.
    Runtime,
    /// TCP echo servers.
    Echo,
    /// RPC servers and clients.
    Rpc,
    /// TLS echo servers.
    Tls,
    /// HTTP servers.
    Http,
    /// Latency beside slow requests.
    LongTail,
}

const PARTS: [Part; 6] = [Part::Runtime, Part::Echo, Part::Rpc, Part::Tls, Part::Http, Part::LongTail];

fn main() -> ExitCode {
    programs::exit_code("report", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let page_file = options.page.clone().unwrap_or_else(default_page);
    let saved = page_file.with_extension("");
    fs::create_dir_all(&saved)?;
    let measured = options.measured();
    if !measured.is_empty() {
        build_all_programs()?;
    }
    for part in measured {
        part.measure(&saved, options.quick)?;
    }
    let mut page = HEAD.to_owned();
    for part in PARTS {
        if let Some(section) = part.section(&saved)? {
            section.draw(&saved)?;
            page += &section.markdown(&pictures_of(&page_file));
            page += "\n";
        }
    }
    fs::write(&page_file, page)?;
    println!("wrote {}", page_file.display());
    Ok(())
}

impl Options {
    fn measured(&self) -> Vec<Part> {
        let is_measured = |part: &Part| !self.render && (self.only.is_empty() || self.only.contains(part));
        PARTS.into_iter().filter(is_measured).collect()
    }
}

/// The directory of the plots, as seen from the page.
fn pictures_of(page: &Path) -> String {
    page.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

impl Part {
    fn program(self) -> &'static str {
        match self {
            Part::Runtime => "runtime_table",
            Part::Echo => "echo_table",
            Part::Rpc => "rpc_table",
            Part::Tls => "tls_table",
            Part::Http => "http_table",
            Part::LongTail => "long_tail",
        }
    }

    fn saved_in(self, directory: &Path) -> PathBuf {
        directory.join(self.program()).with_extension("json")
    }

    fn quick_options(self) -> &'static [&'static str] {
        match self {
            Part::Runtime => &["--rounds", "2"],
            Part::Echo => &["--rounds", "2", "--seconds", "0.3", "--warm-up-seconds", "0.1", "--memory-rounds", "1"],
            Part::Rpc | Part::Tls => {
                &["--rounds", "2", "--seconds", "0.3", "--warm-up-seconds", "0.1", "--memory-rounds", "1"]
            }
            Part::Http => &["--rounds", "2", "--seconds", "1"],
            Part::LongTail => &["--rounds", "2", "--seconds", "1"],
        }
    }

    fn measure(self, directory: &Path, quick: bool) -> io::Result<()> {
        let mut command = Command::new(programs::beside(self.program())?);
        command.arg("--json").arg(self.saved_in(directory));
        if quick {
            command.args(self.quick_options());
        }
        succeed(&mut command)
    }

    /// `None` for what was never measured.
    fn section(self, directory: &Path) -> io::Result<Option<Section>> {
        let file = self.saved_in(directory);
        Ok(match self {
            Part::Runtime => saved::<RuntimeResults>(&file)?.map(|results| results.section()),
            Part::Echo => saved::<EchoResults>(&file)?.map(|results| results.section()),
            Part::Rpc => saved::<RpcResults>(&file)?.map(|results| results.section()),
            Part::Tls => saved::<TlsResults>(&file)?.map(|results| results.section()),
            Part::Http => saved::<HttpResults>(&file)?.map(|results| results.section()),
            Part::LongTail => saved::<TailResults>(&file)?.map(|results| results.section()),
        })
    }
}

fn saved<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    match fs::read(file) {
        Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `cargo run` has built this program only. The profile is the one that this program was built with.
fn build_all_programs() -> io::Result<()> {
    let directory = programs::directory()?;
    let profile = match directory.file_name().map(|name| name.to_string_lossy().into_owned()) {
        Some(name) if name == "debug" => "dev".to_owned(),
        Some(name) => name,
        None => "release".to_owned(),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = ["-p", "dhaga-benches", "-p", "dhaga-examples", "--features", "dhaga-benches/rivals"];
    succeed(
        Command::new(cargo)
            .args(["build", "--profile", &profile])
            .args(packages)
            .args(["--bins", "--examples"])
            .current_dir(programs::sources()),
    )
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?} failed: {status}"))) }
}

fn default_page() -> PathBuf {
    programs::sources().join("../docs/benchmarks.md")
}

const HEAD: &str = "\
<!-- Written by `report`; do not edit. -->
# Benchmarks

Dhaga beside Go, tokio, may, OS threads, tarpc and tonic, on the same machine, in the same run. Everything below is written by

```sh
benches/install_go.sh      # once: a Go toolchain, pinned and checked, into target/go
cargo run --release -p dhaga-benches --features rivals --bin report
```

`--only runtime` (`echo`, `rpc`, `tls`, `http`, `long-tail`) measures one part anew and renders the others from the JSON beside the plots; `--render` \
measures nothing; `--quick` takes minutes and is only a glance. Each part is a program of its own (`runtime_table`, `echo_table`, \
`rpc_table`, `tls_table`, `http_table`, `long_tail`) with more options in its `--help`. System calls are counted by `perf`, or else `strace`; \
`http_table` wants `wrk` and `h2load` (`apt-get install wrk nghttp2-client`).

**How a comparison counts.** The machine is noisy: the same program against itself differs from run to run. So contenders take \
turns within each round, the median over at least ten rounds counts, ratios are between runs of the same round, and what the \
machine makes of dhaga against itself stands beside them. Absolute figures are for orientation. Rust is built with cargo's default \
release profile. What is marked *doubtful, disturbed* was measured while other programs used the processors.

";
