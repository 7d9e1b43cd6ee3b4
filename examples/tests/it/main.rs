//! The examples, run as programs: by each other and by foreign peers.

mod peers;
mod run;
