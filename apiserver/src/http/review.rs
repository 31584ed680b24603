//! Reviews: what may I do, and who am I.

use serde_json::{Value, json};

use crate::faults::Faults;
use crate::object::Object;
use crate::refusal::USER;
use crate::resource::{REVIEWS, VERSION, group_version};

/// The kind of review at a path.
pub(super) fn kind(group: &str, version: &str, plural: &str) -> Option<&'static str> {
    let found = REVIEWS.iter().find(|(one, name, _)| *one == group && *name == plural && version == VERSION);
    found.map(|(.., kind)| *kind)
}

/// Answers a review. One that cannot be read asks for nothing in particular.
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

fn is_denied(faults: &Faults, review: &Object) -> bool {
    let asked = review.get("spec").and_then(|spec| spec.get("resourceAttributes"));
    let text = |field: &str| asked.and_then(|asked| asked.get(field)).and_then(Value::as_str).unwrap_or_default();
    match text("subresource") {
        "" => faults.denies(text("verb"), text("resource")),
        subresource => faults.denies(text("verb"), &format!("{}/{subresource}", text("resource"))),
    }
}
