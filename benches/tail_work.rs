//! What a request of the long-tail benchmark asks for. Its first byte says it; the answer is the request.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Request and answer.
pub const MESSAGE_BYTES: usize = 64;

/// How long the slow ones wait or compute.
pub const SLOW: Duration = Duration::from_millis(5);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Kind {
    /// Nothing but its answer.
    Plain,
    /// To wait 5 ms first.
    Wait,
    /// To compute for 5 ms first.
    Compute,
}

impl Kind {
    /// All, in the order of the table.
    pub const ALL: [Kind; 3] = [Kind::Plain, Kind::Wait, Kind::Compute];

    /// The first byte of a request.
    pub fn byte(self) -> u8 {
        match self {
            Kind::Plain => 0,
            Kind::Wait => 1,
            Kind::Compute => 2,
        }
    }

    /// Of a first byte; what is unknown is plain.
    pub fn of_byte(byte: u8) -> Kind {
        match byte {
            1 => Kind::Wait,
            2 => Kind::Compute,
            _ => Kind::Plain,
        }
    }

    /// The option that names it.
    pub fn option(self) -> String {
        self.to_possible_value().expect("no kind is hidden").get_name().to_owned()
    }
}

/// Computes for [`SLOW`] by the clock on the wall, which is the only one that all runtimes share: a task may change its
/// thread.
pub fn compute() {
    let began = Instant::now();
    while began.elapsed() < SLOW {
        std::hint::spin_loop();
    }
}
