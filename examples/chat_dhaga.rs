//! A chat server with rooms, written with std's threads, sockets, locks and channels, and moved to Dhaga by its `use` lines.
//!
//! Run:  cargo run --release -p dhaga-examples --example chat          on std: two OS threads for each client
//!       cargo run --release -p dhaga-examples --example chat_dhaga    on Dhaga: two dhagas for each client
//! Then: nc 127.0.0.1 7000    and type /name ann, /join tea, hello, /who, /msg bob psst, /quit
//!
//! `chat.rs` and `chat_dhaga.rs` differ in `use` lines only, which `docs/porting.md` shows. The server itself listens to its
//! standard input: `stats` prints its counters, `stop` ends it in order.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use dhaga::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use dhaga::thread;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Lines that may wait for a client. One that lets more pile up is too slow, and dropped before it costs more memory.
const OUTBOX_LINES_MAX: usize = 256;

/// Bytes of a line, with its end.
const LINE_BYTES_MAX: u64 = 4096;

/// Bytes of a reader's buffer: most lines are short.
const READ_BYTES: usize = 1024;

/// Bytes that are written at once at most, but for the last line among them.
const BATCH_BYTES_MAX: usize = 16 << 10;

/// Letters and digits of a name, of a client's or of a room's.
const NAME_CHARS_MAX: usize = 32;

/// What reader and writer need, with room to spare.
const STACK_BYTES: usize = 64 << 10;

/// How long a client may take to accept what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait when descriptors or threads are used up.
const PAUSE: Duration = Duration::from_millis(10);

/// A chat server with rooms.
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:7000")]
    addr: String,
    /// How long a client may say nothing, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(1..))]
    idle_ms: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    // A client takes a descriptor, and the usual soft limit is 1024 of them.
    let mut open_files = getrlimit(Resource::Nofile);
    open_files.current = open_files.maximum;
    setrlimit(Resource::Nofile, open_files)?;

    let listener = TcpListener::bind(&options.addr)?;
    let addr = listener.local_addr()?;
    println!("listening on {addr}");
    let server = Arc::new(Server::new(Duration::from_millis(options.idle_ms)));
    let accepting = server.clone();
    let accepting = thread::spawn(move || accepting.accept_all(&listener));
    for line in io::stdin().lines() {
        match line?.trim() {
            "stats" => println!("{}", server.counters),
            "stop" => {
                server.stop(addr, accepting)?;
                println!("stopped: {}", server.counters);
                return Ok(());
            }
            _ => println!("say `stats` or `stop`"),
        }
    }
    // Standard input has ended, so nobody will say stop.
    accepting.join().expect("accepting does not panic");
    Ok(())
}

struct Server {
    /// All who are connected, by name.
    clients: Mutex<HashMap<String, Arc<Client>>>,
    /// Rooms with somebody inside, by name.
    rooms: Mutex<HashMap<String, Arc<Room>>>,
    /// How many clients have threads.
    served: Mutex<usize>,
    has_left: Condvar,
    counters: Counters,
    is_stopping: AtomicBool,
    idle: Duration,
}

/// A client, as others see it.
struct Client {
    id: u64,
    name: Mutex<String>,
    outbox: SyncSender<Arc<str>>,
    stream: Arc<TcpStream>,
    is_dropped: AtomicBool,
}

/// Who is inside, by id.
#[derive(Default)]
struct Room {
    members: Mutex<HashMap<u64, Arc<Client>>>,
}

#[derive(Default)]
struct Counters {
    clients: AtomicU64,
    received: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
}

impl Server {
    fn new(idle: Duration) -> Self {
        Self {
            clients: Mutex::default(),
            rooms: Mutex::default(),
            served: Mutex::new(0),
            has_left: Condvar::new(),
            counters: Counters::default(),
            is_stopping: AtomicBool::new(false),
            idle,
        }
    }

    fn accept_all(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.is_stopping.load(Ordering::SeqCst) {
                return;
            }
            // The client has gone already, or descriptors or threads are used up until another client goes.
            if stream.and_then(|stream| self.start(stream)).is_err() {
                thread::sleep(PAUSE);
            }
        }
    }

    /// Gives a client its threads.
    fn start(self: &Arc<Self>, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.idle))?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let (stream, served) = (Arc::new(stream), Served::new(self.clone()));
        let (outbox, lines) = mpsc::sync_channel(OUTBOX_LINES_MAX);
        let writing = stream.clone();
        let writer = thread::Builder::new().name("writer".to_owned()).stack_size(STACK_BYTES);
        let writer = writer.spawn(move || write_lines(&writing, &lines))?;
        let reader = thread::Builder::new().name("reader".to_owned()).stack_size(STACK_BYTES);
        reader.spawn(move || {
            served.0.serve(stream, outbox);
            writer.join().expect("a writer does not panic");
        })?;
        Ok(())
    }

    fn serve(&self, stream: Arc<TcpStream>, outbox: SyncSender<Arc<str>>) {
        let id = self.counters.clients.fetch_add(1, Ordering::Relaxed);
        let name = format!("guest{id}");
        let is_dropped = AtomicBool::new(false);
        let client = Arc::new(Client { id, name: Mutex::new(name.clone()), outbox, stream, is_dropped });
        lock(&self.clients).insert(name, client.clone());
        let mut visit = Visit { server: self, client, room: None };
        if self.is_stopping.load(Ordering::SeqCst) {
            // It came too late to be told with the others.
            visit.say("* the server stops");
        } else {
            visit.say("* welcome: /name NAME, /join ROOM, /who, /msg NAME TEXT, /stats, /quit");
            visit.read_lines();
        }
        visit.leave();
        lock(&self.clients).remove(&visit.client.name());
        // With `visit` goes the last sender to the outbox, and the writer ends when all is written.
    }

    /// Leaves a line for a client. Never waits for it.
    fn send(&self, client: &Client, line: Arc<str>) {
        match client.outbox.try_send(line) {
            Ok(()) => _ = self.counters.delivered.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Full(_)) => {
                if !client.is_dropped.swap(true, Ordering::Relaxed) {
                    self.counters.dropped.fetch_add(1, Ordering::Relaxed);
                }
                // Ends its reader and its writer. It fails only if they have ended already.
                let _ = client.stream.shutdown(Shutdown::Both);
            }
            // Its writer has ended, and its reader is about to.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn send_to_room(&self, room: &Room, line: &str) {
        let line: Arc<str> = format!("{line}\n").into();
        for member in lock(&room.members).values() {
            self.send(member, line.clone());
        }
    }

    /// Takes nobody in any more, tells all, and waits until what was said has been written and all threads have ended.
    fn stop(&self, addr: SocketAddr, accepting: thread::JoinHandle<()>) -> io::Result<()> {
        self.is_stopping.store(true, Ordering::SeqCst);
        // Whoever accepts looks at the flag with each connection: here is one.
        drop(TcpStream::connect(addr)?);
        accepting.join().expect("accepting does not panic");
        for client in lock(&self.clients).values() {
            self.send(client, "* the server stops\n".into());
            // Its reader finds the end. It fails only if the client has gone already.
            let _ = client.stream.shutdown(Shutdown::Read);
        }
        let all_left = self.has_left.wait_while(lock(&self.served), |served| *served > 0);
        drop(all_left.unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

/// A client that is served: who stops the server waits for its end.
struct Served(Arc<Server>);

impl Served {
    fn new(server: Arc<Server>) -> Self {
        *lock(&server.served) += 1;
        Self(server)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        *lock(&self.0.served) -= 1;
        self.0.has_left.notify_all();
    }
}

impl Client {
    fn name(&self) -> String {
        lock(&self.name).clone()
    }
}

/// A client from its own side: what its reader knows.
struct Visit<'a> {
    server: &'a Server,
    client: Arc<Client>,
    room: Option<(String, Arc<Room>)>,
}

impl Visit<'_> {
    fn read_lines(&mut self) {
        let stream = self.client.stream.clone();
        let mut reader = BufReader::with_capacity(READ_BYTES, &*stream);
        let mut line = String::new();
        loop {
            line.clear();
            match reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
                Ok(len) if len as u64 == LINE_BYTES_MAX && !line.ends_with('\n') => {
                    return self.say("! that line is too long");
                }
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return self.say("! you said nothing for too long");
                }
                // Not a text, or the client has gone, or was dropped.
                Err(_) => return,
            }
            self.server.counters.received.fetch_add(1, Ordering::Relaxed);
            if self.obey(line.trim()).is_none() {
                return;
            }
        }
    }

    /// Does what a line says. `None`: the client leaves.
    fn obey(&mut self, line: &str) -> Option<()> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "/name" => self.rename(rest.trim()),
            "/join" => self.join(rest.trim()),
            "/who" => self.list(),
            "/msg" => self.whisper(rest.trim()),
            "/stats" => self.say(&format!("* {}", self.server.counters)),
            "/quit" => {
                self.say("* bye");
                return None;
            }
            "" => {}
            _ if command.starts_with('/') => self.say(&format!("! {command} is no command")),
            _ => self.talk(line),
        }
        Some(())
    }

    fn say(&self, line: &str) {
        self.server.send(&self.client, format!("{line}\n").into());
    }

    fn rename(&mut self, name: &str) {
        if !is_name(name) {
            return self.say(&format!("! a name has 1 to {NAME_CHARS_MAX} letters and digits"));
        }
        let mut clients = lock(&self.server.clients);
        if clients.contains_key(name) {
            drop(clients);
            return self.say(&format!("! {name} is taken"));
        }
        let old = mem::replace(&mut *lock(&self.client.name), name.to_owned());
        clients.remove(&old);
        clients.insert(name.to_owned(), self.client.clone());
        drop(clients);
        self.say(&format!("* you are {name}"));
        if let Some((_, room)) = &self.room {
            self.server.send_to_room(room, &format!("* {old} is now {name}"));
        }
    }

    fn join(&mut self, name: &str) {
        if !is_name(name) {
            return self.say(&format!("! a room's name has 1 to {NAME_CHARS_MAX} letters and digits"));
        }
        self.leave();
        let mut rooms = lock(&self.server.rooms);
        let room = rooms.entry(name.to_owned()).or_default().clone();
        lock(&room.members).insert(self.client.id, self.client.clone());
        drop(rooms);
        self.server.send_to_room(&room, &format!("* {} is in {name}", self.client.name()));
        self.room = Some((name.to_owned(), room));
    }

    /// Leaves the room, which goes with the last one in it.
    fn leave(&mut self) {
        let Some((name, room)) = self.room.take() else { return };
        let mut rooms = lock(&self.server.rooms);
        let mut members = lock(&room.members);
        members.remove(&self.client.id);
        if members.is_empty() {
            rooms.remove(&name);
        }
        drop((members, rooms));
        self.server.send_to_room(&room, &format!("* {} has left {name}", self.client.name()));
    }

    fn list(&self) {
        let Some((name, room)) = &self.room else { return self.say("! you are in no room") };
        let mut names: Vec<_> = lock(&room.members).values().map(|member| member.name()).collect();
        names.sort();
        self.say(&format!("* in {name}: {}", names.join(" ")));
    }

    fn whisper(&self, rest: &str) {
        let Some((name, text)) = rest.split_once(' ') else { return self.say("! say /msg NAME TEXT") };
        let Some(client) = lock(&self.server.clients).get(name).cloned() else {
            return self.say(&format!("! nobody is called {name}"));
        };
        self.server.send(&client, format!("{} (to you): {text}\n", self.client.name()).into());
    }

    fn talk(&self, text: &str) {
        match &self.room {
            Some((_, room)) => self.server.send_to_room(room, &format!("{}: {text}", self.client.name())),
            None => self.say("! you are in no room"),
        }
    }
}

/// Writes what is said to a client, as many lines at once as there are.
fn write_lines(mut stream: &TcpStream, lines: &Receiver<Arc<str>>) {
    let mut batch = String::new();
    while let Ok(line) = lines.recv() {
        batch.clear();
        batch.push_str(&line);
        while batch.len() < BATCH_BYTES_MAX
            && let Ok(line) = lines.try_recv()
        {
            batch.push_str(&line);
        }
        if stream.write_all(batch.as_bytes()).is_err() {
            // Ends the reader too. It fails only if the client has gone already.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(|letter| letter.is_ascii_alphanumeric())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [clients, received, delivered, dropped] =
            [&self.clients, &self.received, &self.delivered, &self.dropped].map(|count| count.load(Ordering::Relaxed));
        write!(f, "clients {clients}, lines received {received}, delivered {delivered}, slow clients dropped {dropped}")
    }
}
