//! The table of figures.

use sepal::table::plan::Variant;
use sepal_lab::Cluster;

const HEAD: &str = "| cluster | variant | what | sepal | floor | ratio |\n|---|---|---|---|---|---|\n";

/// All figures, as lines of Markdown.
#[derive(Default)]
pub(crate) struct Table(Vec<String>);

/// The figures of one cluster and variant.
pub(crate) struct Rows<'a> {
    table: &'a mut Table,
    of: String,
}

impl Table {
    pub(crate) fn of(&mut self, cluster: Cluster, variant: Variant) -> Rows<'_> {
        Rows { table: self, of: format!("{}x{} | {variant}", cluster.services, cluster.endpoints) }
    }

    pub(crate) fn text(&self) -> String {
        HEAD.to_owned() + &self.0.concat()
    }

    /// Puts the figures into the table of the file that `SEPAL_BENCH_KEEP` names: each in place of the one of the same name, or at the
    /// end.
    pub(crate) fn keep(&self) {
        let Some(path) = std::env::var_os("SEPAL_BENCH_KEEP") else { return };
        let text = std::fs::read_to_string(&path).expect("readable");
        let (before, kept) = text.split_once(HEAD).expect("it has the table");
        let end = kept.split_inclusive('\n').take_while(|line| line.starts_with('|')).map(str::len).sum();
        let (kept, after) = kept.split_at(end);
        let mut lines: Vec<&str> = kept.split_inclusive('\n').collect();
        for line in &self.0 {
            match lines.iter().position(|kept| name(kept) == name(line)) {
                Some(place) => lines[place] = line,
                None => lines.push(line),
            }
        }
        std::fs::write(path, format!("{before}{HEAD}{}{after}", lines.concat())).expect("writable");
    }
}

/// The first three cells of a line.
fn name(line: &str) -> Vec<&str> {
    line.split('|').take(4).map(str::trim).collect()
}

impl Rows<'_> {
    /// A figure without anything to compare it with.
    pub(crate) fn figure(&mut self, what: &str, value: f64, unit: &str) {
        self.line(what, &format!("{value:.3} {unit}"), "-", "-");
    }

    /// A time and what it cannot be below.
    pub(crate) fn ratio(&mut self, what: &str, sepal: f64, floor: f64, unit: &str) {
        self.line(what, &format!("{sepal:.3} {unit}"), &format!("{floor:.3} {unit}"), &format!("{:.2}", sepal / floor));
    }

    fn line(&mut self, what: &str, sepal: &str, floor: &str, ratio: &str) {
        let line = format!("| {} | {what} | {sepal} | {floor} | {ratio} |\n", self.of);
        print!("{line}");
        self.table.0.push(line);
    }
}
