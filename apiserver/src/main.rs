//! The server as a program. `--help` says how.

use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;
use std::{env, fs, io, thread};

use sepal_apiserver::{ApiServer, Identity, Options};
use serde_json::Value;

const HELP: &str = "\
A Kubernetes API server in memory, for tests.

usage: sepal-apiserver [OPTION VALUE]...

  --listen ADDR:PORT                  where to listen (127.0.0.1:8001)
  --load FILE.json                    objects to start with: a list of them, or a List
  --tls-cert-file FILE.pem            certificate chain; serves HTTPS, with HTTP/2 and HTTP/1.1
  --tls-private-key-file FILE.pem     key of the certificate
  --client-ca-file FILE.pem           CAs whose client certificates are accepted
  --token TOKEN                       bearer token that is accepted; may be given several times
  --http both|1|2                     versions of HTTP that HTTPS offers (both)
  --anonymous true|false              answers requests without credentials with 403 instead of 401 (false)
  --help                              prints this

Without --client-ca-file and --token every request is accepted.
";
const HINT: &str = "sepal-apiserver --help lists the options.";

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}\n{HINT}")]
    Arguments(String),
    #[error("cannot serve at {0}: {1}")]
    Serve(String, io::Error),
    #[error("cannot load {0}: {1}")]
    Load(String, Box<dyn std::error::Error>),
    #[error("cannot read {0}: {1}")]
    Read(String, io::Error),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// What was asked for on the command line.
#[derive(Default)]
struct Arguments {
    listen: Option<String>,
    load: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    tokens: Vec<String>,
    http: Option<String>,
    anonymous: Option<String>,
}

fn main() -> ExitCode {
    match run(env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without standard error the message is lost; the exit code is not.
            let _ = writeln!(io::stderr(), "sepal-apiserver: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until it is killed.
fn run(arguments: impl Iterator<Item = String>) -> Result<(), Failed> {
    let Some(mut arguments) = parse(arguments)? else { return Ok(io::stdout().write_all(HELP.as_bytes())?) };
    let listen = arguments.listen.take().unwrap_or_else(|| "127.0.0.1:8001".to_owned());
    let objects = arguments.load.take().map_or(Ok(Vec::new()), |path| read(&path).map_err(|error| Failed::Load(path, error)))?;
    let options = options(arguments)?;
    let server = TcpListener::bind(&listen).and_then(|listener| ApiServer::serve_with(listener, objects, options));
    let server = server.map_err(|error| Failed::Serve(listen, error))?;
    writeln!(io::stdout(), "listening {}", server.address())?;
    io::stdout().flush()?;
    loop {
        thread::park();
    }
}

/// Reads the command line; none if it asks for help.
fn parse(mut given: impl Iterator<Item = String>) -> Result<Option<Arguments>, Failed> {
    let mut arguments = Arguments::default();
    while let Some(argument) = given.next() {
        let place = match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--listen" => &mut arguments.listen,
            "--load" => &mut arguments.load,
            "--tls-cert-file" => &mut arguments.certificate,
            "--tls-private-key-file" => &mut arguments.key,
            "--client-ca-file" => &mut arguments.client_ca,
            "--token" => {
                arguments.tokens.push(value(&argument, &mut given)?);
                continue;
            }
            "--http" => &mut arguments.http,
            "--anonymous" => &mut arguments.anonymous,
            _ => return Err(Failed::Arguments(format!("unknown argument {argument}"))),
        };
        *place = Some(value(&argument, &mut given)?);
    }
    Ok(Some(arguments))
}

fn value(argument: &str, given: &mut impl Iterator<Item = String>) -> Result<String, Failed> {
    given.next().ok_or_else(|| Failed::Arguments(format!("{argument} has no value")))
}

/// TLS and authentication as the arguments say.
fn options(arguments: Arguments) -> Result<Options, Failed> {
    let read = |path: &str| fs::read(path).map_err(|error| Failed::Read(path.to_owned(), error));
    let mut options = Options::default();
    match (arguments.certificate, arguments.key) {
        (Some(certificate), Some(key)) => {
            let identity = Identity::from_pem(&read(&certificate)?, &read(&key)?);
            options = options.tls(&identity.map_err(|error| Failed::Read(format!("{certificate} and {key}"), error))?);
        }
        (None, None) => {}
        _ => return Err(Failed::Arguments("--tls-cert-file and --tls-private-key-file go together".into())),
    }
    if let Some(path) = arguments.client_ca {
        options = options.client_ca_pem(&read(&path)?).map_err(|error| Failed::Read(path, error))?;
    }
    for token in arguments.tokens {
        options = options.token(&token);
    }
    options = match arguments.http.as_deref() {
        None | Some("both") => options,
        Some("1") => options.only_http1(),
        Some("2") => options.only_http2(),
        Some(other) => return Err(Failed::Arguments(format!("--http is both, 1 or 2, and not {other}"))),
    };
    match arguments.anonymous.as_deref() {
        None | Some("false") => Ok(options),
        Some("true") => Ok(options.anonymous()),
        Some(other) => Err(Failed::Arguments(format!("--anonymous is true or false, and not {other}"))),
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
