//! What foreign peers said to us, byte for byte, and what we said to them; `tests/interop` records it.

use std::fs;
use std::path::{Path, PathBuf};

use dhaga_rpc::{CallError, Client, ErrorProfile, Extensions, HandlerError, Server, Value};

use crate::common::*;

/// A message of the client, and the server's answer if it was a request.
struct Exchange {
    sent: Vec<u8>,
    answer: Option<Vec<u8>>,
}

fn message(mut bytes: &[u8]) -> Vec<Value> {
    let message = rmpv::decode::read_value(&mut bytes).expect("it was a message");
    message.as_array().expect("a message is an array").clone()
}

/// The recordings whose name ends so, by their path.
fn recordings(end: &str) -> Vec<(PathBuf, Vec<Exchange>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/golden");
    let files = fs::read_dir(folder).expect("the folder is there").map(|file| file.expect("it can be listed").path());
    let recordings: Vec<_> = files
        .filter(|path| path.to_string_lossy().ends_with(end))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("it can be read");
            let exchanges = exchanges(&text);
            assert!(exchanges.len() >= 30, "{}: only {}", path.display(), exchanges.len());
            (path, exchanges)
        })
        .collect();
    assert!(recordings.len() >= 6, "only {} recordings", recordings.len());
    recordings
}

fn exchanges(text: &str) -> Vec<Exchange> {
    let mut exchanges = Vec::<Exchange>::new();
    for line in text.lines() {
        if let Some(sent) = line.strip_prefix("> ") {
            exchanges.push(Exchange { sent: bytes(sent), answer: None });
        } else if let Some(answer) = line.strip_prefix("< ") {
            exchanges.last_mut().expect("an answer follows its request").answer = Some(bytes(answer));
        }
    }
    exchanges
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("two digits")).collect()
}

/// Our client sends what it sent then, byte for byte, and reads in each answer what another decoder reads there.
#[test]
fn our_client_says_what_it_said_to_foreign_servers_and_understands_what_they_answered() {
    within_deadline(|| {
        for (path, exchanges) in recordings("-serves.txt") {
            let name = path.display().to_string();
            // One worker has one connection, whose ids count from 1.
            let runtime = dhaga::Runtime::builder().workers(1).build().expect("a runtime can be had");
            runtime.spawn(move || play_to_client(&name, exchanges)).join().expect("it goes as recorded");
        }
    });
}

fn play_to_client(name: &str, exchanges: Vec<Exchange>) {
    let messages: Vec<_> =
        exchanges.iter().map(|exchange| (message(&exchange.sent), exchange.answer.clone())).collect();
    let address = foreign_server(1, move |mut peer| {
        for exchange in &exchanges {
            assert_eq!(peer.receive_bytes(exchange.sent.len()), exchange.sent);
            if let Some(answer) = &exchange.answer {
                peer.send(answer);
            }
        }
    });
    let client = Client::builder().extensions(Extensions::Plain).connect(address).expect("it listens");
    for (sent, answer) in messages {
        let [.., method, params] = &sent[..] else { panic!("{name}: too short a message") };
        let method = method.as_str().expect("a method is a text");
        let Some(answer) = answer.as_deref().map(message) else {
            client.notify(method, params).expect("it is sent");
            continue;
        };
        let came = match client.call::<_, Value>(method, params) {
            Ok(result) => [Value::Nil, result],
            Err(CallError::Remote(error)) => [error.decode().expect("any error can be read"), Value::Nil],
            Err(other) => panic!("{name}, {method}: {other}"),
        };
        assert_eq!(came.map(comparable), [answer[2].clone(), answer[3].clone()].map(comparable), "{name}, {method}");
    }
}

/// The same bytes for the same value, if `Value` reads what is no UTF-8 as bytes.
fn comparable(value: Value) -> Vec<u8> {
    match value {
        Value::String(text) if !text.is_str() => bytes_of(&Value::Binary(text.into_bytes())),
        other => bytes_of(&other),
    }
}

/// What foreign clients sent is answered as it was then, byte for byte. Only the words of our own errors may change.
#[test]
fn our_server_answers_foreign_clients_as_it_did() {
    within_deadline(|| {
        recordings("-calls.txt").into_iter().for_each(|(path, exchanges)| play_to_server(&path, &exchanges))
    });
}

fn play_to_server(path: &Path, exchanges: &[Exchange]) {
    let name = path.display();
    let is_of_neovim = path.to_string_lossy().contains("vim");
    let server = Server::builder()
        .method("echo", |value: Value| Ok(value))
        .method("add", |i: i64, j: i64| Ok(i + j))
        .method("note", |_: Value| Ok(()))
        .method("fail", |error: Value| {
            Err::<(), _>(match error.as_str() {
                Some(text) => HandlerError::new(text),
                None => HandlerError::value(&error),
            })
        })
        .error_profile(if is_of_neovim { ErrorProfile::CodeText } else { ErrorProfile::Text })
        .bind("127.0.0.1:0")
        .expect("the kernel has a port");
    let mut peer = Peer::connect(server.local_addr());
    for exchange in exchanges {
        peer.send(&exchange.sent);
        let Some(expected) = &exchange.answer else { continue };
        let sent = message(&exchange.sent);
        if message(expected)[2].is_nil() || sent[2] == "fail".into() {
            assert_eq!(peer.receive_bytes(expected.len()), *expected, "{name}, {sent:?}");
        } else {
            let answer = peer.receive();
            assert!(answer[0] == 1.into() && answer[1] == sent[1] && !answer[2].is_nil(), "{name}: {answer}");
        }
    }
    assert_eq!(server.stats().closed_for_fault, 0, "{name}");
}
