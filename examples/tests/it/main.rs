//! The examples, run as programs: by each other and by foreign peers.

mod bounded;
mod chat;
mod examples;
mod http;
mod peers;
mod run;
mod tls;
mod tls_hostile;
mod tls_world;
