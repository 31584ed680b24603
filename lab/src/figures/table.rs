//! The table of figures.

/// All figures, as lines of Markdown.
#[derive(Debug)]
pub struct Table {
    /// What is measured is told by so many columns.
    columns: usize,
    head: String,
    lines: Vec<String>,
}

/// The figures of one thing that is measured.
#[derive(Debug)]
pub struct Rows<'a> {
    table: &'a mut Table,
    of: String,
}

impl Table {
    /// An empty table; what is measured is told in these columns.
    pub fn new(columns: &[&str]) -> Self {
        let head = format!("| {} | what | sepal | floor | ratio |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len() + 4));
        Self { columns: columns.len(), head, lines: Vec::new() }
    }

    /// The figures of what these cells tell.
    pub fn of(&mut self, cells: &[String]) -> Rows<'_> {
        Rows { table: self, of: cells.join(" | ") }
    }

    /// The whole table.
    pub fn text(&self) -> String {
        self.head.clone() + &self.lines.concat()
    }

    /// Puts the figures into the table of the file that `SEPAL_BENCH_KEEP` names: each in place of the one of the same name, or at the
    /// end.
    pub fn keep(&self) {
        let Some(path) = std::env::var_os("SEPAL_BENCH_KEEP") else { return };
        let text = std::fs::read_to_string(&path).expect("readable");
        let (before, kept) = text.split_once(&self.head).expect("it has the table");
        let end = kept.split_inclusive('\n').take_while(|line| line.starts_with('|')).map(str::len).sum();
        let (kept, after) = kept.split_at(end);
        let mut lines: Vec<&str> = kept.split_inclusive('\n').collect();
        // Its cells up to the one that says what.
        let name = |line: &str| line.split('|').take(self.columns + 2).map(str::trim).map(str::to_owned).collect::<Vec<_>>();
        for line in &self.lines {
            match lines.iter().position(|kept| name(kept) == name(line)) {
                Some(place) => lines[place] = line,
                None => lines.push(line),
            }
        }
        std::fs::write(path, format!("{before}{}{}{after}", self.head, lines.concat())).expect("writable");
    }
}

impl Rows<'_> {
    /// A figure without anything to compare it with.
    pub fn figure(&mut self, what: &str, value: f64, unit: &str) {
        self.line(what, &format!("{value:.3} {unit}"), "-", "-");
    }

    /// A time and what it cannot be below.
    pub fn ratio(&mut self, what: &str, sepal: f64, floor: f64, unit: &str) {
        self.line(what, &format!("{sepal:.3} {unit}"), &format!("{floor:.3} {unit}"), &format!("{:.2}", sepal / floor));
    }

    fn line(&mut self, what: &str, sepal: &str, floor: &str, ratio: &str) {
        let line = format!("| {} | {what} | {sepal} | {floor} | {ratio} |\n", self.of);
        print!("{line}");
        self.table.lines.push(line);
    }
}
