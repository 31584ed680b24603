//! `sepal cni install`: installs the CNI plugin.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::pod_network::sync::cni_install::{CONFLIST, CONFLIST_NAME, PluginNames, install, write_conflist};

#[derive(Debug, Args)]
pub(super) struct CniFlags {
    #[command(subcommand)]
    command: CniCommand,
}

#[derive(Debug, Subcommand)]
enum CniCommand {
    /// Install the CNI plugin and its configuration. Each file is replaced as a whole, so that the old plugin may be running
    Install {
        /// Folder of the CNI plugins
        #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
        bin_dir: PathBuf,
        /// Folder of the CNI configuration files; without it no configuration is written
        #[arg(long, value_name = "DIR")]
        conf_dir: Option<PathBuf>,
        /// Plugins to install beside `sepal`, replacing what is there; without it those that are missing
        #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = ["flannel", "bridge", "host-local", "portmap", "loopback", "sepal"])]
        names: Option<Vec<String>>,
    },
}

/// Runs the command, and prints the files that it has written.
pub(super) fn run(flags: CniFlags) -> anyhow::Result<ExitCode> {
    let CniCommand::Install { bin_dir, conf_dir, names } = flags.command;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let mut written = install(&program, &bin_dir, &names.map_or(PluginNames::Missing, PluginNames::These))?;
    // The plugin is written first: the runtime may use it as soon as its configuration is there.
    if let Some(folder) = conf_dir
        && write_conflist(&folder, CONFLIST_NAME, CONFLIST)?
    {
        written.push(folder.join(CONFLIST_NAME));
    }
    let text: String = written.iter().map(|path| format!("{}\n", path.display())).collect();
    std::io::stdout().write_all(text.as_bytes()).context("cannot print the files that were written")?;
    Ok(ExitCode::SUCCESS)
}
