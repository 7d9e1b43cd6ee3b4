//! What one command found out, ready to be shown: on a terminal, or as a part of the page.

use std::path::Path;
use std::{fs, io};

use crate::facts::Facts;
use crate::plot::Plot;
use crate::text_table::TextTable;

/// A part of the page.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// What is compared, and what to know to read the figures.
    pub introduction: String,
    /// Tables, each with a line above it.
    pub tables: Vec<(String, TextTable)>,
    /// Pictures.
    pub plots: Vec<Plot>,
    /// On what it was measured.
    pub facts: Facts,
}

impl Section {
    /// For the terminal, which does not need to be told what was asked.
    pub fn plain(&self) -> String {
        let tables = self.tables.iter().map(|(caption, table)| format!("{caption}\n\n{}\n", table.plain()));
        format!("{}{}\n", tables.collect::<String>(), self.facts.text())
    }

    /// For the page, which lies beside the directory of the pictures.
    pub fn markdown(&self, pictures: &str) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.introduction);
        for plot in &self.plots {
            text += &format!("![{}]({pictures}/{}.svg)\n\n", plot.title, plot.name);
        }
        for (caption, table) in &self.tables {
            text += &format!("{caption}\n\n{}\n", table.markdown());
        }
        text + &self.facts.text() + "\n"
    }

    /// Draws all plots into `directory`, as SVG and PNG.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn draw(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        self.plots.iter().try_for_each(|plot| plot.write(directory))
    }
}
