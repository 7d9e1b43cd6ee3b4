//! Three services in a row: the front of a shop asks its catalogue, and that asks the stock. Nobody hands a deadline, a cancel
//! or a trace on, and yet each of them reaches the last of the three.
//!
//! Run:  cargo run --release -p dhaga-examples --example shop
//! You see the time that is left at each hop fall, and what happens everywhere when the customer gives up.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga::sync::channel::{self, Receiver, Sender};
use dhaga_rpc::{CallError, Methods, Server, TraceContext, with_trace};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
enum ShopError {
    Unknown(String),
    /// A service behind this one did not answer as it should.
    Behind(String),
}

#[dhaga_rpc::service(name = "front")]
trait Front {
    /// The page about an article.
    #[rpc(idempotent)]
    fn page(&self, article: &str) -> Result<String, ShopError>;
}

#[dhaga_rpc::service(name = "catalogue")]
trait Catalogue {
    #[rpc(idempotent)]
    fn entry(&self, article: &str) -> Result<Entry, ShopError>;
}

#[dhaga_rpc::service(name = "stock")]
trait Stock {
    /// How many there are. Of what there is none it waits for the next delivery.
    #[rpc(idempotent)]
    fn pieces(&self, article: &str) -> Result<u32, ShopError>;
}

#[derive(Serialize, Deserialize)]
struct Entry {
    title: String,
    pieces: u32,
}

struct FrontDesk {
    catalogue: CatalogueClient,
    diary: Diary,
}

impl Front for FrontDesk {
    fn page(&self, article: &str) -> Result<String, ShopError> {
        let _work = self.diary.work("front");
        let entry = self.catalogue.entry(article)?;
        Ok(format!("{}: {} pieces", entry.title, entry.pieces))
    }
}

struct Library {
    stock: StockClient,
    diary: Diary,
}

impl Catalogue for Library {
    fn entry(&self, article: &str) -> Result<Entry, ShopError> {
        let _work = self.diary.work("catalogue");
        // It looks the title up in some slow place.
        dhaga::sleep(Duration::from_millis(20));
        let title = match article {
            "pen" => "A pen that writes under water",
            "moon" => "A piece of the moon",
            other => return Err(ShopError::Unknown(other.to_owned())),
        };
        Ok(Entry { title: title.to_owned(), pieces: self.stock.pieces(article)? })
    }
}

struct Shelf {
    deliveries: Receiver<u32>,
    diary: Diary,
}

impl Stock for Shelf {
    fn pieces(&self, article: &str) -> Result<u32, ShopError> {
        let _work = self.diary.work("stock");
        match article {
            "pen" => Ok(7),
            _ => self.deliveries.recv().map_err(|error| ShopError::Behind(error.to_string())),
        }
    }
}

/// Calls the shop, once in time and once for as long as a customer has patience.
#[derive(Parser)]
struct Options {
    /// How long the first customer waits at most, in milliseconds.
    #[arg(long, default_value_t = 300)]
    within_ms: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let ((begun_in, begun), (ended_in, ended)) = (channel::bounded(100), channel::bounded(100));
    let diary = Diary { begun: begun_in, ended: ended_in };
    // Nothing is ever delivered, and the sender is kept: what waits for it waits for good.
    let (_lorry, deliveries) = channel::bounded(1);

    let stock = serve(StockServer::new(Shelf { deliveries, diary: diary.clone() }))?;
    let library = Library { stock: StockClient::connect(stock.local_addr())?, diary: diary.clone() };
    let catalogue = serve(CatalogueServer::new(library))?;
    let desk = FrontDesk { catalogue: CatalogueClient::connect(catalogue.local_addr())?, diary };
    let front = serve(FrontServer::new(desk))?;
    let shop = FrontClient::connect(front.local_addr())?;

    let limit = Duration::from_millis(options.within_ms);
    println!("A page within {limit:?}:");
    let page = dhaga::within(limit, || with_trace(TraceContext::new(true), || shop.page("pen")));
    while let Ok(Begun { service, left, trace }) = begun.try_recv() {
        let left = left.map_or_else(|| "no deadline".to_owned(), |left| format!("{:.1} ms left", millis(left)));
        println!(
            "  {service:<10} {left}, trace {}",
            trace.map_or_else(|| "none".to_owned(), |trace| trace.to_string())
        );
    }
    match page {
        Ok(page) => println!("  {page}"),
        Err(error) => println!("  no page: {error}"),
    }
    while ended.try_recv().is_ok() {}

    println!("A customer who gives up:");
    let customer = dhaga::spawn(move || shop.page("moon"));
    // All three are at work when the last of them is.
    for _ in 0..3 {
        begun.recv()?;
    }
    let gave_up = Instant::now();
    customer.cancel();
    for _ in 0..3 {
        let Ended { service, at } = ended.recv()?;
        println!("  {service:<10} stopped after {:.1} ms", millis(at.saturating_duration_since(gave_up)));
    }
    if let Err(error) = customer.join()? {
        println!("  the customer: {error}");
    }
    Ok(())
}

fn serve(service: impl Into<Methods>) -> io::Result<Server> {
    Server::builder().service(service).bind("127.0.0.1:0")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What the services note, for who looks on.
#[derive(Clone)]
struct Diary {
    begun: Sender<Begun>,
    ended: Sender<Ended>,
}

struct Begun {
    service: &'static str,
    left: Option<Duration>,
    trace: Option<TraceContext>,
}

struct Ended {
    service: &'static str,
    at: Instant,
}

impl Diary {
    /// Notes that a call has begun, and when it ends.
    fn work(&self, service: &'static str) -> Work {
        let call = dhaga_rpc::current();
        let (left, trace) = call.map_or((None, None), |call| (call.time_left(), call.trace()));
        // There is room for all that this program does, and who looks on does not hold up the work.
        let _ = self.begun.try_send(Begun { service, left, trace });
        Work { service, ended: self.ended.clone() }
    }
}

/// A call that is served.
struct Work {
    service: &'static str,
    ended: Sender<Ended>,
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = self.ended.try_send(Ended { service: self.service, at: Instant::now() });
    }
}

impl fmt::Display for ShopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(article) => write!(f, "there is no article {article:?}"),
            Self::Behind(error) => write!(f, "a service behind this one failed: {error}"),
        }
    }
}

/// A service's own error travels on as it is.
impl From<CallError<ShopError>> for ShopError {
    fn from(error: CallError<ShopError>) -> Self {
        match error {
            CallError::App(error) => error,
            other => Self::Behind(other.to_string()),
        }
    }
}
