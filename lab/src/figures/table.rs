//! A Markdown table of measurements, printed row by row and optionally written into a file.

use std::collections::BTreeMap;

/// A Markdown table. Each row has a label, the name of the figure, sepal's value, the floor and their ratio.
#[derive(Debug)]
pub struct Table {
    /// Number of columns that the label takes.
    label_columns: usize,
    head: String,
    lines: Vec<String>,
}

/// Adds rows with one label to a table.
#[derive(Debug)]
pub struct Rows<'a> {
    table: &'a mut Table,
    label: String,
}

impl Table {
    /// Creates an empty table with these columns for the label.
    pub fn new(columns: &[&str]) -> Self {
        let head = format!("| {} | what | sepal | floor | ratio |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len() + 4));
        Self { label_columns: columns.len(), head, lines: Vec::new() }
    }

    /// Adds rows with this label: one cell per column.
    pub fn rows(&mut self, label: &[String]) -> Rows<'_> {
        Rows { table: self, label: label.join(" | ") }
    }

    /// Returns the whole table as Markdown.
    pub fn text(&self) -> String {
        self.head.clone() + &self.lines.concat()
    }

    /// Returns the ratios of all rows that have one, by label and name.
    pub fn ratios(&self) -> BTreeMap<String, f64> {
        let ratio = |line: &String| {
            let cells: Vec<&str> = line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect();
            let (ratio, cells) = cells.split_last()?;
            Some((cells[..=self.label_columns].join(" "), ratio.parse().ok()?))
        };
        self.lines.iter().filter_map(ratio).collect()
    }

    /// Writes the rows into the table of the file that `SEPAL_BENCH_KEEP` names. A row replaces the one with the same label and figure, or
    /// is added at the end.
    pub fn update_file(&self) {
        let Some(path) = std::env::var_os("SEPAL_BENCH_KEEP") else { return };
        let text = std::fs::read_to_string(&path).expect("readable");
        let (before, rest) = text.split_once(&self.head).expect("the file contains the table");
        let end = rest.split_inclusive('\n').take_while(|line| line.starts_with('|')).map(str::len).sum();
        let (rows, after) = rest.split_at(end);
        let mut lines: Vec<&str> = rows.split_inclusive('\n').collect();
        // The label and the name of the figure identify a row.
        let key = |line: &str| line.split('|').take(self.label_columns + 2).map(str::trim).map(str::to_owned).collect::<Vec<_>>();
        for line in &self.lines {
            match lines.iter().position(|old| key(old) == key(line)) {
                Some(index) => lines[index] = line,
                None => lines.push(line),
            }
        }
        std::fs::write(path, format!("{before}{}{}{after}", self.head, lines.concat())).expect("writable");
    }
}

impl Rows<'_> {
    /// Adds and prints a figure that has no floor.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.line(name, &format!("{value:.3} {unit}"), "-", "-");
    }

    /// Adds and prints a figure of sepal, its floor (what the bare tools need for the same work), and the ratio of the two.
    pub fn ratio(&mut self, name: &str, sepal: f64, floor: f64, unit: &str) {
        self.line(name, &format!("{sepal:.3} {unit}"), &format!("{floor:.3} {unit}"), &format!("{:.2}", sepal / floor));
    }

    fn line(&mut self, name: &str, sepal: &str, floor: &str, ratio: &str) {
        let line = format!("| {} | {name} | {sepal} | {floor} | {ratio} |\n", self.label);
        print!("{line}");
        self.table.lines.push(line);
    }
}
