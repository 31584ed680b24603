//! The server as a program: `sepal-apiserver [--listen ADDR:PORT] [--load FILE]`.

use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;
use std::{env, fs, io, thread};

use sepal_apiserver::ApiServer;
use serde_json::Value;

const USAGE: &str = "usage: sepal-apiserver [--listen ADDR:PORT] [--load FILE.json]";

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}\n{USAGE}")]
    Arguments(String),
    #[error("cannot serve at {0}: {1}")]
    Serve(String, io::Error),
    #[error("cannot load {0}: {1}")]
    Load(String, Box<dyn std::error::Error>),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

fn main() -> ExitCode {
    let Err(error) = run(env::args().skip(1));
    // Without standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "sepal-apiserver: {error}");
    ExitCode::FAILURE
}

/// Serves until it is killed.
fn run(mut arguments: impl Iterator<Item = String>) -> Result<std::convert::Infallible, Failed> {
    let (mut listen, mut load) = ("127.0.0.1:8001".to_owned(), None);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| Failed::Arguments(format!("{argument}: no value, or unknown")));
        match argument.as_str() {
            "--listen" => listen = value?,
            "--load" => load = Some(value?),
            _ => return Err(Failed::Arguments(format!("unknown argument {argument}"))),
        }
    }
    let objects = load.map_or(Ok(Vec::new()), |path| read(&path).map_err(|error| Failed::Load(path, error)))?;
    let server = TcpListener::bind(&listen).and_then(|listener| ApiServer::serve_loaded(listener, objects));
    let server = server.map_err(|error| Failed::Serve(listen, error))?;
    writeln!(io::stdout(), "listening {}", server.address())?;
    io::stdout().flush()?;
    loop {
        thread::park();
    }
}

/// The objects of a file: a JSON list, or a List.
fn read(path: &str) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
    let value: Value = serde_json::from_slice(&fs::read(path)?)?;
    let list = match value {
        Value::Object(mut list) => list.remove("items").unwrap_or_default(),
        other => other,
    };
    match list {
        Value::Array(items) => Ok(items),
        _ => Err("neither a list nor an object with items".into()),
    }
}
