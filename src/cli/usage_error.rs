//! Words errors of the command line: one line with the error, as kube-proxy words it, and one line that says where the help is.

use std::error::Error;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The text for an invalid command line. `command` is the command that was called, such as `sepal run`.
pub(super) fn with_hint(error: &str, command: &str) -> String {
    format!("Error: {error}\nSee '{command} --help'.\n")
}

/// The text for a command line that clap refuses.
pub(super) fn text(error: &clap::Error, called: &CalledCommand<'_>) -> String {
    let suggested = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand].into_iter().find_map(|kind| list(error, kind).pop());
    match suggested {
        Some(suggested) => format!("Error: {}\nDid you mean {suggested}? See '{} --help'.\n", error_line(error, called), called.path),
        None => with_hint(&error_line(error, called), &called.path),
    }
}

/// The command that was called.
pub(super) struct CalledCommand<'a> {
    /// Its name and those of the commands above it: `sepal cni install`.
    path: String,
    command: &'a clap::Command,
}

impl<'a> CalledCommand<'a> {
    /// Finds the command that the arguments call. Subcommands stand before all flags.
    pub(super) fn new(program: &'a clap::Command, arguments: &[OsString]) -> Self {
        let mut called = Self { path: program.get_name().to_owned(), command: program };
        for argument in arguments.iter().skip(1) {
            let Some(command) = argument.to_str().and_then(|name| called.command.find_subcommand(name)) else { break };
            called = Self { path: format!("{} {}", called.path, command.get_name()), command };
        }
        called
    }
}

/// The error as kube-proxy would word it.
fn error_line(error: &clap::Error, called: &CalledCommand<'_>) -> String {
    let first = |kind| list(error, kind).into_iter().next();
    let argument = first(ContextKind::InvalidArg);
    let flag = argument.as_deref().map(|flag| flag.split([' ', '[', '=']).next().unwrap_or(flag));
    let value = first(ContextKind::InvalidValue).unwrap_or_default();
    match (error.kind(), flag) {
        (ErrorKind::UnknownArgument, Some(flag)) if flag.starts_with("--") => format!("unknown flag: {flag}"),
        (ErrorKind::UnknownArgument, Some(flag)) if flag.starts_with('-') => {
            format!("unknown shorthand flag: '{}' in {flag}", flag.trim_start_matches('-'))
        }
        (ErrorKind::UnknownArgument, _) => format!("unexpected argument {:?}", argument.unwrap_or_default()),
        (ErrorKind::InvalidSubcommand, _) => {
            format!("unknown command {:?} for {:?}", first(ContextKind::InvalidSubcommand).unwrap_or_default(), called.path)
        }
        (ErrorKind::InvalidValue, Some(flag)) if value.is_empty() => format!("flag needs an argument: {flag}"),
        (ErrorKind::InvalidValue | ErrorKind::ValueValidation, Some(flag)) => {
            let values = list(error, ContextKind::ValidValue);
            let cause = match error.source() {
                Some(source) => in_words(&source.to_string()),
                None if values.is_empty() => "invalid value".to_owned(),
                None => format!("it has to be one of {}", values.join(", ")),
            };
            format!("invalid argument {value:?} for \"{flag}\" flag: {cause}")
        }
        (ErrorKind::MissingRequiredArgument, _) => format!("missing: {}", list(error, ContextKind::InvalidArg).join(", ")),
        (ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, _) => {
            let commands = called.command.get_subcommands().map(clap::Command::get_name).filter(|name| *name != "help");
            format!("{:?} needs a command: {}", called.path, commands.collect::<Vec<_>>().join(", "))
        }
        _ => first_lines(&error.render().to_string()),
    }
}

/// All texts of one kind that an error has.
fn list(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    }
}

/// Rewords causes of the standard library and of clap, which are for programmers.
fn in_words(cause: &str) -> String {
    match cause {
        "invalid digit found in string" | "cannot parse integer from empty string" => "it is not a whole number".to_owned(),
        "number too large to fit in target type" => "the number is too large".to_owned(),
        "number too small to fit in target type" => "the number is too small".to_owned(),
        "invalid float literal" | "cannot parse float from empty string" => "it is not a number".to_owned(),
        cause => match cause.split_once(" is not in ").and_then(|(number, range)| Some((number, range.split_once("..=")?))) {
            Some((number, (least, most))) => format!("{number} is not a number from {least} to {most}"),
            None => cause.to_owned(),
        },
    }
}

/// The error without the usage that follows it.
fn first_lines(rendered: &str) -> String {
    let usage = |line: &&str| line.starts_with("Usage:") || line.starts_with("For more information");
    let lines = rendered.lines().map(str::trim).take_while(|line| !usage(line)).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned()
}
