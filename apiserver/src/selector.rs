//! Parses and matches label selectors and field selectors.

use crate::object::Entry;
use crate::resource::Resource;
use crate::status_error::StatusError;

/// A label selector and a field selector.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    /// Label keys and conditions.
    labels: Vec<(String, LabelCondition)>,
    /// Fields, whether they must be equal or unequal, and values.
    fields: Vec<(SelectorField, bool, String)>,
}

/// The condition on one label.
#[derive(Debug, PartialEq, Eq)]
enum LabelCondition {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// A field in a field selector.
#[derive(Debug, PartialEq, Eq)]
enum SelectorField {
    Name,
    Namespace,
    /// Index in `Row::fields` of the resource.
    Other(usize),
}

impl Selector {
    /// Parses a label selector and a field selector.
    pub(crate) fn parse(resource: Resource, labels: &str, fields: &str) -> Result<Self, StatusError> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(resource, fields)? })
    }

    /// Selects the object of this name.
    pub(crate) fn name(name: &str) -> Self {
        Self { labels: Vec::new(), fields: vec![(SelectorField::Name, true, name.to_owned())] }
    }

    /// True if the selector has no conditions.
    pub(crate) const fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        let label = |key: &str| entry.labels.iter().find(|(name, _)| **name == *key).map(|(_, value)| &**value);
        let is_in = |value: &str, values: &[String]| values.iter().any(|listed| listed == value);
        let labels = self.labels.iter().all(|(key, condition)| match (condition, label(key)) {
            (LabelCondition::In(values), Some(value)) => is_in(value, values),
            (LabelCondition::NotIn(values), Some(value)) => !is_in(value, values),
            (LabelCondition::Exists, value) => value.is_some(),
            (LabelCondition::Absent, value) => value.is_none(),
            (LabelCondition::In(_), None) => false,
            (LabelCondition::NotIn(_), None) => true,
        });
        labels
            && self.fields.iter().all(|(field, equal, condition)| {
                let value = match field {
                    SelectorField::Name => &entry.key.name,
                    SelectorField::Namespace => &entry.key.namespace,
                    SelectorField::Other(index) => &entry.fields[*index],
                };
                (**value == **condition) == *equal
            })
    }
}

fn parse_labels(text: &str) -> Result<Vec<(String, LabelCondition)>, StatusError> {
    let mut depth = 0_i32;
    let parts = text.split(|character| {
        depth += i32::from(character == '(') - i32::from(character == ')');
        character == ',' && depth <= 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).map(parse_label).collect()
}

fn parse_label(part: &str) -> Result<(String, LabelCondition), StatusError> {
    let bad = || StatusError::bad_request(format!("unable to parse requirement: {part}"));
    let is_key = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._/-".contains(c));
    let (key, condition) = if let Some(key) = part.strip_prefix('!') {
        (key.trim(), LabelCondition::Absent)
    } else if let Some((key, equal, value)) = split_equality(part) {
        let values = vec![value.to_owned()];
        (key, if equal { LabelCondition::In(values) } else { LabelCondition::NotIn(values) })
    } else if let Some((key, condition)) = part.split_once(char::is_whitespace) {
        let (operator, values) = condition.trim().strip_suffix(')').and_then(|text| text.split_once('(')).ok_or_else(bad)?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        match operator.trim() {
            "in" => (key, LabelCondition::In(values)),
            "notin" => (key, LabelCondition::NotIn(values)),
            _ => return Err(bad()),
        }
    } else {
        (part, LabelCondition::Exists)
    };
    if is_key(key) { Ok((key.to_owned(), condition)) } else { Err(bad()) }
}

fn parse_fields(resource: Resource, text: &str) -> Result<Vec<(SelectorField, bool, String)>, StatusError> {
    let parse = |part: &str| {
        let bad = || StatusError::bad_request(format!("invalid selector: '{part}'; can't understand '{part}'"));
        let (path, equal, value) = split_equality(part).ok_or_else(bad)?;
        let field = match path {
            "metadata.name" => SelectorField::Name,
            "metadata.namespace" => SelectorField::Namespace,
            _ => resource
                .fields
                .iter()
                .position(|field| *field == path)
                .map(SelectorField::Other)
                .ok_or_else(|| StatusError::bad_request(format!("field label not supported: {path}")))?,
        };
        Ok((field, equal, value.to_owned()))
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(parse).collect()
}

/// Splits `key=value`, `key==value` or `key!=value` into the key, whether values must be equal, and the value.
fn split_equality(part: &str) -> Option<(&str, bool, &str)> {
    let (before, after) = part.split_once('=')?;
    let (key, equal, value) = match before.strip_suffix('!') {
        Some(key) => (key, false, after),
        None => (before, true, after.strip_prefix('=').unwrap_or(after)),
    };
    let (key, value) = (key.trim(), value.trim());
    let is_one_word = |text: &str| !text.contains(char::is_whitespace);
    (!key.is_empty() && is_one_word(key) && is_one_word(value)).then_some((key, equal, value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(labels: &str, fields: &str) -> bool {
        let services = Resource::named("services").unwrap();
        let object = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "tier": "front", "empty": ""}},
            "spec": {"clusterIP": "10.96.0.10", "type": "ClusterIP"},
        });
        let entry = Entry::new(services, object.as_object().unwrap().clone(), 1);
        Selector::parse(services, labels, fields).unwrap().matches(&entry)
    }

    #[test]
    fn labels_are_compared() {
        for selector in [
            "",
            "app=web",
            "app==web",
            "app = web",
            "app!=db",
            "other!=x",
            "app in (db, web)",
            "app in(web)",
            "app notin (db)",
            "other notin (web)",
            "app",
            "!other",
            "! other",
            "empty=",
            "app=web,tier in (front,back),!other",
        ] {
            assert!(matches(selector, ""), "{selector}");
        }
        for selector in
            ["app=db", "app!=web", "other=x", "app in (db)", "other in (web)", "app notin (db,web)", "other", "!app", "app=web,tier=back"]
        {
            assert!(!matches(selector, ""), "{selector}");
        }
    }

    #[test]
    fn fields_are_compared() {
        for selector in
            ["", "metadata.name=web", "metadata.namespace==shop", "spec.clusterIP!=None", "spec.type=ClusterIP,metadata.name!=db"]
        {
            assert!(matches("", selector), "{selector}");
        }
        for selector in ["metadata.name=db", "metadata.namespace!=shop", "spec.type=NodePort", "spec.type=ClusterIP,metadata.name=db"] {
            assert!(!matches("", selector), "{selector}");
        }
    }

    #[test]
    fn invalid_selectors_are_refused() {
        let services = Resource::named("services").unwrap();
        for labels in ["a b", "a in b", "a in (b", "a within (b)", "!", "=b", "a=b c", "a b in (c)", "(", ")", "ä"] {
            assert_eq!(Selector::parse(services, labels, "").unwrap_err().code(), 400, "{labels}");
        }
        for (fields, message) in [
            ("metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
            ("spec.nodeName=x", "field label not supported: spec.nodeName"),
        ] {
            assert_eq!(Selector::parse(services, "", fields).unwrap_err().to_string(), message);
        }
    }
}
