//! The chat server, on std and on Dhaga: one source but for its `use` lines, and one behaviour.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use crate::run::{Example, Running};

/// More than anything here takes in a debug build on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of the longest line that the server takes, without its end.
const LONG: usize = 4000;

const WELCOME: &str = "* welcome: /name NAME, /join ROOM, /who, /msg NAME TEXT, /stats, /quit";

/// Runs a test against either server.
fn on_both(test: fn(&mut Running, &str), args: &[&str]) {
    for name in ["chat", "chat_dhaga"] {
        println!("{name}:");
        let mut server = Example::start_to_tell(name, &[&["--addr", "127.0.0.1:0"], args].concat());
        let address = server.address();
        test(&mut server, &address);
    }
}

struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("it is not zero");
        stream.set_write_timeout(Some(TIMEOUT)).expect("it is not zero");
        let mut client = Self { stream: BufReader::new(stream) };
        assert_eq!(client.hear(), WELCOME);
        client
    }

    /// A client with a name, in a room.
    fn enter(address: &str, name: &str, room: &str) -> Self {
        let mut client = Self::connect(address);
        client.ask(&format!("/name {name}"), &format!("* you are {name}"));
        client.ask(&format!("/join {room}"), &format!("* {name} is in {room}"));
        client
    }

    fn say(&mut self, line: &str) {
        self.try_say(line).expect("the server reads");
    }

    fn try_say(&mut self, line: &str) -> std::io::Result<()> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())
    }

    /// The next line, or "" at the end.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            // A server that closes with bytes unread resets the connection.
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("no line and no end: {error}"),
            _ => line.trim_end().to_owned(),
        }
    }

    /// Hears lines up to this one.
    fn hear_up_to(&mut self, wanted: &str) {
        loop {
            let line = self.hear();
            assert!(!line.is_empty(), "the end came before {wanted:?}");
            if line == wanted {
                return;
            }
        }
    }

    fn ask(&mut self, line: &str, answer: &str) {
        self.say(line);
        assert_eq!(self.hear(), answer, "after {line:?}");
    }
}

#[test]
fn the_two_differ_in_use_lines_only_and_the_guide_shows_them() {
    let (std, dhaga) = (include_str!("../../chat.rs"), include_str!("../../chat_dhaga.rs"));
    let guide = include_str!("../../../docs/porting.md");
    fn rest(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter(|line| !line.starts_with("use "))
    }
    assert!(rest(std).eq(rest(dhaga)), "a line that is no `use` line differs");
    let uses = |text: &'static str| text.lines().filter(|line| line.starts_with("use ")).collect::<HashSet<_>>();
    let (std, dhaga) = (uses(std), uses(dhaga));
    let removed = std.difference(&dhaga).map(|line| format!("-{line}"));
    let added = dhaga.difference(&std).map(|line| format!("+{line}"));
    let changed: HashSet<String> = removed.chain(added).collect();
    let is_change = |line: &&str| line.starts_with("-use ") || line.starts_with("+use ");
    let shown: HashSet<String> = guide.lines().filter(is_change).map(str::to_owned).collect();
    assert_eq!(shown, changed, "docs/porting.md shows another difference");
}

#[test]
fn each_line_arrives_once_and_in_order() {
    const CLIENTS: usize = 50;
    const ROOMS: usize = 5;
    const LINES: usize = 20;
    on_both(
        |_, address| {
            let enter = |number| Client::enter(address, &format!("c{number}"), &format!("room{}", number % ROOMS));
            let mut clients: Vec<_> = (0..CLIENTS).map(enter).collect();
            let talk = |(number, client): (usize, &mut Client)| {
                (0..LINES).for_each(|line| client.say(&format!("{line}")));
                let mut heard: HashMap<usize, usize> = HashMap::new();
                for _ in 0..CLIENTS / ROOMS * LINES {
                    let line = loop {
                        let line = client.hear();
                        if !line.ends_with(&format!(" is in room{}", number % ROOMS)) {
                            break line;
                        }
                    };
                    let (name, line) = line.split_once(": ").expect("it is what somebody said");
                    let name: usize = name[1..].parse().expect("a name has a number");
                    let next = heard.entry(name).or_default();
                    assert!(name % ROOMS == number % ROOMS && line == next.to_string(), "{name}: {line}, not {next}");
                    *next += 1;
                }
                assert!(heard.len() == CLIENTS / ROOMS && heard.values().all(|&lines| lines == LINES), "{heard:?}");
            };
            thread::scope(|s| clients.iter_mut().enumerate().for_each(|client| _ = s.spawn(move || talk(client))));
            // Nothing more is under way.
            clients.iter_mut().for_each(|client| client.ask("/nothing", "! /nothing is no command"));
        },
        &[],
    );
}

#[test]
fn commands_are_obeyed_or_refused() {
    on_both(
        |server, address| {
            let mut ann = Client::connect(address);
            ann.ask("hello", "! you are in no room");
            ann.ask("/who", "! you are in no room");
            ann.ask("/name", "! a name has 1 to 32 letters and digits");
            ann.ask(&format!("/name {}", "x".repeat(33)), "! a name has 1 to 32 letters and digits");
            ann.ask("/name a:b", "! a name has 1 to 32 letters and digits");
            ann.ask("/name ann", "* you are ann");
            ann.ask("/name ann", "! ann is taken");
            ann.ask("/join tea", "* ann is in tea");
            ann.ask("/who", "* in tea: ann");

            let mut bob = Client::connect(address);
            bob.ask("/name ann", "! ann is taken");
            bob.ask("/name bob", "* you are bob");
            bob.ask("/join tea room", "! a room's name has 1 to 32 letters and digits");
            bob.ask("/join tea", "* bob is in tea");
            assert_eq!(ann.hear(), "* bob is in tea");
            bob.ask("/who", "* in tea: ann bob");
            bob.say("/msg ann psst, listen");
            assert_eq!(ann.hear(), "bob (to you): psst, listen");
            bob.ask("/msg nobody psst", "! nobody is called nobody");
            bob.ask("/msg ann", "! say /msg NAME TEXT");
            bob.say("");
            bob.ask("/dance", "! /dance is no command");
            bob.say("/name rob");
            assert_eq!([bob.hear(), bob.hear(), ann.hear()], ["* you are rob", "* bob is now rob", "* bob is now rob"]);
            ann.ask("/msg bob psst", "! nobody is called bob");
            bob.ask("/join coffee", "* rob is in coffee");
            assert_eq!(ann.hear(), "* rob has left tea");
            bob.say("not for ann");
            assert_eq!(bob.hear(), "rob: not for ann");
            bob.ask("/quit", "* bye");
            assert_eq!(bob.hear(), "");
            drop(bob);
            ann.say("/stats");
            let stats = ann.hear();
            assert!(stats.starts_with("* clients 2, lines received 25,"), "{stats}");
            server.tell("stats");
            server.line("clients 2, lines received 25,", TIMEOUT);
            // The name is free again as soon as its client has gone.
            let mut next = Client::connect(address);
            next.ask("/name rob", "* you are rob");
        },
        &[],
    );
}

#[test]
fn what_is_no_line_ends_the_connection_and_nobody_elses() {
    on_both(
        |_, address| {
            let mut other = Client::enter(address, "other", "tea");
            let mut long = Client::enter(address, "long", "tea");
            assert_eq!(other.hear(), "* long is in tea");
            // Whether the server's last words arrive is open, since it closes with bytes unread.
            let _ = long.try_say(&"x".repeat(5000));
            while !long.hear().is_empty() {}
            assert_eq!(other.hear(), "* long has left tea");

            let mut binary = Client::connect(address);
            binary.stream.get_mut().write_all(b"\xff\xfe\n").expect("the server reads");
            assert_eq!(binary.hear(), "");

            let mut half = Client::enter(address, "half", "tea");
            assert_eq!(other.hear(), "* half is in tea");
            half.stream.get_mut().write_all(b"no end").expect("the server reads");
            half.stream.get_mut().shutdown(Shutdown::Write).expect("it is connected");
            assert_eq!([half.hear(), half.hear()], ["half: no end", ""]);
            assert_eq!([other.hear(), other.hear()], ["half: no end", "* half has left tea"]);
        },
        &[],
    );
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    on_both(
        |server, address| {
            let mut talker = Client::enter(address, "talker", "tea");
            let _slow = Client::enter(address, "slow", "tea");
            assert_eq!(talker.hear(), "* slow is in tea");
            let text = "x".repeat(LONG);
            let gone = "* slow has left tea";
            // What the two kernels buffer, and then the outbox, must fill up; that takes some megabytes.
            let is_gone = (0..20_000).any(|_| {
                talker.say(&text);
                let line = talker.hear();
                line == gone || { line != format!("talker: {text}") }
            });
            assert!(is_gone, "80 megabytes wait for the slow one");
            talker.say("/who");
            talker.hear_up_to("* in tea: talker");
            server.tell("stats");
            let stats = server.line("clients 2", TIMEOUT);
            assert!(stats.ends_with("slow clients dropped 1"), "{stats}");
        },
        &[],
    );
}

#[test]
fn a_client_that_says_nothing_is_sent_away() {
    on_both(
        |_, address| {
            let mut idle = Client::connect(address);
            assert_eq!([idle.hear(), idle.hear()], ["! you said nothing for too long", ""]);
        },
        &["--idle-ms", "100"],
    );
}

#[test]
fn a_stop_says_what_was_said_and_good_bye_to_all() {
    const CLIENTS: usize = 50;
    on_both(
        |server, address| {
            let enter = |number| Client::enter(address, &format!("c{number}"), "tea");
            let mut clients: Vec<_> = (0..CLIENTS).map(enter).collect();
            clients[0].say("the last words");
            // When its next line is answered, that one was left for all.
            clients[0].say("/msg c0 all are told");
            clients[0].hear_up_to("c0 (to you): all are told");
            server.tell("nonsense");
            server.line("say `stats` or `stop`", TIMEOUT);
            server.tell("stop");
            for (number, client) in clients.iter_mut().enumerate() {
                if number > 0 {
                    client.hear_up_to("c0: the last words");
                }
                client.hear_up_to("* the server stops");
                while !client.hear().is_empty() {}
            }
            server.line("stopped: clients 50,", TIMEOUT);
            assert!(server.status(TIMEOUT).success());
            assert!(TcpStream::connect(address).is_err(), "somebody listens still");
        },
        &[],
    );
}

#[test]
fn the_load_finds_each_line() {
    for server in ["chat", "chat_dhaga"] {
        let args = ["--server", server, "--clients", "60", "--room", "25", "--rounds", "3"];
        let (status, stdout, stderr) = Example::output("chat_load", &args, TIMEOUT);
        assert!(status.success(), "{status}: {stdout}{stderr}");
        // Two rooms of 25 and one of 10, each member of which hears all of them three times.
        assert!(stdout.contains("\n4 050 lines arrived, each once and in order"), "{stdout}");
        assert!(stdout.contains("\nstopped: clients 60,"), "{stdout}");
    }
}
