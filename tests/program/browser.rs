//! A headless Chromium in a network namespace, controlled by the Chrome `DevTools` Protocol over a pipe: JSON messages that end with a zero
//! byte.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sepal_lab::{Netns, Running};
use serde_json::{Value, json};

/// The limit for every action of the browser.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page open.
pub(crate) struct Browser {
    _process: Running,
    _folder: tempfile::TempDir,
    to: File,
    from: Receiver<Value>,
    calls: u64,
    session: Option<String>,
    /// Errors of the page: exceptions, and violations of its content security policy.
    pub(crate) complaints: Vec<String>,
}

impl Browser {
    pub(crate) fn start(namespace: &Netns) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let script = "cd \"$1\"; export HOME=\"$1\"; exec chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
                      --no-first-run --user-data-dir=\"$1/profile\" --remote-debugging-pipe about:blank 3<in 4>out";
        namespace.run(&format!("mkfifo {} {}", at("in").display(), at("out").display()));
        let mut command = namespace.command("sh");
        command.args(["-c", script, "browser"]).arg(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Running(command.spawn().expect("it starts"));
        let to = OpenOptions::new().write(true).open(at("in")).expect("the shell opens it, too");
        let mut out = BufReader::new(File::open(at("out")).expect("the shell opens it, too"));
        let (sender, from) = channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            while out.read_until(0, &mut text).is_ok_and(|read| read > 0) {
                text.pop();
                if sender.send(serde_json::from_slice(&text).expect("JSON")).is_err() {
                    return;
                }
                text.clear();
            }
        });
        let mut browser = Self { _process: process, _folder: folder, to, from, calls: 0, session: None, complaints: Vec::new() };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}))["sessionId"].clone();
        browser.session = session.as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({}));
        }
        browser
    }

    /// Calls a method and returns its result.
    #[allow(clippy::needless_pass_by_value, reason = "what is passed is made there and then")]
    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).expect("the browser reads");
        loop {
            let answer = self.from.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{method}: no answer from chromium: {error}"));
            if answer["id"] == json!(self.calls) {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.listen(&answer);
        }
    }

    fn listen(&mut self, event: &Value) {
        let told = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => &event["params"]["exceptionDetails"],
            Some("Log.entryAdded") if event["params"]["entry"]["level"] == "error" => &event["params"]["entry"]["text"],
            _ => return,
        };
        self.complaints.push(told.to_string());
    }

    /// Opens a URL on a screen of this size.
    pub(crate) fn open(&mut self, url: &str, (width, height): (u32, u32), dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size);
        self.call("Emulation.setScrollbarsHidden", json!({"hidden": true}));
        self.call("Emulation.setEmulatedMedia", json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}));
        self.call("Page.navigate", json!({"url": url}));
    }

    /// The value of an expression.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let result = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true, "awaitPromise": true}));
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn wait(&mut self, what: &str, expression: &str) {
        let start = Instant::now();
        let expression = format!("(() => {{ try {{ return {expression} }} catch (error) {{ return false }} }})()");
        while self.value(&expression) != json!(true) {
            assert!(start.elapsed() < PATIENCE, "still not so: {what}: {}", self.value("document.body && document.body.innerText"));
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A screenshot of the whole page as PNG.
    pub(crate) fn picture(&mut self) -> Vec<u8> {
        let taken = self.call("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true}));
        STANDARD.decode(taken["data"].as_str().expect("a picture")).expect("base64")
    }
}
