//! Foreign MessagePack-RPC peers in both roles: the same cases for each, and a table of what came of it.
//!
//! The peers need interpreters and libraries that a Rust toolchain does not bring, hence the test is run only where it is asked for:
//!
//! ```text
//! rpc/tests/peers/install
//! cargo test -p dhaga-rpc --test interop -- --ignored --nocapture
//! ```
//!
//! `DHAGA_INTEROP_ONLY=pynvim,go` runs peers whose name holds one of these; `DHAGA_INTEROP_WRITE=1` writes docs/interop.md
//! and the recordings in `tests/peers/golden`, which the tests of `it::golden` play.

mod calling;
mod cases;
mod golden;
mod known;
mod matrix;
mod peers;
mod serving;

use std::sync::Mutex;
use std::time::Instant;
use std::{env, fs, thread};

use dhaga_rpc::CallError;

use cases::Case;
use matrix::{Matrix, Role};
use peers::{PEERS, Peer};

/// Peers that are tried at the same time. They mostly compute, so more than there are cores would only make them late.
const AT_ONCE: usize = 2;

#[test]
#[ignore = "needs the foreign peers: rpc/tests/peers/install brings them"]
fn foreign_peers_do_every_case_in_both_roles() {
    let cases = cases::all();
    let matrix = Mutex::new(Matrix::default());
    let work = Mutex::new(work());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((peer, role)) = next(&work) {
                    let began = Instant::now();
                    let outcomes = match role {
                        Role::Server => calling::run(peer, &cases),
                        Role::Client => serving::run(peer, &cases),
                    };
                    println!("{} as {role:?}: {:.1} s", peer.name, began.elapsed().as_secs_f32());
                    let mut matrix = matrix.lock().expect("nobody panics with it");
                    for (case, outcome) in cases.iter().zip(outcomes) {
                        matrix.enter(role, peer, case, outcome);
                    }
                }
            });
        }
    });

    let matrix = matrix.into_inner().expect("nobody panics with it");
    for role in [Role::Server, Role::Client] {
        println!("\n{role:?}\n{}", matrix.table(role, &cases));
    }
    println!(
        "ok: {} with their servers, {} with their clients",
        matrix.count(Role::Server),
        matrix.count(Role::Client)
    );
    if env::var_os("DHAGA_INTEROP_WRITE").is_some() {
        write(&matrix, &cases);
    }
    let surprises = matrix.surprises();
    assert!(surprises.is_empty(), "{} surprises:\n{}", surprises.len(), surprises.join("\n"));
}

#[test]
#[ignore = "needs the foreign peers: rpc/tests/peers/install brings them"]
fn neovim_listens_at_a_path_and_calls_back_twenty_levels_deep() {
    let folder = env::temp_dir().join(format!("dhaga-interop-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("there is room for a folder");
    for peer in PEERS.iter().filter(|peer| peer.name.starts_with("neovim") && !peer.is_embedded) {
        calling::nest_at_a_path(peer, &folder.join(peer.name));
    }
    fs::remove_dir_all(&folder).expect("it is ours");
}

#[test]
#[ignore = "needs the foreign peers: rpc/tests/peers/install brings them"]
fn neovim_hangs_up_when_its_calls_are_not_answered_last_first() {
    for peer in PEERS.iter().filter(|peer| peer.is_embedded) {
        let ends = calling::answer_the_first_first(peer);
        assert!(matches!(ends, Err(CallError::Disconnected { .. })), "{}: {ends:?}", peer.name);
    }
}

/// The page is of all peers, the recordings are one for each.
fn write(matrix: &Matrix, cases: &[Case]) {
    if asked().count() == PEERS.len() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/interop.md");
        fs::write(path, matrix.page(cases)).expect("docs can be written");
    }
    for peer in asked().filter(|peer| !peer.is_embedded) {
        calling::record(peer, cases);
        serving::record(peer, cases);
    }
}

fn asked() -> impl Iterator<Item = &'static Peer> {
    let only = env::var("DHAGA_INTEROP_ONLY").unwrap_or_default();
    PEERS.iter().filter(move |peer| only.split(',').any(|part| peer.name.contains(part)))
}

/// Every peer in every role, but for those that are not asked for.
fn work() -> Vec<(&'static Peer, Role)> {
    let roles = asked().flat_map(|peer| [(peer, Role::Server), (peer, Role::Client)]);
    roles.filter(|(peer, role)| *role == Role::Server || !peer.is_embedded).collect()
}

fn next<T>(work: &Mutex<Vec<T>>) -> Option<T> {
    work.lock().expect("nobody panics with it").pop()
}
