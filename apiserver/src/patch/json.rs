//! JSON patch (RFC 6902).

use serde_json::Value;

use crate::status_error::StatusError;

/// What one patch may cost: copies double what was copied before.
const MOST_OPERATIONS: usize = 10_000;
const MOST_COPIED_BYTES: usize = 3 * 1024 * 1024;
/// Below what the parser accepts, so that whatever is stored can be read again.
const MOST_LEVELS: usize = 120;

/// Applies operations in their order.
pub(super) fn apply(mut document: Value, operations: &[Value]) -> Result<Value, StatusError> {
    if operations.len() > MOST_OPERATIONS {
        let count = operations.len();
        return Err(StatusError::bad_request(format!("the allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {count}")));
    }
    let mut copied = 0;
    for operation in operations {
        let text = |field: &str| operation.get(field).and_then(Value::as_str);
        let (Some(verb), Some(path)) = (text("op"), text("path")) else {
            return Err(refused("an operation needs op and path"));
        };
        let value = operation.get("value");
        let done = match (verb, text("from"), value) {
            ("add", _, Some(value)) => add(&mut document, path, value.clone()),
            ("remove", ..) => take(&mut document, path).map(drop),
            ("replace", _, Some(value)) => replace(&mut document, path, value.clone()),
            ("copy", Some(from), _) => document.pointer(from).cloned().and_then(|value| {
                copied += value.to_string().len();
                if copied > MOST_COPIED_BYTES { None } else { add(&mut document, path, value) }
            }),
            ("move", Some(from), _) => take(&mut document, from).and_then(|value| add(&mut document, path, value)),
            ("test", ..) => {
                if document.pointer(path).is_none_or(|found| *found != *value.unwrap_or(&Value::Null)) {
                    return Err(refused(&format!("testing value {path} failed")));
                }
                Some(())
            }
            _ => None,
        };
        done.ok_or_else(|| refused(&format!("{verb} operation does not apply: {path}")))?;
    }
    Ok(document)
}

fn refused(why: &str) -> StatusError {
    StatusError::invalid(format!("the server rejected our request due to an error in our request: {why}"))
}

/// Adds to an object, inserts into a list, or replaces the document. None if there is no such place.
fn add(document: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.matches('/').count() + levels(&value) > MOST_LEVELS {
        return None;
    }
    if path.is_empty() {
        *document = value;
        return Some(());
    }
    let (parent, last) = split(path)?;
    match document.pointer_mut(parent)? {
        Value::Object(fields) => {
            fields.insert(last, value);
        }
        Value::Array(items) => {
            let place = if last == "-" { items.len() } else { index(&last)? };
            if place > items.len() {
                return None;
            }
            items.insert(place, value);
        }
        _ => return None,
    }
    Some(())
}

fn replace(document: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.matches('/').count() + levels(&value) > MOST_LEVELS {
        return None;
    }
    *document.pointer_mut(path)? = value;
    Some(())
}

fn take(document: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = split(path)?;
    match document.pointer_mut(parent)? {
        Value::Object(fields) => fields.remove(&last),
        Value::Array(items) => {
            let place = index(&last)?;
            (place < items.len()).then(|| items.remove(place))
        }
        _ => None,
    }
}

/// Path of the parent, and the last name unescaped.
fn split(path: &str) -> Option<(&str, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn index(text: &str) -> Option<usize> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    if plain { text.parse().ok() } else { None }
}

/// How deep a value is nested.
fn levels(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(levels).max().unwrap_or_default(),
        Value::Array(items) => 1 + items.iter().map(levels).max().unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    #[allow(clippy::needless_pass_by_value, reason = "reads better below")]
    fn operations_apply() {
        let check = |operations: Value, expected: Value| {
            let base = json!({"a": [1, 2, 3], "b": {"c/d": "x", "~": "y"}});
            assert_eq!(apply(base, operations.as_array().unwrap()).unwrap(), expected, "{operations}");
        };
        check(json!([{"op": "add", "path": "/a/1", "value": 9}]), json!({"a": [1, 9, 2, 3], "b": {"c/d": "x", "~": "y"}}));
        check(json!([{"op": "add", "path": "/a/-", "value": 9}]), json!({"a": [1, 2, 3, 9], "b": {"c/d": "x", "~": "y"}}));
        check(json!([{"op": "remove", "path": "/b/c~1d"}]), json!({"a": [1, 2, 3], "b": {"~": "y"}}));
        check(json!([{"op": "replace", "path": "/b/~0", "value": null}]), json!({"a": [1, 2, 3], "b": {"c/d": "x", "~": null}}));
        check(json!([{"op": "copy", "from": "/a/0", "path": "/b"}]), json!({"a": [1, 2, 3], "b": 1}));
        check(json!([{"op": "move", "from": "/b", "path": "/c"}, {"op": "remove", "path": "/a"}]), json!({"c": {"c/d": "x", "~": "y"}}));
        check(json!([{"op": "test", "path": "/a/2", "value": 3}, {"op": "replace", "path": "", "value": {}}]), json!({}));
    }

    #[test]
    fn operations_that_do_not_apply_are_refused() {
        for operation in [
            json!({"op": "add", "path": "/a/4", "value": 9}),
            json!({"op": "add", "path": "/a/x", "value": 9}),
            json!({"op": "add", "path": "/x/y", "value": 9}),
            json!({"op": "add", "path": "/b"}),
            json!({"op": "add", "path": "b", "value": 1}),
            json!({"op": "remove", "path": "/a/3"}),
            json!({"op": "remove", "path": ""}),
            json!({"op": "replace", "path": "/x", "value": 1}),
            json!({"op": "copy", "from": "/x", "path": "/y"}),
            json!({"op": "move", "path": "/y"}),
            json!({"op": "test", "path": "/a/0", "value": 2}),
            json!({"op": "dance", "path": "/a"}),
            json!({"path": "/a"}),
            json!(7),
        ] {
            let refusal = apply(json!({"a": [1, 2, 3], "b": 1}), std::slice::from_ref(&operation)).unwrap_err();
            assert_eq!(refusal.code(), 422, "{operation}");
        }
    }

    #[test]
    fn copies_do_not_explode() {
        let widen = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 64];
        assert!(apply(json!({"a": ["0123456789"]}), &widen).is_err());
        let nest = vec![json!({"op": "copy", "from": "", "path": "/a"}); 2 * MOST_LEVELS];
        assert!(apply(json!({}), &nest[..MOST_LEVELS - 1]).is_ok());
        assert!(apply(json!({}), &nest).is_err());
        let deepen = vec![
            json!({"op": "move", "from": "/a", "path": "/b/a"}),
            json!({"op": "move", "from": "/b", "path": "/a"}),
            json!({"op": "add", "path": "/b", "value": {}}),
        ];
        let deepen: Vec<_> = std::iter::repeat_n(deepen, 200).flatten().collect();
        assert!(apply(json!({"a": {}, "b": {}}), &deepen).is_err());
        assert_eq!(apply(json!({}), &vec![json!({}); MOST_OPERATIONS + 1]).unwrap_err().code(), 400);
    }
}
