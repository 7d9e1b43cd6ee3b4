//! Connections that say nothing hold nothing.

use dhaga::Runtime;

use crate::common::*;

const CONNECTIONS: usize = 2000;
/// Bytes of ours that an idle connection may take, the allocator's share included.
const IDLE_BYTES_MAX: usize = 2048;

#[test]
fn idle_connections_hold_no_dhaga_and_little_memory() {
    in_child(name_of!(idle_connections_hold_no_dhaga_and_little_memory), 3 * CONNECTIONS, || {
        let runtime = Runtime::builder().workers(2).build().expect("the kernel gives threads");
        let server = builder(&Gate::default()).bind_on(&runtime, "127.0.0.1:0").expect("there is a port");
        let open = |count: usize| -> Vec<Peer> {
            let mut peers: Vec<_> = (0..count).map(|_| Peer::connect(server.local_addr())).collect();
            for peer in &mut peers {
                assert_eq!(peer.ask(1, "add", vec![1.into(), 2.into()]), Ok(3.into()));
            }
            eventually("only the accept loop is left", || runtime.tasks() <= 1);
            peers
        };
        let _first = open(100);
        let before = resident_bytes();
        let mut peers = open(CONNECTIONS);
        let after = resident_bytes();
        assert_eq!(server.stats().connections, CONNECTIONS + 100);
        let each = after.saturating_sub(before) / CONNECTIONS;
        assert!(each <= IDLE_BYTES_MAX, "{each} bytes each");
        for peer in &mut peers {
            assert_eq!(peer.ask(2, "add", vec![1.into(), 2.into()]), Ok(3.into()));
        }
        drop(peers);
        eventually("they are gone", || server.stats().connections == 100);
    });
}

#[test]
fn an_idle_client_holds_no_dhaga() {
    within_deadline(|| {
        let runtime = Runtime::builder().workers(2).build().expect("the kernel gives threads");
        let server = serve(&Gate::default());
        let address = server.local_addr();
        let clients: Vec<_> = (0..50)
            .map(|_| {
                let calling = runtime.spawn(move || {
                    let client = dhaga_rpc::Client::connect(address).expect("the server listens");
                    assert_eq!(add(&client, 1, 2).ok(), Some(3));
                    client
                });
                calling.join().expect("nobody panics")
            })
            .collect();
        eventually("none is left", || runtime.tasks() == 0);
        assert!(clients.iter().all(|client| client.connections() == 1));
    });
}
