//! Programs that are built with `panic = "abort"`: nothing unwinds there, and the process dies of a panic as it should.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use crate::common::DEADLINE;

const MANIFEST: &str = r#"
[package]
name = "aborting"
edition = "2024"

[[bin]]
name = "aborting"
path = "PROGRAM"

[dependencies]
dhaga = { path = "DHAGA" }

[profile.dev]
panic = "abort"
debug = false

[workspace]
"#;

/// Builds `tests/programs/aborting.rs` as a crate of its own, from what cargo has fetched for this one. Returns the program.
fn program() -> PathBuf {
    let (dhaga, folder) =
        (Path::new(env!("CARGO_MANIFEST_DIR")), Path::new(env!("CARGO_TARGET_TMPDIR")).join("aborting"));
    let program = dhaga.join("tests/programs/aborting.rs");
    let fill = |text: &str, name: &str, path: &Path| text.replace(name, path.to_str().expect("a path of text"));
    let manifest = fill(&fill(MANIFEST, "PROGRAM", &program), "DHAGA", dhaga);
    std::fs::create_dir_all(&folder).expect("a test may write to its folder");
    std::fs::write(folder.join("Cargo.toml"), manifest).expect("a test may write to its folder");
    std::fs::copy(dhaga.join("../Cargo.lock"), folder.join("Cargo.lock")).expect("the workspace has a lock file");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--offline", "--quiet", "--target-dir", "target"])
        .current_dir(&folder)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .expect("cargo runs this test, so there is one");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    folder.join("target/debug/aborting")
}

fn run(program: &Path, part: &str) -> Output {
    let began = Instant::now();
    // A hang would be one of `timeout`, which Debian has always.
    let output = Command::new("timeout").arg(DEADLINE.as_secs().to_string()).arg(program).arg(part).output();
    let output = output.expect("the program was built");
    assert!(began.elapsed() < DEADLINE, "{part}: {output:?}");
    output
}

#[test]
fn a_program_whose_panics_abort_does_the_same_and_dies_of_them() {
    let program = program();
    for part in ["works", "parked", "unstarted"] {
        let output = run(&program, part);
        assert!(output.status.success() && output.stdout == b"well\n", "{part}: {output:?}");
    }
    let output = run(&program, "panics");
    // `timeout` dies of the signal that its program died of.
    assert_eq!(
        output.status.signal().or(output.status.code().map(|code| code - 128)),
        Some(libc::SIGABRT),
        "{output:?}"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("the last words of a dhaga"), "{output:?}");
}
