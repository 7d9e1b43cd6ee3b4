//! The web server and the web client, run as their headers say.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::run::{Example, Running};

/// For one run of a program, in a debug build on a busy machine.
const RUN_TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn the_web_server_answers_each_of_its_routes() {
    let (_server, address) = server();
    let check = |method: &str, path: &str, body: &str, expected: (&str, &str)| {
        let (status, answer) = ask(&address, method, path, body);
        assert_eq!((&*status, &*answer), expected, "{method} {path}");
    };
    check("GET", "/sleep/5", "", ("HTTP/1.1 200 OK", "slept for 5 ms\n"));
    check("POST", "/echo", "hello", ("HTTP/1.1 200 OK", "hello"));
    check("GET", "/nowhere", "", ("HTTP/1.1 404 Not Found", "here are /, /sleep/MS, /stream and POST /echo\n"));
    check("GET", "/sleep/x", "", ("HTTP/1.1 400 Bad Request", "/sleep/MS takes milliseconds, 60000 at most\n"));
    let (status, page) = ask(&address, "GET", "/", "");
    assert!(status == "HTTP/1.1 200 OK" && page.contains("<h1>Hello from a dhaga</h1>"), "{status}: {page}");
    check("HEAD", "/", "", ("HTTP/1.1 200 OK", ""));
    let (_, stream) = ask(&address, "GET", "/stream", "");
    // In chunks, a line in each.
    assert!((1..=10).all(|number| stream.contains(&format!("line {number} of 10\n"))), "{stream}");
}

#[test]
fn the_web_server_tells_http_2_by_how_it_begins() {
    let (_server, address) = server();
    let mut stream = TcpStream::connect(&address).expect("the server listens");
    // The preface, and empty settings.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("it reads");
    let mut header = [0; 9];
    stream.read_exact(&mut header).expect("it answers");
    assert_eq!(header[3..5], [4, 0], "its own settings come first");
}

/// As long as it might be the preface, hyper would wait for the rest, for ever.
#[test]
fn the_web_server_gives_up_on_a_client_that_stops_within_the_preface() {
    let (_server, address) = server();
    let mut stream = TcpStream::connect(&address).expect("the server listens");
    stream.set_read_timeout(Some(RUN_TIMEOUT)).expect("it is not zero");
    stream.write_all(b"PRI * HT").expect("it reads");
    let ended = stream.read(&mut [0]);
    assert!(ended.as_ref().is_ok_and(|count| *count == 0) || is_reset(&ended), "{ended:?}");
}

#[test]
fn a_client_that_begins_as_the_preface_does_and_goes_on_later_is_served() {
    let (_server, address) = server();
    let mut stream = TcpStream::connect(&address).expect("the server listens");
    stream.set_read_timeout(Some(RUN_TIMEOUT)).expect("it is not zero");
    stream.set_nodelay(true).expect("it is open");
    for part in ["P", "OST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"] {
        stream.write_all(part.as_bytes()).expect("it reads");
    }
    let (status, body) = end(stream);
    assert_eq!((&*status, &*body), ("HTTP/1.1 200 OK", "hello"));
}

/// Others are served while one sleeps, also on its own worker.
#[test]
fn a_request_that_sleeps_holds_up_nobody() {
    let (_server, address) = server();
    let begun = Instant::now();
    let mut sleepers: Vec<_> = (0..50).map(|_| begin(&address, "GET", "/sleep/300", "")).collect();
    let answers: Vec<_> = sleepers.drain(..).map(end).collect();
    assert!(answers.iter().all(|(_, body)| body == "slept for 300 ms\n"), "{answers:?}");
    assert!(begun.elapsed() < Duration::from_millis(50 * 300), "they slept one after the other");
}

#[test]
fn the_web_client_fetches_what_comes_in_time() {
    let (_server, address) = server();
    let urls = ["/", "/sleep/10", "/sleep/60000"].map(|path| format!("http://{address}{path}"));
    let args = ["--timeout-ms", "2000", &urls[0], &urls[1], &urls[2], "https://127.0.0.1/"];
    let (status, stdout, stderr) = Example::output("http_client", &args, RUN_TIMEOUT);
    assert!(!status.success(), "{stdout}{stderr}");
    let has =
        |url: &str, what: &str| stdout.lines().any(|line| line.starts_with(&format!("{url}: ")) && line.contains(what));
    assert!(has(&urls[0], "200 OK, 175 bytes in "), "{stdout}{stderr}");
    assert!(has(&urls[1], "200 OK, 16 bytes in "), "{stdout}{stderr}");
    assert!(has(&urls[2], "the deadline set at "), "{stdout}{stderr}");
    assert!(has("https://127.0.0.1/", "only http:// is fetched here"), "{stdout}{stderr}");
    let (status, stdout, stderr) = Example::output("http_client", &["--at-once", "1", &urls[0], &urls[0]], RUN_TIMEOUT);
    assert!(status.success() && stdout.lines().count() == 2, "{stdout}{stderr}");
}

#[test]
fn what_the_web_client_has_no_time_for_is_told_as_such() {
    let (_server, address) = server();
    let args: Vec<_> = ["--timeout-ms", "500", "--at-once", "100"].map(String::from).into();
    let urls = vec![format!("http://{address}/sleep/60000"); 100];
    let (_, stdout, stderr) = Example::output("http_client", &[args, urls].concat(), RUN_TIMEOUT);
    let late = stdout.lines().filter(|line| line.contains(": the deadline set at ")).count();
    assert_eq!(late, 100, "{stdout}{stderr}");
}

#[test]
fn the_web_client_takes_a_number_of_ipv6_out_of_its_brackets() {
    let mut server = Example::start("http_hello", &["--addr", "[::1]:0", "--workers", "1"]);
    let url = format!("http://{}/", server.address());
    let (status, stdout, stderr) = Example::output("http_client", &[url], RUN_TIMEOUT);
    assert!(status.success(), "{stdout}{stderr}");
}

#[test]
fn an_async_library_packs_what_goes_through_a_socket() {
    let (status, stdout, stderr) = Example::output("async_inside", &["--lines", "1000"], RUN_TIMEOUT);
    assert!(status.success(), "{status}: {stderr}");
    let numbers: Vec<usize> = stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers.len() == 2 && numbers[0] == 16_893 && numbers[1] < numbers[0] / 2, "{stdout}");
}

/// The server had not read what it gave up on.
fn is_reset(ended: &io::Result<usize>) -> bool {
    ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn server() -> (Running, String) {
    let mut server = Example::start("http_hello", &["--addr", "127.0.0.1:0", "--workers", "2"]);
    let address = server.address();
    (server, address)
}

/// The status line and the body of an answer.
fn ask(address: &str, method: &str, path: &str, body: &str) -> (String, String) {
    end(begin(address, method, path, body))
}

fn begin(address: &str, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(RUN_TIMEOUT)).expect("it is not zero");
    let len = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).expect("it reads");
    stream
}

fn end(mut stream: TcpStream) -> (String, String) {
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}
