//! A site on whose node sepal follows manifest files.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sepal_lab::{NAMESPACE_FLAGS, Running, SingleNode, wait_until_within};
use tempfile::TempDir;

use crate::SEPAL;

/// The manifests that describe a site.
pub(crate) fn traffic() -> PathBuf {
    testdata("traffic.yaml")
}

pub(crate) fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// A site. Nothing runs on its node yet.
pub(crate) struct Lab {
    site: SingleNode,
}

impl Deref for Lab {
    type Target = SingleNode;

    fn deref(&self) -> &SingleNode {
        &self.site
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { site: SingleNode::new() }
    }

    /// `sepal run` on manifests, ready to be started.
    pub(crate) fn run(&self, variant: &str, manifests: &Path) -> Command {
        let mut command = self.node.command(SEPAL);
        command.arg("run").args(NAMESPACE_FLAGS).args(["--iptables-variant", variant, "--manifests"]).arg(manifests).stdin(Stdio::null());
        command
    }

    pub(crate) fn sepal(&self, variant: &str, manifests: &Path) -> Running {
        Running(self.run(variant, manifests).spawn().expect("sepal starts"))
    }

    /// Exit status and output of `--dry-run --diff`.
    pub(crate) fn diff(&self, variant: &str, manifests: &Path) -> (Option<i32>, String) {
        let mut command = self.node.command(SEPAL);
        command.args(["--dry-run", "--diff", "--iptables-variant", variant, "--manifests"]).arg(manifests);
        let output = command.output().expect("sepal starts");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(crate) fn wait_for_rules(&self, variant: &str, manifests: &Path) {
        let are_equal = || self.diff(variant, manifests).0 == Some(0);
        wait_until_within(Duration::from_secs(180), "the live rules equal the desired ones", are_equal);
    }
}

/// A site on whose node sepal follows one manifest file that the test changes.
pub(crate) struct Following {
    lab: Lab,
    variant: &'static str,
    folder: TempDir,
    _sepal: Running,
}

impl Deref for Following {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Following {
    /// Starts sepal and waits for its rules.
    pub(crate) fn new(variant: &'static str, manifests: &str) -> Self {
        let (lab, folder) = (Lab::new(), tempfile::tempdir().expect("a folder"));
        fs::write(folder.path().join("cluster.yaml"), manifests).expect("writable");
        let sepal = lab.sepal(variant, folder.path());
        let following = Self { lab, variant, folder, _sepal: sepal };
        following.wait();
        following
    }

    /// Replaces the manifests and waits for the rules that follow from them.
    pub(crate) fn change(&self, manifests: &str) {
        let (new, file) = (self.folder.path().join(".new"), self.folder.path().join("cluster.yaml"));
        fs::write(&new, manifests).expect("writable");
        fs::rename(&new, &file).expect("writable");
        self.wait();
    }

    fn wait(&self) {
        self.lab.wait_for_rules(self.variant, self.folder.path());
    }
}
