//! The examples, run as programs: by each other and by foreign peers.

mod examples;
mod peers;
mod run;
