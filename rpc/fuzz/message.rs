#![no_main]

mod bodies;
use bodies::{common, fuzz_bodies};

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_bodies::message(input));
