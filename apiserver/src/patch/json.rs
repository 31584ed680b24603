//! JSON patch (RFC 6902), with the limits of kube-apiserver.

use std::slice;

use json_patch::PatchOperation;
use serde_json::Value;

use crate::status_error::StatusError;

/// The limits of one patch. Copies can double the document with every operation.
const MAX_OPERATIONS: usize = 10_000;
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;
/// Nesting levels of a document. Lower than the limit of the JSON parser, so that the server can parse what it stores.
const MAX_LEVELS: usize = 120;

/// Applies operations in their order.
pub(super) fn apply(mut document: Value, operations: &[Value]) -> Result<Value, StatusError> {
    if operations.len() > MAX_OPERATIONS {
        let count = operations.len();
        let message = format!("the allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}");
        return Err(StatusError::bad_request(message));
    }
    let mut copied_bytes = 0;
    for operation in operations {
        let operation = decode(operation)?;
        if let PatchOperation::Copy(copy) = &operation {
            copied_bytes += document.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
        }
        if copied_bytes > MAX_COPIED_BYTES || levels_after(&document, &operation) > MAX_LEVELS {
            return Err(invalid(&format!("the document becomes too large: {}", operation.path())));
        }
        // A failed operation leaves a partly changed document, which is dropped here.
        json_patch::patch_unsafe(&mut document, slice::from_ref(&operation)).map_err(|error| match operation {
            PatchOperation::Test(test) => invalid(&format!("testing value {} failed", test.path)),
            _ => invalid(&error.to_string()),
        })?;
    }
    Ok(document)
}

/// Decodes an operation. Like kube-apiserver, accepts `test` without a value as a test for null.
fn decode(operation: &Value) -> Result<PatchOperation, StatusError> {
    let mut operation = operation.clone();
    if let Some(fields) = operation.as_object_mut().filter(|fields| fields.get("op").is_some_and(|op| op == "test")) {
        fields.entry("value").or_insert(Value::Null);
    }
    serde_json::from_value(operation).map_err(|error| invalid(&format!("invalid operation: {error}")))
}

/// How deep the value of an operation is nested after it is added at its path; 0 if the operation adds no value.
fn levels_after(document: &Value, operation: &PatchOperation) -> usize {
    let value = match operation {
        PatchOperation::Add(add) => Some(&add.value),
        PatchOperation::Replace(replace) => Some(&replace.value),
        PatchOperation::Copy(copy) => document.pointer(copy.from.as_str()),
        PatchOperation::Move(moved) => document.pointer(moved.from.as_str()),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    };
    value.map_or(0, |value| operation.path().count() + levels(value))
}

fn invalid(why: &str) -> StatusError {
    StatusError::invalid(format!("the server rejected our request due to an error in our request: {why}"))
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
    #[allow(clippy::needless_pass_by_value, reason = "the calls are shorter")]
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
        check(json!([{"op": "replace", "path": "", "value": {"n": null}}, {"op": "test", "path": "/n"}]), json!({"n": null}));
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
            let error = apply(json!({"a": [1, 2, 3], "b": 1}), slice::from_ref(&operation)).unwrap_err();
            assert_eq!(error.code(), 422, "{operation}");
        }
    }

    #[test]
    fn copies_and_moves_are_limited() {
        let widen = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 64];
        assert!(apply(json!({"a": ["0123456789"]}), &widen).is_err());
        let nest = vec![json!({"op": "copy", "from": "", "path": "/a"}); 2 * MAX_LEVELS];
        assert!(apply(json!({}), &nest[..MAX_LEVELS - 1]).is_ok());
        assert!(apply(json!({}), &nest).is_err());
        let deepen = vec![
            json!({"op": "move", "from": "/a", "path": "/b/a"}),
            json!({"op": "move", "from": "/b", "path": "/a"}),
            json!({"op": "add", "path": "/b", "value": {}}),
        ];
        let deepen: Vec<_> = std::iter::repeat_n(deepen, 200).flatten().collect();
        assert!(apply(json!({"a": {}, "b": {}}), &deepen).is_err());
        assert_eq!(apply(json!({}), &vec![json!({}); MAX_OPERATIONS + 1]).unwrap_err().code(), 400);
    }
}
