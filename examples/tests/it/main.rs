//! The examples, run as programs: by each other and by foreign peers.

mod chat;
mod examples;
mod http;
mod peers;
mod run;
mod tcp_proxy;
mod udp_dns_relay;
mod unix_chat;
