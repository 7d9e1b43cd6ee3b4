//! The rows of the published tables, each with its goal.

/// One load, and how near to the bare loop the server should come under it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Connections.
    pub connections: usize,
    /// Calls in flight on each.
    pub in_flight: usize,
    /// What is wanted.
    pub goal: Goal,
}

/// Bounds on the server's value divided by the bare loop's.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Which bare loop.
    pub against: Limit,
    /// The rate's ratio is at least this.
    pub rate_min: f64,
    /// The ratio of processor time per request is at most this.
    pub cpu_max: Option<f64>,
    /// The ratio of the 99th percentile is at most this.
    pub p99_max: Option<f64>,
    /// System calls per request are at most this many, whatever the bare loop's are.
    pub syscalls_max: Option<f64>,
}

/// The two ways in which a bare loop waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The one that polls before it blocks.
    Dozing,
    /// The faster of the two.
    Faster,
}

/// RPC: the server under a bare pipelining client.
pub const RPC: [Row; 7] = [
    row(1, 1, of_limit(Limit::Dozing, 0.9)),
    row(1, 64, of_limit(Limit::Dozing, 0.6).with_cpu(2.5).with_syscalls(0.2)),
    row(1, 1024, of_limit(Limit::Faster, 0.4).with_cpu(2.5).with_syscalls(0.2)),
    row(100, 1, of_limit(Limit::Faster, 0.9)),
    row(100, 16, of_limit(Limit::Faster, 0.5)),
    row(1_000, 1, of_limit(Limit::Faster, 0.9)),
    row(10_000, 1, of_limit(Limit::Faster, 0.9)),
];

/// TCP echo, a dhaga per connection.
pub const ECHO: [Row; 4] = [
    row(1, 1, of_limit(Limit::Dozing, 0.9)),
    row(100, 1, of_limit(Limit::Faster, 0.97).with_cpu(1.05)),
    row(1_000, 1, of_limit(Limit::Faster, 0.97)),
    row(10_000, 1, of_limit(Limit::Faster, 0.97).with_p99(1.2)),
];

const fn row(connections: usize, in_flight: usize, goal: Goal) -> Row {
    Row { connections, in_flight, goal }
}

const fn of_limit(against: Limit, rate_min: f64) -> Goal {
    Goal { against, rate_min, cpu_max: None, p99_max: None, syscalls_max: None }
}

impl Goal {
    const fn with_cpu(self, cpu_max: f64) -> Goal {
        Goal { cpu_max: Some(cpu_max), ..self }
    }

    const fn with_p99(self, p99_max: f64) -> Goal {
        Goal { p99_max: Some(p99_max), ..self }
    }

    const fn with_syscalls(self, syscalls_max: f64) -> Goal {
        Goal { syscalls_max: Some(syscalls_max), ..self }
    }
}

impl Row {
    /// As the tables write it.
    pub fn name(&self) -> String {
        format!("{} x {}", self.connections, self.in_flight)
    }
}
