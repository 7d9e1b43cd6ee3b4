#![no_main]

mod bodies;
use bodies::{common, fuzz_bodies};

use std::sync::LazyLock;

static SERVED: LazyLock<fuzz_bodies::Served> = LazyLock::new(Default::default);

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz_bodies::server(&SERVED, input));
