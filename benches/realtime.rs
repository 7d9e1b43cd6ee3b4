//! A load that goes before all other processes, so that what it measures is the server's lateness and not its own; and one that
//! goes behind all others, so that it does not disturb those who measure on the same processor.

use std::process::Command;

/// Above all others of this machine, at the lowest of such priorities.
const AT_REAL_TIME: &str = "chrt -f 1";

/// When nobody else wants the processor.
const WHEN_IDLE: &str = "chrt -i 0";

/// Whether this machine lets a load go before all others.
pub fn is_allowed() -> bool {
    works(AT_REAL_TIME)
}

fn works(way: &str) -> bool {
    let mut words = way.split_whitespace();
    let program = words.next().expect("the command has a first word");
    Command::new(program).args(words).arg("true").status().is_ok_and(|status| status.success())
}

/// The command that runs `load` so, where it is allowed.
pub fn command(load: String, is_allowed: bool) -> String {
    if is_allowed { format!("{AT_REAL_TIME} {load}") } else { load }
}

/// The command that runs `load` when nobody else wants its processor. It fails where there is no `chrt`.
pub fn when_idle(load: String) -> String {
    format!("{WHEN_IDLE} {load}")
}
