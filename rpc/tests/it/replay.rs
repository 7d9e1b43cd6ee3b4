//! Inputs that the fuzzers found worth keeping, one after the other: `rpc/fuzz/corpus/<fuzzer>/`.

use std::fs;
use std::path::Path;

use crate::common::*;
use crate::fuzz_bodies::{self, Calls, Served};

/// Runs all inputs of a fuzzer. A failure names the file: libtest shows what was printed.
fn replay(fuzzer: &str, body: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(fuzzer);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    files.sort();
    assert!(files.len() > 5, "the inputs of {fuzzer} are not there");
    for file in files {
        println!("{}", file.display());
        body(&fs::read(&file).expect("the file can be read"));
    }
}

#[test]
fn inputs_of_the_cutter() {
    within_deadline(|| replay("cutter", fuzz_bodies::cutter));
}

#[test]
fn inputs_of_the_messages() {
    within_deadline(|| replay("message", fuzz_bodies::message));
}

#[test]
fn inputs_of_the_server() {
    within_deadline(|| {
        let served = Served::default();
        replay("server", |input| fuzz_bodies::server(&served, input));
    });
}

#[test]
fn inputs_of_the_client() {
    within_deadline(|| {
        let calls = Calls::default();
        replay("client", |input| fuzz_bodies::client(&calls, input));
    });
}

/// What a fuzzer does first, in a minute of nobody's time: inputs of random bytes.
#[test]
fn inputs_at_random() {
    within_deadline(|| {
        let (served, calls) = (Served::default(), Calls::default());
        let mut seed = 0x5eed_f00d;
        for round in 0..400 {
            let input: Vec<_> = (0..next(&mut seed) % 120).map(|_| next(&mut seed) as u8).collect();
            println!("round {round}: {input:02x?}");
            fuzz_bodies::cutter(&input);
            fuzz_bodies::message(&input);
            fuzz_bodies::server(&served, &input);
            fuzz_bodies::client(&calls, &input);
        }
    });
}
