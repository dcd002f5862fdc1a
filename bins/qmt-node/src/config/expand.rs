//! `${VAR}`, `${VAR:-default}` and a leading `~` in strings.

use std::collections::BTreeMap;

/// The text with its variables and its leading `~` replaced; as error, why that cannot be. Values are not expanded again.
pub(super) fn expand(text: &str, vars: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    if let Some(after) = text.strip_prefix('~').filter(|after| after.is_empty() || after.starts_with('/')) {
        out.push_str(set(vars, "HOME").ok_or("~ cannot be expanded: HOME is not set")?);
        rest = after;
    }
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let (inside, after) = after.split_once('}').ok_or("a ${ has no closing }")?;
        let (name, default) =
            inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name {
            return Err(format!(
                "${{{inside}}} names no variable (expected ${{NAME}} or ${{NAME:-default}})"
            ));
        }
        match (set(vars, name), default) {
            (Some(value), _) => out.push_str(value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "the variable {name} is not set (set it, or write ${{{name}:-default}})"
                ));
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// As in a shell's `:-`, an empty variable counts as unset.
fn set<'a>(vars: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
}
