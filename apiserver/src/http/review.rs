//! Answers access reviews and token reviews.

use serde_json::{Value, json};

use crate::faults::Faults;
use crate::object::Object;
use crate::resource::{REVIEWS, VERSION, group_version};
use crate::status_error::USER;

/// The kind of review at a path; `None` if the path belongs to no review.
pub(super) fn find_kind(group: &str, version: &str, plural: &str) -> Option<&'static str> {
    let found = REVIEWS.iter().find(|review| review.0 == group && review.1 == plural && version == VERSION);
    found.map(|(.., kind)| *kind)
}

/// Fills in the status of a review. A body that is not valid JSON counts as an empty review.
pub(super) fn answer(faults: &Faults, group: &str, kind: &str, body: &[u8]) -> Value {
    let mut review = serde_json::from_slice::<Object>(body).unwrap_or_default();
    let status = match kind {
        "TokenReview" => json!({"authenticated": true, "user": {"username": USER}}),
        "SelfSubjectReview" => json!({"userInfo": {"username": USER}}),
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}], "nonResourceRules": [], "incomplete": false,
        }),
        _ if is_denied(faults, &review) => json!({"allowed": false}),
        _ => json!({"allowed": true, "reason": "everything is allowed"}),
    };
    review.insert("kind".into(), kind.into());
    review.insert("apiVersion".into(), group_version(group).into());
    review.entry("metadata").or_insert_with(|| json!({}));
    review.insert("status".into(), status);
    Value::Object(review)
}

/// True if a test denied the verb and resource of an access review.
fn is_denied(faults: &Faults, review: &Object) -> bool {
    let attributes = review.get("spec").and_then(|spec| spec.get("resourceAttributes"));
    let text = |field: &str| attributes.and_then(|attributes| attributes.get(field)).and_then(Value::as_str).unwrap_or_default();
    match text("subresource") {
        "" => faults.denies(text("verb"), text("resource")),
        subresource => faults.denies(text("verb"), &format!("{}/{subresource}", text("resource"))),
    }
}
