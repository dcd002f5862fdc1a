//! `[inference]` and `[[providers]]`: models of this node and of other servers.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use crate::config::reader::{Document, Section, found};
use crate::config::types::*;

pub(super) fn inference(document: &Document<'_>, config: &mut Config) {
    let table = document.section("inference");
    let inference = &mut config.inference;
    inference.models = table
        .words("models")
        .into_iter()
        .map(|model| model_name(&model, |path| document.resolve(path)))
        .collect();
    let dirs = table.words("model_dirs");
    if table.has("model_dirs") {
        inference.model_dirs = dirs.iter().map(|dir| document.resolve(dir)).collect();
    }
    if let Some(gigabytes) = table.float("max_vram") {
        inference.max_vram_bytes = gigabytes_to_bytes(gigabytes);
        if inference.max_vram_bytes.is_none() {
            table.wrong("max_vram", MAX_VRAM, gigabytes);
        }
    }
    inference.ctx_size = table.u32("ctx_size", 1..=16_777_216);
    inference.slots = table.u32("slots", 1..=64);
    inference.threads = table.u32("threads", 1..=1024);
    inference.split = table.bool("split").unwrap_or_default();
    inference.draft = match table.value("draft") {
        Some(DeValue::Boolean(true)) | None => Draft::Auto,
        Some(DeValue::Boolean(false)) => Draft::Off,
        Some(DeValue::String(_)) => table.path("draft").map_or(Draft::Auto, Draft::Path),
        Some(other) => {
            table.wrong("draft", "a path, true or false", found(other));
            Draft::Auto
        }
    };
    inference.draft_max = table.u32("draft_max", 1..=1024);
    inference.device = table.word("device");
    inference.tensor_split = table.word("tensor_split");
    if inference.tensor_split.as_deref().is_some_and(|shares| !is_shares(shares)) {
        table.wrong("tensor_split", SHARES, "that text");
    }
    inference.bin_dir = table.path("bin_dir");
    inference.share = share(&table);
    inference.lend = table.bool("lend").unwrap_or(true);
    inference.assign = table.bool("assign").unwrap_or(true);
    inference.calibrate = table.bool("calibrate").unwrap_or(true);
    let times = &mut inference.election;
    for (key, time) in [
        ("debounce_secs", &mut times.debounce),
        ("left_out_secs", &mut times.left_out_for),
        ("patience_secs", &mut times.patience),
    ] {
        let Some(seconds) = table.float(key) else { continue };
        match Duration::try_from_secs_f64(seconds) {
            Ok(read) if read <= ELECTION_TIME_MAX => *time = read,
            _ => table.wrong(key, "a number of seconds from 0 to 3600", seconds),
        }
    }
}

/// Longer than any patience of people.
const ELECTION_TIME_MAX: Duration = Duration::from_secs(3600);
pub(in crate::config) const MAX_VRAM: &str = "a number of GB (10^9 bytes) above 0";
pub(in crate::config) const SHARES: &str = "shares such as \"3,1\"";

pub(in crate::config) fn gigabytes_to_bytes(gigabytes: f64) -> Option<u64> {
    let bytes = gigabytes * 1e9;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    (1.0..1e18).contains(&bytes).then_some(bytes as u64)
}

pub(in crate::config) fn is_shares(text: &str) -> bool {
    let is_share =
        |share: &str| share.trim().parse::<f64>().is_ok_and(|share| share.is_finite() && share >= 0.0);
    text.split(',').all(is_share)
}

/// Paths are made absolute; names, `org/repo/file.gguf` and URLs stay as they are.
pub(in crate::config) fn model_name(model: &str, resolve: impl Fn(&str) -> PathBuf) -> String {
    let is_path = ["/", "./", "../"].iter().any(|start| model.starts_with(start));
    if is_path { resolve(model).display().to_string() } else { model.to_owned() }
}

fn share(table: &Section<'_>) -> Share {
    let choices = [("none", Share::None), ("members", Share::Members), ("clients", Share::Clients)];
    table.choice("share", &choices).unwrap_or(Share::Members)
}

pub(super) fn provider(document: &Document<'_>, table: &Section<'_>) -> Option<Provider> {
    let name = table.needed("name");
    let kinds = [("openai", ProviderKind::OpenAi), ("anthropic", ProviderKind::Anthropic)];
    let kind = table.choice("kind", &kinds).unwrap_or(ProviderKind::OpenAi);
    let public = match kind {
        ProviderKind::OpenAi => "https://api.openai.com/v1",
        ProviderKind::Anthropic => "https://api.anthropic.com/v1",
    };
    let written = table.word("base_url");
    let url: Option<http::Uri> = written.as_deref().unwrap_or(public).parse().ok();
    let url = url.filter(|url| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
    });
    if url.is_none() {
        table.wrong("base_url", "an http or https URL such as http://127.0.0.1:8000/v1", "that text");
    }
    let api_key = table.word("api_key_env").and_then(|variable| {
        let value = document.variable(&variable);
        if value.is_none() {
            let message = format!("api_key_env in [[providers]]: the variable {variable} is not set");
            document.problem(table.line_of("api_key_env"), message);
        }
        value.map(Secret::new)
    });
    let (models, share) = (table.words("models"), share(table));
    let count = |key| table.number(key, 1..=COUNT_MAX).and_then(NonZeroU64::new);
    let quota =
        Quota { requests_per_minute: count("requests_per_minute"), tokens_per_day: count("tokens_per_day") };
    let price = price(document, table);
    Some(Provider { name: name?, kind, base_url: url?, api_key, models, share, quota, price })
}

/// Above what any provider sells in a day; beyond it counting in floats would lose single tokens.
const COUNT_MAX: u64 = 1_000_000_000_000;

fn price(document: &Document<'_>, table: &Section<'_>) -> Option<Price> {
    let one = |key: &'static str| {
        let price = table.float(key)?;
        let is_price = price.is_finite() && price >= 0.0;
        if !is_price {
            table.wrong(key, "a price of a million tokens, 0 or more", price);
        }
        is_price.then_some(price)
    };
    let (input, output, cached) = (one("input_price"), one("output_price"), one("cached_price"));
    for (key, other) in
        [("input_price", "output_price"), ("output_price", "input_price"), ("cached_price", "input_price")]
    {
        if table.has(key) && !table.has(other) {
            let message = format!("{key} in {} needs {other} beside it", table.head());
            document.problem(table.line_of(key), message);
        }
    }
    Some(Price { input: input?, output: output?, cached })
}
