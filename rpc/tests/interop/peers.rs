//! The peers: what they are, and how they are started in each role.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, thread};

use dhaga_rpc::{ErrorProfile, Value};

/// For a program to start, on a machine that does other things as well.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A foreign library, or Neovim.
pub struct Peer {
    /// As in the file `versions`.
    pub name: &'static str,
    pub language: &'static str,
    pub dialect: Dialect,
    /// Whether it serves on the connections on which it calls, and the other way round.
    pub calls_both_ways: bool,
    /// Whether it is a child of ours, which serves on its standard streams and calls nobody by itself.
    pub is_embedded: bool,
    /// How our server shall tell it of errors.
    pub errors: ErrorProfile,
    /// The program, from the folder of the peers, and its arguments before the role.
    program: &'static [&'static str],
}

/// How the methods of README.md are called there.
#[derive(Clone, Copy, PartialEq)]
pub enum Dialect {
    Plain,
    /// Go's net/rpc: `Service.Method`, and one argument.
    Go,
    /// Neovim has methods of its own.
    Neovim,
}

pub static PEERS: [Peer; 12] = [
    of_neovim(peer("neovim-0.7", "C", Dialect::Neovim, &["nvim"])),
    of_neovim(peer("neovim-0.11", "C", Dialect::Neovim, &["{peers}/python/bin/nvim"])),
    embedded(of_neovim(peer("neovim-0.7-child", "C", Dialect::Neovim, &["nvim"]))),
    embedded(of_neovim(peer("neovim-0.11-child", "C", Dialect::Neovim, &["{peers}/python/bin/nvim"]))),
    one_way(peer("aio-msgpack-rpc", "Python", Dialect::Plain, &["{peers}/python/bin/python", "{here}/aio.py"])),
    one_way(peer(
        "msgpack-rpc-python",
        "Python",
        Dialect::Plain,
        &["{peers}/reference/bin/python", "{here}/reference.py"],
    )),
    of_neovim(peer("pynvim", "Python", Dialect::Plain, &["{peers}/python/bin/python", "{here}/pynvim_peer.py"])),
    of_neovim(peer("npm-neovim", "JavaScript", Dialect::Plain, &["node", "{peers}/node/neovim.js"])),
    peer("msgpack5rpc", "JavaScript", Dialect::Plain, &["node", "{peers}/node/msgpack5rpc.js"]),
    of_neovim(peer("ruby-neovim", "Ruby", Dialect::Plain, &["ruby", "{here}/ruby_neovim.rb"])),
    one_way(peer("go-ugorji", "Go", Dialect::Go, &["{peers}/ugorji"])),
    peer("rust-msgpack-rpc", "Rust", Dialect::Plain, &["{peers}/rust/debug/dhaga-peer"]),
];

const fn peer(name: &'static str, language: &'static str, dialect: Dialect, program: &'static [&'static str]) -> Peer {
    Peer { name, language, dialect, calls_both_ways: true, is_embedded: false, errors: ErrorProfile::Text, program }
}

/// The same for what expects errors as Neovim has them.
const fn of_neovim(peer: Peer) -> Peer {
    Peer { errors: ErrorProfile::CodeText, ..peer }
}

/// The same for what we start as our child.
const fn embedded(peer: Peer) -> Peer {
    Peer { is_embedded: true, ..peer }
}

/// The same for a library with a client and a server that share no connection.
const fn one_way(peer: Peer) -> Peer {
    Peer { calls_both_ways: false, ..peer }
}

/// Where `install` has put them.
pub fn folder() -> PathBuf {
    match env::var_os("DHAGA_PEERS").filter(|peers| peers != "1") {
        Some(peers) => peers.into(),
        None => target().join("peers"),
    }
}

fn target() -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");
    env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from(root)).into()
}

impl Peer {
    /// Starts its server on a free port.
    pub fn serve(&self) -> (Running, SocketAddr) {
        let (running, address) = self.serve_at("127.0.0.1:0");
        let port = address.parse().unwrap_or_else(|_| panic!("no address: {address}"));
        (running, port)
    }

    /// Starts its server, if it is Neovim at this address or path, and says where it listens.
    pub fn serve_at(&self, address: &str) -> (Running, String) {
        let mut command = self.command();
        match self.dialect {
            Dialect::Neovim => {
                const PRINT_ADDRESS: &str = r#"lua
                    io.stdout:write("listening on " .. vim.v.servername .. "\n") io.stdout:flush()"#;
                command.args(["--clean", "--headless", "--listen", address, "--cmd", PRINT_ADDRESS])
            }
            Dialect::Plain | Dialect::Go => command.arg("serve"),
        };
        let mut running = Running::start(command, &format!("{}-serves.log", self.name));
        let address = running.address();
        (running, address)
    }

    /// Starts its client, which calls the server at `address`.
    pub fn call(&self, address: SocketAddr) -> Running {
        let mut command = self.command();
        match self.dialect {
            Dialect::Neovim => command
                .args(["--clean", "--headless", "--cmd", &format!("let g:peer = '{address}'"), "-S"])
                .arg(here().join("neovim.vim")),
            Dialect::Plain | Dialect::Go => {
                command.args(["call", &address.ip().to_string(), &address.port().to_string()])
            }
        };
        Running::start(command, &format!("{}-calls.log", self.name))
    }

    /// What starts it as a child of our client.
    pub fn embed(&self) -> dhaga::process::Command {
        let mut parts = self.parts();
        let mut command = dhaga::process::Command::new(parts.next().expect("a peer has a program"));
        command.args(parts).args(["--clean", "--embed", "--headless"]);
        command
    }

    fn command(&self) -> Command {
        let mut parts = self.parts();
        let mut command = Command::new(parts.next().expect("a peer has a program"));
        command.args(parts);
        command
    }

    fn parts(&self) -> impl Iterator<Item = String> {
        let peers = folder();
        self.program.iter().map(move |part| {
            part.replace("{peers}", &peers.to_string_lossy()).replace("{here}", &here().to_string_lossy())
        })
    }
}

fn here() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers"))
}

impl Dialect {
    /// The method and the arguments that ask such a peer for `method`. Nothing if it cannot be asked.
    pub fn request(self, method: &str, params: Vec<Value>) -> (String, Vec<Value>) {
        match self {
            Self::Plain => (method.to_owned(), params),
            Self::Go => go(method, params),
            Self::Neovim => neovim(method, params),
        }
    }
}

fn go(method: &str, params: Vec<Value>) -> (String, Vec<Value>) {
    if method.starts_with("$/") {
        return (method.to_owned(), params);
    }
    let (first, rest) = method.split_at(1);
    let only = match <[Value; 1]>::try_from(params) {
        Ok([only]) => only,
        Err(params) if params.is_empty() => Value::Nil,
        Err(params) => Value::Array(params),
    };
    (format!("Peer.{}{rest}", first.to_uppercase()), vec![only])
}

fn neovim(method: &str, mut params: Vec<Value>) -> (String, Vec<Value>) {
    let (method, params): (_, Vec<Value>) = match method {
        // The first element of a list, by a function of Vim script: Lua's numbers are doubles.
        "echo" => ("nvim_call_function", vec!["get".into(), Value::Array(vec![Value::Array(params), 0.into()])]),
        "add" if params.len() == 2 && params.iter().all(Value::is_i64) => {
            ("nvim_eval", vec![format!("{} + {}", params[0], params[1]).into()])
        }
        // Whatever is no sum of two numbers is a call with wrong arguments.
        "add" => ("nvim_eval", params),
        "fail" => ("nvim_exec_lua", vec!["error(...)".into(), Value::Array(params)]),
        "sleep" => {
            let ms = params.pop().unwrap_or(Value::Nil);
            ("nvim_exec_lua", vec!["vim.wait(...) return ...".into(), Value::Array(vec![ms])])
        }
        "note" => {
            params.insert(0, "note".into());
            ("nvim_set_var", params)
        }
        "notes" => ("nvim_eval", vec!["[g:note]".into()]),
        "nest" => {
            // The channel is told by whoever has opened it.
            const NEST: &str = "return ... == 0 and 0 or 1 + vim.rpcrequest(vim.g.channel, 'nest', ... - 1)";
            ("nvim_exec_lua", vec![NEST.into(), Value::Array(params)])
        }
        other => (other, params),
    };
    (method.to_owned(), params)
}

/// A peer's process and those it started. Dropping it ends them, by their process group.
pub struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(mut command: Command, log: &str) -> Self {
        let logs = folder().join("logs");
        fs::create_dir_all(&logs).expect("the folder of the peers can be written");
        let log = File::options().create(true).append(true).open(logs.join(log)).expect("a log can be written");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start {:?}: {error}. rpc/tests/peers/install brings it", command.get_program())
        });
        let stdout = BufReader::new(child.stdout.take().expect("stdout was asked for"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Self { child, lines }
    }

    fn address(&mut self) -> String {
        let line = self.lines.recv_timeout(START_TIMEOUT).expect("a server says where it listens");
        line.strip_prefix("listening on ").unwrap_or_else(|| panic!("no address: {line}")).to_owned()
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub fn ends_within(&mut self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        while !self.has_ended() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        self.has_ended()
    }

    /// Ends it, and what it started.
    pub fn kill(&mut self) {
        kill(-i64::from(self.child.id()));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ends a process, or with the negative number of its leader a group.
pub fn kill(process: i64) {
    let _ = Command::new("kill").args(["-KILL", "--", &process.to_string()]).stderr(Stdio::null()).status();
}

/// Name and exact version of each peer, as `install` found them.
pub fn versions() -> Vec<(String, String)> {
    let path = folder().join("versions");
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}. rpc/tests/peers/install writes it", path.display()));
    text.lines().filter_map(|line| line.split_once('\t')).map(|(name, of)| (name.to_owned(), of.to_owned())).collect()
}
