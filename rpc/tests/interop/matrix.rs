//! What came of it: the table, and whether it is as known.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use dhaga_rpc::Value;

use crate::cases::{Case, Step};
use crate::known::{KNOWN, Known, LATE, RACES};
use crate::peers::{PEERS, Peer, versions};
use crate::serving::HANGS;

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Their server, called by our client.
    Server,
    /// Their client, which calls our server.
    Client,
}

/// For one call, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(60);
/// For one that is known to hang.
const PATIENCE_IN_VAIN: Duration = Duration::from_secs(1);

/// How long a case may take.
pub fn patience(role: Role, peer: &str, case: &str) -> Duration {
    let is_in_vain = known(role, peer, case).is_some_and(|known| known.says == HANGS || known.says == LATE);
    if is_in_vain { PATIENCE_IN_VAIN } else { PATIENCE }
}

/// Larger values say nothing that smaller ones do not.
const QUOTED_BYTES_MAX: usize = 300;

fn encoded_bytes(value: &Value) -> usize {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).expect("a vector takes all");
    bytes.len()
}

/// Whether what goes over the wire in this case is worth keeping: it is small, goes well, and has one connection.
pub fn is_quotable(role: Role, peer: &Peer, case: &Case) -> bool {
    let is_quotable = match &case.step {
        Step::Echo(value) | Step::Fail(value, _) => encoded_bytes(value) <= QUOTED_BYTES_MAX,
        Step::Note(value) => encoded_bytes(value) <= QUOTED_BYTES_MAX,
        Step::Add(..) | Step::Refused(..) | Step::Unheard(_) => true,
        _ => false,
    };
    is_quotable && known(role, peer.name, &case.name).is_none()
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Ok,
    /// The library has no way to do it.
    Unable,
    /// The case has no meaning in this role.
    Void,
    Failed(String),
}

#[derive(Default)]
pub struct Matrix {
    outcomes: BTreeMap<(Role, &'static str, String), Outcome>,
}

impl Matrix {
    pub fn enter(&mut self, role: Role, peer: &Peer, case: &Case, outcome: Outcome) {
        self.outcomes.insert((role, peer.name, case.name.clone()), outcome);
    }

    /// What is neither in order nor known, and what is known and did not happen.
    pub fn surprises(&self) -> Vec<String> {
        let mut surprises = Vec::new();
        for ((role, peer, case), outcome) in &self.outcomes {
            let place = format!("{peer} as {role:?}, {case}");
            match (known(*role, peer, case), outcome) {
                (None, Outcome::Ok | Outcome::Void) => {}
                (None, outcome) => surprises.push(format!("{place}: {outcome:?}")),
                (Some(_), Outcome::Ok) if RACES.contains(&(*peer, *role, case.as_str())) => {}
                (Some(_), Outcome::Ok) => {
                    surprises.push(format!("{place}: listed as a deviation, and is none any more"))
                }
                (Some(known), Outcome::Unable | Outcome::Void) if known.says.is_empty() => {}
                (Some(known), Outcome::Failed(how)) if !known.says.is_empty() && how.contains(known.says) => {}
                (Some(known), outcome) => {
                    surprises.push(format!("{place}: {outcome:?}, which is not what is listed: {:?}", known.says));
                }
            }
        }
        surprises
    }

    /// The table of one role.
    pub fn table(&self, role: Role, cases: &[Case]) -> String {
        let mut text = String::from("| case |");
        let peers: Vec<&Peer> = PEERS.iter().filter(|peer| self.has(role, peer)).collect();
        peers.iter().for_each(|peer| write!(text, " {} |", peer.name).expect("a string takes all"));
        text.push_str(&format!("\n|---|{}\n", "---|".repeat(peers.len())));
        for case in cases {
            let cells: Vec<String> = peers.iter().map(|peer| self.cell(role, peer, case)).collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                text.push_str(&format!("| {} | {} |\n", case.name, cells.join(" | ")));
            }
        }
        text
    }

    fn has(&self, role: Role, peer: &Peer) -> bool {
        self.outcomes.keys().any(|(its_role, name, _)| *its_role == role && *name == peer.name)
    }

    fn cell(&self, role: Role, peer: &Peer, case: &Case) -> String {
        match self.outcomes.get(&(role, peer.name, case.name.clone())) {
            None | Some(Outcome::Void) => String::new(),
            Some(Outcome::Ok) => "ok".to_owned(),
            Some(outcome) => match known(role, peer.name, &case.name) {
                Some(known) => {
                    let number = notes().iter().position(|note| note.is_same(known)).unwrap_or_default() + 1;
                    match outcome {
                        Outcome::Unable => format!("– ({number})"),
                        _ => format!("({number})"),
                    }
                }
                None => "**failed**".to_owned(),
            },
        }
    }

    /// The page for people.
    pub fn page(&self, cases: &[Case]) -> String {
        let mut page = String::from(INTRODUCTION);
        page.push_str("\n| peer | language | versions |\n|---|---|---|\n");
        for (name, versions) in versions() {
            let language = PEERS.iter().find(|peer| peer.name == name).map_or("", |peer| peer.language);
            page.push_str(&format!("| {name} | {language} | {versions} |\n"));
        }
        page.push_str("\n## Their servers, called by our client\n\n");
        page.push_str(&self.table(Role::Server, cases));
        page.push_str("\n## Their clients, which call our server\n\n");
        page.push_str(&self.table(Role::Client, cases));
        page.push_str("\n## The deviations\n\nEach is seen in every run: one that went away would fail it, until it is struck here.\n\n");
        for (index, known) in notes().into_iter().enumerate() {
            page.push_str(&format!("{}. **{}**: {}\n", index + 1, known.peers.join(", "), known.why));
        }
        page
    }

    pub fn count(&self, role: Role) -> usize {
        self.outcomes.iter().filter(|((its_role, ..), outcome)| *its_role == role && **outcome == Outcome::Ok).count()
    }
}

const INTRODUCTION: &str = "\
# Who can talk to us

Programs of others, each around a MessagePack-RPC library that we have not written, held against our client and our server. This page is
written by the run that checks it:

    rpc/tests/peers/install
    DHAGA_INTEROP_WRITE=1 cargo test -p dhaga-rpc --test interop -- --ignored

`ok`: it went as the [protocol](protocol.md) says. A number: the peer deviates, as told below. A dash before it: the library has no way
to do that. An empty field: the case has no meaning there. Integers must come back as the same integers, floats as the same floats of either
width, str as str and bin as bin, maps with the same entries in any order. A `-child` is started by our client, which calls it over its
standard streams; the others listen on a port.
";

/// What is known, each once for people: the roles may differ in how it shows.
fn notes() -> Vec<&'static Known> {
    let mut notes: Vec<&Known> = Vec::new();
    for known in KNOWN {
        if !notes.iter().any(|note| note.is_same(known)) {
            notes.push(known);
        }
    }
    notes
}

fn known(role: Role, peer: &str, case: &str) -> Option<&'static Known> {
    // As a child Neovim is no other than behind a socket.
    let peer = peer.trim_end_matches("-child");
    KNOWN.iter().find(|known| {
        known.roles.contains(&role)
            && known.peers.contains(&peer)
            && known.cases.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => case.starts_with(prefix),
                None => case == *pattern,
            })
    })
}
