//! Network namespaces for one test, and programs and sockets in them. Needs root. They end with the test, also when it fails.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// Flags for a sepal in a network namespace. The limit of tracked connections can only be set in the host's namespace.
pub const NAMESPACE_FLAGS: [&str; 1] = ["--conntrack-max-per-core=0"];

/// A network namespace. Dropping it ends the namespace.
#[derive(Debug)]
pub struct Netns {
    /// An idle process that keeps the namespace alive. The kernel kills it when the test's process ends.
    holder: Child,
}

impl Netns {
    /// Creates a namespace with its loopback interface up.
    ///
    /// # Panics
    /// If that is impossible, so that the test fails instead of being skipped.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests create network namespaces and need root: sudo make test");
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--", "sh", "-c", "echo in; exec sleep 3600"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and unshare (util-linux) are installed");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
        assert_eq!(line, "in\n", "this machine does not allow network namespaces");
        let netns = Self { holder };
        netns.run("ip link set lo up");
        netns
    }

    /// Returns true if a process in the namespace has this text in its name.
    pub fn has_process(&self, name: &str) -> bool {
        let mut pgrep = Command::new("pgrep");
        let status = pgrep.args(["--ns", &self.pid(), "--nslist", "net", name]).stdout(Stdio::null()).status();
        status.expect("pgrep (procps) is installed").success()
    }

    fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    /// Returns the path by which other programs open the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// Returns the path of this namespace's own lock file for legacy iptables. The default file is one for all namespaces, so that other
    /// programs could block the test.
    pub fn xtables_lock(&self) -> PathBuf {
        std::env::temp_dir().join(format!("xtables-{}.lock", self.pid()))
    }

    /// Returns a command that runs a program in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid(), "-n", "--", program]);
        command.env("XTABLES_LOCKFILE", self.xtables_lock());
        command
    }

    /// Runs shell commands in the namespace and returns their output. A command that fails fails the test.
    pub fn run(&self, script: &str) -> String {
        let output = self.output(script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs shell commands in the namespace and returns their output and exit status.
    pub fn output(&self, script: &str) -> Output {
        self.command("sh").args(["-ec", script]).output().expect("nsenter (util-linux) is installed")
    }

    /// Calls a function on a new thread in the namespace and returns its result. Sockets that it opens stay in the namespace.
    pub fn run_thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn_thread(work).join().expect("the thread does not panic")
    }

    /// Starts a function on a new thread in the namespace.
    pub fn spawn_thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = File::open(self.path()).expect("the namespace exists");
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter the namespace");
            work()
        })
    }

    /// Connects this namespace with another one by a veth pair. `here` and `there` are the interface names.
    pub fn link(&self, here: &str, other: &Self, there: &str) {
        self.run(&format!("ip link add {here} type veth peer name {there} netns {}; ip link set {here} up", other.pid()));
        other.run(&format!("ip link set {there} up"));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = std::fs::remove_file(self.xtables_lock());
    }
}

/// A running program. Dropping it kills the program.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Sends SIGTERM, waits for the end and returns the exit status.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).expect("a process id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("the program is still running");
        self.0.wait().expect("the program ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The time limit of waits. It is much longer than any wait takes, so that a busy machine does not fail a test.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Waits until a condition holds. The test fails after 60 s.
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_until_within(LIMIT, what, holds);
}

/// Waits until a condition holds. The test fails after the time limit.
pub fn wait_until_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "condition does not hold after {limit:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
