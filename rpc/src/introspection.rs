//! What a server tells of itself, to any peer that asks: `$/describe`, `$/health` and `$/stats`.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::metrics::{MethodMetrics, Metrics};
use crate::service::{HandlerError, Methods};

pub(crate) const DESCRIBE: &str = "$/describe";
pub(crate) const HEALTH: &str = "$/health";
const STATS: &str = "$/stats";

/// 512 methods in one answer to `$/stats`: more than servers have, in some 100 KiB. Thirty thousand would take 6.5 MB, and more
/// than that to add up, for any peer that asks.
const STATS_METHODS_MAX: usize = 512;

/// How a server is, as it says itself: the answer to [`Client::health`](crate::Client::health).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// Whether it wants to be called.
    pub status: HealthStatus,
    /// Handlers that run or wait now; that of this request is one of them.
    pub in_flight: usize,
    /// Connections that are open.
    pub connections: usize,
}

/// Whether a server wants to be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HealthStatus {
    /// It does.
    #[default]
    Serving,
    /// It takes calls, or finishes those that it has, and would rather have others take new ones: it ends soon.
    Draining,
    /// It says something that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Health {
    pub(crate) fn new(status: HealthStatus, in_flight: usize, connections: usize) -> Self {
        Self { status, in_flight, connections }
    }
}

/// Who can tell.
pub(crate) trait Reports: Send + Sync + 'static {
    fn health(&self) -> Health;
    /// Counters by name.
    fn counters(&self) -> Vec<(&'static str, u64)>;
    /// Those of as many methods, called most often, and how many are left out.
    fn metrics_of_most(&self, methods_max: usize) -> (Metrics, usize);
}

/// Adds the three requests to the methods of a server that is yet to be made.
pub(crate) fn add<R: Reports>(methods: Methods, reports: &ReportsLater<R>) -> Methods {
    let description = methods.describe();
    let (health, stats) = (reports.clone(), reports.clone());
    let ends = || HandlerError::new("the server ends");
    methods
        .protocol(DESCRIBE, move || Ok(description.clone()))
        .protocol(HEALTH, move || health.get().map(|server| server.health()).ok_or_else(ends))
        .protocol(STATS, move || stats.get().map(|server| Stats::of(&*server)).ok_or_else(ends))
}

/// A server's own methods hold it only weakly.
pub(crate) struct ReportsLater<R>(Arc<OnceLock<Weak<R>>>);

impl<R> ReportsLater<R> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn set(&self, server: Weak<R>) {
        let _ = self.0.set(server);
    }

    fn get(&self) -> Option<Arc<R>> {
        self.0.get().and_then(Weak::upgrade)
    }
}

impl<R> Clone for ReportsLater<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The answer to `$/stats`.
#[derive(Serialize)]
struct Stats {
    #[serde(flatten)]
    counters: BTreeMap<&'static str, u64>,
    methods: Vec<MethodStats>,
    methods_left_out: usize,
}

#[derive(Serialize)]
struct MethodStats {
    method: String,
    calls: u64,
    in_flight: u64,
    errors: BTreeMap<&'static str, u64>,
    bytes_in: u64,
    bytes_out: u64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
}

impl Stats {
    fn of<R: Reports>(server: &R) -> Self {
        let (metrics, methods_left_out) = server.metrics_of_most(STATS_METHODS_MAX);
        let methods = metrics.methods().iter().map(MethodStats::of).collect();
        Self { counters: server.counters().into_iter().collect(), methods, methods_left_out }
    }
}

impl MethodStats {
    fn of(method: &MethodMetrics) -> Self {
        let micros = |quantile| method.durations.quantile(quantile).map(|took: Duration| took.as_micros() as u64);
        Self {
            method: method.method.clone(),
            calls: method.calls,
            in_flight: method.in_flight,
            errors: method.errors.iter().copied().collect(),
            bytes_in: method.bytes_in,
            bytes_out: method.bytes_out,
            p50_us: micros(0.5),
            p99_us: micros(0.99),
        }
    }
}
