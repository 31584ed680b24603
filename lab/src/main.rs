//! `sepal-lab`: runs the demo, the soak and the scale measurement on this machine, in network namespaces that end with the program.

#![allow(clippy::print_stdout, reason = "it prints results")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use sepal_lab::{demo, scale, soak};

const USAGE: &str = "usage: sepal-lab demo [--keep] | soak [--minutes N] [--seed N] | scale [--nodes N] [--services N] [--endpoints N] \
                     (run it by `make demo`, `make soak` or `make scale`)";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    ensure!(nix::unistd::geteuid().is_root(), "creating network namespaces needs root: sudo make demo");
    let sepal = find_beside_this_program("sepal")?;
    match arguments.as_slice() {
        ["demo"] => demo::run(&sepal, false),
        ["demo", "--keep"] => demo::run(&sepal, true),
        ["soak", options @ ..] => {
            let [minutes, seed] = parse_numbers(options, ["--minutes", "--seed"])?;
            let seconds = 60 * minutes.unwrap_or(10);
            let seed = seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
            let report = soak::run(&sepal, soak::Options { time: Duration::from_secs(seconds), seed }, |line| println!("{line}"));
            print!("\n{}", report.text);
            ensure!(report.findings.is_empty(), "the soak failed; see the lines above");
            Ok(())
        }
        ["scale", options @ ..] => {
            let [nodes, services, endpoints] = parse_numbers(options, ["--nodes", "--services", "--endpoints"])?;
            let size = |given: Option<u64>, default| usize::try_from(given.unwrap_or(default));
            let size = scale::Size { nodes: size(nodes, 5_000)?, services: size(services, 10_000)?, endpoints: size(endpoints, 3)? };
            ensure!(
                size.nodes >= 30 && size.services > 0 && size.endpoints <= 250,
                "scale needs at least 30 nodes, at least one Service, and at most 250 endpoints per Service"
            );
            println!("\n{}", scale::run(&sepal, size));
            Ok(())
        }
        _ => bail!(USAGE),
    }
}

/// Returns the values of these options, `None` where an option is not given. Any other option is an error.
fn parse_numbers<const N: usize>(options: &[&str], names: [&str; N]) -> anyhow::Result<[Option<u64>; N]> {
    let mut values = [None; N];
    for pair in options.chunks(2) {
        let [name, value] = pair else { bail!(USAGE) };
        let index = names.iter().position(|known| known == name).context(USAGE)?;
        values[index] = Some(value.parse().context(USAGE)?);
    }
    Ok(values)
}

/// Returns the path of a program in the folder of this one.
fn find_beside_this_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} does not exist: build it first (make demo does)", path.display());
    Ok(path)
}
