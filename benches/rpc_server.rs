//! Echo over RPC by each library: `dhaga-rpc`, alone or as a relay before a second server, and its rivals on tokio. Go's is
//! `go/rpc`.

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use dhaga::Runtime;
use dhaga_benches::child::{Hidden, Running};
use dhaga_benches::contender::Contender;
use dhaga_benches::pairs::{free_address, wait_until_listening};
use dhaga_benches::programs::{beside, exit_code};
use dhaga_benches::rpc_echo::{EchoClient, EchoHandler, EchoServer, InlineEchoServer, Relay, TarpcEcho};
use dhaga_benches::tarpc_calls::TARPC_BUFFER;
use dhaga_benches::tonic_calls::HTTP2_WINDOW_BYTES;
use dhaga_benches::tonic_echo::{Payload, echo_server};
use dhaga_benches::{machine, tokio_work};
use dhaga_rpc::{Methods, Server};
use futures_util::StreamExt;
use serde_bytes::ByteBuf;
use tarpc::server::{self, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::tokio_util::codec::LengthDelimitedCodec;
use tarpc::{context, serde_transport};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

type AnyError = Box<dyn Error + Send + Sync>;

/// RPC servers of one method, `echo`, with one worker. They run until they are killed.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Answers.
    Serve(Serve),
    /// Asks a second server of ours for the answer.
    Relay(Between),
    #[command(flatten)]
    Hidden(Hidden),
}

#[derive(Args)]
struct Serve {
    /// Whose library: dhaga-rpc, dhaga-rpc-inline, tarpc or tonic.
    #[arg(long)]
    contender: Contender,
    /// Where to listen, for example 127.0.0.1:7000.
    #[arg(long)]
    addr: SocketAddr,
}

#[derive(Args)]
struct Between {
    /// Where to listen.
    #[arg(long)]
    addr: SocketAddr,
    /// The processor of the second server, which is started and ends with this one.
    #[arg(long)]
    next_cpu: usize,
}

fn main() -> ExitCode {
    let result = match Options::parse().what {
        What::Serve(serve) => run(&serve),
        What::Relay(between) => relay(&between),
        What::Hidden(hidden) => Err(hidden.exec().into()),
    };
    exit_code("rpc_server", result.map_err(|error| error as Box<dyn Error>))
}

fn run(serve: &Serve) -> Result<(), AnyError> {
    machine::raise_open_files()?;
    match serve.contender {
        Contender::DhagaRpc => {
            let runtime = Runtime::builder().workers(1).build()?;
            serve_dhaga(&runtime, serve.addr, EchoServer::new(EchoHandler))
        }
        Contender::DhagaRpcInline => {
            let runtime = Runtime::builder().workers(1).build()?;
            serve_dhaga(&runtime, serve.addr, InlineEchoServer::new(EchoHandler))
        }
        // In a task: what `block_on` runs itself lives on a thread of its own.
        Contender::Tarpc => {
            let tokio = tokio_work::multi_thread(1)?;
            tokio.block_on(tokio.spawn(serve_tarpc(serve.addr)))?
        }
        Contender::Tonic => {
            let tokio = tokio_work::multi_thread(1)?;
            tokio.block_on(tokio.spawn(serve_tonic(serve.addr)))?
        }
        _ => Err("this program has no such server".into()),
    }
}

fn serve_dhaga(runtime: &Runtime, address: SocketAddr, service: impl Into<Methods>) -> Result<(), AnyError> {
    let _server = Server::builder().service(service).bind_on(runtime, address)?;
    loop {
        std::thread::park();
    }
}

fn relay(between: &Between) -> Result<(), AnyError> {
    machine::raise_open_files()?;
    let next = free_address()?;
    let command = [beside("rpc_server")?, "serve".into(), "--contender".into(), Contender::DhagaRpc.option()];
    let command: Vec<String> = command.into_iter().chain(["--addr".into(), next.to_string()]).collect();
    let mut second = Running::start_server(&command, Some(between.next_cpu))?;
    wait_until_listening(&mut second, next)?;
    let runtime = Runtime::builder().workers(1).build()?;
    // On the worker, whose connection it shall be.
    let client = runtime.spawn(move || EchoClient::connect(next)).join().map_err(|error| error.to_string())??;
    serve_dhaga(&runtime, between.addr, EchoServer::new(Relay(client)))
}

#[derive(Clone)]
struct TarpcHandler;

impl TarpcEcho for TarpcHandler {
    async fn echo(self, _: context::Context, payload: ByteBuf) -> ByteBuf {
        payload
    }
}

/// A task for each connection and each request, as in tarpc's own examples.
async fn serve_tarpc(address: SocketAddr) -> Result<(), AnyError> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(answer_tarpc(stream));
    }
}

async fn answer_tarpc(stream: TcpStream) {
    let transport = serde_transport::new(LengthDelimitedCodec::builder().new_framed(stream), Bincode::default());
    let config = server::Config { pending_response_buffer: TARPC_BUFFER };
    let requests = server::BaseChannel::new(config, transport).execute(TarpcHandler.serve());
    requests.for_each(async |answer| drop(tokio::spawn(answer))).await;
}

struct TonicHandler;

#[tonic::async_trait]
impl echo_server::Echo for TonicHandler {
    async fn echo(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

/// More streams at a time than any row has calls in flight: hyper's own limit is 200.
const STREAMS_MAX: u32 = 4096;

async fn serve_tonic(address: SocketAddr) -> Result<(), AnyError> {
    let incoming = TcpIncoming::bind(address)?.with_nodelay(Some(true));
    let service = echo_server::EchoServer::new(TonicHandler);
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
