//! Each example is run as its header says, and does what its header says.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitStatus;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::run::{Example, Running};

/// For one call by a program of its own, in a debug build on a busy machine.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Where nobody listens: a port that only the system may open, for a service of the seventies.
const NOBODY: &str = "127.0.0.1:1";

/// For both halves of a small quickstart.
const QUICKSTART_TIMEOUT: Duration = Duration::from_secs(90);

#[test]
fn hello_prints_its_four_sums() {
    let (status, stdout, stderr) = Example::output::<&str>("hello", &[], CALL_TIMEOUT);
    assert!(status.success(), "{status}: {stderr}");
    assert_eq!(stdout, "20 + 22 = 42\nand 2\nand 4\nand 6\n");
}

#[test]
fn in_the_shop_deadlines_fall_and_a_cancel_stops_all_three() {
    let (status, stdout, stderr) = Example::output("shop", &["--within-ms", "20000"], CALL_TIMEOUT);
    assert!(status.success(), "{status}: {stderr}");
    let lines: Vec<_> = stdout.lines().map(str::trim).collect();
    let hops = ["front", "catalogue", "stock"];
    let left = hops.map(|hop| {
        let line = lines.iter().find_map(|line| line.strip_prefix(hop)?.trim().split_once(" ms left"));
        line.unwrap_or_else(|| panic!("no time left at {hop} in\n{stdout}")).0.parse::<f64>().expect("a number")
    });
    assert!(20_000.0 >= left[0] && left[0] >= left[1] && left[1] > left[2] && left[2] > 0.0, "{stdout}");
    let trace = |hop: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(hop)?.split_once(", trace 00-"));
        line.and_then(|line| line.1.split_once('-')).unwrap_or_else(|| panic!("no trace at {hop} in\n{stdout}"))
    };
    let [(front, _), (catalogue, _), (stock, _)] = hops.map(trace);
    assert!(front == catalogue && catalogue == stock, "{stdout}");
    assert!(lines.contains(&"A pen that writes under water: 7 pieces"), "{stdout}");
    for hop in hops {
        assert!(lines.iter().any(|line| line.starts_with(hop) && line.contains("stopped after")), "{hop}: {stdout}");
    }
    assert!(stdout.contains("the customer: the caller was cancelled"), "{stdout}");
}

#[test]
fn quickstart_shows_both_halves_in_one_table() {
    let args = ["--dhagas", "200", "--seconds", "1"];
    let (status, stdout, stderr) = Example::output("quickstart", &args, QUICKSTART_TIMEOUT);
    assert!(status.success(), "{status}: {stdout}{stderr}");
    let cells = |row: &str| -> Vec<String> {
        let line = stdout.lines().find_map(|line| line.trim().strip_prefix(row));
        let line = line.unwrap_or_else(|| panic!("no row {row:?} in\n{stdout}"));
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    assert_eq!(cells("callers"), ["200", "200"]);
    assert_eq!(cells("calls in flight, at most"), ["200", "200"]);
    assert_eq!(cells("calls a second").len(), 3);
    assert_eq!(cells("memory, at most").len(), 3);
    assert!(!stdout.contains("WARNING"), "{stdout}");
}

#[test]
fn quickstart_refuses_what_it_cannot_run() {
    let (status, _, stderr) = Example::output("quickstart", &["--dhagas", "0"], CALL_TIMEOUT);
    assert!(!status.success() && stderr.contains("0 is not in 1..=1000000"), "{stderr}");
}

#[test]
fn echo_sends_back_whatever_comes_to_each_of_many() {
    let mut server = Example::start("echo", &["--addr", "127.0.0.1:0", "--workers", "2"]);
    let address = server.address();
    let mut streams: Vec<_> = (0..100).map(|_| connect(&address)).collect();
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&message(index)).expect("the server reads");
    }
    // In the other order, so that nobody's answer hangs on another's.
    for (index, stream) in streams.iter_mut().enumerate().rev() {
        let mut answer = vec![0; message(index).len()];
        stream.read_exact(&mut answer).expect("the server answers");
        assert!(answer == message(index), "connection {index} got another's bytes");
    }
    let mut last = streams.pop().expect("there are a hundred");
    last.shutdown(Shutdown::Write).expect("it is connected");
    assert_eq!(last.read(&mut [0]).expect("the server closes"), 0);
}

/// From 1 byte to 5 KB, so that some fit the server's buffer and others do not.
fn message(index: usize) -> Vec<u8> {
    vec![index as u8; 1 + 50 * index]
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(CALL_TIMEOUT)).expect("it is not zero");
    stream
}

#[test]
fn each_method_of_the_server_answers() {
    let (_server, address) = rpc_server();
    check(&address, "add", &["20", "22"], "42");
    check(&address, "sleep", &["5"], "5");
    check(&address, "spin", &["5"], "5");
    check(&address, "echo", &["null"], "null");
    check(&address, "echo", &[r#"[1,-2.5,"ধাগা",true]"#], r#"[1,-2.5,"ধাগা",true]"#);
    check(&address, "echo", &[r#"{"$bin":"00ff"}"#], r#"{"$bin":"00FF"}"#);
    check(&address, "echo", &[r#"{"$ext":[-5,"C0"]}"#], r#"{"$ext":[-5,"C0"]}"#);
}

#[test]
fn odd_arguments_are_not_taken_for_options() {
    let (_server, address) = rpc_server();
    check(&address, "add", &["-20", "-22"], "-42");
    check(&address, "echo", &["-0.5"], "-0.5");
    check(&address, "echo", &[r#""--help""#], r#""--help""#);
    check(&address, "echo", &[" 1"], "1");
    check_error(&address, "echo", &["--nonsense"], "is not the JSON of a value");
    check_error(&address, "echo", &[""], "is not the JSON of a value");
}

#[test]
fn an_error_is_a_status_and_a_text() {
    let (_server, address) = rpc_server();
    check_error(&address, "fail", &[r#""no such file""#], "answered with an error: no such file\n");
    check_error(&address, "no_such_method", &[], r#"no method "no_such_method""#);
    check_error(&address, "add", &["1"], "argument 1 does not fit the method");
    check_error(&address, "add", &["1", r#""x""#], "argument 1 does not fit the method");
    check_error(&address, "add", &["9223372036854775807", "1"], "does not fit 64 bits");
}

#[test]
fn a_panic_is_an_error_answer_and_the_server_lives_on() {
    let (_server, address) = rpc_server();
    check_error(&address, "panic", &[], "the handler panicked");
    check(&address, "add", &["20", "22"], "42");
}

#[test]
fn a_relay_calls_another_server_and_passes_on_what_it_says() {
    let (_far, far) = rpc_server();
    let (_near, near) = rpc_server();
    let far = format!("{far:?}");
    check(&near, "relay", &[&far, r#""add""#, "[20, 22]"], "42");
    check(&near, "relay", &[&far, r#""echo""#, r#"[{"$bin":"00"}]"#], r#"{"$bin":"00"}"#);
    check_error(&near, "relay", &[&far, r#""fail""#, r#"["far away"]"#], "far away");
    check_error(&near, "relay", &[&format!("{NOBODY:?}"), r#""add""#, "[]"], "Connection refused");
    check(&near, "add", &["20", "22"], "42");
}

#[test]
fn a_relay_whose_server_came_back_calls_the_new_one() {
    let (_near, near) = rpc_server();
    let (first, far) = rpc_server();
    let params = [&format!("{far:?}"), r#""add""#, "[20, 22]"];
    check(&near, "relay", &params, "42");
    drop(first);
    check_error(&near, "relay", &params, "Connection refused");
    let mut second = Example::start("rpc_server", &["--addr", &far]);
    assert_eq!(second.address(), far);
    check(&near, "relay", &params, "42");
}

#[test]
fn a_client_waits_no_longer_than_it_was_told() {
    let (_server, address) = rpc_server();
    let (status, _, stderr) = client(&["--addr", &address, "--timeout-ms", "100", "sleep", "600000"]);
    assert!(!status.success() && stderr.contains("the deadline passed"), "{stderr}");
}

#[test]
fn a_client_says_that_nobody_listens() {
    check_error(NOBODY, "add", &["1", "2"], "Connection refused");
}

#[test]
fn a_notification_arrives_and_is_not_waited_for() {
    const NOTIFICATION: [u8; 8] = [0x93, 2, 0xa3, b'l', b'o', b'g', 0x91, 5];
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (sender, received) = mpsc::channel();
    // The client may connect once from each of its workers; the notification comes on one of the connections.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut bytes = Vec::new();
            // A client that ends with bytes unread may reset the connection; what came is there.
            if let Err(error) = stream.expect("the client connects").read_to_end(&mut bytes) {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            // Before it comes the client's question, which this server does not answer, on this connection or on all.
            if bytes.ends_with(&NOTIFICATION) {
                return sender.send(bytes);
            }
        }
        Ok(())
    });
    let (status, stdout, stderr) = client(&["--addr", &address, "--notify", "log", "5"]);
    assert!(status.success() && stdout.is_empty(), "{status}: {stdout}{stderr}");
    received.recv_timeout(CALL_TIMEOUT).expect("it comes on one of the connections, whole, and last");
}

/// A server on a free port, and its address.
fn rpc_server() -> (Running, String) {
    let mut server = Example::start("rpc_server", &["--addr", "127.0.0.1:0", "--workers", "2"]);
    let address = server.address();
    (server, address)
}

fn client(args: &[&str]) -> (ExitStatus, String, String) {
    Example::output("rpc_client", args, CALL_TIMEOUT)
}

fn check(address: &str, method: &str, params: &[&str], expected: &str) {
    let (status, stdout, stderr) = client(&[&["--addr", address, method], params].concat());
    assert!(status.success(), "{method}: {status}: {stderr}");
    assert_eq!(stdout.lines().last(), Some(expected), "{method}");
}

fn check_error(address: &str, method: &str, params: &[&str], text: &str) {
    let (status, stdout, stderr) = client(&[&["--addr", address, method], params].concat());
    assert!(!status.success() && stdout.is_empty(), "{method}: {status}: {stdout}");
    assert!(stderr.contains(text), "{method}: {stderr}");
}

#[test]
fn subprocess_shows_the_lines_of_each_command_and_what_became_of_it() {
    let args = ["--at-once", "2", "--limit-s", "1", "seq 3", "echo wrong >&2; exit 7", "trap '' TERM; sleep 100"];
    let (status, stdout, stderr) = Example::output("subprocess", &args, CALL_TIMEOUT);
    assert!(!status.success(), "{stdout}{stderr}");
    let mut lines: Vec<_> = stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1> 1", "1> 2", "1> 3", "2> wrong"]);
    let mut lines: Vec<_> = stderr.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1: exit status: 0", "2: exit status: 7", "3: signal: 9 (SIGKILL)"]);
    let (status, _, stderr) = Example::output("subprocess", &["true", "true"], CALL_TIMEOUT);
    assert!(status.success(), "{stderr}");
}

/// What a command leaves behind has its pipes.
#[test]
fn subprocess_waits_no_longer_for_what_a_command_has_started_than_for_itself() {
    let in_its_group = "sleep 30 & echo one";
    let elsewhere = "setsid sh -c 'echo two; sleep 30' & sleep 0.1; exit 3";
    let begun = Instant::now();
    let (_, stdout, stderr) = Example::output("subprocess", &["--limit-s", "1", in_its_group, elsewhere], CALL_TIMEOUT);
    assert!(begun.elapsed() < Duration::from_secs(15), "{stdout}{stderr}");
    for (text, line) in
        [(&stdout, "1> one"), (&stdout, "2> two"), (&stderr, "1: exit status: 0"), (&stderr, "2: exit status: 3")]
    {
        assert!(text.lines().any(|other| other == line), "{line}: {stdout}{stderr}");
    }
}

#[test]
fn subprocess_ends_in_order_when_it_is_told_to() {
    // The second never starts, and the first says good-bye.
    let polite = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let mut example = Example::start("subprocess", &["--at-once", "1", polite, "echo never"]);
    example.line("1> ready", CALL_TIMEOUT);
    example.interrupt();
    example.line("1> bye", CALL_TIMEOUT);
    assert_eq!(example.status(CALL_TIMEOUT).code(), Some(1));
}

#[test]
fn nvim_embed_says_when_there_is_no_nvim() {
    let (status, stdout, stderr) = Example::output("nvim_embed", &["/no/such/nvim"], CALL_TIMEOUT);
    assert!(status.success(), "{status}\n{stdout}{stderr}");
    assert_eq!(stdout, "/no/such/nvim is not installed, so there is nothing to show\n");
}
