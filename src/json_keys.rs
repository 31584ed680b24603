//! JSON with keys in any case, decoded as Go's `encoding/json` does. PURE.
//!
//! - A key matches a field in any case, at every level.
//! - When one key comes twice, the last value counts. Objects that are decoded into a struct or a map are merged, and so are the items
//!   of lists at the same place.
//! - `null` does not change a text, a number or a struct. It clears an `Option`, a list or a map.
//!
//! [`from_slice`] and [`from_value`] do this for every type that derives `Deserialize`. [`Json`] holds a whole document, with its keys in
//! their order. The keys of a struct with `#[serde(flatten)]` match only in their own case, because serde decodes such a struct as a map.

use std::fmt;
use std::vec;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Error, Map, Value};

/// A JSON value. Objects keep all keys in the order in which they were written, also a key that comes twice.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`, a boolean, a number or a text.
    Scalar(Value),
    /// A list.
    List(Vec<Json>),
    /// An object.
    Object(Vec<(String, Json)>),
}

/// Decodes a document.
///
/// # Errors
/// The text is not JSON, or a value has another type than its field.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    serde_json::from_slice::<Json>(text)?.decode()
}

/// Decodes a value that is already parsed.
///
/// # Errors
/// A value has another type than its field.
pub(crate) fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    Json::from(value).decode()
}

/// Returns true if a key of a document names a field. Like Go, it uses Unicode's simple case folding: `ſ` is an s and the Kelvin sign a k.
#[must_use]
pub fn matches(key: &str, field: &str) -> bool {
    key == field || key.chars().map(fold).eq(field.chars().map(fold))
}

const fn fold(letter: char) -> char {
    match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        _ => letter.to_ascii_lowercase(),
    }
}

impl Json {
    /// Decodes the value.
    ///
    /// # Errors
    /// A value has another type than its field.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(self.decoder())
    }

    /// Returns a decoder for the value, for callers that decode with a wrapper such as `serde_path_to_error`.
    #[must_use]
    pub fn decoder(&self) -> impl Deserializer<'static, Error = Error> {
        FieldValues(vec![self])
    }

    const fn is_null(&self) -> bool {
        matches!(self, Self::Scalar(Value::Null))
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        match value {
            Value::Array(list) => Self::List(list.iter().map(Self::from).collect()),
            Value::Object(map) => map.into(),
            scalar => Self::Scalar(scalar.clone()),
        }
    }
}

impl From<&Map<String, Value>> for Json {
    fn from(map: &Map<String, Value>) -> Self {
        Self::Object(map.iter().map(|(key, value)| (key.clone(), value.into())).collect())
    }
}

impl From<&Json> for Value {
    /// If a key comes twice, keeps its last value.
    fn from(json: &Json) -> Self {
        match json {
            Json::Scalar(scalar) => scalar.clone(),
            Json::List(list) => Self::Array(list.iter().map(Self::from).collect()),
            Json::Object(entries) => Self::Object(entries.iter().map(|(key, value)| (key.clone(), value.into())).collect()),
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Scalar(scalar) => scalar.serialize(serializer),
            Self::List(list) => list.serialize(serializer),
            Self::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Scalar(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Scalar(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Scalar(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
                Ok(Json::Scalar(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Scalar(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::Scalar(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Json::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Json::Object(entries))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// All values that a document gives to one field, in their order. There is at least one.
struct FieldValues<'a>(Vec<&'a Json>);

impl<'a> FieldValues<'a> {
    /// Returns the values after the last `null`, for types that `null` clears.
    fn since_null(&self) -> &[&'a Json] {
        let start = self.0.iter().rposition(|value| value.is_null()).map_or(0, |at| at + 1);
        &self.0[start..]
    }

    /// Returns the entries of all objects. Fails with the first value that is not an object.
    fn merged(values: impl Iterator<Item = &'a Json>) -> Result<Vec<(&'a str, &'a Json)>, Value> {
        let mut merged = Vec::new();
        for value in values {
            match value {
                Json::Object(entries) => merged.extend(entries.iter().map(|(key, value)| (key.as_str(), value))),
                Json::List(_) => return Err(value.into()),
                Json::Scalar(scalar) => return Err(scalar.clone()),
            }
        }
        Ok(merged)
    }

    /// Decodes the last value that is not `null`; `fits` returns true if a value has the type of the field. Without such a
    /// value, the field is empty.
    fn scalar<'de, V: Visitor<'de>>(self, visitor: V, empty: Value, fits: impl Fn(&Value) -> bool) -> Result<V::Value, Error> {
        let unfit = |value: &&&Json| !value.is_null() && !matches!(value, Json::Scalar(scalar) if fits(scalar));
        let value = self.0.iter().find(unfit).or_else(|| self.0.iter().rfind(|value| !value.is_null()));
        value.map_or(empty, |value| Value::from(*value)).deserialize_any(visitor)
    }
}

macro_rules! scalars {
    ($empty:expr, $fits:expr => $($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.scalar(visitor, $empty, $fits)
        }
    )*};
}

impl<'de> Deserializer<'de> for FieldValues<'_> {
    type Error = Error;

    scalars!(Value::from(""), Value::is_string => deserialize_str deserialize_string deserialize_char deserialize_identifier);
    scalars!(Value::from(false), Value::is_boolean => deserialize_bool);
    scalars!(Value::from(0), Value::is_number =>
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_f32 deserialize_f64);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.0.last().map_or(Value::Null, |value| Value::from(*value)).deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let values = self.since_null();
        if values.is_empty() { visitor.visit_none() } else { visitor.visit_some(FieldValues(values.to_vec())) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut lists: Vec<&[Json]> = Vec::new();
        for value in self.since_null() {
            match value {
                Json::List(list) if list.is_empty() => lists.clear(),
                Json::List(list) => lists.push(list),
                other => return Value::from(*other).deserialize_any(visitor),
            }
        }
        visitor.visit_seq(Items { lists, at: 0 })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match Self::merged(self.since_null().iter().copied()) {
            Ok(entries) => {
                let fields = entries.into_iter().map(|(key, value)| (key, vec![value])).collect::<Vec<_>>();
                visitor.visit_map(Entries { fields: fields.into_iter(), values: Vec::new() })
            }
            Err(other) => other.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        let entries = match Self::merged(self.0.into_iter().filter(|value| !value.is_null())) {
            Ok(entries) => entries,
            // A derived struct would accept a list, field by field.
            Err(Value::Array(_)) => return Err(Error::invalid_type(Unexpected::Seq, &visitor)),
            Err(other) => return other.deserialize_any(visitor),
        };
        let given = |field: &&'static str| {
            let values: Vec<&Json> = entries.iter().filter(|(key, _)| matches(key, field)).map(|(_, value)| *value).collect();
            (!values.is_empty()).then_some((*field, values))
        };
        let fields = fields.iter().filter_map(given).collect::<Vec<_>>();
        visitor.visit_map(Entries { fields: fields.into_iter(), values: Vec::new() })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct enum ignored_any
    }
}

/// The items of a list. Where a key comes twice, Go decodes the second list over the items of the first one, and then cuts off the rest.
struct Items<'a> {
    lists: Vec<&'a [Json]>,
    at: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.size_hint() == Some(0) {
            return Ok(None);
        }
        let values = self.lists.iter().filter_map(|list| list.get(self.at)).collect();
        self.at += 1;
        seed.deserialize(FieldValues(values)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        self.lists.last().map_or(Some(0), |last| last.len().checked_sub(self.at))
    }
}

/// The keys of an object, each with all its values.
struct Entries<'a> {
    fields: vec::IntoIter<(&'a str, Vec<&'a Json>)>,
    values: Vec<&'a Json>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, values)) = self.fields.next() else { return Ok(None) };
        self.values = values;
        seed.deserialize(StrDeserializer::<Error>::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let values = std::mem::take(&mut self.values);
        if values.is_empty() { Err(Error::custom("a value without a key")) } else { seed.deserialize(FieldValues(values)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Outer {
        host_port: i64,
        is_gateway: bool,
        bridge: String,
        mask: Option<bool>,
        gateway: Option<IpAddr>,
        ipam: Inner,
        other: Option<Inner>,
        list: Vec<Inner>,
        names: BTreeMap<String, String>,
        delegate: Option<Map<String, Value>>,
        any: Option<Value>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Inner {
        kind: String,
        size: u8,
    }

    fn read(text: &str) -> Outer {
        from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn keys_match_in_any_case_at_every_level() {
        let found =
            read(r#"{"HostPort":80,"ISGATEWAY":true,"maſK":true,"IPAM":{"Kind":"a","\u212aIND":"b"},"List":[{"KinD":"c","SIZE":3}]}"#);
        assert_eq!((found.host_port, found.is_gateway, found.mask), (80, true, Some(true)));
        assert_eq!((found.ipam.kind.as_str(), found.list[0].kind.as_str(), found.list[0].size), ("b", "c", 3));
        assert!(matches("MTU", "mtu") && matches("host_port", "HOST_port"));
        assert!(!matches("hostport", "host_port") && !matches("\u{131}pam", "ipam") && !matches("ÄB", "äb") && !matches("mtu ", "mtu"));
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        assert_eq!(read(r#"{"bridge":"a","Bridge":"b"}"#).bridge, "b");
        assert_eq!(read(r#"{"Bridge":"b","bridge":"a","BRIDGE":"c"}"#).bridge, "c");
        assert_eq!(read(r#"{"ipam":{"kind":"a","size":3},"Ipam":{"Size":4}}"#).ipam, Inner { kind: "a".into(), size: 4 });
        assert_eq!(read(r#"{"other":{"kind":"a"},"OTHER":{"size":4}}"#).other, Some(Inner { kind: "a".into(), size: 4 }));
        let list = |text: &str| read(text).list.into_iter().map(|item| (item.kind, item.size)).collect::<Vec<_>>();
        assert_eq!(list(r#"{"list":[{"kind":"a"},{"kind":"b"}],"list":[{"kind":"c"}]}"#), [("c".into(), 0)]);
        assert_eq!(list(r#"{"list":[{"kind":"a"}],"List":[{"size":2},{"size":3}]}"#), [("a".into(), 2), (String::new(), 3)]);
        assert_eq!(list(r#"{"list":[{"kind":"a"}],"list":[],"List":[{"size":2}]}"#), [(String::new(), 2)]);
        let names = read(r#"{"names":{"a":"1","A":"2"},"Names":{"a":"3","b":"4"}}"#).names;
        assert_eq!(names, BTreeMap::from([("A", "2"), ("a", "3"), ("b", "4")].map(|(key, value)| (key.into(), value.into()))));
        let delegate = read(r#"{"delegate":{"MTU":1,"mtu":2,"dns":{"a":1}},"Delegate":{"mtu":3,"dns":{"b":1}}}"#).delegate;
        assert_eq!(delegate.map(Value::from), Some(json!({"MTU": 1, "mtu": 3, "dns": {"b": 1}})));
    }

    #[test]
    fn null_keeps_or_empties_a_field() {
        let nulls = r#"{"hostPort":null,"isGateway":null,"bridge":null,"mask":null,"ipam":null,"other":null,"list":null,"names":null,"delegate":null,"any":null}"#;
        assert_eq!(read(nulls), Outer::default());
        let kept = read(
            r#"{"hostPort":5,"hostPort":null,"bridge":"a","Bridge":null,"isGateway":true,"isGateway":null,"ipam":{"size":1},"ipam":null}"#,
        );
        assert_eq!((kept.host_port, kept.bridge.as_str(), kept.is_gateway, kept.ipam.size), (5, "a", true, 1));
        let gone = read(
            r#"{"mask":true,"mask":null,"gateway":"10.0.0.1","gateway":null,"other":{"size":1},"other":null,"list":[{}],"list":null,"names":{"a":"b"},"names":null,"any":1,"any":null}"#,
        );
        assert_eq!(gone, Outer::default());
        assert_eq!(read(r#"{"other":{"size":1},"other":null,"other":{"kind":"a"}}"#).other, Some(Inner { kind: "a".into(), size: 0 }));
        assert_eq!(read(r#"{"list":[null,{"size":2}]}"#).list[0], Inner::default());
        assert_eq!(read("null"), Outer::default());
    }

    #[test]
    fn values_of_another_type_are_refused() {
        for (text, words) in [
            (r#"{"bridge":5}"#, "invalid type: integer `5`, expected a string"),
            (r#"{"bridge":5,"bridge":"a"}"#, "invalid type: integer `5`, expected a string"),
            (r#"{"HostPort":1.5}"#, "invalid type: floating point `1.5`, expected i64"),
            (r#"{"ipam":[]}"#, "invalid type: sequence, expected struct Inner"),
            (r#"{"ipam":"a"}"#, "invalid type: string \"a\", expected struct Inner"),
            (r#"{"list":{"kind":"a"}}"#, "invalid type: map, expected a sequence"),
            (r#"{"names":5}"#, "invalid type: integer `5`, expected a map"),
            (r#"{"Gateway":"x"}"#, "invalid IP address syntax"),
            (r#"{"ipam":{"size":300}}"#, "invalid value: integer `300`, expected u8"),
        ] {
            let error = from_slice::<Outer>(text.as_bytes()).expect_err(text).to_string();
            assert!(error.starts_with(words), "{text}: {error}");
        }
    }

    #[test]
    fn documents_keep_order_and_duplicate_keys() {
        let text = r#"{"b":1,"B":[1.5,null,{"z":true,"a":"x"}],"a":-2,"b":{}}"#;
        let json: Json = serde_json::from_str(text).expect("JSON");
        assert_eq!(serde_json::to_string(&json).expect("JSON"), text);
        assert_eq!(Value::from(&json), json!({"B": [1.5, null, {"z": true, "a": "x"}], "a": -2, "b": {}}));
        let value = json!({"Bridge": "x", "bridge": "y"});
        assert_eq!(from_value::<Outer>(&value).expect("good").bridge, "y");
    }
}
