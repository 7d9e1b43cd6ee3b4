//! The DNS relay, between real clients and a server that does what it is named.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::run::{Example, Running};

/// More than anything here takes in a debug build on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);
const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// A query for addresses of a name.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// A server that answers each query with one address, but for names that begin with a special word.
fn answerer() -> SocketAddr {
    let socket = UdpSocket::bind(ANY_PORT).expect("a port is free");
    let address = socket.local_addr().expect("it is bound");
    thread::spawn(move || {
        let (mut buffer, mut held) = ([0; 512], HashMap::new());
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let asked = &buffer[..len];
            let name = asked[13..].split(|&byte| byte < 32).next().unwrap_or_default().to_owned();
            let true_one = answer(asked);
            match &*name {
                b"silent" => {}
                // Answered when the next one comes, and after that.
                b"first" => _ = held.insert(from, true_one),
                b"forged" => {
                    let mut forged = true_one.clone();
                    forged[1] ^= 1;
                    let other = answer(&query(u16::from_be_bytes([asked[0], asked[1]]), "another.example"));
                    for datagram in [&forged[..], &other, b"", b"short", &[0xff; 64], asked, &true_one, &true_one] {
                        socket.send_to(datagram, from).expect("there is room");
                    }
                }
                _ => {
                    socket.send_to(&true_one, from).expect("there is room");
                    held.drain().for_each(|(to, answer)| _ = socket.send_to(&answer, to));
                }
            }
        }
    });
    address
}

/// 192.0.2.7, for an hour.
fn answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[7] = 1;
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 7]);
    answer
}

fn relay(upstream: SocketAddr, more: &[&str]) -> (Running, UdpSocket) {
    let upstream = upstream.to_string();
    let args = [&["--addr", "127.0.0.1:0", "--upstream", &upstream], more].concat();
    let mut relay = Example::start("udp_dns_relay", &args);
    let client = connect(&relay.address());
    (relay, client)
}

fn connect(address: &str) -> UdpSocket {
    let client = UdpSocket::bind(ANY_PORT).expect("a port is free");
    client.connect(address).expect("it is an address");
    client.set_read_timeout(Some(TIMEOUT)).expect("it is not zero");
    client
}

fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 512];
    let len = client.recv(&mut buffer).expect("it is answered");
    buffer[..len].to_vec()
}

fn check(client: &UdpSocket, id: u16, name: &str) {
    client.send(&query(id, name)).expect("there is room");
    assert_eq!(receive(client), answer(&query(id, name)), "{name}");
}

fn server_failure(id: u16, name: &str) -> Vec<u8> {
    let mut failure = query(id, name);
    failure[2] |= 0x80;
    failure[3] = 2;
    failure
}

#[test]
fn each_client_gets_its_answer_under_its_id() {
    let (_relay, client) = relay(answerer(), &[]);
    let address = client.peer_addr().expect("it is connected").to_string();
    for id in [0, 1, 0x1234, u16::MAX] {
        check(&client, id, "www.example");
    }
    // The same id from many at once.
    let clients: Vec<_> = (0..50).map(|number| (connect(&address), format!("n{number}.example"))).collect();
    clients.iter().for_each(|(client, name)| _ = client.send(&query(7, name)).expect("there is room"));
    clients.iter().for_each(|(client, name)| assert_eq!(receive(client), answer(&query(7, name))));
}

#[test]
fn answers_may_come_in_another_order() {
    let (_relay, client) = relay(answerer(), &[]);
    let queries = [query(1, "first.example"), query(2, "second.example")];
    let mut awaited: Vec<_> = queries.iter().map(|query| answer(query)).collect();
    queries.iter().for_each(|query| _ = client.send(query).expect("there is room"));
    while !awaited.is_empty() {
        // Lets go what is held, in whichever order the relay has passed the two on.
        client.send(&query(3, "third.example")).expect("there is room");
        let answered = receive(&client);
        if answered != answer(&query(3, "third.example")) {
            let place = awaited.iter().position(|awaited| *awaited == answered);
            awaited.remove(place.expect("each is answered once, under its id"));
        }
    }
}

#[test]
fn what_is_forged_or_no_answer_is_not_handed_back() {
    let (_relay, client) = relay(answerer(), &[]);
    for id in 0..20 {
        check(&client, id, "forged.example");
    }
    check(&client, 99, "www.example");
}

#[test]
fn what_is_not_answered_in_time_is_a_server_failure() {
    let (_relay, client) = relay(answerer(), &["--timeout-ms", "50"]);
    client.send(&query(5, "silent.example")).expect("there is room");
    assert_eq!(receive(&client), server_failure(5, "silent.example"));
    check(&client, 6, "www.example");
}

#[test]
fn a_server_that_is_not_there_is_a_server_failure() {
    let nobody = UdpSocket::bind(ANY_PORT).expect("a port is free");
    let address = nobody.local_addr().expect("it is bound");
    drop(nobody);
    let (_relay, client) = relay(address, &["--timeout-ms", "50"]);
    for id in 0..3 {
        client.send(&query(id, "www.example")).expect("there is room");
        assert_eq!(receive(&client), server_failure(id, "www.example"));
    }
}

#[test]
fn too_many_fail_at_once() {
    let (_relay, client) = relay(answerer(), &["--timeout-ms", "60000", "--pending", "2"]);
    for id in 0..3 {
        client.send(&query(id, "silent.example")).expect("there is room");
    }
    assert_eq!(receive(&client), server_failure(2, "silent.example"));
}

#[test]
fn what_is_no_query_does_no_harm() {
    let (_relay, client) = relay(answerer(), &[]);
    let whole = query(9, "www.example");
    let no_questions = |mut query: Vec<u8>| {
        query[5] = 0;
        query
    };
    let mut pointer = whole.clone();
    pointer[12] = 0xc0;
    let mut error = whole[..12].to_vec();
    (error[2], error[3], error[5]) = (error[2] | 0x80, 1, 0);
    let mut long = whole[..12].to_vec();
    (0..10).for_each(|_| long.extend([&[63][..], &[b'x'; 63]].concat()));
    long.extend([0, 0, 1, 0, 1]);
    for query in [&whole[..12], &whole[..20], &whole[..whole.len() - 1], &no_questions(whole.clone()), &pointer, &long]
    {
        client.send(query).expect("there is room");
        assert_eq!(receive(&client), error, "{query:?}");
    }
    // Too short for an answer, or an answer itself.
    for query in [&b""[..], b"x", &whole[..11], &answer(&whole)] {
        client.send(query).expect("there is room");
    }
    check(&client, 10, "www.example");
}
