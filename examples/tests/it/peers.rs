//! Foreign peers: Neovim as a server, and a Python library as client and as server.
//!
//! Not run by default, since they need programs that a Rust toolchain does not bring; `.ci/run`
//! installs and runs them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::run::{Example, Running, output};

/// For one call by a program of its own.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// For the whole of `aio_client.py`, about 1 100 calls.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs nvim on the PATH: .ci/run installs it"]
fn neovim_answers_6_times_7() {
    let (_neovim, address) = neovim();
    check(&address, "nvim_eval", &[r#""6*7""#], "42");
    let (value, json) = (r#""{'a': [1, -2.5, v:null]}""#, r#"{"a":[1,-2.5,null]}"#);
    check(&address, "nvim_eval", &[value], json);
}

#[test]
#[ignore = "needs nvim on the PATH: .ci/run installs it"]
fn an_error_of_neovim_is_an_error() {
    let (_neovim, address) = neovim();
    // Each is a pair: 0 for an exception or 1 for a value that cannot be, and a text.
    check_error(&address, "nvim_eval", &[r#""nonsense(""#], "E116: Invalid arguments");
    check_error(&address, "nvim_eval", &[], "expecting 1 but got 0");
    check_error(&address, "nvim_buf_line_count", &["99"], "Invalid buffer id: 99");
    check_error(&address, "no_such_method", &[], "Invalid method: no_such_method");
}

#[test]
#[ignore = "needs nvim on the PATH: .ci/run installs it"]
fn ext_types_of_neovim_pass() {
    let (_neovim, address) = neovim();
    // Buffers, windows and tab pages are ext 0, 1 and 2 around a MessagePack integer. The first
    // window is number 1000, which is cd 03 e8.
    check(&address, "nvim_list_bufs", &[], r#"[{"$ext":[0,"01"]}]"#);
    check(&address, "nvim_list_wins", &[], r#"[{"$ext":[1,"CD03E8"]}]"#);
    check(&address, "nvim_list_tabpages", &[], r#"[{"$ext":[2,"01"]}]"#);
    check(&address, "nvim_buf_line_count", &[r#"{"$ext":[0,"01"]}"#], "1");
}

#[test]
#[ignore = "needs nvim on the PATH: .ci/run installs it"]
fn nvim_embed_is_called_back_by_its_child() {
    let args: [&str; 0] = [];
    let (status, stdout, stderr) = Example::output("nvim_embed", &args, CALL_TIMEOUT);
    assert!(status.success(), "{status}\n{stdout}{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    let [version, product, first, second, error] = lines[..] else { panic!("{stdout}{stderr}") };
    assert!(version.starts_with("NVIM v"), "{version}");
    assert_eq!([product, first, second], ["6 * 7 = 42", "1. code reads as sequential", "2. and runs as asynchronous"]);
    assert!(error.contains("E15: Invalid expression"), "{error}");
}

#[test]
#[ignore = "needs aio-msgpack-rpc for Python: .ci/run installs it"]
fn a_thousand_pipelined_calls_from_python() {
    let mut server = Example::start("rpc_server", &["--addr", "127.0.0.1:0", "--workers", "1"]);
    let address = server.address();
    let (host, port) = address.rsplit_once(':').expect("an address is HOST:PORT");
    let (status, stdout, stderr) = output(python("aio_client.py").args([host, port]), SCRIPT_TIMEOUT);
    assert!(status.success(), "{status}\n{stdout}{stderr}");
    assert!(stdout.starts_with("ok "), "{stdout}");
}

#[test]
#[ignore = "needs aio-msgpack-rpc for Python: .ci/run installs it"]
fn a_python_server_answers_and_fails() {
    let mut server = Running::start(&mut python("aio_server.py"));
    let address = server.address();
    check(&address, "add", &["20", "22"], "42");
    check(&address, "echo", &[r#"{"$bin":"00FF"}"#], r#"{"$bin":"00FF"}"#);
    check_error(&address, "fail", &[r#""no such file""#], "no such file");
}

/// A Neovim that listens on a free port, and its address.
///
/// It takes port 0 but prints the port only when asked to. Of a port that is taken it would say
/// nothing, and listen on a Unix socket.
fn neovim() -> (Running, String) {
    const PRINT_ADDRESS: &str = r#"lua
        io.stdout:write("listening on " .. vim.v.servername .. "\n") io.stdout:flush()"#;
    let mut command = Command::new("nvim");
    command.args(["--clean", "--headless", "--listen", "127.0.0.1:0", "--cmd"]);
    let mut neovim = Running::start(command.arg(PRINT_ADDRESS));
    let address = neovim.address();
    (neovim, address)
}

/// Compares JSON without regard to white space and to the case of hexadecimal digits.
fn check(address: &str, method: &str, params: &[&str], expected: &str) {
    let result = call(address, method, params).expect("this call has a result");
    let result: String = result.split_whitespace().collect();
    assert!(result.eq_ignore_ascii_case(expected), "{method}: {result}, not {expected}");
}

fn check_error(address: &str, method: &str, params: &[&str], text: &str) {
    let error = call(address, method, params).expect_err("this call is answered with an error");
    assert!(error.contains(text), "{method}: {error}");
}

/// One call by the example `rpc_client`: the JSON of the result, or what it says on stderr.
fn call(address: &str, method: &str, params: &[&str]) -> Result<String, String> {
    let args = [&["--addr", address, method], params].concat();
    let (status, stdout, stderr) = Example::output("rpc_client", &args, CALL_TIMEOUT);
    if !status.success() {
        return Err(stderr);
    }
    Ok(stdout.lines().last().expect("the last line is the result").to_owned())
}

/// A script of `rpc/tests/peers`, run by the Python that has its library.
fn python(script: &str) -> Command {
    let python = std::env::var_os("DHAGA_PEERS_PYTHON").expect("DHAGA_PEERS_PYTHON is set by .ci/run");
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/../rpc/tests/peers");
    let mut command = Command::new(python);
    command.arg(Path::new(peers).join(script));
    command
}
