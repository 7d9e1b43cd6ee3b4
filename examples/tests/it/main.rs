//! The examples, run as programs: by each other and by foreign peers.

mod bounded;
mod chat;
mod examples;
mod http;
mod peers;
mod run;
mod tcp_proxy;
mod tls;
mod tls_hostile;
mod tls_world;
mod udp_dns_relay;
mod unix_chat;
