//! `sepal-lab`: shows sepal at work on this machine, in network namespaces that end with it.

#![allow(clippy::disallowed_methods, clippy::expect_used, reason = "an instrument: it waits, and addresses written here are addresses")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sepal_lab::traffic::{tcp, udp};
use sepal_lab::{IN_NAMESPACE, Netns, Running, Site};

/// Tries of each frontend: two of two fair coins stay unseen in 64 tosses once in 10^19.
const TRIES: usize = 64;
/// How long sepal may take from its start to the first rules.
const START: Duration = Duration::from_secs(20);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, manifests] = arguments.as_slice() else { anyhow::bail!("usage: sepal-lab demo MANIFESTS (run it by `make demo`)") };
    ensure!(command == "demo", "there is no command {command:?}; the one there is: demo");
    ensure!(nix::unistd::geteuid().is_root(), "making network namespaces needs root: sudo make demo");
    demo(Path::new(manifests))
}

/// What is shown: prints rules, writes them in a namespace, and sends traffic.
fn demo(manifests: &Path) -> anyhow::Result<()> {
    let sepal = beside_this_program("sepal")?;
    let mut screen = Screen::new();
    let site = Site::new();

    screen.title(&format!("1. The rules of {}, printed: sepal --dry-run", manifests.display()))?;
    let mut dry_run = site.node.command(&sepal.to_string_lossy());
    let rules = dry_run.args(["--dry-run", "--ip-family", "ipv4", "--manifests"]).arg(manifests).output()?;
    ensure!(rules.status.success(), "{}", String::from_utf8_lossy(&rules.stderr));
    let rules = String::from_utf8_lossy(&rules.stdout);
    for line in rules.lines().filter(|line| line.starts_with('*') || line.contains("shop/web:http")) {
        screen.line(line)?;
    }
    screen.line(&format!("... {} lines for IPv4 in all", rules.lines().count()))?;

    screen.title("2. The same rules, written on a node of its own: sepal run")?;
    let mut run = site.node.command(&sepal.to_string_lossy());
    let started = Instant::now();
    let running = Running(
        run.arg("run").args(IN_NAMESPACE).arg("--manifests").arg(manifests).stdin(Stdio::null()).spawn().context("cannot start sepal")?,
    );
    let web = address("10.111.0.10", 80);
    while tcp(&site.client, web).is_err() {
        ensure!(started.elapsed() < START, "sepal has written no rules that work within {} s", START.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
    screen.line("the first answer is there; what sepal logs of it goes to standard error")?;

    screen.title("3. Real traffic through them")?;
    let all_as_wanted = show_traffic(&site, &mut screen)?;

    screen.title("4. SIGTERM: the program goes, the rules stay")?;
    ensure!(running.terminate() == Some(0), "sepal did not end well");
    let after = tcp(&site.client, web);
    screen.row("a pod", "TCP", web, &Seen::of(after.is_ok(), "answered without sepal", &format!("{after:?}")))?;
    ensure!(all_as_wanted && after.is_ok(), "not everything went as it should; see above");
    Ok(())
}

/// Tries every kind of frontend and shows what happened; says whether all went as the Services want it.
fn show_traffic(site: &Site, screen: &mut Screen) -> anyhow::Result<bool> {
    let clients: [(&str, &Netns); 3] = [("a pod", &site.client), ("the node", &site.node), ("outside", &site.outside)];
    let mut all = true;
    let mut show = |screen: &mut Screen, from: &str, kind: &str, to: SocketAddr, seen: Seen| {
        all &= seen.good;
        screen.row(from, kind, to, &seen)
    };
    for (from, client) in clients {
        for (kind, ip) in [("ClusterIP, TCP", "10.111.0.10"), ("ClusterIP, TCP", "fd61:b::10")] {
            let to = address(ip, 80);
            show(screen, from, kind, to, spread(|| tcp(client, to)))?;
        }
        let to = address("10.111.0.11", 53);
        show(screen, from, "ClusterIP, UDP", to, spread(|| udp(client, to)))?;
        let to = address("192.168.61.13", 30080);
        show(screen, from, "NodePort", to, spread(|| tcp(client, to)))?;
        let to = address("10.111.0.12", 80);
        show(screen, from, "session affinity", to, sticks(|| tcp(client, to)))?;
        let to = address("10.111.0.13", 80);
        let refused = tcp(client, to).err().is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        show(screen, from, "no endpoints", to, Seen::of(refused, "refused at once", "not refused"))?;
    }
    let to = address("203.0.113.8", 80);
    show(screen, "outside, in range", "source ranges", to, spread(|| tcp(&site.outside, to)))?;
    site.outside_source(to.ip(), "192.168.61.51");
    let dropped = tcp(&site.outside, to).err().is_some_and(|error| error.kind() == ErrorKind::TimedOut);
    show(screen, "outside, not in range", "source ranges", to, Seen::of(dropped, "dropped", "not dropped"))?;
    Ok(all)
}

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

fn beside_this_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "there is no {}: build it first (make demo does)", path.display());
    Ok(path)
}

/// What came of a try.
struct Seen {
    good: bool,
    what: String,
}

impl Seen {
    fn of(good: bool, as_wanted: &str, otherwise: &str) -> Self {
        Self { good, what: if good { as_wanted } else { otherwise }.to_owned() }
    }
}

/// Both endpoints are to answer.
fn spread(ask: impl Fn() -> std::io::Result<String>) -> Seen {
    let mut seen = BTreeSet::new();
    for _ in 0..TRIES {
        match ask() {
            Ok(server) => seen.insert(server),
            Err(error) => return Seen { good: false, what: error.to_string() },
        };
        if seen.len() == 2 {
            break;
        }
    }
    let servers = seen.into_iter().collect::<Vec<_>>();
    Seen { good: servers.len() == 2, what: format!("answered by {}", servers.join(" and ")) }
}

/// One endpoint is to answer every time.
fn sticks(ask: impl Fn() -> std::io::Result<String>) -> Seen {
    let answers: std::io::Result<BTreeSet<String>> = (0..16).map(|_| ask()).collect();
    match answers {
        Ok(servers) if servers.len() == 1 => {
            Seen { good: true, what: format!("16 times {}", servers.into_iter().next().unwrap_or_default()) }
        }
        Ok(_) => Seen { good: false, what: "went to both endpoints".to_owned() },
        Err(error) => Seen { good: false, what: error.to_string() },
    }
}

/// Standard output, in colours where it is a terminal.
struct Screen {
    out: std::io::Stdout,
    colours: bool,
}

impl Screen {
    fn new() -> Self {
        let out = std::io::stdout();
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { out, colours }
    }

    fn title(&mut self, text: &str) -> std::io::Result<()> {
        if self.colours { writeln!(self.out, "\n\x1b[1m{text}\x1b[0m") } else { writeln!(self.out, "\n{text}") }
    }

    fn line(&mut self, text: &str) -> std::io::Result<()> {
        writeln!(self.out, "  {text}")
    }

    fn row(&mut self, from: &str, kind: &str, to: SocketAddr, seen: &Seen) -> std::io::Result<()> {
        let (sign, colour) = if seen.good { ("ok", 32) } else { ("FAILED", 31) };
        let sign = if self.colours { format!("\x1b[{colour}m{sign:<6}\x1b[0m") } else { format!("{sign:<6}") };
        writeln!(self.out, "  {sign} {from:<21} {kind:<16} {to:<21} {}", seen.what, to = to.to_string())
    }
}
