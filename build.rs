//! Tells the program which compiler builds it; `/statusz` says so. And has it linked so that it starts fast.

use std::env;

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    #[allow(clippy::disallowed_methods, reason = "this runs where sepal is built, not where it runs")]
    let said = std::process::Command::new(rustc).arg("--version").output();
    let version = said.ok().and_then(|said| String::from_utf8(said.stdout).ok());
    #[allow(clippy::print_stdout, reason = "how a build script talks to cargo")]
    {
        println!("cargo:rustc-env=SEPAL_RUSTC={}", version.as_deref().map_or("rustc", str::trim));
        // A pod waits while the CNI plugin starts. A program that may be anywhere in memory has 25,000 addresses to put right first,
        // which touches two thirds of the pages that a start touches at all: 2 ms of 5.
        if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
            println!("cargo:rustc-link-arg-bin=sepal=-no-pie");
            // The unwinder is linked in: loading libgcc_s.so.1 for it costs a tenth of a start.
            println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
            // Functions of libc are looked up at their first call. The plugin calls few of those that TLS needs; looking up all of them
            // at the start costs a tenth of it.
            println!("cargo:rustc-link-arg-bin=sepal=-Wl,-z,lazy");
        }
        println!("cargo:rerun-if-changed=build.rs");
    }
}
