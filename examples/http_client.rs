//! Fetches many URLs at once, so many at a time, each with a deadline: hyper's client in sequential code.
//!
//! Run:  cargo run --release -p dhaga-examples --example http_client -- --at-once 8 --timeout-ms 2000 \
//!           http://127.0.0.1:8080/ http://127.0.0.1:8080/sleep/500 http://127.0.0.1:8080/sleep/5000
//! You see a line for each as it comes: status, bytes and time, or what went wrong. The last one is out of time.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga::hyper::DhagaIo;
use dhaga::net::TcpStream;
use dhaga::sync::Semaphore;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri};

/// Fetches URLs, and tells what came back.
#[derive(Parser)]
struct Options {
    /// Requests under way at the same time, at most.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    at_once: u32,
    /// How long one of them may take, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// Such as http://127.0.0.1:8080/
    #[arg(required = true)]
    urls: Vec<Uri>,
}

/// Bytes of an answer at most. They are kept until it has come to its end.
const BODY_BYTES_MAX: usize = 64 << 20;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let options = Options::parse();
    let (at_once, limit) = (Semaphore::new(options.at_once as usize), Duration::from_millis(options.timeout_ms));
    let fetch_one = |url| {
        let _permit = at_once.acquire().ok()?;
        report(url, limit)
    };
    let fetched = dhaga::scope(|scope| {
        let fetches: Vec<_> = options.urls.iter().map(|url| scope.spawn(move || fetch_one(url))).collect();
        fetches.into_iter().filter_map(|fetch| fetch.join().ok()?).count()
    });
    if fetched == options.urls.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a line about one URL. `None`: it was not fetched.
fn report(url: &Uri, limit: Duration) -> Option<()> {
    let begun = Instant::now();
    match dhaga::within(limit, || fetch(url)) {
        Ok((status, body)) => {
            println!("{url}: {status}, {} bytes in {} ms", body.len(), begun.elapsed().as_millis());
            Some(())
        }
        Err(error) => {
            println!("{url}: {error}");
            None
        }
    }
}

/// What a browser does, step by step. Each step that waits ends with the scope around it.
fn fetch(url: &Uri) -> Result<(StatusCode, Bytes), Failure> {
    let host = url.host().ok_or("a URL needs a host, as in http://127.0.0.1:8080/")?;
    if url.scheme_str() != Some("http") {
        return Err("only http:// is fetched here".into());
    }
    // A number of IPv6 stands in brackets in a URL, and nowhere else.
    let number = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let stream = TcpStream::connect((number.unwrap_or(host), url.port_u16().unwrap_or(80)))?;
    let (mut sender, connection) = dhaga::try_block_on(http1::handshake(DhagaIo::new(stream)))??;
    // It reads and writes beside us, until the sender is dropped. If it had our deadline, it might be gone before we tell of that.
    dhaga::Builder::new().detached().spawn_future(connection)?.detach();

    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let host = url.authority().map_or(host, |authority| authority.as_str());
    let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new())?;
    let response = dhaga::try_block_on(sender.send_request(request))??;
    let status = response.status();
    let body = dhaga::try_block_on(Limited::new(response.into_body(), BODY_BYTES_MAX).collect())??;
    Ok((status, body.to_bytes()))
}
