//! What is counted of each method, and how Prometheus reads it.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use dhaga_rpc::{CallError, Client, HandlerError, MethodMetrics, Metrics, Server, Transport};

use crate::common::{Gate, Peer, add, builder, eventually, request, within_deadline};

fn connect_counting(server: &Server) -> Client {
    Client::builder().metrics(true).connect(server.local_addr()).expect("the server listens")
}

fn of(metrics: &Metrics, name: &str) -> MethodMetrics {
    metrics.method(name).unwrap_or_else(|| panic!("{name:?} has no row: {metrics:?}")).clone()
}

#[test]
fn both_sides_count_calls_errors_bytes_and_times() {
    within_deadline(|| {
        let server = builder(&Gate::default()).metrics(true).bind("127.0.0.1:0").expect("a port is free");
        let client = connect_counting(&server);
        (0..10).for_each(|n| assert_eq!(add(&client, n, 1).ok(), Some(n + 1)));
        client.call::<_, ()>("fail", ("on purpose",)).expect_err("it fails");
        client.call::<_, ()>("panic", ()).expect_err("it panics");
        client.call::<_, ()>("add", ("x",)).expect_err("it is no number");
        client.call::<_, ()>("sleep", (5, 1)).expect_err("the result is no unit");
        client.notify("add", (1, 2)).expect("it is on its way");
        eventually("the notification is counted", || of(&server.metrics(), "add").calls == 12);
        eventually("it ends", || of(&server.metrics(), "add").in_flight == 0);
        let (at_server, at_client) = (server.metrics(), client.metrics());
        for (metrics, kinds) in [
            (&at_server, ["invalid_arguments", "application", "panicked"]),
            (&at_client, ["refused", "remote", "remote"]),
        ] {
            let add = of(metrics, "add");
            assert_eq!((add.calls, add.in_flight, add.durations.count()), (12, 0, 12), "{metrics:?}");
            assert_eq!(add.errors, [(kinds[0], 1)]);
            assert_eq!(of(metrics, "fail").errors, [(kinds[1], 1)]);
            assert_eq!(of(metrics, "panic").errors, [(kinds[2], 1)]);
            assert_eq!(of(metrics, "panic").in_flight, 0);
            assert!(of(metrics, "sleep").durations.sum() >= Duration::from_millis(5));
            assert!(of(metrics, "sleep").durations.quantile(0.5).is_some_and(|took| took >= Duration::from_millis(5)));
            assert!(metrics.method("").is_none());
        }
        let calls = |metrics| (of(metrics, "fail").bytes_out, of(metrics, "fail").bytes_in);
        let frame = request(1, "fail", vec!["on purpose".into()]).len() as u64;
        assert_eq!((calls(&at_server).1, calls(&at_client).0), (frame, frame));
        assert!(calls(&at_server).0 > 10);
        assert_eq!(of(&at_server, "echo").calls, 0, "a row for each method, called or not");
        assert!(at_client.method("echo").is_none());
    });
}

#[test]
fn a_clients_own_methods_are_counted_apart_from_its_calls() {
    within_deadline(|| {
        let server = builder(&Gate::default()).bind("127.0.0.1:0").expect("a port is free");
        let (near, far) = Transport::pair().expect("there are descriptors");
        let over = builder(&Gate::default()).serve(far).expect("it can be waited for");
        let counting = || Client::builder().metrics(true).method("double", |n: i64| Ok(2 * n));
        let dialled = counting().connect(server.local_addr()).expect("the server listens");
        let own = counting().over(near).expect("it can be waited for");
        assert_eq!(add(&dialled, 0, 0).ok(), Some(0), "it is accepted");
        for (client, mut peers) in [(&dialled, server.peers()), (&own, over.peers())] {
            let peer = peers.remove(0);
            assert_eq!(add(client, 1, 2).ok(), Some(3));
            assert_eq!(peer.call::<_, i64>("double", (21,)).ok(), Some(42));
            peer.call::<_, i64>("double", ("x",)).expect_err("it is no number");
            let served = client.served_metrics();
            assert_eq!(of(&served, "double").calls, 2);
            assert_eq!(of(&served, "double").errors, [("invalid_arguments", 1)]);
            assert!(served.method("add").is_none() && client.metrics().method("double").is_none());
            assert!(peer.served_metrics().methods().is_empty(), "nobody has asked for them");
        }
    });
}

#[test]
fn what_runs_is_in_flight() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = builder(&gate).metrics(true).bind("127.0.0.1:0").expect("a port is free");
        let client = connect_counting(&server);
        let callers: Vec<_> = (0..3)
            .map(|n| {
                let client = client.clone();
                dhaga::spawn(move || client.call::<_, u32>("hold", (n,)))
            })
            .collect();
        eventually("all are held", || gate.inside() == 3);
        assert_eq!(of(&server.metrics(), "hold").in_flight, 3);
        assert_eq!(of(&client.metrics(), "hold").in_flight, 3);
        gate.open();
        callers.into_iter().for_each(|caller| assert!(caller.join().expect("no panic").is_ok()));
        eventually("none is left", || of(&server.metrics(), "hold").in_flight == 0);
        assert_eq!(of(&client.metrics(), "hold").in_flight, 0);
    });
}

#[test]
fn a_peer_cannot_make_rows() {
    within_deadline(|| {
        let server = builder(&Gate::default()).metrics(true).bind("127.0.0.1:0").expect("a port is free");
        let rows = server.metrics().methods().len();
        let mut peer = Peer::connect(server.local_addr());
        for id in 0..100 {
            peer.ask(id, &format!("method {id}"), vec![]).expect_err("nobody registered it");
        }
        let metrics = server.metrics();
        assert_eq!(metrics.methods().len(), rows + 1);
        assert_eq!((of(&metrics, "").calls, of(&metrics, "").errors.as_slice()), (100, &[("unknown_method", 100)][..]));
    });
}

#[test]
fn who_gives_up_is_counted_too_and_who_wants_none_has_none() {
    within_deadline(|| {
        let gate = Gate::default();
        let server = builder(&gate).bind("127.0.0.1:0").expect("a port is free");
        let client = connect_counting(&server);
        let late = client.call_timeout::<_, u32>("hold", (1,), Duration::from_millis(5));
        assert!(matches!(late, Err(CallError::DeadlineExceeded)));
        let hold = of(&client.metrics(), "hold");
        assert_eq!((hold.in_flight, hold.errors.as_slice()), (0, &[("deadline", 1)][..]));
        assert!(server.metrics().methods().is_empty());
        let without = Client::connect(server.local_addr()).expect("it listens");
        assert_eq!(add(&without, 1, 2).ok(), Some(3));
        assert!(without.metrics().methods().is_empty());
        gate.open();
    });
}

/// A line of the text: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads the exposition format as strictly as Prometheus does.
fn parse(text: &str) -> Vec<Sample> {
    let (mut types, mut samples) = (HashSet::new(), Vec::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# ") {
            let mut words = head.splitn(3, ' ');
            let (kind, name, rest) = (words.next(), words.next().expect("a name"), words.next().expect("a text"));
            assert!(types.insert((kind == Some("TYPE"), name.to_owned())), "a second {line}");
            assert!(kind == Some("HELP") || ["counter", "gauge", "histogram"].contains(&rest), "{line}");
            continue;
        }
        let (name, rest) = line.split_once('{').expect("each has labels");
        let (labels, value) = parse_labels(rest);
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let is_known = |name: &str| types.contains(&(true, name.to_owned()));
        assert!(is_known(name) || family.is_some_and(is_known), "{line} belongs to no family");
        samples.push((name.to_owned(), labels, value.trim().parse().expect("a number")));
    }
    samples
}

/// What follows the brace: the labels, unescaped, and the rest.
fn parse_labels(text: &str) -> (BTreeMap<String, String>, &str) {
    let (mut labels, mut rest) = (BTreeMap::new(), text);
    while !rest.starts_with('}') {
        let (name, after) = rest.trim_start_matches(',').split_once("=\"").expect("a label has a value");
        let (mut value, mut letters) = (String::new(), after.char_indices());
        let end = loop {
            match letters.next().expect("a value ends") {
                (at, '"') => break at,
                (_, '\\') => value.push(match letters.next().expect("something is escaped").1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, letter) => value.push(letter),
            }
        };
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name} twice");
        rest = &after[end + 1..];
    }
    (labels, &rest[1..])
}

#[test]
fn prometheus_reads_what_was_counted() {
    within_deadline(|| {
        let odd = "odd \"name\"\\ of\nlines";
        let server = Server::builder()
            .method(odd, |millis: u64| {
                dhaga::sleep(Duration::from_millis(millis));
                Ok(())
            })
            .method("fail", || Err::<(), _>(HandlerError::new("on purpose")))
            .metrics(true)
            .bind("127.0.0.1:0")
            .expect("a port is free");
        let client = connect_counting(&server);
        for millis in [0, 1, 20] {
            client.call::<_, ()>(odd, (millis,)).expect("it is answered");
        }
        client.call::<_, ()>("fail", ()).expect_err("it fails");
        for (side, text, kind) in [
            ("server", server.metrics().to_prometheus(), "application"),
            ("client", client.metrics().to_prometheus(), "remote"),
        ] {
            let samples = parse(&text);
            let find = |name: &str, method: &str, more: Option<(&str, &str)>| {
                let name = format!("dhaga_rpc_{side}_{name}");
                let is_it = |sample: &&Sample| {
                    sample.0 == name
                        && sample.1["method"] == method
                        && more.is_none_or(|(label, value)| sample.1.get(label).is_some_and(|text| text == value))
                };
                samples.iter().filter(is_it).map(|sample| sample.2).collect::<Vec<_>>()
            };
            assert_eq!(find("calls_total", odd, None), [3.0]);
            assert_eq!(find("in_flight", odd, None), [0.0]);
            assert_eq!(find("errors_total", "fail", Some(("kind", kind))), [1.0]);
            assert!(find("errors_total", odd, None).is_empty());
            assert!(
                find("received_bytes_total", odd, None)[0] >= 1.0 && find("sent_bytes_total", odd, None)[0] >= 12.0
            );
            let buckets = find("duration_seconds_bucket", odd, None);
            assert!(buckets.is_sorted() && buckets.last() == Some(&3.0), "{buckets:?}");
            assert_eq!(find("duration_seconds_bucket", odd, Some(("le", "+Inf"))), [3.0]);
            // The others are quick, unless the machine is busy with something else.
            assert!(find("duration_seconds_bucket", odd, Some(("le", "0.016777216")))[0] <= 2.0, "one took 20 ms");
            assert_eq!(find("duration_seconds_count", odd, None), [3.0]);
            assert!(find("duration_seconds_sum", odd, None)[0] >= 0.021);
        }
    });
}

/// A name without letters looks as the row for what has none: no two lines may be of one series.
#[test]
fn no_series_is_there_twice() {
    within_deadline(|| {
        let names = ["", "a\"b", "a\\b", "a\nb", "a\\\"b", "\u{1f980}", "a\\nb"];
        let server = names.iter().fold(Server::builder(), |server, name| server.method(name, || Ok(1)));
        let server = server.metrics(true).bind("127.0.0.1:0").expect("a port is free");
        let client = connect_counting(&server);
        names.iter().for_each(|name| assert_eq!(client.call::<_, i64>(name, ()).ok(), Some(1)));
        client.call::<_, i64>("none", ()).expect_err("there is none");
        (0..600).for_each(|n| drop(client.call::<_, i64>(&format!("none{n}"), ())));
        for text in [server.metrics().to_prometheus(), client.metrics().to_prometheus()] {
            let series: Vec<_> = text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name).collect();
            let distinct: HashSet<_> = series.iter().collect();
            let twice = series.iter().find(|name| series.iter().filter(|other| other == name).count() > 1);
            assert_eq!(distinct.len(), series.len(), "{twice:?}");
        }
        assert_eq!(server.metrics().method("").map(|method| method.calls), Some(602), "with what nobody registered");
    });
}
