//! The `model` a request names: read from the parsed body, never found as text in it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

/// Longest model name taken, in bytes. Hugging Face names with a file path stay far below.
const MODEL_NAME_MAX: usize = 512;

/// Why a body names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ModelFieldError {
    /// Not one JSON object.
    #[error("the body is not a JSON object: {0}")]
    NotJson(String),
    /// No top-level `model`.
    #[error("the field `model` is missing")]
    Missing,
    /// Two top-level `model` keys: two readers could see two models.
    #[error("the field `model` stands twice")]
    Twice,
    /// Not a string, empty, or too long.
    #[error("the field `model` must be a string of 1 to {MODEL_NAME_MAX} bytes")]
    NotAName,
}

/// Returns the top-level `model` of a JSON object.
///
/// Everything else is skipped without being built, at any depth, without recursion; `model` inside messages or
/// nested objects does not count. Linear in the body; allocates only when the name has escapes.
pub(crate) fn model_of(body: &[u8]) -> Result<Cow<'_, str>, ModelFieldError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let found = json
        .deserialize_map(TopLevel)
        .and_then(|found| json.end().map(|()| found))
        .map_err(|error| ModelFieldError::NotJson(error.to_string()))?;
    match found {
        Found::None => Err(ModelFieldError::Missing),
        Found::Twice => Err(ModelFieldError::Twice),
        Found::One(Name::Text(name)) if (1..=MODEL_NAME_MAX).contains(&name.len()) => Ok(name),
        Found::One(_) => Err(ModelFieldError::NotAName),
    }
}

/// Returns where the value of the top-level `model` stands in `body`, quotes included.
///
/// `body` has passed [`model_of`], so it is one valid JSON object with one such key.
pub(crate) fn model_span(body: &[u8]) -> Option<Range<usize>> {
    let mut depth = 0usize;
    let mut key: Option<Range<usize>> = None;
    let mut after_colon = false;
    let mut at = 0;
    while let Some(&byte) = body.get(at) {
        match byte {
            b'"' => {
                let end = string_end(body, at)?;
                if depth == 1 {
                    if after_colon {
                        if key.as_ref().is_some_and(|key| is_model(&body[key.clone()])) {
                            return Some(at..end);
                        }
                    } else {
                        key = Some(at..end);
                    }
                }
                at = end;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b':' if depth == 1 => after_colon = true,
            b',' if depth == 1 => after_colon = false,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Returns `body` with the top-level `model` replaced by `name`, every other byte as it was.
pub(crate) fn with_model(body: &[u8], name: &str) -> Option<Vec<u8>> {
    let span = model_span(body)?;
    let value = serde_json::to_string(name).ok()?;
    let mut out = Vec::with_capacity(body.len() - span.len() + value.len());
    out.extend_from_slice(&body[..span.start]);
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(&body[span.end..]);
    Some(out)
}

fn string_end(body: &[u8], open: usize) -> Option<usize> {
    let mut at = open + 1;
    loop {
        match body.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn is_model(key: &[u8]) -> bool {
    key == b"\"model\"" || serde_json::from_slice::<Cow<'_, str>>(key).is_ok_and(|key| key == "model")
}

enum Found<'a> {
    None,
    One(Name<'a>),
    Twice,
}

enum Name<'a> {
    Text(Cow<'a, str>),
    Other,
}

struct TopLevel;

impl<'de> Visitor<'de> for TopLevel {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let mut found = Found::None;
        while let Some(IsModel(is_model)) = map.next_key()? {
            if !is_model {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            found = match found {
                Found::None => Found::One(map.next_value()?),
                Found::One(_) | Found::Twice => {
                    map.next_value::<IgnoredAny>()?;
                    Found::Twice
                }
            };
        }
        Ok(found)
    }
}

struct IsModel(bool);

impl<'de> de::Deserialize<'de> for IsModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = IsModel;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E>(self, key: &str) -> Result<IsModel, E> {
                Ok(IsModel(key == "model"))
            }
        }
        deserializer.deserialize_str(Key)
    }
}

impl<'de> de::Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;
        impl<'de> Visitor<'de> for Value {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a model name")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name::Text(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name::Text(Cow::Owned(name.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Name<'de>, E> {
                Ok(Name::Other)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Name<'de>, E> {
                Ok(Name::Other)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Name<'de>, E> {
                Ok(Name::Other)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Name<'de>, E> {
                Ok(Name::Other)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Name<'de>, E> {
                Ok(Name::Other)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Name<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Name::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Name<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Name::Other)
            }
        }
        deserializer.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(body: &str) -> Result<String, ModelFieldError> {
        model_of(body.as_bytes()).map(Cow::into_owned)
    }

    #[test]
    fn reads_the_top_level_field_wherever_it_stands() {
        assert_eq!(model(r#"{"model":"a"}"#).unwrap(), "a");
        assert_eq!(
            model(r#" { "messages":[{"role":"user","content":"\"model\":\"b\""}], "model" : "a" } "#)
                .unwrap(),
            "a"
        );
        assert_eq!(model(r#"{"x":{"model":"b"},"y":[{"model":"c"}],"model":"a","z":"\\"}"#).unwrap(), "a");
        assert_eq!(model(r#"{"mod\u0065l":"a\/\u0062"}"#).unwrap(), "a/b");
    }

    #[test]
    fn refuses_what_could_be_read_two_ways() {
        assert_eq!(model(r#"{"model":"a","model":"a"}"#), Err(ModelFieldError::Twice));
        assert_eq!(model(r#"{"model":"a","mod\u0065l":"b"}"#), Err(ModelFieldError::Twice));
        assert_eq!(model(r#"{"model":7,"model":"b"}"#), Err(ModelFieldError::Twice));
    }

    #[test]
    fn refuses_bodies_without_a_name() {
        assert_eq!(model(r#"{"messages":[{"model":"b"}]}"#), Err(ModelFieldError::Missing));
        for value in ["7", "-7", "0.5", "null", "true", "[\"a\"]", "{\"model\":\"a\"}", "\"\""] {
            assert_eq!(model(&format!("{{\"model\":{value}}}")), Err(ModelFieldError::NotAName), "{value}");
        }
        let long = "x".repeat(MODEL_NAME_MAX + 1);
        assert_eq!(model(&format!("{{\"model\":\"{long}\"}}")), Err(ModelFieldError::NotAName));
        for body in [
            "",
            "[]",
            "\"model\"",
            "{\"model\":\"a\"",
            "{\"model\":\"a\"} x",
            "{\"model\":\"a\"}{}",
            "{'model':'a'}",
        ] {
            assert!(matches!(model(body), Err(ModelFieldError::NotJson(_))), "{body}");
        }
    }

    #[test]
    fn deep_nesting_is_skipped_without_recursion() {
        let deep = format!("{{\"x\":{}{},\"model\":\"a\"}}", "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(model(&deep).unwrap(), "a");
    }

    #[test]
    fn splices_only_the_name() {
        let body = r#"{"a":"model","m":[":",{"model":"b"}], "mod\u0065l" : "a\"b" ,"z":1e5}"#;
        let out = with_model(body.as_bytes(), "up/\"x\"").unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"a":"model","m":[":",{"model":"b"}], "mod\u0065l" : "up/\"x\"" ,"z":1e5}"#
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = model_of(&body);
            let _ = model_span(&body);
        }

        #[test]
        fn splicing_agrees_with_a_json_library(key in ".{0,8}", text in ".{0,20}", name in ".{1,12}", other in ".{1,12}") {
            prop_assume!(key != "model");
            let body = serde_json::json!({ key.clone(): { "model": text.clone() }, "model": name.clone(), "zz": [text.clone()] });
            let bytes = serde_json::to_vec(&body).unwrap();
            prop_assert_eq!(model_of(&bytes).unwrap(), name);
            let spliced: serde_json::Value = serde_json::from_slice(&with_model(&bytes, &other).unwrap()).unwrap();
            prop_assert_eq!(&spliced["model"], &serde_json::Value::String(other));
            prop_assert_eq!(&spliced["zz"], &body["zz"]);
        }
    }
}
