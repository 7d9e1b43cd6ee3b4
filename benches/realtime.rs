//! A load that goes before all other processes, so that what it measures is the server's lateness and not its own.

use std::process::Command;

/// Above all others of this machine, at the lowest of such priorities.
const AT_REAL_TIME: &str = "chrt -f 1";

/// Whether this machine lets it.
pub fn is_allowed() -> bool {
    let mut words = AT_REAL_TIME.split_whitespace();
    let program = words.next().expect("the command has a first word");
    Command::new(program).args(words).arg("true").status().is_ok_and(|status| status.success())
}

/// The command that runs `load` so, where it is allowed.
pub fn command(load: String, is_allowed: bool) -> String {
    if is_allowed { format!("{AT_REAL_TIME} {load}") } else { load }
}
