//! What is missing of a file, out of one HTTP answer.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::Url;

use super::error::FetchError;
use super::index::{CHUNK_BYTES, MAGIC, chunk_bytes};
use super::part::Part;
use super::progress::Meter;
use super::source::shown;
use super::stats::Counters;
use super::web::{Answer, Web, WebFault};

/// Why an answer ended before the file was whole.
#[derive(Debug)]
pub(crate) enum StreamFault {
    Web(WebFault),
    /// The disk.
    Write(io::Error),
}

impl From<WebFault> for StreamFault {
    fn from(fault: WebFault) -> Self {
        Self::Web(fault)
    }
}

/// The chunk that is coming: kept over a break, so that a line that breaks every few bytes gets on too.
#[derive(Debug, Default)]
pub(crate) struct Coming {
    index: u64,
    data: Vec<u8>,
}

impl Coming {
    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }
}

/// A file at a server.
pub(crate) struct Remote<'a> {
    pub(crate) web: &'a Web,
    pub(crate) url: &'a Url,
    pub(crate) part: &'a Arc<Part>,
    pub(crate) meter: &'a Meter,
}

impl Remote<'_> {
    /// Fetches the first run of missing chunks, and what else an answer brings that cannot be asked for in parts.
    /// Cancel safe: chunks that came are kept.
    pub(crate) async fn fetch_gap(&self, coming: &mut Coming) -> Result<(), StreamFault> {
        let Some((first, end)) = self.part.gap() else { return Ok(()) };
        if coming.index != first {
            *coming = Coming { index: first, data: Vec::new() };
        }
        let bytes = self.part.identity.bytes;
        let from = first * CHUNK_BYTES + coming.data.len() as u64;
        let until = (end * CHUNK_BYTES).min(bytes);
        let mut answer = self.web.ask(Method::GET, self.url, &self.headers(from, until)?).await?;
        self.meter.from(answer.host());
        let mut at = self.begins(&answer, from)?;
        if at != from {
            *coming = Coming { index: 0, data: Vec::new() };
        }
        while let Some(piece) = answer.next().await? {
            at = self.take(&answer, coming, at, piece).await?;
            // An answer of the whole file goes on to the next gap by itself.
            if answer.status == StatusCode::PARTIAL_CONTENT && at >= until || self.part.is_whole() {
                return Ok(());
            }
        }
        Err(WebFault::transient(format!("it ended after {at} of {bytes} bytes")).into())
    }

    fn headers(&self, from: u64, until: u64) -> Result<HeaderMap, WebFault> {
        let mut headers = HeaderMap::new();
        let identity = &self.part.identity;
        if from == 0 && until == identity.bytes {
            return Ok(headers);
        }
        let value = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| WebFault::transient("the range cannot be asked for"))
        };
        headers.insert(header::RANGE, value(&format!("bytes={from}-{}", until - 1))?);
        if let Some(validator) = &identity.validator {
            headers.insert(header::IF_RANGE, value(validator)?);
        }
        Ok(headers)
    }

    /// Where in the file the answer begins.
    fn begins(&self, answer: &Answer, wanted: u64) -> Result<u64, WebFault> {
        let identity = &self.part.identity;
        let is_partial = answer.status == StatusCode::PARTIAL_CONTENT;
        let (at, total) =
            if is_partial { content_range(&answer.headers) } else { (Some(0), answer.length()) };
        if let (Some(known), Some(now)) = (&identity.validator, answer.validator())
            && *known != now
        {
            return Err(WebFault::Changed);
        }
        if total.is_some_and(|total| total != identity.bytes) {
            if identity.sha256.is_none() {
                return Err(WebFault::Changed);
            }
            let why = format!("it has {} bytes where {} belong", total.unwrap_or(0), identity.bytes);
            return Err(WebFault::Final(FetchError::Server { host: answer.host(), why }));
        }
        let at = at.filter(|at| !is_partial || *at == wanted);
        at.ok_or_else(|| WebFault::transient("it sent another part than the one asked for"))
    }

    /// Takes up a piece that begins at `at`; where the next one begins.
    async fn take(
        &self,
        answer: &Answer,
        coming: &mut Coming,
        mut at: u64,
        mut piece: Bytes,
    ) -> Result<u64, StreamFault> {
        let bytes = self.part.identity.bytes;
        while !piece.is_empty() && at < bytes {
            let index = at / CHUNK_BYTES;
            let end = index * CHUNK_BYTES + chunk_bytes(bytes, index);
            let here = piece.split_to(piece.len().min(usize::try_from(end - at).unwrap_or(usize::MAX)));
            at += here.len() as u64;
            if self.part.has(index) {
                continue; // a server that knows no ranges sends again what is here
            }
            if coming.index != index {
                *coming = Coming { index, data: Vec::new() };
            }
            if coming.data.is_empty() {
                coming.data.reserve_exact(usize::try_from(chunk_bytes(bytes, index)).unwrap_or(0));
            }
            coming.data.extend_from_slice(&here);
            if index == 0 && coming.data.len() >= MAGIC.len() && !coming.data.starts_with(MAGIC) {
                let (what, host) = (shown(self.url), answer.host());
                return Err(WebFault::Final(FetchError::NotGguf { what, host }).into());
            }
            if at == end {
                self.write(index, std::mem::take(&mut coming.data)).await?;
            }
        }
        Ok(at)
    }

    async fn write(&self, index: u64, data: Vec<u8>) -> Result<(), StreamFault> {
        let (part, bytes) = (self.part.clone(), data.len() as u64);
        let written = tokio::task::spawn_blocking(move || part.write(index, &data)).await;
        written.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(StreamFault::Write)?;
        Counters::add(&self.meter.counters.from_servers, bytes);
        self.meter.came(bytes);
        Ok(())
    }
}

/// `bytes 5-9/100`: where it begins, and how long the whole is.
fn content_range(headers: &HeaderMap) -> (Option<u64>, Option<u64>) {
    let parse = || {
        let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
        let (range, total) = text.split_once('/')?;
        Some((range.split_once('-')?.0.trim().parse().ok(), total.trim().parse().ok()))
    };
    parse().unwrap_or((None, None))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(of("bytes 5-9/100"), (Some(5), Some(100)));
        assert_eq!(of("bytes 5-9/*"), (Some(5), None));
        for odd in ["bytes */100", "items 1-2/3", "bytes", "bytes -/-", "bytes 99999999999999999999-1/2"] {
            assert_eq!(of(odd).0, None, "{odd}");
        }
    }
}
