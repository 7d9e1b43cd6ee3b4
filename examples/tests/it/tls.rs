//! rustls, unchanged, over sockets of dhagas: what it gives over std's sockets it gives over ours.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use dhaga_examples::tls::{self, Authority};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, ServerConfig, Stream, SupportedProtocolVersion};

use crate::bounded::everywhere;
use crate::tls_world::{ClientStream, ServerStream, World, pair, refusal, roots, shake};

/// Larger than what a socket and rustls take together before the other side must read.
const LARGE_BYTES: usize = 8 << 20;

#[test]
fn what_is_written_at_one_end_is_read_at_the_other() {
    everywhere(|| {
        let (mut client, mut server) = World::new().pair();
        let served = dhaga::spawn(move || {
            let mut question = [0; 8];
            server.read_exact(&mut question).expect("the client writes");
            server.write_all(b"to ").and_then(|()| server.write_all(&question)).expect("the client reads");
        });
        client.write_all(b"question").expect("the server reads");
        let mut answer = [0; 11];
        client.read_exact(&mut answer).expect("the server writes");
        assert_eq!(&answer, b"to question");
        served.join().expect("all goes well");
    });
}

#[test]
fn large_messages_pass_while_sockets_are_full() {
    everywhere(|| {
        let (mut client, mut server) = World::new().pair();
        let served = dhaga::spawn(move || {
            let mut message = vec![0; LARGE_BYTES];
            server.read_exact(&mut message).expect("the client writes");
            server.write_all(&message).expect("the client reads");
        });
        let message: Vec<u8> = (0..LARGE_BYTES).map(|index| (index % 251) as u8).collect();
        client.write_all(&message).expect("the server reads");
        let mut answer = vec![0; LARGE_BYTES];
        client.read_exact(&mut answer).expect("the server writes");
        assert!(answer == message, "other bytes came back");
        served.join().expect("all goes well");
    });
}

#[test]
fn both_versions_and_a_borrowed_stream() {
    everywhere(|| {
        let check = |version: &'static SupportedProtocolVersion| {
            let mut world = World::new();
            let identity = world.authority.issue(tls::SERVER).expect("it is a name");
            world.server = ServerConfig::builder_with_protocol_versions(&[version])
                .with_no_client_auth()
                .with_single_cert(identity.chain(), identity.key())
                .expect("the key fits");
            let (mut client, mut server) = world.pair();
            let served = dhaga::spawn(move || server.write_all(b"x").expect("the client reads"));
            let mut stream = Stream::new(&mut client.conn, &mut client.sock);
            stream.read_exact(&mut [0]).expect("the server writes");
            assert_eq!(client.conn.protocol_version(), Some(version.version));
            served.join().expect("all goes well");
        };
        check(&TLS12);
        check(&TLS13);
    });
}

/// What the client reads after `ending` at the server.
fn read_to_the_end(ending: impl FnOnce(ServerStream) + Send + 'static) -> std::io::Result<Vec<u8>> {
    let (mut client, mut server) = World::new().pair();
    let served = dhaga::spawn(move || {
        server.write_all(b"last words").expect("the client reads");
        ending(server);
    });
    let mut words = vec![0; 10];
    client.read_exact(&mut words).expect("they were sent whole");
    served.join().expect("all goes well");
    client.read_to_end(&mut words).map(|_| words)
}

#[test]
fn an_end_that_was_announced_is_the_end() {
    everywhere(|| {
        let words = read_to_the_end(|mut server| {
            server.conn.send_close_notify();
            server.flush().expect("the client is there");
        });
        assert_eq!(words.expect("it was announced"), b"last words");
    });
}

#[test]
fn an_end_that_was_not_announced_is_an_error() {
    everywhere(|| {
        let error = read_to_the_end(drop).expect_err("anybody may have cut it off");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        let half = |server: ServerStream| {
            server.sock.shutdown(Shutdown::Write).expect("it is connected");
        };
        let error = read_to_the_end(half).expect_err("anybody may have cut it off");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    });
}

/// What either end says of a handshake that fails.
fn refusals(mut client: ClientStream, mut server: ServerStream) -> (Error, Error) {
    let served = dhaga::spawn(move || refusal(&mut server));
    let seen_by_client = refusal(&mut client);
    drop(client);
    (seen_by_client, served.join().expect("all goes well"))
}

/// With a server that asks for a client's certificate.
fn mutual() -> World {
    let mut world = World::new();
    let identity = world.authority.issue(tls::SERVER).expect("it is a name");
    world.server = tls::server_config(&identity, Some(roots(&world.authority))).expect("the key fits");
    world
}

fn showing(world: &World, authority: &Authority) -> ClientConfig {
    let identity = authority.issue(tls::CLIENT).expect("it is a name");
    tls::client_config(roots(&world.authority), Some(&identity)).expect("the key fits")
}

#[test]
fn a_client_that_shows_its_certificate_is_known_to_the_server() {
    everywhere(|| {
        let mut world = mutual();
        world.client = showing(&world, &world.authority);
        let (mut client, mut server) = world.pair();
        let served = dhaga::spawn(move || {
            server.write_all(b"welcome").expect("the client reads");
            server.conn.peer_certificates().map(<[_]>::len)
        });
        client.read_exact(&mut [0; 7]).expect("the server knows it");
        assert_eq!(served.join().expect("all goes well"), Some(1));
    });
}

#[test]
fn a_client_without_a_certificate_is_told_that_one_is_required() {
    everywhere(|| {
        let world = mutual();
        let (client, server) = world.pair();
        let (by_client, by_server) = refusals(client, server);
        assert_eq!(by_client, Error::AlertReceived(AlertDescription::CertificateRequired));
        assert_eq!(by_server, Error::NoCertificatesPresented);
    });
}

#[test]
fn a_client_of_a_strange_authority_is_refused() {
    everywhere(|| {
        let mut world = mutual();
        world.client = showing(&world, &Authority::new("a stranger").expect("an authority can be made"));
        let (client, server) = world.pair();
        let (by_client, by_server) = refusals(client, server);
        assert!(matches!(by_client, Error::AlertReceived(_)), "{by_client:?}");
        assert!(matches!(by_server, Error::InvalidCertificate(_)), "{by_server:?}");
    });
}

#[test]
fn a_server_of_another_name_is_refused() {
    everywhere(|| {
        let world = World::new();
        let (near, far) = pair();
        let (by_client, by_server) = refusals(world.client_of("elsewhere.example", near), world.server(far));
        let names = |why: &CertificateError| {
            matches!(why, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
        };
        assert!(matches!(&by_client, Error::InvalidCertificate(why) if names(why)), "{by_client:?}");
        assert!(matches!(by_server, Error::AlertReceived(_)), "{by_server:?}");
    });
}

#[test]
fn a_server_of_a_strange_authority_is_refused() {
    everywhere(|| {
        let mut world = World::new();
        let stranger = Authority::new("a stranger").expect("an authority can be made");
        world.client = tls::client_config(roots(&stranger), None).expect("no key is needed");
        let (client, server) = world.pair();
        let (by_client, by_server) = refusals(client, server);
        assert_eq!(by_client, Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert_eq!(by_server, Error::AlertReceived(AlertDescription::UnknownCA));
    });
}

#[test]
fn both_ends_agree_on_a_protocol_or_on_none() {
    everywhere(|| {
        let with_protocols = |clients: &[&str], servers: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect();
            let mut world = World::new();
            world.client.alpn_protocols = names(clients);
            world.server.alpn_protocols = names(servers);
            world
        };
        let (mut client, mut server) = with_protocols(&["h2", "http/1.1"], &["http/1.1"]).pair();
        let served = dhaga::spawn(move || shake(&mut server).map(|()| server.conn.alpn_protocol().map(<[_]>::to_vec)));
        shake(&mut client).expect("they have one in common");
        assert_eq!(client.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let agreed = served.join().expect("all goes well").expect("they have one in common");
        assert_eq!(agreed.as_deref(), Some(&b"http/1.1"[..]));

        let world = with_protocols(&["h2"], &["http/1.1"]);
        let (client, server) = world.pair();
        let (by_client, by_server) = refusals(client, server);
        assert_eq!(by_client, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
        assert_eq!(by_server, Error::NoApplicationProtocol);
    });
}
