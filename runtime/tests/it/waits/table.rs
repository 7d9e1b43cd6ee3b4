//! The table in the docs, which is made from the rows.

use super::{Ended, Manner, Wait};

/// Makes the tests of each row, and the list of all rows.
macro_rules! rows {
    ($($row:ident: $wait:ty, $title:literal;)+) => {
        $(
            mod $row {
                use super::super::columns;
                #[allow(unused_imports)]
                use super::*;

                #[test]
                fn ready() {
                    columns::ready::<$wait>();
                }

                #[test]
                fn woken() {
                    columns::woken::<$wait>();
                }

                #[test]
                fn deadline() {
                    columns::deadline::<$wait>();
                }

                #[test]
                fn cancelled() {
                    columns::cancelled::<$wait>();
                }

                #[test]
                fn plain_thread() {
                    columns::plain_thread::<$wait>();
                }

                #[test]
                fn panicking() {
                    columns::panicking::<$wait>();
                }

                #[test]
                fn shutdown() {
                    columns::shutdown::<$wait>();
                }
            }
        )+

        pub const ROWS: &[$crate::waits::table::Row] = &[
            $($crate::waits::table::Row::of::<$wait>(stringify!($row), $title)),+
        ];
    };
}
pub(crate) use rows;

/// The page of the table.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/waits.md");
const HEADER: &str = "| wait | test | ready | woken | deadline | cancelled | plain_thread | panicking | shutdown |";

/// What a line of the table is made from.
pub struct Row {
    name: &'static str,
    title: &'static str,
    manner: Manner,
    always_suspends: bool,
    at_shutdown: Ended,
}

impl Row {
    pub const fn of<W: Wait>(name: &'static str, title: &'static str) -> Self {
        Self { name, title, manner: W::MANNER, always_suspends: W::ALWAYS_SUSPENDS, at_shutdown: W::AT_SHUTDOWN }
    }
}

fn line(row: &Row) -> String {
    let Row { name, title, manner, always_suspends, at_shutdown } = row;
    let ready = if *always_suspends { "passes through the loop" } else { "does not suspend" };
    let cells = match manner {
        Manner::Fails if *at_shutdown == Ended::ShuttingDown => {
            ["error", "error", "same", "error", "error (`ShuttingDown`), then ends"]
        }
        Manner::Fails => ["error", "error", "same", "error", "error, then ends"],
        Manner::GoesOn => ["goes on", "goes on", "same", "blocks the thread", "unwinds"],
        Manner::Returns => ["returns", "returns", "same", "returns", "unwinds"],
    };
    let [deadline, cancelled, plain_thread, panicking, shutdown] = cells;
    format!(
        "| {title} | `{name}` | {ready} | done | {deadline} | {cancelled} | {plain_thread} | {panicking} | {shutdown} |"
    )
}

#[test]
fn the_docs_show_these_rows_and_no_others() {
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    let mut lines = page.lines().skip_while(|line| *line != HEADER).skip(2).take_while(|line| line.starts_with('|'));
    for row in super::rows::ROWS {
        assert_eq!(lines.next(), Some(line(row).as_str()), "docs/waits.md, row {}", row.name);
    }
    assert_eq!(lines.next(), None);
}
