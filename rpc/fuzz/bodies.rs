//! What the fuzzers share with the tests, each using a part of it.
#![allow(dead_code, unused_macros, unused_imports)]

#[path = "../tests/it/common.rs"]
pub mod common;
#[path = "../tests/it/fuzz_bodies.rs"]
pub mod fuzz_bodies;
