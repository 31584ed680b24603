//! The short form for every change: compares ratios with recorded ones, and fails if one has become much larger.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use sepal::table::plan::Variant;
use sepal_lab::Cluster;
use sepal_lab::figures::{Table, quantile};

use crate::rows;
use crate::scenarios::{Effort, measure_size};

/// A ratio that is larger than its recorded value times this is a regression.
const LIMIT: f64 = 1.5;

/// The number of tries. The smallest ratio of all tries counts, because other programs only make ratios larger.
const TRIES: usize = 3;

const CLUSTER: Cluster = Cluster::new(1000, 3);

/// The figures that are compared. Others are too short to be measured well in a small cluster.
const FIGURES: [&str; 3] =
    ["start to everything written", "one endpoint changed, p50 to the first connection", "restart, to known unchanged"];

/// Measures, and compares with the ratios in a file.
pub(crate) fn compare(file: &Path) -> ExitCode {
    let recorded = read(file);
    let mut smallest = BTreeMap::new();
    for _ in 0..TRIES {
        for (name, ratio) in measure() {
            smallest.entry(name).and_modify(|smallest: &mut f64| *smallest = smallest.min(ratio)).or_insert(ratio);
        }
        if regressions(&recorded, &smallest).is_empty() {
            return ExitCode::SUCCESS;
        }
    }
    for regression in regressions(&recorded, &smallest) {
        println!("{regression}");
    }
    ExitCode::FAILURE
}

/// Measures, and writes the median ratios into a file.
pub(crate) fn record(file: &Path) {
    let mut ratios: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, ratio) in (0..TRIES).flat_map(|_| measure()) {
        ratios.entry(name).or_default().push(ratio);
    }
    let lines = ratios.iter_mut().map(|(name, ratios)| format!("{:.2} {name}\n", quantile(ratios, 0.5)));
    std::fs::write(file, lines.collect::<String>()).expect("writable");
}

/// Returns the ratios of one try by name.
fn measure() -> BTreeMap<String, f64> {
    let mut table = Table::new(&["cluster", "variant"]);
    for variant in [Variant::Nft, Variant::Legacy] {
        measure_size(CLUSTER, variant, Effort { changes: 15, settle: Duration::from_secs(2) }, &mut rows(&mut table, CLUSTER, variant));
    }
    let mut ratios = table.ratios();
    ratios.retain(|name, _| FIGURES.iter().any(|figure| name.ends_with(figure)));
    ratios
}

/// Reads lines of a ratio and a name.
fn read(file: &Path) -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(file).expect("the file with the recorded ratios can be read");
    let line = |line: &str| {
        let (ratio, name) = line.split_once(' ').expect("a ratio and a name");
        (name.to_owned(), ratio.parse().expect("a number"))
    };
    text.lines().map(line).collect()
}

/// Describes each ratio that is too large, and each recorded ratio that was not measured.
fn regressions(recorded: &BTreeMap<String, f64>, measured: &BTreeMap<String, f64>) -> Vec<String> {
    assert!(!recorded.is_empty(), "no ratios are recorded");
    let describe = |(name, before): (&String, &f64)| match measured.get(name) {
        None => Some(format!("{name}: not measured")),
        Some(now) if *now > before * LIMIT => Some(format!("{name}: {now:.2} times the floor, recorded are {before:.2}")),
        Some(_) => None,
    };
    recorded.iter().filter_map(describe).collect()
}
