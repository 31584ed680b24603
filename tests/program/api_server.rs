//! The service proxy with an API server that fails in many ways: the rules follow its objects.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sepal_apiserver::{ApiServer, Authority, InjectedFailure, LogEntry, Options, User};
use sepal_lab::{Cluster, NAMESPACE_FLAGS, Netns, Running, http, wait_until, wait_until_within};
use serde_json::{Value, json};

use crate::SEPAL;
use crate::api_node::{serve, serve_at, serve_with};
use crate::logged::Logged;

/// A node with an API server of its own.
struct Lab {
    node: Netns,
    server: Option<ApiServer>,
    kubeconfig: tempfile::NamedTempFile,
    variant: &'static str,
}

impl Lab {
    fn new(variant: &'static str, cluster: Cluster) -> Self {
        let node = Netns::new();
        let server = serve(&node, cluster.objects().collect());
        let kubeconfig = server.kubeconfig();
        Self::of(node, server, &kubeconfig, variant)
    }

    /// A node whose API server uses TLS.
    fn secure(variant: &'static str, cluster: Cluster, options: impl FnOnce(Options) -> Options) -> Self {
        let node = Netns::new();
        let authority = Authority::new("ca").expect("a CA");
        let options = options(Options::default().tls(&authority.server(&["127.0.0.1"]).expect("a certificate")));
        let server = serve_with(&node, cluster.objects().collect(), options);
        let kubeconfig = server.kubeconfig_as(&authority.pem(), &User::Anonymous);
        Self::of(node, server, &kubeconfig, variant)
    }

    fn of(node: Netns, server: ApiServer, text: &str, variant: &'static str) -> Self {
        let mut kubeconfig = tempfile::NamedTempFile::new().expect("writable");
        kubeconfig.write_all(text.as_bytes()).expect("writable");
        Self { node, server: Some(server), kubeconfig, variant }
    }

    fn server(&self) -> &ApiServer {
        self.server.as_ref().expect("it runs")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.command(SEPAL);
        command.args(arguments).args(NAMESPACE_FLAGS).args(["--hostname-override", "bench", "--iptables-variant", self.variant]);
        command.env("KUBECONFIG", self.kubeconfig.path()).stdin(Stdio::null());
        command
    }

    fn sepal(&self) -> Running {
        Running(self.command(&["run", "--iptables-sync-period=1s"]).spawn().expect("sepal starts"))
    }

    /// Whether the live rules equal the desired ones.
    fn in_step(&self) -> bool {
        let output = self.command(&["--dry-run", "--diff"]).output().expect("sepal starts");
        output.status.code() == Some(0)
    }

    fn wait(&self, what: &str) {
        wait_until(what, || self.in_step());
    }

    fn move_endpoint(&self, service: usize, endpoint: usize) {
        self.server().put(Cluster::slice(service, &[Cluster::endpoint_ip(service, endpoint)])).expect("a slice");
    }

    /// Stops the server; returns its address and its objects.
    fn stop(&mut self) -> Gone {
        let server = self.server.take().expect("it runs");
        server.stop();
        Gone { address: server.address(), objects: server.objects() }
    }

    /// Starts another server in its place. Its resourceVersions start again at the number of its objects.
    fn come_back(&mut self, gone: Gone) {
        self.server = Some(serve_at(&self.node, gone.address, gone.objects));
    }

    /// Stops the server and waits until this many connections to it were refused. Only sepal connects to it.
    fn stop_for_attempts(&mut self, attempts: u64) -> Gone {
        let earlier = self.refused_connections();
        let gone = self.stop();
        wait_until_within(Duration::from_secs(120), "connections are refused", || self.refused_connections() >= earlier + attempts);
        gone
    }

    /// How many connections in the node's namespace were refused.
    fn refused_connections(&self) -> u64 {
        let values = self.node.run("nstat -asz TcpAttemptFails | awk '/TcpAttemptFails/ { print $2 }'");
        values.trim().parse().expect("a number")
    }

    fn rules(&self) -> String {
        self.iptables("IPT-save -t nat | grep -v '^[#:]'")
    }

    fn iptables(&self, script: &str) -> String {
        self.node.run(&script.replace("IPT", &format!("iptables-{}", self.variant)))
    }
}

/// The address and the objects of a stopped server.
struct Gone {
    address: SocketAddr,
    objects: Vec<Value>,
}

const SMALL: Cluster = Cluster::new(20, 3);

/// Changes still arrive after each thing that an API server can do to a watch.
#[test]
fn changes_arrive_whatever_the_server_does() {
    let mut lab = Lab::new("nft", SMALL);
    let sepal = lab.sepal();
    wait_until("the watches are up", || lab.server().watches("endpointslices") == 1);
    assert_eq!(lab.server().count("list services"), 0, "the initial objects came by streaming: {:?}", lab.server().requests());
    lab.wait("the start");

    lab.move_endpoint(0, 10);
    lab.wait("a change");
    lab.server().drop_watches();
    lab.move_endpoint(1, 10);
    lab.wait("a change after dropped watches");
    let is_relist = |entry: &LogEntry| entry.path.contains("endpointslices") && entry.path.contains("sendInitialEvents");
    assert_eq!(lab.server().log().iter().filter(|entry| is_relist(entry)).count(), 1, "a dropped watch causes no relist");
    lab.server().compact();
    lab.server().drop_watches();
    lab.move_endpoint(2, 10);
    lab.wait("a change after a compaction");
    assert!(lab.server().remove("services", "bench/svc-00019"));
    lab.wait("a deletion");

    // An object that is deleted during an outage is gone when the server comes back with another history.
    lab.server().fail(InjectedFailure::next(6, 500));
    lab.server().new_history(100_000);
    assert!(lab.server().remove("services", "bench/svc-00018"));
    lab.move_endpoint(3, 10);
    lab.wait("changes through errors and a new history");

    lab.server().pause(Duration::from_secs(3));
    lab.server().drop_watches();
    lab.move_endpoint(4, 10);
    lab.wait("a change after silence");

    // The server stops: the rules stay. Another one starts at the same address, with resourceVersions that start again.
    let before = lab.rules();
    let mut gone = lab.stop_for_attempts(3);
    assert!(lab.rules() == before, "without an API server the rules stay");
    gone.objects.retain(|object| object["metadata"]["name"] != "svc-00017");
    lab.come_back(gone);
    lab.move_endpoint(5, 10);
    lab.wait("changes after the server's absence");
    assert_eq!(sepal.terminate(), Some(0));
}

/// A server comes back with lower, equal or higher resourceVersions: its current objects count, even without any later event.
#[test]
fn a_server_that_comes_back_with_another_history() {
    let mut lab = Lab::new("nft", SMALL);
    let _sepal = lab.sepal();
    lab.wait("the start");
    let slice_of = |service: usize, endpoint: usize| Cluster::slice(service, &[Cluster::endpoint_ip(service, endpoint)]);
    let replace = |gone: &mut Gone, with: Value| {
        let object = gone.objects.iter_mut().find(|object| object["metadata"]["name"] == with["metadata"]["name"]);
        *object.expect("it is there") = with;
    };
    // The backoff of the three watches reaches its maximum after these attempts, so a longer absence tests nothing more.
    let attempts = 9;

    let version = lab.server().version();
    let mut gone = lab.stop_for_attempts(attempts);
    replace(&mut gone, slice_of(0, 20));
    lab.come_back(gone);
    assert_eq!(lab.server().version(), version);
    lab.wait("the same version of other objects");

    let mut gone = lab.stop_for_attempts(attempts);
    gone.objects.retain(|object| object["metadata"]["name"] != "svc-00019");
    replace(&mut gone, slice_of(1, 20));
    lab.come_back(gone);
    assert!(lab.server().version() < version);
    lab.wait("a lower version");

    lab.server().new_history(1_000_000);
    lab.move_endpoint(2, 20);
    lab.wait("a much higher version");
    let mut gone = lab.stop_for_attempts(attempts);
    replace(&mut gone, slice_of(3, 20));
    lab.come_back(gone);
    lab.wait("a much lower version");

    let mut gone = lab.stop_for_attempts(attempts);
    gone.objects.extend((20..60).map(Cluster::service));
    lab.come_back(gone);
    assert!(lab.server().version() > version);
    lab.wait("a higher version");
    lab.move_endpoint(4, 20);
    lab.wait("and a change after all that");
}

/// The API server is away for more than a minute: the rules stay and the log is short. Afterwards the rules follow again.
#[test]
fn no_server_for_a_minute() {
    let mut lab = Lab::new("nft", SMALL);
    let sepal = Logged::start(&mut lab.command(&["run"]));
    lab.wait("the start");
    let before = lab.rules();
    let mut gone = lab.stop();
    let log = || sepal.log();
    // An outage is logged at its start and then once a minute.
    let last_log =
        || log().lines().rfind(|line| line.contains("watch of Services, EndpointSlices, Nodes interrupted for ")).map(str::to_owned);
    wait_until_within(Duration::from_secs(180), "the log reports an outage of a minute", || last_log().is_some());
    assert!(lab.rules() == before, "without an API server the rules stay");
    gone.objects.retain(|object| object["metadata"]["name"] != "svc-00018");
    lab.come_back(gone);
    lab.wait("the objects of the server that came back");
    // The rules follow as soon as Services and EndpointSlices are listed; the log line waits for Nodes, too.
    wait_until("the log says that all are followed again", || log().contains("list and watch work again, "));
    let lines = |text: &str| log().lines().filter(|line| line.contains(text)).count();
    assert_eq!((lines("interrupted"), lines("interrupted for "), lines("list and watch work again, ")), (2, 1, 1), "{}", log());
    let outage = last_log().expect("it is logged");
    let seconds = outage.split("interrupted for ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(seconds >= Some(60), "{outage}");
}

/// Packets of the open connections are dropped without an error at either end: new connections are opened. That takes 45 s, and longer on a
/// busy machine. Without the limits under test it would take five minutes.
fn dropped_packets_are_noticed(http: &str, options: impl FnOnce(Options) -> Options) {
    let lab = Lab::secure("nft", SMALL, options);
    let _sepal = lab.sepal();
    lab.wait("the start");
    let watches = lab.server().log().into_iter().filter(|entry| entry.path.contains("watch=true"));
    let last = watches.map(|entry| entry.connection).max_by_key(|connection| connection.number).expect("a watch");
    assert!(lab.server().log().iter().all(|entry| entry.http == http), "{http}");
    let server = lab.server().address().port();
    let open = lab.node.run(&format!("ss -Htn state established sport = :{server} | awk '{{print $4}}' | sed 's/.*://'"));
    for client in open.lines() {
        lab.node.run(&format!(
            "iptables -w -t raw -A PREROUTING -p tcp --sport {client} --dport {server} -j DROP
             iptables -w -t raw -A PREROUTING -p tcp --sport {server} --dport {client} -j DROP"
        ));
    }
    lab.move_endpoint(0, 10);
    let again = |entry: &LogEntry| {
        entry.path.contains("endpointslices?") && entry.path.contains("watch=true") && entry.connection.number > last.number
    };
    wait_until_within(Duration::from_secs(120), "the silence is noticed", || lab.server().log().iter().any(again));
    lab.wait("the change that was missed");
}

#[test]
fn dropped_packets_are_noticed_http2() {
    dropped_packets_are_noticed("HTTP/2.0", |options| options);
}

#[test]
fn dropped_packets_are_noticed_http1() {
    dropped_packets_are_noticed("HTTP/1.1", Options::only_http1);
}

/// A server refuses all requests for a time, or does not answer: the rules stay, and changes of that time are applied afterwards.
#[test]
fn a_server_that_answers_nothing_of_use() {
    let lab = Lab::new("nft", SMALL);
    let sepal = Logged::start(&mut lab.command(&["run"]));
    lab.wait("the start");
    for (service, code) in [Some(410), Some(500), Some(429), None].into_iter().enumerate() {
        let before = lab.rules();
        let earlier = (lab.server().log().len(), lab.server().connections().accepted);
        match code {
            Some(code) => lab.server().fail(InjectedFailure::always(code)),
            None => lab.server().pause(Duration::from_secs(600)),
        }
        lab.server().drop_watches();
        lab.move_endpoint(service, 20);
        // Each of the three watches tries more than once. A server that does not answer keeps the first requests waiting.
        wait_until("the watches try to continue", || match code {
            Some(code) => lab.server().log()[earlier.0..].iter().filter(|entry| entry.code == code).count() >= 8,
            None => lab.server().connections().accepted >= earlier.1 + 3,
        });
        assert!(lab.rules() == before, "while the server answers {code:?} the rules stay");
        lab.server().stop_failing();
        lab.server().pause(Duration::ZERO);
        lab.wait(&format!("a change after answers of {code:?}"));
    }
    let log = sepal.log();
    for code in ["410", "500", "429"] {
        assert_eq!(
            log.lines().filter(|line| line.contains("interrupted") && line.contains(&format!("({code} "))).count(),
            1,
            "{code}: {log}"
        );
    }
}

/// A server without streaming lists is listed in pages and watched.
#[test]
fn a_server_without_streaming_lists_is_listed() {
    let lab = Lab::new("nft", SMALL);
    lab.server().fail(InjectedFailure::next(3, 422).at("sendInitialEvents"));
    let _sepal = lab.sepal();
    lab.wait("the start");
    assert!(lab.server().count("list services") > 0, "{:?}", lab.server().requests());
    lab.move_endpoint(0, 10);
    lab.wait("a change");
}

/// A restart without a change writes nothing and keeps the rules' counters.
fn a_restart_writes_nothing(variant: &'static str) {
    let lab = Lab::new(variant, SMALL);
    let sepal = lab.sepal();
    lab.wait("the start");
    assert_eq!(sepal.terminate(), Some(0));
    // Only rules of Services: other rules also count packets to the API server.
    let save = |lab: &Lab| lab.iptables("IPT-save -c -t nat | grep svc-");
    // Counts a packet in a rule; only a rewrite would reset the counter.
    lab.node.run("ip route add default dev lo");
    wait_until("a packet is counted", || {
        lab.node.run("echo | timeout 1 bash -c 'cat > /dev/tcp/10.96.0.1/80' || true");
        save(&lab).lines().any(|line| line.contains("svc-00000") && !line.starts_with("[0:0]"))
    });
    let before = save(&lab);

    let mut command = lab.command(&["run"]);
    let sepal = Logged::start(&mut command);
    let log = || sepal.log();
    wait_until("both families have read their tables", || log().matches("the live tables match the desired rules").count() == 2);
    assert!(!log().contains("chains written"), "{}", log());
    assert!(save(&lab) == before, "the counters went on");

    // After a change only the counters of that Service's rules start again.
    lab.move_endpoint(7, 10);
    lab.wait("a change");
    let after = save(&lab);
    let of_others = |text: &str| text.lines().filter(|line| !line.contains("svc-00007")).map(str::to_owned).collect::<Vec<_>>();
    assert!(of_others(&after) == of_others(&before), "the others' counters went on");
    drop(sepal);
}

#[test]
fn a_restart_writes_nothing_nft() {
    a_restart_writes_nothing("nft");
}

#[test]
fn a_restart_writes_nothing_legacy() {
    a_restart_writes_nothing("legacy");
}

/// Changes that other programs make to the tables are repaired within seconds.
fn drift_is_put_right(variant: &'static str) {
    let lab = Lab::new(variant, SMALL);
    let mut command = lab.command(&["run", "--iptables-sync-period=1s"]);
    let sepal = Logged::start(&mut command);
    // A repair may be finished before the test reads the tables, so the test also counts the repairs in the log.
    let repairs = || sepal.log().matches("are put right").count();
    lab.wait("the start");
    for (what, script) in [
        ("a deleted rule", "IPT -t nat -D KUBE-SERVICES 3"),
        ("a chain emptied", "IPT -t nat -F KUBE-MARK-MASQ"),
        ("a removed jump", "IPT -t nat -D PREROUTING 1"),
        ("a jump that is there twice", "IPT -I INPUT -j KUBE-FIREWALL"),
        ("a foreign rule in a shared chain", "IPT -t nat -A KUBE-SERVICES -s 192.0.2.1 -j RETURN"),
        (
            "a foreign rule in a service's chain",
            "IPT -t nat -I $(IPT-save -t nat | grep -o 'KUBE-SVC-[A-Z0-9]*' | head -n 1) -s 192.0.2.1 -j RETURN",
        ),
        ("an unknown chain with our prefix", "IPT -t nat -N KUBE-SVC-UNKNOWNCHAIN0000"),
        ("flushed tables", "for t in nat filter mangle; do IPT -t $t -F; IPT -t $t -X; done"),
    ] {
        let before = repairs();
        lab.iptables(script);
        wait_until(what, || {
            repairs() > before && lab.in_step() && jumps(&lab) == 14 && !lab.iptables("IPT-save -t nat").contains("192.0.2.1")
        });
    }
}

/// The number of jumps from built-in chains to ours.
fn jumps(lab: &Lab) -> usize {
    let saved = lab.iptables("IPT-save -t nat; IPT-save -t filter");
    let built_in = ["-A INPUT ", "-A FORWARD ", "-A OUTPUT ", "-A PREROUTING ", "-A POSTROUTING "];
    saved.lines().filter(|line| built_in.iter().any(|chain| line.starts_with(chain)) && line.contains("-j KUBE-")).count()
}

#[test]
fn drift_is_put_right_nft() {
    drift_is_put_right("nft");
}

#[test]
fn drift_is_put_right_legacy() {
    drift_is_put_right("legacy");
}

/// sepal is killed at many moments while the cluster changes: the next start writes the desired rules.
fn killed_at_any_moment(variant: &'static str) {
    let lab = Lab::new(variant, Cluster::new(400, 3));
    for round in 0..12_u64 {
        let sepal = lab.sepal();
        // These times choose the moment of the kill. What follows must hold at any moment.
        std::thread::sleep(Duration::from_millis(15 + round * 23));
        for service in 0..40 {
            lab.move_endpoint(service, 20 + usize::try_from(round).expect("small"));
        }
        std::thread::sleep(Duration::from_millis(round * 7));
        drop(sepal);
    }
    let _sepal = lab.sepal();
    lab.wait("the last start");
}

#[test]
fn killed_at_any_moment_nft() {
    killed_at_any_moment("nft");
}

#[test]
fn killed_at_any_moment_legacy() {
    killed_at_any_moment("legacy");
}

/// Ten thousand random changes end in the desired rules.
#[test]
fn ten_thousand_changes() {
    let lab = Lab::new("nft", Cluster::new(100, 2));
    let _sepal = lab.sepal();
    lab.wait("the start");
    let mut random = 88_172_645_463_325_252_u64;
    for _ in 0..10_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let service = usize::try_from(random % 120).expect("small");
        let name = Cluster::name(service);
        match (random >> 20) % 10 {
            0 => drop(lab.server().remove("services", &format!("bench/{name}"))),
            1 => drop(lab.server().remove("endpointslices", &format!("bench/{name}-x7k2p"))),
            2 | 3 => drop(lab.server().put(Cluster::service(service)).expect("a service")),
            _ => {
                let endpoints = (random >> 30) % 5;
                let ips: Vec<String> = (0..endpoints)
                    .map(|i| Cluster::endpoint_ip(service, usize::try_from((random >> 40) % 40 + i).expect("small")))
                    .collect();
                lab.server().put(Cluster::slice(service, &ips)).expect("a slice");
            }
        }
    }
    lab.wait("all of them");
}

/// Another program holds the xtables lock for longer than iptables waits: no change is lost, and the log names the program.
#[test]
fn a_held_lock_is_waited_for() {
    let lab = Lab::new("legacy", SMALL);
    // This test uses the lock file of the machine.
    let mut command = lab.command(&["run"]);
    let sepal = Logged::start(command.env_remove("XTABLES_LOCKFILE"));
    lab.wait("the start");
    // The holder holds the lock until its standard input is closed. Other tests may need this lock, too, so it is held only until sepal names it.
    let mut holder = Command::new("flock");
    holder.args(["/run/xtables.lock", "sh", "-c", "echo held; read line"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = Running(holder.spawn().expect("flock (util-linux) is there"));
    let mut line = String::new();
    BufReader::new(holder.0.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
    assert_eq!(line, "held\n");
    lab.move_endpoint(0, 10);
    let log = || sepal.log();
    wait_until("the lock is named", || log().contains("xtables lock is held by process"));
    drop(holder.0.stdin.take());
    holder.0.wait().expect("it ends");
    lab.wait("the change, after the lock");
}

/// A folder with a replacement of iptables-restore, and a PATH in which it is first.
fn in_place_of_restore(variant: &str, script: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let wrapper = folder.path().join(format!("iptables-{variant}-restore"));
    std::fs::write(&wrapper, script).expect("writable");
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("a path"));
    (folder, path)
}

/// iptables-restore fails once without a reason, before or after writing: no change is lost.
fn one_failed_run(variant: &'static str) {
    let lab = Lab::new(variant, SMALL);
    // Only writing fails, not testing.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--test*) exec /usr/sbin/iptables-{variant}-restore \"$@\";; esac\n\
         if rm \"$(dirname \"$0\")/before\" 2>/dev/null; then cat > /dev/null; echo iptables-restore: out of luck >&2; exit 4; fi\n\
         /usr/sbin/iptables-{variant}-restore \"$@\" || exit\n\
         if rm \"$(dirname \"$0\")/after\" 2>/dev/null; then echo iptables-restore: out of luck >&2; exit 4; fi\n"
    );
    let (folder, path) = in_place_of_restore(variant, &script);
    let mut command = lab.command(&["run"]);
    let sepal = Logged::start(command.env("PATH", path));
    lab.wait("the start");
    let failures = || sepal.log().matches("sync failed, next try in").count();
    for (round, when) in ["before", "after"].into_iter().enumerate() {
        std::fs::write(folder.path().join(when), "").expect("writable");
        lab.move_endpoint(round, 10);
        wait_until("the failure is logged", || failures() == round + 1);
        lab.wait("the change, at the next try");
    }
}

#[test]
fn one_failed_run_nft() {
    one_failed_run("nft");
}

#[test]
fn one_failed_run_legacy() {
    one_failed_run("legacy");
}

/// The wait for an xtables lock that another program holds is measured under its own cause.
#[test]
fn waiting_for_the_lock_is_told() {
    let lab = Lab::new("legacy", SMALL);
    let _sepal = Running(lab.command(&["run", "--iptables-sync-period=1h"]).spawn().expect("sepal starts"));
    lab.wait("the start");
    let get = |path| http::get(&lab.node, "127.0.0.1:10249".parse().expect("an address"), path).expect("an answer").body;
    let waited = || {
        let text = get("/metrics");
        let sum = text.lines().find_map(|line| line.strip_prefix("sepal_change_wait_seconds_sum{ip_family=\"IPv4\",cause=\"lock\"} "));
        sum.map(|sum| sum.parse::<f64>().expect("a number"))
    };
    assert_eq!(waited(), None, "nothing has changed yet");
    let lock = std::fs::OpenOptions::new().append(true).open(lab.node.xtables_lock()).expect("its file is there");
    lock.lock().expect("no program holds it for long");
    let begin = Instant::now();
    lab.move_endpoint(3, 10);
    let waits = |process: &std::path::Path| {
        let read = |file| std::fs::read_to_string(process.join(file)).unwrap_or_default();
        read("comm").starts_with("iptables-legacy")
            && read("environ").contains(&lab.node.xtables_lock().display().to_string())
            && read("wchan").contains("lock")
    };
    wait_until("it waits for the lock", || std::fs::read_dir("/proc").expect("readable").flatten().any(|entry| waits(&entry.path())));
    // The wait that is measured lasts this long at least.
    std::thread::sleep(Duration::from_millis(300));
    drop(lock);
    lab.wait("the change");
    wait_until("the wait is measured", || waited().is_some());
    let waited = waited().expect("the wait is measured");
    assert!((0.2..begin.elapsed().as_secs_f64()).contains(&waited), "it waited for 0.3 s and more: {waited}");
    let slowest = get("/slowest");
    assert!(slowest.lines().nth(1).is_some_and(|line| line.contains(&Cluster::name(3)) && line.contains(", lock ")), "{slowest}");
}

/// iptables-restore always refuses one Service: the others are updated, and an Event reports the refused one.
#[test]
fn one_service_refused_for_ever() {
    let lab = Lab::new("nft", SMALL);
    // The replacement refuses a rule as the real program does, with its line number.
    let script = "#!/bin/sh\ninput=$(mktemp)\ncat > \"$input\"\nline=$(grep -n '10.129.129' \"$input\" | head -n 1 | cut -d: -f1)\n\
                  if [ -n \"$line\" ]; then rm \"$input\"; echo \"iptables-restore v1.8.9 (nf_tables):\" >&2\n\
                  echo \"line $line: RULE_APPEND failed (Invalid argument): rule in chain KUBE-SEP\" >&2; exit 4; fi\n\
                  /usr/sbin/iptables-nft-restore \"$@\" < \"$input\"; status=$?; rm \"$input\"; exit $status\n";
    let (_folder, path) = in_place_of_restore("nft", script);
    let _sepal = Running(lab.command(&["run"]).env("PATH", path).spawn().expect("sepal starts"));
    lab.wait("the start");

    lab.server().put(Cluster::slice(3, &["10.129.129.1".to_owned()])).expect("a slice");
    lab.move_endpoint(4, 10);
    let nat = || lab.iptables("IPT-save -t nat");
    wait_until("the other one follows", || nat().contains(&format!("{}:8080", Cluster::endpoint_ip(4, 10))));
    assert!(nat().contains(&format!("{}:8080", Cluster::endpoint_ip(3, 0))), "the refused one keeps what it had");
    let refused = |event: &Value| event["reason"] == json!("RulesRefused") && event["regarding"]["name"] == json!(Cluster::name(3));
    wait_until("an Event reports it", || lab.server().list("events.events.k8s.io").iter().any(refused));
    lab.move_endpoint(3, 11);
    lab.wait("rules that iptables accepts again");
}
