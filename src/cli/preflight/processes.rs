//! Reads `/proc`: other programs, and the program that listens on a port.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::preflight::node::{PortHolder, RunningProgram};

/// State of a socket that listens, in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// The processes that are visible here, except those that run sepal under any name.
pub(super) fn others() -> Vec<RunningProgram> {
    all().filter(|(_, folder)| !is_sepal(folder)).filter_map(named).collect()
}

/// The process that listens on a TCP port of this network namespace, if it is visible here.
pub(super) fn holder(port: u16) -> Option<PortHolder> {
    let sockets: Vec<PathBuf> = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(|table| listening(table, port)).collect();
    let has_one = |folder: &Path| {
        let files = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| sockets.contains(&file))
    };
    let (number, folder) = all().find(|(_, folder)| has_one(folder))?;
    if is_sepal(&folder) { Some(PortHolder::Sepal(number)) } else { named((number, folder)).map(PortHolder::Other) }
}

/// The listening sockets of a port in a table such as `/proc/net/tcp`, as the links in `/proc/PID/fd` name them.
fn listening(table: &str, port: u16) -> Vec<PathBuf> {
    let text = fs::read_to_string(table).unwrap_or_default();
    let socket = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
        let same_port = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok()) == Some(port);
        (same_port && *state == LISTENING).then(|| PathBuf::from(format!("socket:[{inode}]")))
    };
    text.lines().filter_map(socket).collect()
}

fn all() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

fn named((number, folder): (u32, PathBuf)) -> Option<RunningProgram> {
    let name = fs::read_to_string(folder.join("comm")).ok()?;
    Some(RunningProgram { pid: number, name: name.trim_end().to_owned() })
}

/// True if a process runs sepal: its program is the file of this process, or is named sepal.
fn is_sepal(folder: &Path) -> bool {
    let program = folder.join("exe");
    let file = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let same = file(&program).is_some_and(|found| file(Path::new("/proc/self/exe")) == Some(found));
    same || fs::read_link(program).is_ok_and(|path| path.file_name().is_some_and(|name| name == "sepal"))
}
