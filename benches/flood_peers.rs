//! Peers of an RPC server that mean no good: what they send, and how.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use dhaga_rpc::encode::{EncodeError, encode_notification, encode_request};
use dhaga_rpc::{Limits, Value};
use serde::{Deserialize, Serialize};

use crate::dial::dial_one;

/// A way to do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Flood {
    /// A million arrays inside one another, again and again.
    Depth,
    /// Values that claim 4 GiB.
    Claims,
    /// Frames that claim as much as is allowed and do not go on.
    Unfinished,
    /// Arrays of 65 536 nils for a type that takes 136 bytes for each.
    Nils,
    /// The byte that is no MessagePack.
    Reserved,
    /// Notifications that nobody serves, of six bytes.
    Tiny,
    /// Requests that are refused, and whose answers are read.
    Refused,
    /// Requests that wait, each taken back at once.
    Cancel,
    /// Requests for large answers, all of which are read.
    Blobs,
    /// A tenth of all readers asks for large answers and reads none of them.
    SlowReaders,
    /// Half a frame, and then nothing.
    Slowloris,
}

impl Flood {
    /// As many as the question is about.
    pub fn connections(self) -> usize {
        match self {
            Flood::SlowReaders => 1000,
            Flood::Slowloris => 2000,
            _ => 100,
        }
    }

    /// Whether a server has to do with it what it has to do with any call, so that it takes time from others as those would.
    pub fn is_work(self) -> bool {
        matches!(self, Flood::Nils | Flood::Refused | Flood::Cancel | Flood::Blobs)
    }

    fn plan(self) -> Result<Plan, EncodeError> {
        let request = |method: &str, params: &[Value]| {
            let mut bytes = Vec::new();
            encode_request(&mut bytes, &Limits::default(), 1, method, params).map(|()| bytes)
        };
        let argument = |value: &[u8]| [&[0x94, 0, 1, 0xa4][..], b"echo", &[0x91], value].concat();
        let claim = |marker| argument(&[&[marker, 0xff, 0xff, 0xff, 0xff], &[0; 1000][..]].concat());
        let often = |chunk| Plan { chunk, reads: true, is_sent_once: false };
        let once = |chunk| Plan { chunk, reads: true, is_sent_once: true };
        Ok(match self {
            Flood::Depth => often(argument(&vec![0x91; 1_000_000])),
            Flood::Claims => often(claim(0xdd)),
            Flood::Unfinished => once(argument(&[&[0xc6, 0, 0x7f, 0xff, 0], &[7; 1000][..]].concat())),
            Flood::Nils => {
                let nils = [&[0xdd, 0, 1, 0, 0][..], &[0xc0; 1 << 16]].concat();
                often([&[0x94, 0, 1, 0xa3][..], b"fat", &[0x91], &nils].concat())
            }
            Flood::Reserved => often(vec![0xc1]),
            Flood::Tiny => {
                let mut notice = Vec::new();
                encode_notification(&mut notice, &Limits::default(), "no", &())?;
                often(notice.repeat(4000))
            }
            Flood::Refused => often(request("no", &[])?.repeat(2000)),
            Flood::Cancel => {
                let mut chunk = Vec::new();
                for id in 1..4000 {
                    encode_request(&mut chunk, &Limits::default(), id, "hold", &())?;
                    encode_notification(&mut chunk, &Limits::default(), "$/cancelRequest", &(0, id))?;
                }
                often(chunk)
            }
            Flood::Blobs => often(blobs(4000)?),
            Flood::SlowReaders => Plan { chunk: blobs(400)?, reads: false, is_sent_once: true },
            Flood::Slowloris => once(request("echo", &["never whole".into()])?[..8].to_vec()),
        })
    }

    /// Does harm to the server at `address` for so long. Connections that are closed are opened again.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub fn run(self, address: SocketAddr, connections: usize, time: Duration) -> io::Result<Harm> {
        let plan = self.plan().map_err(io::Error::other)?;
        let end = Instant::now() + time;
        let mut harm = Harm::default();
        let mut peers = (0..connections).map(|_| Peer::connect(address, self)).collect::<io::Result<Vec<_>>>()?;
        let mut buffer = vec![0; 64 << 10];
        while Instant::now() < end {
            let mut has_moved = false;
            for (index, peer) in peers.iter_mut().enumerate() {
                let is_idle = self == Flood::SlowReaders && index % 10 > 0;
                match peer.go_on(&plan, is_idle, &mut buffer, &mut harm) {
                    Ok(moved) => has_moved |= moved,
                    Err(_) => {
                        harm.closed += 1;
                        *peer = Peer::connect(address, self)?;
                    }
                }
            }
            if !has_moved {
                sleep(Duration::from_millis(1));
            }
        }
        Ok(harm)
    }
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("none is skipped").get_name())
    }
}

/// Requests for large answers, with different ids.
fn blobs(count: u32) -> Result<Vec<u8>, EncodeError> {
    let mut chunk = Vec::new();
    for id in 1..count {
        encode_request(&mut chunk, &Limits::default(), id, "blob", &(64 << 10,))?;
    }
    Ok(chunk)
}

struct Plan {
    chunk: Vec<u8>,
    reads: bool,
    is_sent_once: bool,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Harm {
    /// Bytes that the server's sockets took.
    pub sent_bytes: u64,
    /// Connections that the server closed.
    pub closed: u64,
}

struct Peer {
    stream: TcpStream,
    /// Bytes of the chunk that are sent.
    at: usize,
    is_done: bool,
}

impl Peer {
    fn connect(address: SocketAddr, flood: Flood) -> io::Result<Peer> {
        let mut stream = dial_one(address)?;
        if flood == Flood::Cancel {
            let mut hello = Vec::new();
            let caps = Value::Array(vec!["cancel".into()]);
            let said = Value::Map(vec![("v".into(), 1.into()), ("caps".into(), caps)]);
            encode_request(&mut hello, &Limits::default(), 0, "$/hello", &(said,)).map_err(io::Error::other)?;
            stream.write_all(&hello)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Peer { stream, at: 0, is_done: false })
    }

    /// Sends and reads what can be without waiting. Returns whether anything could.
    fn go_on(&mut self, plan: &Plan, is_idle: bool, buffer: &mut [u8], harm: &mut Harm) -> io::Result<bool> {
        let mut has_moved = false;
        if plan.reads {
            while let Some(count) = unless_blocked(self.stream.read(buffer))? {
                has_moved = true;
                if count == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
        }
        if self.is_done || is_idle {
            return Ok(has_moved);
        }
        if let Some(count) = unless_blocked(self.stream.write(&plan.chunk[self.at..]))? {
            harm.sent_bytes += count as u64;
            self.at = (self.at + count) % plan.chunk.len();
            self.is_done = plan.is_sent_once && self.at == 0;
            has_moved = true;
        }
        Ok(has_moved)
    }
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
