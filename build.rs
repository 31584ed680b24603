//! Tells the program which compiler builds it; `/statusz` says so.

use std::env;

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    #[allow(clippy::disallowed_methods, reason = "this runs where sepal is built, not where it runs")]
    let said = std::process::Command::new(rustc).arg("--version").output();
    let version = said.ok().and_then(|said| String::from_utf8(said.stdout).ok());
    #[allow(clippy::print_stdout, reason = "how a build script talks to cargo")]
    {
        println!("cargo:rustc-env=SEPAL_RUSTC={}", version.as_deref().map_or("rustc", str::trim));
        println!("cargo:rerun-if-changed=build.rs");
    }
}
