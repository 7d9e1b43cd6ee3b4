//! What one command found out, ready to be shown: on a terminal, or as a part of the page.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;
use serde::Serialize;

use crate::facts::Facts;
use crate::plot::Plot;
use crate::text_table::TextTable;

/// Where results go beside the terminal: the options of each table's program.
#[derive(Args, Clone, Debug)]
pub struct Output {
    /// Write every single run to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the plots into this directory, as SVG and PNG.
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
}

impl Output {
    /// Writes what is asked for, and prints the tables.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn publish(&self, results: &impl Serialize, section: &Section) -> io::Result<()> {
        if let Some(file) = &self.json {
            fs::write(file, serde_json::to_string(results)?)?;
        }
        if let Some(directory) = &self.plots {
            section.draw(directory)?;
        }
        print!("{}", section.plain());
        Ok(())
    }
}

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
    /// For the terminal.
    pub fn plain(&self) -> String {
        let tables = self.tables.iter().map(|(caption, table)| format!("{caption}\n\n{}\n", table.plain()));
        format!("{}\n\n{}{}\n", self.introduction, tables.collect::<String>(), self.facts.text())
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
