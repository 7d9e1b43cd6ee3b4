//! What a server tells of itself, to our client and to others.

use dhaga_rpc::{CallError, DescribedMethod, HandlerError, HealthStatus, Server, Value};

use crate::common::{Gate, Peer, builder, connect, eventually, request, within_deadline};

#[dhaga_rpc::service(name = "stock")]
trait Stock {
    #[rpc(idempotent)]
    fn take(&self, article: &str, #[rpc(default = 1)] count: u32) -> Result<u32, String>;
    #[rpc(notify)]
    fn viewed(&self, article: &str);
}

struct Shelf;

impl Stock for Shelf {
    fn take(&self, _article: &str, count: u32) -> Result<u32, String> {
        Ok(count)
    }

    fn viewed(&self, _article: &str) {}
}

#[test]
fn a_server_describes_what_it_serves() {
    within_deadline(|| {
        let server = Server::builder()
            .service(StockServer::new(Shelf))
            .method("untyped", || Ok(()))
            .bind("127.0.0.1:0")
            .expect("a port is free");
        let description = connect(&server).describe().expect("it is answered");
        assert_eq!(description.methods, ["stock.take", "stock.viewed", "untyped"]);
        let [stock] = &*description.services else { panic!("{description:?}") };
        assert_eq!(stock.name, "stock");
        let DescribedMethod { name, arguments, required, outcome, is_idempotent, .. } = &stock.methods[0];
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!((&**name, *required, *is_idempotent), ("stock.take", 1, true));
        assert_eq!(arguments, &[pair("article", "&str"), pair("count", "u32")]);
        assert_eq!(outcome, &Some(pair("u32", "String")));
        assert_eq!(stock.methods[1].outcome, None);
        let seen = Peer::connect(server.local_addr()).ask(1, "$/describe", vec![]).expect("anybody may ask");
        assert_eq!(seen["services"][0]["methods"][1]["name"], "stock.viewed".into());
    });
}

#[test]
fn a_server_says_how_it_is() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = builder(&gate).bind("127.0.0.1:0").expect("a port is free");
        let client = connect(&server);
        let health = client.health().expect("it is answered");
        assert_eq!((health.status, health.in_flight), (HealthStatus::Serving, 1));
        server.set_health(HealthStatus::Draining);
        assert_eq!(client.health().expect("it is answered").status, HealthStatus::Draining);
        assert_eq!(client.call::<_, i64>("add", (1, 2)).ok(), Some(3), "it serves all the same");
        server.set_health(HealthStatus::Serving);
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.ask(1, "$/health", vec![]).expect("anybody may ask")["status"], "serving".into());
        peer.send(&request(2, "hold", vec![1.into()]));
        eventually("a handler waits", || gate.inside() == 1);
        let draining = std::thread::spawn(move || server.shutdown(std::time::Duration::from_secs(30)));
        let (mut id, mut other) = (0, Peer::new(peer.0.try_clone().expect("a descriptor")));
        eventually("new calls are refused", || {
            id += 1;
            other.ask(10 + id, "add", vec![1.into(), 2.into()]).is_err_and(|error| error.contains("shutting down"))
        });
        let health = other.ask(9, "$/health", vec![]).expect("who watches sees the end");
        assert_eq!(health["status"], "draining".into());
        gate.open();
        assert!(draining.join().expect("nobody panics"));
    });
}

#[test]
fn a_server_counts_aloud() {
    within_deadline(|| {
        let server = builder(&Gate::default()).metrics(true).bind("127.0.0.1:0").expect("a port is free");
        let mut peer = Peer::connect(server.local_addr());
        peer.ask(1, "add", vec![1.into(), 2.into()]).expect("it is answered");
        peer.ask(2, "add", vec![]).expect_err("nothing to add");
        let stats = peer.ask(3, "$/stats", vec![]).expect("anybody may ask");
        assert_eq!((&stats["connections"], &stats["in_flight"]), (&1.into(), &1.into()), "{stats}");
        let methods = stats["methods"].as_array().expect("a list");
        let add = methods.iter().find(|row| row["method"] == "add".into()).expect("each method has a row");
        assert_eq!((&add["calls"], &add["errors"]["invalid_arguments"]), (&2.into(), &1.into()), "{add}");
        assert!(add["p99_us"].as_u64().is_some(), "{add}");
    });
}

#[test]
fn of_very_many_methods_those_that_were_called_most_are_counted_aloud() {
    const METHODS: usize = 1000;
    within_deadline(|| {
        let name = |n| format!("method {n:04}");
        let server = (0..METHODS).fold(Server::builder(), |server, n| server.method(&name(n), || Ok(())));
        let server = server.metrics(true).bind("127.0.0.1:0").expect("a port is free");
        let mut peer = Peer::connect(server.local_addr());
        let called = [998, 700, 999];
        called.iter().for_each(|n| drop(peer.ask(1, &name(*n), vec![]).expect("it is answered")));
        let stats = peer.ask(2, "$/stats", vec![]).expect("anybody may ask");
        let methods: Vec<_> =
            stats["methods"].as_array().expect("a list").iter().map(|row| row["method"].clone()).collect();
        assert!(called.iter().all(|n| methods.contains(&name(*n).into())), "{stats}");
        assert!(methods.is_sorted_by_key(Value::as_str));
        // The question itself is one of them.
        assert_eq!((methods.len(), stats["methods_left_out"].as_u64()), (512, Some(METHODS as u64 + 1 - 512)));
        assert_eq!(server.metrics().methods().len(), METHODS + 1, "the server itself is told all");
    });
}

#[test]
fn who_shall_not_be_asked_is_switched_off_or_guarded_by_a_layer() {
    within_deadline(|| {
        let silent = builder(&Gate::default()).introspection(false).bind("127.0.0.1:0").expect("a port is free");
        let mut peer = Peer::connect(silent.local_addr());
        for (id, method) in ["$/describe", "$/health", "$/stats"].into_iter().enumerate() {
            let error = peer.ask(id as u32, method, vec![]).expect_err("it does not tell");
            assert!(error.contains("no method"), "{error}");
        }
        let guarded = builder(&Gate::default()).layer(|call, next| match call.method() {
            "$/stats" => Err(HandlerError::denied("not you")),
            _ => next.run(),
        });
        let guarded = guarded.bind("127.0.0.1:0").expect("a port is free");
        let client = connect(&guarded);
        client.health().expect("that is allowed");
        let error = client.call::<_, Value>("$/stats", ()).expect_err("that is not");
        assert!(matches!(error, CallError::Refused { .. }), "{error}");
    });
}
