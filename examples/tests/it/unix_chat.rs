//! The chat of this host.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::run::{Example, Running};

/// More than anything here takes in a debug build on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A path of this process and test, whose file goes in the end.
struct Socket(PathBuf);

impl Socket {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("dhaga-unix-chat-{}-{name}", std::process::id())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn chat(path: &Path) -> Running {
    let mut chat = Example::start("unix_chat", &["--path".as_ref(), path.as_os_str()]);
    assert_eq!(chat.address(), path.display().to_string());
    chat
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn enter(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("it listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("it is not zero");
        let mut client = Self(BufReader::new(stream));
        let welcome = client.hear();
        assert!(welcome.starts_with("* you are "), "{welcome}");
        client
    }

    fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(line.as_bytes()).expect("it is read");
    }

    /// The next line, or "" at the end.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("no line and no end: {error}"),
            _ => line.trim_end().to_owned(),
        }
    }
}

#[test]
fn all_others_hear_what_one_says_and_who_it_is() {
    let socket = Socket::new("all");
    let _chat = chat(&socket.0);
    let user = format!("(user {})", rustix::process::getuid().as_raw());
    let mut first = Client::enter(&socket.0);
    let mut second = Client::enter(&socket.0);
    assert_eq!(first.hear(), format!("* 2 {user} has come"));
    let mut third = Client::enter(&socket.0);
    for client in [&mut first, &mut second] {
        assert_eq!(client.hear(), format!("* 3 {user} has come"));
    }
    first.say("hel");
    first.say("lo\nagain\n");
    for client in [&mut second, &mut third] {
        assert_eq!(client.hear(), format!("1 {user}: hello"));
        assert_eq!(client.hear(), format!("1 {user}: again"));
    }
    third.say("\x1b[2J\n");
    // Nobody hears himself, or the next line of the first one would be its own.
    assert_eq!(first.hear(), format!("3 {user}: ?[2J"));
    drop(second);
    assert_eq!(first.hear(), format!("* 2 {user} has left"));
    // The last words need no end of line.
    third.0.get_mut().write_all(b"bye").expect("it is read");
    third.0.get_mut().shutdown(Shutdown::Write).expect("it is connected");
    assert_eq!(first.hear(), format!("3 {user}: bye"));
    assert_eq!(first.hear(), format!("* 3 {user} has left"));
}

#[test]
fn a_line_that_is_too_long_ends_its_client_only() {
    let socket = Socket::new("long");
    let _chat = chat(&socket.0);
    let mut first = Client::enter(&socket.0);
    let mut second = Client::enter(&socket.0);
    assert!(first.hear().ends_with("has come"));
    let _ = second.0.get_mut().write_all(&[b'x'; 5000]);
    while !second.hear().is_empty() {}
    assert!(first.hear().ends_with("has left"));
    let mut third = Client::enter(&socket.0);
    assert!(first.hear().ends_with("has come"));
    third.say("here\n");
    assert!(first.hear().ends_with(": here"));
}

#[test]
fn who_does_not_read_is_told_what_was_lost_and_holds_up_nobody() {
    const LINES: usize = 5000;
    let socket = Socket::new("slow");
    let _chat = chat(&socket.0);
    let mut slow = Client::enter(&socket.0);
    let mut talker = Client::enter(&socket.0);
    let text = "x".repeat(900);
    for _ in 0..LINES {
        talker.say(&format!("{text}\n"));
    }
    let mut heard = 0;
    let lost = loop {
        let line = slow.hear();
        heard += usize::from(line.ends_with(&text));
        if let Some(lost) = line.strip_prefix("* you read too slowly, and lost ") {
            break lost.strip_suffix(" lines").and_then(|lost| lost.parse::<usize>().ok()).expect("it is a number");
        }
    };
    assert!(lost > 0 && heard + lost <= LINES, "{heard} heard, {lost} lost");
}

#[test]
fn a_socket_that_was_left_is_taken_and_one_in_use_is_not() {
    let socket = Socket::new("left");
    drop(UnixListener::bind(&socket.0).expect("nobody is there"));
    let _chat = chat(&socket.0);
    Client::enter(&socket.0);
    let (status, _, stderr) = Example::output("unix_chat", &["--path".as_ref(), socket.0.as_os_str()], TIMEOUT);
    assert!(!status.success() && stderr.contains("choose another with --path"), "{stderr}");
    Client::enter(&socket.0);
    let file = Socket::new("file");
    fs::write(&file.0, "mine").expect("there is room for a file");
    let (status, _, stderr) = Example::output("unix_chat", &["--path".as_ref(), file.0.as_os_str()], TIMEOUT);
    assert!(!status.success() && stderr.contains("Address already in use"), "{stderr}");
    assert_eq!(fs::read_to_string(&file.0).expect("it is still there"), "mine");
}
