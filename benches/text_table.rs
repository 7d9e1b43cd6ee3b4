//! A table as text, for the terminal and for a page.

use std::fmt::Write;

/// A heading and lines of as many cells.
#[derive(Clone, Debug, Default)]
pub struct TextTable {
    heading: Vec<String>,
    lines: Vec<Vec<String>>,
}

impl TextTable {
    /// No lines yet.
    pub fn new<S: Into<String>>(heading: impl IntoIterator<Item = S>) -> TextTable {
        TextTable { heading: heading.into_iter().map(Into::into).collect(), lines: Vec::new() }
    }

    /// One more line.
    pub fn push(&mut self, line: impl IntoIterator<Item = String>) {
        self.lines.push(line.into_iter().collect());
    }

    /// In columns, the first to the left and the others to the right.
    pub fn plain(&self) -> String {
        let widths = self.widths();
        let mut text = String::new();
        for line in std::iter::once(&self.heading).chain(&self.lines) {
            for (index, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width - cell.chars().count());
                let (before, after) = if index == 0 { ("", padding.as_str()) } else { (padding.as_str(), "") };
                write!(text, "{before}{cell}{after}  ").expect(STRINGS_TAKE_ALL);
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = markdown_line(&self.heading);
        text += &markdown_line(&vec!["---".to_owned(); self.heading.len()]);
        self.lines.iter().for_each(|line| text += &markdown_line(line));
        text
    }

    fn widths(&self) -> Vec<usize> {
        let lines = || std::iter::once(&self.heading).chain(&self.lines);
        let width_of =
            |column: usize| lines().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
        (0..self.heading.len()).map(|column| width_of(column).unwrap_or(0)).collect()
    }
}

const STRINGS_TAKE_ALL: &str = "a string takes all that is written to it";

fn markdown_line(cells: &[String]) -> String {
    format!("| {} |\n", cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | "))
}

/// What stands where there is no figure.
pub const NONE: &str = "–";

/// A figure with as many digits as say something: three, or all that are before the point.
pub fn figure(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => NONE.to_owned(),
        size if size >= 99.95 => grouped(value.round() as i64),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A number of things, in groups of three digits.
pub fn count(things: usize) -> String {
    grouped(i64::try_from(things).unwrap_or(i64::MAX))
}

/// As `12 345`.
fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = if value < 0 { "-".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let check = |value, expected: &str| assert_eq!(figure(value), expected);
        check(1_234_567.8, "1 234 568");
        check(123.4, "123");
        check(12.34, "12.3");
        check(1.234, "1.23");
        check(0.01234, "0.012");
        check(f64::NAN, "–");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = TextTable::new(["work", "ns"]);
        table.push(["a".to_owned(), "100".to_owned()]);
        assert_eq!(table.plain(), "work   ns\na     100\n");
        assert_eq!(table.markdown(), "| work | ns |\n| --- | --- |\n| a | 100 |\n");
    }
}
