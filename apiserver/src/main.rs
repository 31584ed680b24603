//! Runs the API server as a program. `--help` lists the options.

use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;
use std::{env, fs, io, thread};

use sepal_apiserver::{ApiServer, Identity, Options};
use serde_json::Value;

const HELP: &str = "\
A Kubernetes API server in memory, for tests.

usage: sepal-apiserver [OPTION VALUE]...

  --listen ADDR:PORT                  address to listen on (127.0.0.1:8001)
  --load FILE.json                    objects to load: a JSON list, or an object of kind List
  --tls-cert-file FILE.pem            certificate chain; serves HTTPS instead of HTTP
  --tls-private-key-file FILE.pem     private key of the certificate
  --client-ca-file FILE.pem           accept client certificates that these CAs signed
  --token TOKEN                       accept this bearer token; repeatable
  --http both|1|2                     HTTP versions to offer over TLS (both)
  --anonymous true|false              accept requests without credentials as anonymous (false)
  --help                              print this text

Without --client-ca-file and --token, every request is accepted. Anonymous requests may read /version
and the health checks; their other requests get 403 instead of 401.
";
const HINT: &str = "sepal-apiserver --help lists the options.";

/// An error that ends the program.
#[derive(Debug, thiserror::Error)]
enum StartError {
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

/// The command line.
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
            // If standard error is closed, the exit code still reports the failure.
            let _ = writeln!(io::stderr(), "sepal-apiserver: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the server and never returns, unless the arguments ask for help or starting fails.
fn run(arguments: impl Iterator<Item = String>) -> Result<(), StartError> {
    let Some(mut arguments) = parse(arguments)? else { return Ok(io::stdout().write_all(HELP.as_bytes())?) };
    let listen = arguments.listen.take().unwrap_or_else(|| "127.0.0.1:8001".to_owned());
    let objects =
        arguments.load.take().map_or(Ok(Vec::new()), |path| read_objects(&path).map_err(|error| StartError::Load(path, error)))?;
    let options = build_options(arguments)?;
    let server = TcpListener::bind(&listen).and_then(|listener| ApiServer::serve_with(listener, objects, options));
    let server = server.map_err(|error| StartError::Serve(listen, error))?;
    writeln!(io::stdout(), "listening {}", server.address())?;
    io::stdout().flush()?;
    loop {
        thread::park();
    }
}

/// Parses the command line; `None` if it asks for help.
fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Arguments>, StartError> {
    let mut arguments = Arguments::default();
    while let Some(argument) = words.next() {
        let field = match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--listen" => &mut arguments.listen,
            "--load" => &mut arguments.load,
            "--tls-cert-file" => &mut arguments.certificate,
            "--tls-private-key-file" => &mut arguments.key,
            "--client-ca-file" => &mut arguments.client_ca,
            "--token" => {
                arguments.tokens.push(next_value(&argument, &mut words)?);
                continue;
            }
            "--http" => &mut arguments.http,
            "--anonymous" => &mut arguments.anonymous,
            _ => return Err(StartError::Arguments(format!("unknown argument {argument}"))),
        };
        *field = Some(next_value(&argument, &mut words)?);
    }
    Ok(Some(arguments))
}

/// The value after an option.
fn next_value(argument: &str, words: &mut impl Iterator<Item = String>) -> Result<String, StartError> {
    words.next().ok_or_else(|| StartError::Arguments(format!("{argument} has no value")))
}

/// Builds the options for TLS and authentication.
fn build_options(arguments: Arguments) -> Result<Options, StartError> {
    let read = |path: &str| fs::read(path).map_err(|error| StartError::Read(path.to_owned(), error));
    let mut options = Options::default();
    match (arguments.certificate, arguments.key) {
        (Some(certificate), Some(key)) => {
            let identity = Identity::from_pem(&read(&certificate)?, &read(&key)?);
            options = options.tls(&identity.map_err(|error| StartError::Read(format!("{certificate} and {key}"), error))?);
        }
        (None, None) => {}
        _ => return Err(StartError::Arguments("--tls-cert-file and --tls-private-key-file go together".into())),
    }
    if let Some(path) = arguments.client_ca {
        options = options.client_ca_pem(&read(&path)?).map_err(|error| StartError::Read(path, error))?;
    }
    for token in arguments.tokens {
        options = options.token(&token);
    }
    options = match arguments.http.as_deref() {
        None | Some("both") => options,
        Some("1") => options.only_http1(),
        Some("2") => options.only_http2(),
        Some(other) => return Err(StartError::Arguments(format!("--http is both, 1 or 2, and not {other}"))),
    };
    match arguments.anonymous.as_deref() {
        None | Some("false") => Ok(options),
        Some("true") => Ok(options.anonymous()),
        Some(other) => Err(StartError::Arguments(format!("--anonymous is true or false, and not {other}"))),
    }
}

/// Reads the objects of a file: a JSON list, or an object of kind List.
fn read_objects(path: &str) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
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
