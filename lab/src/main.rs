//! `sepal-lab`: shows sepal at work on this machine, in network namespaces that end with it.

#![allow(clippy::print_stdout, reason = "it prints what it finds")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use sepal_lab::{demo, scale, soak};

const USAGE: &str = "usage: sepal-lab demo [--keep] | soak [--minutes N] [--seed N] | scale [--nodes N] [--services N] [--endpoints N] \
                     (run it by `make demo`, `make soak` or `make scale`)";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    ensure!(nix::unistd::geteuid().is_root(), "making network namespaces needs root: sudo make demo");
    let sepal = beside_this_program("sepal")?;
    match arguments.as_slice() {
        ["demo"] => demo::run(&sepal, false),
        ["demo", "--keep"] => demo::run(&sepal, true),
        ["soak", options @ ..] => {
            let [minutes, seed] = numbers(options, ["--minutes", "--seed"])?;
            let seconds = 60 * minutes.unwrap_or(10);
            let seed = seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
            let report = soak::run(&sepal, soak::Options { time: Duration::from_secs(seconds), seed }, |line| println!("{line}"));
            print!("\n{}", report.text);
            ensure!(report.findings.is_empty(), "not everything went as it should; see above");
            Ok(())
        }
        ["scale", options @ ..] => {
            let [nodes, services, endpoints] = numbers(options, ["--nodes", "--services", "--endpoints"])?;
            let size = |asked: Option<u64>, default| usize::try_from(asked.unwrap_or(default));
            let size = scale::Size { nodes: size(nodes, 5_000)?, services: size(services, 10_000)?, endpoints: size(endpoints, 3)? };
            ensure!(
                size.nodes >= 30 && size.services > 0 && size.endpoints <= 250,
                "30 nodes, one service, and at most 250 endpoints of each"
            );
            println!("\n{}", scale::run(&sepal, size));
            Ok(())
        }
        _ => bail!(USAGE),
    }
}

/// The numbers after these options, where they are given. There may be no others.
fn numbers<const N: usize>(options: &[&str], names: [&str; N]) -> anyhow::Result<[Option<u64>; N]> {
    let mut found = [None; N];
    for pair in options.chunks(2) {
        let [name, value] = pair else { bail!(USAGE) };
        let place = names.iter().position(|known| known == name).context(USAGE)?;
        found[place] = Some(value.parse().context(USAGE)?);
    }
    Ok(found)
}

fn beside_this_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "there is no {}: build it first (make demo does)", path.display());
    Ok(path)
}
