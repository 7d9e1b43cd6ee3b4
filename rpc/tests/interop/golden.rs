//! Frames as they went over the wire, kept in `tests/peers/golden` for the tests that need no peers.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use dhaga_rpc::Value;

use crate::matrix::Role;
use crate::peers::{Peer, versions};

/// What only tells the client what to do.
const SCRIPT: [&str; 3] = ["next", "report", "nvim_get_api_info"];

/// What went over one connection.
#[derive(Clone, Default)]
pub struct Recording {
    from_client: Arc<Mutex<Vec<u8>>>,
    from_server: Arc<Mutex<Vec<u8>>>,
}

/// Stands between one client and the server at `to`, and writes down what they say.
pub fn tap(to: SocketAddr) -> (SocketAddr, Recording) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the kernel has a port");
    let address = listener.local_addr().expect("it is bound");
    let recording = Recording::default();
    let (out, back) = (recording.from_client.clone(), recording.from_server.clone());
    thread::spawn(move || -> io::Result<()> {
        let (client, _) = listener.accept()?;
        let server = TcpStream::connect(to)?;
        let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || pass_on(server_too, client_too, &back));
        pass_on(client, server, &out)
    });
    (address, recording)
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, log: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut buffer = [0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => return to.shutdown(Shutdown::Write),
            count => {
                log.lock().expect("nobody panics with it").extend_from_slice(&buffer[..count]);
                to.write_all(&buffer[..count])?;
            }
        }
    }
}

impl Recording {
    /// Writes the exchanges to the file of this peer and role.
    pub fn keep(&self, peer: &Peer, role: Role) {
        let requests = messages(&self.from_client);
        let answers = messages(&self.from_server);
        let versions = versions();
        let version = versions.iter().find(|(name, _)| name == peer.name).map_or("", |(_, version)| version);
        let (title, file) = match role {
            Role::Server => ("answers our client", format!("{}-serves.txt", peer.name)),
            Role::Client => ("calls our server", format!("{}-calls.txt", peer.name)),
        };
        let mut text = format!("# {version} {title}.\n# > the client's bytes, < the server's.\n");
        for (value, bytes) in requests {
            let message = value.as_array().expect("a message is an array");
            let answer = answers.iter().find(|(answer, _)| answer[0] == 1.into() && answer[1] == message[1]);
            let method = message[message.len() - 2].as_str().unwrap_or_default();
            let answer: &[u8] = answer.map_or(&[], |(_, bytes)| bytes);
            if SCRIPT.contains(&method) {
                continue;
            }
            text.push_str(&format!("\n> {}\n", hex(&bytes)));
            if message.len() == 4 {
                text.push_str(&format!("< {}\n", hex(answer)));
            }
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/golden");
        fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(file), text)).expect("it can be written");
    }
}

/// The whole messages of a stream, decoded and as they were.
fn messages(stream: &Mutex<Vec<u8>>) -> Vec<(Value, Vec<u8>)> {
    let stream = stream.lock().expect("nobody panics with it").clone();
    let mut rest = &stream[..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let before = rest;
        let Ok(value) = rmpv::decode::read_value(&mut rest) else { break };
        messages.push((value, before[..before.len() - rest.len()].to_vec()));
    }
    messages
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
