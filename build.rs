//! Stores the compiler's version for `/statusz`, and sets linker flags for a fast start.

use std::env;

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    #[allow(clippy::disallowed_methods, reason = "this runs where sepal is built, not where it runs")]
    let output = std::process::Command::new(rustc).arg("--version").output();
    let version = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    #[allow(clippy::print_stdout, reason = "how a build script talks to cargo")]
    {
        println!("cargo:rustc-env=SEPAL_RUSTC={}", version.as_deref().map_or("rustc", str::trim));
        // A pod waits while the CNI plugin starts. A position-independent program first relocates 25,000 addresses. That touches two
        // thirds of all pages that a start touches, and takes 2 ms of 5.
        if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
            println!("cargo:rustc-link-arg-bin=sepal=-no-pie");
            // The unwinder is linked statically. Loading libgcc_s.so.1 takes a tenth of the start.
            println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
            // Functions of libc are resolved at their first call. The plugin calls few of them, and TLS needs many: resolving all of them
            // takes a tenth of the start.
            println!("cargo:rustc-link-arg-bin=sepal=-Wl,-z,lazy");
        }
        println!("cargo:rerun-if-changed=build.rs");
    }
}
