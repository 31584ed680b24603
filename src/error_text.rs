//! Formats errors for operators: one line, each cause once, without dumps of library values and without advice for programmers.
//!
//! Print errors of libraries and of `anyhow` with [`error_text`] in logs, Events, exit messages and HTTP answers, not with `{:#}` or `{:?}`:
//! many libraries repeat the cause in their own text.

use std::any::Any;
use std::error::Error;
use std::fmt::Write as _;
use std::ops::Range;

use kube::core::Status;
use notify::ErrorKind;
use serde_saphyr::{MessageFormatter, UserMessageFormatter};
use tokio::task::JoinError;

/// The largest number of characters shown from an answer that a Kubernetes API server did not send, such as the HTML page of a proxy.
const FOREIGN_ANSWER: usize = 200;

/// Error texts of libraries, each with the text that replaces it for operators.
const PHRASES: [(&str, &str); 4] = [
    ("client error (Connect): tcp connect error", "cannot connect"),
    ("client error (Connect)", "cannot connect"),
    ("client error (SendRequest)", "the connection broke"),
    ("buffer's worker closed unexpectedly", "the task that holds the connection has ended"),
];

/// Returns the error and its causes, from the outermost to the innermost, separated by colons. A cause is left out if the text of an outer
/// error already contains it.
pub(crate) fn error_text(error: &(dyn Error + 'static)) -> String {
    let mut text = with_causes(error);
    for (phrase, words) in PHRASES {
        if text.contains(phrase) {
            text = text.replace(phrase, words);
        }
    }
    text
}

fn with_causes(error: &(dyn Error + 'static)) -> String {
    if let Some(text) = special_text(error) {
        return text;
    }
    let own = error.to_string();
    let Some(source) = error.source() else { return one_line(&own) };
    let cause = with_causes(source);
    // The text of many errors already contains the cause.
    if let Some(at) = position(&own, &source.to_string()) {
        return one_line(&format!("{}{cause}{}", &own[..at.start], &own[at.end..]));
    }
    let mut text = one_line(&own);
    add(&mut text, &cause);
    text
}

/// Returns a better text for errors whose own text is not made for operators. `None` for other errors.
fn special_text(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<kube::Error>() {
        return match error {
            kube::Error::Api(status) => Some(status_text(status)),
            // These only wrap their cause.
            kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::HttpError(_) => error.source().map(with_causes),
            _ => None,
        };
    }
    if let Some(status) = error.downcast_ref::<Status>().or_else(|| error.downcast_ref::<Box<Status>>().map(|status| &**status)) {
        return Some(status_text(status));
    }
    if let Some(error) = error.downcast_ref::<serde_saphyr::Error>() {
        let place = error.location().map_or(String::new(), |at| format!("line {}: ", at.line()));
        return Some(place + &yaml_problem(error));
    }
    if let Some(error) = error.downcast_ref::<regex::Error>() {
        // The lines before it show the pattern, with a mark below the error.
        let text = error.to_string();
        return text.lines().last().map(|line| line.trim_start_matches("error: ").to_owned());
    }
    if let Some(error) = error.downcast_ref::<notify::Error>() {
        return match &error.kind {
            ErrorKind::MaxFilesWatch => Some("no inotify watch is left; raise fs.inotify.max_user_watches".to_owned()),
            ErrorKind::Io(error) => Some(error.to_string()),
            ErrorKind::PathNotFound => Some("no such file or folder".to_owned()),
            _ => None,
        };
    }
    let panicked = error.downcast_ref::<JoinError>().filter(|error| error.is_panic())?.to_string();
    let why = panicked.split_once(" panicked with message ").map_or("panic without a message", |(_, why)| why.trim_matches('"'));
    Some(format!("{} (this is a defect of sepal, please report it)", one_line(why)))
}

/// Returns the text of a `Status` that an API server sent as an error.
pub(crate) fn status_text(status: &Status) -> String {
    let Status { code, reason, message, .. } = status;
    // kube sets this reason if the answer is not a Status.
    if reason == "Failed to parse error data" {
        let start: String = one_line(message).chars().take(FOREIGN_ANSWER).collect();
        let start = if start.is_empty() { String::new() } else { format!(": {start}") };
        return format!("HTTP {code}, and the answer did not come from a Kubernetes API server{start}");
    }
    let mut number = if *code == 0 { String::new() } else { code.to_string() };
    if !reason.is_empty() {
        let gap = if number.is_empty() { "" } else { " " };
        let _ = write!(number, "{gap}{reason}");
    }
    match (message.is_empty(), number.is_empty()) {
        (true, true) => "the API server answered with an error that has no text".to_owned(),
        (true, false) => format!("the API server answered {number}"),
        (false, true) => one_line(message),
        (false, false) => format!("{} ({number})", one_line(message)),
    }
}

/// The cause of a YAML error, without the line number.
pub(crate) fn yaml_problem(error: &serde_saphyr::Error) -> String {
    one_line(&UserMessageFormatter.format_message(error.without_snippet()))
}

/// Joins the lines of a text.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Appends a cause to the text, without the words that the text already contains.
fn add(text: &mut String, cause: &str) {
    let cause = cause.trim();
    if cause.is_empty() || contains_words(text, cause) {
        return;
    }
    // The outer text may end with the beginning of the cause.
    let tails = text.match_indices(": ").map(|(at, _)| at + 2);
    let overlap = std::iter::once(0).chain(tails).find(|at| starts_with(cause, &text[*at..]));
    match overlap {
        Some(at) => text.truncate(at),
        None if text.is_empty() => {}
        None => text.push_str(": "),
    }
    text.push_str(cause);
}

/// True if a text begins with these whole words. Upper and lower case are equal.
fn starts_with(text: &str, start: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric());
    text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start)) && ends(&text[start.len()..])
}

/// True if a text contains these whole words. Upper and lower case are equal.
fn contains_words(text: &str, cause: &str) -> bool {
    position(&text.to_ascii_lowercase(), &cause.to_ascii_lowercase()).is_some()
}

/// Returns the byte range of the first place where a text contains these whole words.
fn position(text: &str, words: &str) -> Option<Range<usize>> {
    let is_whole = |at: &usize| {
        let around = [text[..*at].chars().next_back(), text[at + words.len()..].chars().next()];
        around.into_iter().flatten().all(|next| !next.is_alphanumeric())
    };
    let found = text.match_indices(words).map(|(at, _)| at).filter(|_| !words.is_empty()).find(is_whole)?;
    Some(found..found + words.len())
}

/// Returns the error text for a task that panicked or was cancelled.
#[must_use]
pub(crate) fn task_failure(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic_text(&*panic),
        Err(error) => error.to_string(),
    }
}

/// The text of a panic.
#[must_use]
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("{} (this is a defect of sepal, please report it)", text.unwrap_or("panic without a message"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;

    fn of(error: &anyhow::Error) -> String {
        error_text(error.as_ref())
    }

    fn status(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, reason).with_code(code).boxed())
    }

    #[test]
    fn the_answer_of_the_api_server_appears_once_and_as_a_sentence() {
        let denied = || status(403, "Forbidden", "services is forbidden: User \"a\" cannot list resource \"services\"");
        let expected = "services is forbidden: User \"a\" cannot list resource \"services\" (403 Forbidden)";
        assert_eq!(error_text(&denied()), expected);
        assert_eq!(of(&anyhow::Error::from(denied()).context("cannot list services")), format!("cannot list services: {expected}"));
        let twice = Err::<(), _>(denied()).context("cannot list services").context("no rules");
        assert_eq!(of(&twice.expect_err("denied")), format!("no rules: cannot list services: {expected}"));
        assert_eq!(error_text(&status(500, "", "")), "the API server answered 500");
        assert_eq!(error_text(&status(0, "", "")), "the API server answered with an error that has no text");
        let page = status(502, "Failed to parse error data", "<html>\n<title>Bad gateway</title>\n</html>");
        assert_eq!(
            error_text(&page),
            "HTTP 502, and the answer did not come from a Kubernetes API server: <html> <title>Bad gateway</title> </html>"
        );
    }

    #[test]
    fn wrappers_of_libraries_do_not_repeat_the_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("client error (Connect)")]
        struct Connect(#[source] Tcp);
        #[derive(Debug, thiserror::Error)]
        #[error("tcp connect error")]
        struct Tcp(#[source] io::Error);
        let refused = || io::Error::from_raw_os_error(111);
        let error = kube::Error::Service(Box::new(Connect(Tcp(refused()))));
        assert_eq!(error_text(&error), "cannot connect: Connection refused (os error 111)");
        let error = anyhow::Error::from(error).context("cannot get Node a");
        assert_eq!(of(&error), "cannot get Node a: cannot connect: Connection refused (os error 111)");
        let read = kube::Error::ReadEvents(refused());
        assert_eq!(error_text(&read), "Error reading events stream: Connection refused (os error 111)");
        let closed = anyhow::anyhow!("buffer's worker closed unexpectedly");
        assert_eq!(of(&closed), "the task that holds the connection has ended");
    }

    #[test]
    fn yaml_errors_are_one_line_without_an_excerpt_and_without_function_names() {
        let of = |text: &str| error_text(&serde_saphyr::from_str::<serde_json::Value>(text).expect_err(text));
        assert_eq!(of("a: 1\n---\na: 2\n"), "line 3: only single YAML document expected but multiple found");
        let text = of("a: 1\nb: [1, 2\nc: 3\n");
        assert!(text.starts_with("line ") && !text.contains('\n') && !text.contains(" | "), "{text}");
        let text = of("a: 1\na: 2\n");
        assert!(text.starts_with("line 2: duplicate") && text.matches("line").count() == 1, "{text}");
    }

    #[test]
    fn nested_contexts_name_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read {path}: {source}")]
        struct Unreadable {
            path: &'static str,
            source: io::Error,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Same(#[from] Unreadable);
        let missing = || Unreadable { path: "/a", source: io::Error::from_raw_os_error(2) };
        let expected = "cannot read /a: No such file or directory (os error 2)";
        assert_eq!(error_text(&missing()), expected);
        assert_eq!(of(&anyhow::Error::from(Same(missing())).context("no settings")), format!("no settings: {expected}"));
        // The outer text ends where the cause begins.
        let error = anyhow::anyhow!("permission denied (os error 13)").context("cannot open /b: Permission denied");
        assert_eq!(of(&error), "cannot open /b: permission denied (os error 13)");
        // A part of a word is not the same word.
        assert_eq!(of(&anyhow::anyhow!("no").context("nothing came")), "nothing came: no");
        assert_eq!(of(&anyhow::anyhow!("two\n  lines\n").context("")), "two lines");
    }

    #[test]
    fn errors_of_patterns_and_watched_files_are_one_line() {
        #[allow(clippy::invalid_regex, reason = "it is broken on purpose")]
        let broken = regex::Regex::new("eth(").expect_err("broken");
        assert_eq!(error_text(&broken), "unclosed group");
        let none_left = notify::Error::new(ErrorKind::MaxFilesWatch).add_path("/x".into());
        assert!(error_text(&none_left).contains("fs.inotify.max_user_watches"));
        let gone = notify::Error::io(io::Error::from_raw_os_error(2)).add_path("/x".into());
        assert_eq!(error_text(&gone), "No such file or directory (os error 2)");
    }

    #[tokio::test]
    async fn a_panic_of_a_task_asks_for_a_report() {
        let error = tokio::spawn(async { panic!("index 7 of 3") }).await.map(|(): ()| ()).expect_err("it panics");
        assert_eq!(error_text(&error), "index 7 of 3 (this is a defect of sepal, please report it)");
    }
}
