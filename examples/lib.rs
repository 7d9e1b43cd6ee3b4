//! What the example programs share. Read the programs first: each is whole, and shows one thing.
//!
//! | program | shows |
//! |---|---|
//! | `hello` | a server and calls to it, in twenty lines |
//! | `quickstart` | ten thousand calls in flight, by dhagas and by OS threads, in one table |
//! | `echo` | a TCP server as with `std::net`, a dhaga for each connection |
//! | `tcp_proxy` | TCP connections carried on to another address, both ways at once |
//! | `udp_dns_relay` | a dhaga for each DNS query, which waits for its answer |
//! | `unix_chat` | a chat over a Unix socket, whose server knows which user is who |
//! | `chat`, `chat_dhaga` | a chat server on std's threads, and the same on dhagas by other `use` lines |
//! | `chat_load` | thousands of clients for either, who check each line |
//! | `tls_echo` | TLS by rustls over a dhaga's socket, server and client |
//! | `http_hello` | a web server on hyper, with a dhaga for each request |
//! | `http_client` | many URLs at once, with a limit and deadlines |
//! | `async_inside` | an `async` library in sequential code |
//! | `rpc_server` | an RPC server whose handlers wait, compute, fail, panic and call others |
//! | `rpc_client` | one call to any MessagePack-RPC server, from the command line |
//! | `subprocess` | many commands, a few at a time, their lines as they come, and an end in order at Ctrl-C |
//!
//! The modules, lowest first:

#[cfg(doctest)]
mod programs_of_the_pages {
    #[doc = include_str!("../docs/guide/async-and-http.md")]
    struct AsyncAndHttp;
    #[doc = include_str!("../docs/guide/tls.md")]
    struct Tls;
}

pub mod json;
pub mod threads;
pub mod tls;

pub mod meter;

pub mod report;
