//! How do the runtimes compare as HTTP servers?
//!
//! Run: apt-get install wrk nghttp2-client
//!      cargo build --release -p dhaga-benches --features rivals --bins && target/release/http_table

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use dhaga_benches::child::Hidden;
use dhaga_benches::contender::Contender;
use dhaga_benches::contest::{Contest, Entrant, Processors};
use dhaga_benches::facts::Facts;
use dhaga_benches::http_load::Protocol;
use dhaga_benches::http_results::HttpResults;
use dhaga_benches::pairs::{Contestant, Course};
use dhaga_benches::programs::{beside, exit_code};
use dhaga_benches::rival_rows::RivalRow;
use dhaga_benches::section::Output;
use dhaga_benches::text_table::count;

/// Compares HTTP servers on dhaga, tokio and may, by alternating runs under wrk and h2load.
///
/// Each run starts its own server on one processor and the load on another.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    /// Versions of HTTP.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Protocol::Http1, Protocol::Http2])]
    protocols: Vec<Protocol>,
    /// Connections of HTTP/1.1.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000], value_parser = clap::value_parser!(u32).range(1..))]
    connections: Vec<u32>,
    /// Connections of HTTP/2.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100], value_parser = clap::value_parser!(u32).range(1..))]
    http2_connections: Vec<u32>,
    /// Requests at once on each connection of HTTP/2.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    /// Only these rivals; may has no HTTP/2.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Contender::Tokio, Contender::May])]
    contenders: Vec<Contender>,
    /// Rounds. With fewer than ten the result is no more than a glance.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The measured time of a run, in whole seconds: wrk can do with no less.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// The time before it, in whole seconds too, with connections of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    warm_up_seconds: u16,
    #[command(flatten)]
    processors: Processors,
    #[command(flatten)]
    output: Output,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.hidden {
        Some(hidden) => Err(hidden.exec().into()),
        None => run(&options),
    };
    exit_code("http_table", result)
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    options.protocols.iter().try_for_each(|protocol| protocol.check_program())?;
    let facts = Facts::now("http_table", options.rounds.into());
    let course = options.course();
    let contest = Contest::new(course, options.runs(&course));
    let mut rows = Vec::new();
    for &protocol in &options.protocols {
        for &connections in options.connections_of(protocol) {
            rows.push(options.row(protocol, connections, &contest)?);
        }
    }
    contest.end();
    let results = HttpResults { facts, rows };
    options.output.publish(&results, &results.section())?;
    Ok(())
}

impl Options {
    fn connections_of(&self, protocol: Protocol) -> &[u32] {
        match protocol {
            Protocol::Http1 => &self.connections,
            Protocol::Http2 => &self.http2_connections,
        }
    }

    /// Ours first.
    fn contenders(&self, protocol: Protocol) -> Vec<Contender> {
        let takes_part = |contender: &Contender| protocol == Protocol::Http1 || *contender != Contender::May;
        std::iter::once(Contender::Dhaga).chain(self.contenders.iter().copied()).filter(takes_part).collect()
    }

    fn course(&self) -> Course {
        self.processors.course(self.rounds, self.seconds.into(), self.warm_up_seconds.into())
    }

    fn runs(&self, course: &Course) -> usize {
        let of_protocol =
            |&protocol: &Protocol| self.connections_of(protocol).len() * course.runs(self.contenders(protocol).len());
        self.protocols.iter().map(of_protocol).sum()
    }

    fn row(&self, protocol: Protocol, connections: u32, contest: &Contest) -> io::Result<RivalRow> {
        let entrants = self.contenders(protocol).into_iter().map(|contender| entrant(contender, protocol));
        let entrants = entrants.collect::<io::Result<Vec<_>>>()?;
        let load = format!(
            "{} --addr {{addr}} --protocol {} --connections {connections} --streams {}",
            beside("load_http")?,
            protocol.option(),
            self.streams
        );
        let title = self.title(protocol, connections);
        let (contenders, comparison) = contest.row(&title, &load, &entrants)?;
        Ok(RivalRow { title, connections: connections as usize, contenders, comparison })
    }

    fn title(&self, protocol: Protocol, connections: u32) -> String {
        let connections = count(connections as usize);
        match protocol {
            Protocol::Http1 => format!("HTTP/1.1, {connections} connections"),
            Protocol::Http2 => format!("HTTP/2, {connections} connections × {}", self.streams),
        }
    }
}

fn entrant(contender: Contender, protocol: Protocol) -> io::Result<Entrant> {
    let program = beside("http_server")?;
    let (contender_option, protocol) = (contender.option(), protocol.option());
    let command = format!("{program} --contender {contender_option} --addr {{addr}} --protocol {protocol}");
    Ok((contender, Contestant::new(contender.name(), &command)))
}
