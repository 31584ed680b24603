//! The commands of `sepal-lab`: the whole demo, the shortest soak, and a small scale test.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sepal_lab::{demo, scale, soak};

use crate::SEPAL;

/// These tests keep the machine busy, so only one of them runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Every row of the demo is good.
#[test]
fn the_demo_is_green() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    demo::run(Path::new(SEPAL), false).expect("every row is good");
}

/// After one round of every kind of trouble the state is as before.
#[test]
fn a_round_of_trouble_leaves_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let report = soak::run(Path::new(SEPAL), soak::Options { time: Duration::ZERO, seed: 1 }, |line| println!("{line}"));
    assert_eq!((report.rounds, report.findings), (1, Vec::new()), "{}", report.text);
}

/// A small cluster around one real node gives every figure.
#[test]
fn a_small_scale_has_all_figures() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let table = scale::run(Path::new(SEPAL), scale::Size { nodes: 60, services: 100, endpoints: 3 });
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), 12, "{table}");
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[1..3], ["60", "100x3"], "{row}");
        let figure = cells[4].split(' ').next().and_then(|number| number.parse::<f64>().ok()).expect("a number");
        // CPU time is counted in ticks of 10 ms.
        assert!(figure > 0.0 || cells[3].contains("CPU"), "{row}");
    }
}

/// A namespace ends with the process that holds it, which is a child of the test.
#[test]
fn namespaces_end_with_the_test() {
    let holder = |netns: &sepal_lab::Netns| fs::read_link(netns.path()).expect("it is there");
    let netns = sepal_lab::Netns::new();
    let (path, inode) = (netns.path(), holder(&netns));
    drop(netns);
    assert_ne!(fs::read_link(path).ok(), Some(inode));
}
