//! Network namespaces of a test's own, and programs and sockets within them. As root; gone afterwards, also on failure.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// A network namespace that lives as long as this does.
#[derive(Debug)]
pub struct Netns {
    /// A process that does nothing but be in it; it dies with the test.
    holder: Child,
}

impl Netns {
    /// A new namespace with its loopback up. Where that is impossible the test has failed: it must not pass unseen.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces and need root: sudo make test");
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--", "sh", "-c", "echo in; exec sleep 3600"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and unshare (util-linux) are there");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
        assert_eq!(line, "in\n", "this machine lets nobody make network namespaces");
        let netns = Self { holder };
        netns.run("ip link set lo up");
        netns
    }

    fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    /// Its path, by which others can find it.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// Legacy iptables has one lock for all network namespaces; with one of its own a test is held up by nothing outside.
    pub fn xtables_lock(&self) -> PathBuf {
        std::env::temp_dir().join(format!("xtables-{}.lock", self.pid()))
    }

    /// A program in the namespace, ready to be started.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid(), "-n", "--", program]);
        command.env("XTABLES_LOCKFILE", self.xtables_lock());
        command
    }

    /// Runs shell commands in the namespace; any that fails fails the test.
    pub fn run(&self, script: &str) -> String {
        let output = self.output(script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs shell commands in the namespace.
    pub fn output(&self, script: &str) -> Output {
        self.command("sh").args(["-ec", script]).output().expect("nsenter (util-linux) is there")
    }

    /// Calls a function on a thread of its own that is in the namespace. Sockets it makes stay there.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).join().expect("the thread ends well")
    }

    /// Starts a function on a thread of its own that is in the namespace.
    pub fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = File::open(self.path()).expect("the namespace is there");
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            work()
        })
    }

    /// Connects this namespace with another by a pair of interfaces.
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

/// A program that is ended with the test.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Asks it to end and gives its exit status.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).expect("a process id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is still there");
        self.0.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something holds; fails the test if that takes too long.
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    eventually_within(Duration::from_secs(20), what, holds);
}

/// Waits until something holds, for at most so long; fails the test if it takes longer.
pub fn eventually_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "still not so after {limit:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
