//! `sepal-lab`: shows sepal at work on this machine, in network namespaces that end with it.

#![allow(clippy::disallowed_methods, clippy::expect_used, reason = "an instrument: it waits, and a new namespace has all ports free")]

mod demo;

use std::path::PathBuf;

use anyhow::{bail, ensure};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let keep = match arguments.as_slice() {
        ["demo"] => false,
        ["demo", "--keep"] => true,
        _ => bail!("usage: sepal-lab demo [--keep] (run it by `make demo`)"),
    };
    ensure!(nix::unistd::geteuid().is_root(), "making network namespaces needs root: sudo make demo");
    demo::run(&beside_this_program("sepal")?, keep)
}

fn beside_this_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "there is no {}: build it first (make demo does)", path.display());
    Ok(path)
}
