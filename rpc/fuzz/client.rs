#![no_main]

mod bodies;
use bodies::{common, fuzz_bodies};

use std::sync::LazyLock;

static CALLS: LazyLock<fuzz_bodies::Calls> = LazyLock::new(Default::default);

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_bodies::client(&CALLS, input));
