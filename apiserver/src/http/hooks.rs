//! The hooks under `/_test/`, for tests in other languages and other processes. They are never counted, failed or paused.

use std::time::Duration;

use hyper::Response;
use serde_json::{Value, json};

use crate::failure::{Failure, Form};
use crate::refusal::Refusal;
use crate::resource::Resource;

use super::query::Query;
use super::{Body, Shared, json as bytes, value};

/// How far a new history jumps, unless told.
pub(crate) const JUMP: u64 = 1_000_000;

/// Does what a hook asks for.
pub(super) fn answer(shared: &Shared, hook: &str, query: &Query, body: &[u8]) -> Result<Response<Body>, Refusal> {
    let faults = &shared.faults;
    match hook {
        "load" => drop(shared.store().load(items(body)?)?),
        "delete" => delete(shared, &items(body)?)?,
        "dump" => {
            let entries = shared.store().all();
            let objects: Vec<_> = entries.iter().map(|(_, entry)| entry.full()).collect();
            return Ok(bytes(200, [b"[", &*objects.join(&b",\n"[..]), b"]"].concat()));
        }
        "drop-watches" => shared.store().drop_watches(),
        "bookmarks" => shared.store().call_bookmarks(),
        "compact" => drop(shared.store().compact()),
        "new-history" => {
            let by = if query.text("by").is_empty() { JUMP } else { query.number("by")? };
            shared.store().new_history(by);
        }
        "pause" => faults.pause(query.seconds("seconds")?.unwrap_or_default()),
        "fail" if query.flag("also") => faults.fail_also(failure(query)?),
        "fail" => faults.fail(failure(query)?),
        "stop-failing" => faults.stop_failing(),
        "delay" => faults.delay(Duration::from_millis(query.number("ms")?)),
        "deny" => match (query.text("verb"), query.text("resource")) {
            ("", _) | (_, "") => return Err(Refusal::bad_request("deny needs verb and resource")),
            (verb, resource) => faults.deny(verb, resource),
        },
        "allow-all" => faults.allow_all(),
        "requests" => {
            if !query.text("reset").is_empty() {
                shared.journal.reset();
            }
            return Ok(value(200, &json!(shared.journal.counts())));
        }
        "log" => {
            let entries = shared.journal.entries();
            let log: Vec<_> = entries.iter().map(|one| json!([one.at.as_secs_f64(), one.method, one.path, one.code])).collect();
            return Ok(value(200, &json!(log)));
        }
        "rv" => return Ok(value(200, &json!(shared.store().version()))),
        _ => return Ok(value(404, &json!({}))),
    }
    Ok(value(200, &json!({})))
}

/// A JSON list, or the items of a List.
fn items(body: &[u8]) -> Result<Vec<Value>, Refusal> {
    let parsed = serde_json::from_slice::<Value>(body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    let list = match parsed {
        Value::Object(mut list) => list.remove("items").unwrap_or_default(),
        other => other,
    };
    match list {
        Value::Array(items) => Ok(items),
        _ => Err(Refusal::bad_request("neither a list nor an object with items")),
    }
}

/// Removes the objects that are named by apiVersion, kind, namespace and name. Those that do not exist are gone already.
fn delete(shared: &Shared, names: &[Value]) -> Result<(), Refusal> {
    let mut store = shared.store();
    for named in names {
        let text = |field: &str| named.get(field).and_then(Value::as_str).unwrap_or_default();
        let unknown = || Refusal::bad_request(format!("no kind {}/{}", text("apiVersion"), text("kind")));
        let resource = Resource::of(text("apiVersion"), text("kind")).ok_or_else(unknown)?;
        if let Some(entry) = store.get(resource, text("namespace"), text("name")) {
            store.remove(resource, &entry)?;
        }
    }
    Ok(())
}

fn failure(query: &Query) -> Result<Failure, Refusal> {
    let count = u32::try_from(query.number("n")?).unwrap_or(u32::MAX);
    let code = if query.text("code").is_empty() { 500 } else { query.number("code")? };
    if !(400..600).contains(&code) {
        return Err(Refusal::bad_request(format!("{code} is no code of an error")));
    }
    let mut failure = Failure::next(count, code as u16).at(query.text("path")).form(form(query)?);
    failure = failure.for_time(query.seconds("seconds")?.unwrap_or_default());
    failure = match query.text("only") {
        "" => failure,
        "watches" => failure.watches(),
        "streaming" => failure.streaming(),
        other => return Err(Refusal::bad_request(format!("no requests are called {other}"))),
    };
    if let Some(message) = query.get("message") {
        failure = failure.message(message);
    }
    if query.get("retry-after").is_some() {
        failure = failure.retry_after(u32::try_from(query.number("retry-after")?).unwrap_or(u32::MAX));
    }
    Ok(failure)
}

fn form(query: &Query) -> Result<Form, Refusal> {
    Ok(match query.text("form") {
        "" => Form::Status,
        "text" => Form::Text(query.text("message").to_owned()),
        "event" => Form::Event,
        "too-large" => Form::TooLarge,
        "silent" => Form::Silence,
        "closed" => Form::Close,
        "ended" => Form::Ended,
        "without-bookmark" => Form::NoBookmark,
        other => return Err(Refusal::bad_request(format!("no form of failure is called {other}"))),
    })
}
