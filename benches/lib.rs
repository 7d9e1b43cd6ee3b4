//! What the benchmark programs share. The programs, and the question each one answers:
//!
//! | program | question |
//! |---|---|
//! | `bare_echo` | how fast is TCP echo with nothing but an event loop? |
//! | `bare_rpc` | how fast is MessagePack-RPC with nothing but an event loop, a coroutine and serde? |
//! | `load_echo`, `load_rpc` | how fast does a server answer, and how late? |
//! | `compare` | which of two servers is faster, by the median of alternating pairs? |
//! | `idle_connections` | what does an idle connection cost the server in memory? |
//! | `switch`, `spawn` | what does it take to wait and be woken, to start and to join? |
//! | `memory` | what does a parked dhaga take, how many can wait at once, and what becomes of their memory? |
//! | `descriptors` | what does a growing table of descriptors cost, and room made beforehand save? |
//! | `runtime_table` | how do the runtimes compare inside a process? `runtime_row` is its child |
//! | `echo_table` | how do the runtimes compare as echo servers? `rival_echo` is the rivals' server |
//! | `tls_table` | how do the runtimes compare as TLS echo servers? `tls_server` answers, `load_tls` and `idle_tls` ask |
//! | `http_table` | how do the runtimes compare as HTTP servers? `http_server` answers, `load_http` asks by wrk and h2load |
//! | `rpc_table` | how does `dhaga-rpc` compare with the bare loop, and with other libraries? `rpc_server` answers, `load_calls` and `idle_calls` ask by each library's client |
//! | `ticker` | how late is a tick while others read files, look up names and start processes? |
//! | `long_tail` | how late are the others, when 1 % of requests are slow? `tail_server` answers, `load_open` asks |
//! | `instructions` | has an operation become longer, counted in instructions? `instruction_ops` is its child |
//! | `floods` | what do peers that mean no good cost an RPC server, and others who call it? |
//! | `report` | all tables, and the page docs/benchmarks.md |
//!
//! Each prints its options with `--help`. The modules, lowest first:

pub mod contender;
pub mod machine;
pub mod payload;
pub mod spread;
pub mod tail_work;

pub mod sample;
pub mod wire;

pub mod doze;
pub mod outgoing;
pub mod readiness;

pub mod event_loop;

pub mod dial;
pub mod server_use;

pub mod flood_peers;

pub mod idle;
pub mod tail_protocol;
#[cfg(feature = "rivals")]
pub mod tls_setup;
pub mod window;

#[cfg(feature = "rivals")]
pub mod tls_dial;

pub mod instruction_work;
pub mod parked;
pub mod runtime_work;

pub mod bare_work;
pub mod dhaga_work;
pub mod thread_work;

#[cfg(feature = "rivals")]
pub mod may_work;
#[cfg(feature = "rivals")]
pub mod tokio_work;

pub mod child;
pub mod pairs;
pub mod programs;
pub mod realtime;

#[cfg(feature = "rivals")]
pub mod rpc_echo;
#[cfg(feature = "rivals")]
pub mod tonic_echo;

#[cfg(feature = "rivals")]
pub mod calls;

#[cfg(feature = "rivals")]
pub mod dhaga_calls;
#[cfg(feature = "rivals")]
pub mod go_calls;
#[cfg(feature = "rivals")]
pub mod tokio_calls;

#[cfg(feature = "rivals")]
pub mod tarpc_calls;
#[cfg(feature = "rivals")]
pub mod tonic_calls;

#[cfg(feature = "rivals")]
pub mod rpc_clients;

pub mod http_load;
pub mod progress;
pub mod rows;
pub mod text_table;

pub mod server_lines;
pub mod table;

pub mod facts;
#[cfg(feature = "rivals")]
pub mod plot;
#[cfg(feature = "rivals")]
pub mod section;

#[cfg(feature = "rivals")]
pub mod limit_rows;
#[cfg(feature = "rivals")]
pub mod rival_rows;
#[cfg(feature = "rivals")]
pub mod server_memory;

#[cfg(feature = "rivals")]
pub mod contest;

#[cfg(feature = "rivals")]
pub mod echo_results;
#[cfg(feature = "rivals")]
pub mod http_results;
#[cfg(feature = "rivals")]
pub mod rpc_results;
#[cfg(feature = "rivals")]
pub mod runtime_results;
#[cfg(feature = "rivals")]
pub mod tail_results;
#[cfg(feature = "rivals")]
pub mod tls_results;
