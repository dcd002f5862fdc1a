//! The top-level fields of a request's body, to change some and leave every other byte as it is.

use std::borrow::Cow;

/// The fields of one JSON object, in the order in which they stand. A field that stands twice counts by its last value,
/// as llama-server reads it.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    /// Key and raw value.
    list: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Fields<'a> {
    /// Reads a body that is one valid JSON object; None when it is not one after all.
    pub(crate) fn of(body: &'a [u8]) -> Option<Self> {
        let body = std::str::from_utf8(body).ok()?.trim_matches(WHITE);
        let inner = body.strip_prefix('{')?.strip_suffix('}')?;
        let mut list = Vec::new();
        let mut rest = inner.trim_start_matches(WHITE);
        while !rest.is_empty() {
            let (key, behind) = split_value(rest)?;
            let key: String = serde_json::from_str(key).ok()?;
            let behind = behind.trim_start_matches(WHITE).strip_prefix(':')?.trim_start_matches(WHITE);
            let (value, behind) = split_value(behind)?;
            list.retain(|(known, _): &(Cow<'_, str>, _)| *known != key);
            list.push((Cow::Owned(key), Cow::Borrowed(value)));
            rest = match behind.trim_start_matches(WHITE) {
                "" => "",
                more => more.strip_prefix(',')?.trim_start_matches(WHITE),
            };
        }
        Some(Self { list })
    }

    /// A field's raw value; None also for `null`, which clients send for "not set".
    pub(crate) fn raw(&self, key: &str) -> Option<&str> {
        self.list.iter().find(|(known, _)| known == key).map(|(_, value)| &**value).filter(|v| *v != "null")
    }

    /// A field's value as a type; None when it is not set or something else.
    pub(crate) fn get<T: serde::de::DeserializeOwned>(&self, key: &str) -> Option<T> {
        serde_json::from_str(self.raw(key)?).ok()
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.list.retain(|(known, _)| known != key);
    }

    /// Sets a field to a raw value, in its place or at the end.
    pub(crate) fn set(&mut self, key: &'a str, raw: String) {
        match self.list.iter_mut().find(|(known, _)| known == key) {
            Some((_, value)) => *value = Cow::Owned(raw),
            None => self.list.push((Cow::Borrowed(key), Cow::Owned(raw))),
        }
    }

    /// The object as bytes.
    pub(crate) fn to_body(&self) -> Vec<u8> {
        let bytes = self.list.iter().map(|(key, value)| key.len() + value.len() + 8).sum::<usize>();
        let mut out = Vec::with_capacity(bytes);
        out.push(b'{');
        for (at, (key, value)) in self.list.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(serde_json::Value::from(&**key).to_string().as_bytes());
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
        }
        out.push(b'}');
        out
    }
}

/// JSON's white space.
const WHITE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Cuts the JSON value at the beginning of `text` off. Only where it ends is looked for, so `text` must be valid.
pub(crate) fn split_value(text: &str) -> Option<(&str, &str)> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut at = 0;
    loop {
        match bytes.get(at) {
            Some(b'"') => {
                at = string_end(bytes, at)?;
                if depth == 0 {
                    return text.split_at_checked(at);
                }
                continue;
            }
            Some(b'{' | b'[') => depth += 1,
            Some(b'}' | b']') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return text.split_at_checked(at + 1);
                }
            }
            Some(b',' | b':' | b' ' | b'\t' | b'\r' | b'\n') if depth == 0 => {
                return if at == 0 { None } else { text.split_at_checked(at) };
            }
            Some(_) => {}
            None => return if depth == 0 && at > 0 { Some((text, "")) } else { None },
        }
        at += 1;
    }
}

fn string_end(bytes: &[u8], open: usize) -> Option<usize> {
    let mut at = open + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_changed_stays_byte_for_byte() {
        let body =
            " { \"b\" : [1, {\"x\":\"]}\\\"\"}] ,\"a\":1e5,\"\\u0063\":\"ü\", \"n\":null }\n".as_bytes();
        let mut fields = Fields::of(body).unwrap();
        assert_eq!((fields.raw("a"), fields.raw("c"), fields.raw("n")), (Some("1e5"), Some("\"ü\""), None));
        fields.set("a", "7".into());
        fields.set("z", "true".into());
        fields.remove("n");
        let out = String::from_utf8(fields.to_body()).unwrap();
        assert_eq!(out, "{\"b\":[1, {\"x\":\"]}\\\"\"}],\"a\":7,\"c\":\"ü\",\"z\":true}");
        assert_eq!(Fields::of(b"{}").unwrap().to_body(), b"{}");
        assert_eq!(Fields::of(b"{\"a\":1,\"a\":2}").unwrap().to_body(), b"{\"a\":2}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in "[{}\\[\\]\":,a0 \\\\\n]{0,40}") {
            let _ = Fields::of(body.as_bytes()).map(|fields| fields.to_body());
        }

        #[test]
        fn objects_come_back_as_they_were(keys in proptest::collection::vec(".{0,6}", 0..5), text in ".{0,20}") {
            let object: serde_json::Map<String, serde_json::Value> =
                keys.into_iter().map(|key| (key, serde_json::json!([text, {"x": text}, 1.5, null]))).collect();
            let bytes = serde_json::to_vec(&object).unwrap();
            let again: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&Fields::of(&bytes).unwrap().to_body()).unwrap();
            prop_assert_eq!(again, object);
        }
    }
}
