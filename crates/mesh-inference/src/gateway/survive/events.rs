//! Server-sent events as bytes: where one ends, and what its `data:` lines say.

use std::borrow::Cow;

use bytes::Bytes;

/// Largest event held back until it is complete, in bytes. Tokens are a few hundred; whatever is longer passes as it comes.
const HELD_MAX: usize = 1024 * 1024;

/// Holds back the event that a stream is in the middle of, so that nobody is left with half of one.
#[derive(Debug, Default)]
pub(crate) struct Held {
    half: Vec<u8>,
}

/// An event longer than what is held back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong(pub(crate) Bytes);

impl Held {
    /// Takes the next piece of a stream; returns the whole events that stand there now, empty when there are none.
    ///
    /// A piece that ends with an event, as nearly all do, passes without a copy.
    pub(crate) fn pass(&mut self, piece: Bytes) -> Result<Bytes, TooLong> {
        if self.half.is_empty() {
            let end = events_end(&piece, 0);
            if end < piece.len() {
                self.half.extend_from_slice(&piece[end..]);
            }
            return self.checked(piece.slice(..end));
        }
        let seen = self.half.len();
        self.half.extend_from_slice(&piece);
        let end = events_end(&self.half, seen);
        let rest = self.half.split_off(end);
        let whole = std::mem::replace(&mut self.half, rest);
        self.checked(whole.into())
    }

    fn checked(&mut self, whole: Bytes) -> Result<Bytes, TooLong> {
        if self.half.len() <= HELD_MAX {
            return Ok(whole);
        }
        let half = std::mem::take(&mut self.half);
        Err(TooLong(if whole.is_empty() { half.into() } else { [&whole[..], &half].concat().into() }))
    }

    /// What is held, given up to whoever asks.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.half)
    }
}

/// Where the last whole event ends; 0 when there is none. No event ends before `seen`.
fn events_end(bytes: &[u8], seen: usize) -> usize {
    if bytes.ends_with(b"\n\n") {
        return bytes.len();
    }
    // A blank line may have begun in what was seen.
    let from = seen.saturating_sub(2);
    let ends = |at: usize| bytes[..at].ends_with(b"\n\n") || bytes[..at].ends_with(b"\n\r\n");
    (from + 1..=bytes.len()).rev().find(|at| ends(*at)).unwrap_or(0)
}

/// The whole events in `bytes`, each with its blank line; a rest without one comes last.
pub(crate) fn events(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        let mut line_is_empty = true;
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'\n' if line_is_empty => {
                    end = at + 1;
                    break;
                }
                b'\n' => line_is_empty = true,
                b'\r' => {}
                _ => line_is_empty = false,
            }
        }
        let (event, behind) = rest.split_at(if end == 0 { rest.len() } else { end });
        rest = behind;
        Some(event)
    })
}

/// What an event says; None for a comment, and for a name without data.
pub(crate) fn data_of(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut data: Option<Cow<'_, [u8]>> = None;
    for line in event.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(value) = line.strip_prefix(b"data:") else { continue };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        data = Some(match data {
            None => Cow::Borrowed(value),
            Some(before) => Cow::Owned([&before, &b"\n"[..], value].concat()),
        });
    }
    data
}

/// An event of one line of data.
pub(crate) fn event(data: &str) -> Bytes {
    format!("data: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_whole_events_pass() {
        let mut held = Held::default();
        let mut pass = |piece: &'static str| {
            String::from_utf8(held.pass(Bytes::from_static(piece.as_bytes())).unwrap().to_vec()).unwrap()
        };
        assert_eq!(pass("data: 1\n\n"), "data: 1\n\n");
        assert_eq!(pass("data: 2\n"), "");
        assert_eq!(pass("\ndata: 3"), "data: 2\n\n");
        assert_eq!(pass("\r\n\r"), "");
        assert_eq!(pass("\n: x\n\nda"), "data: 3\r\n\r\n: x\n\n");
        assert_eq!(held.take(), b"da");
    }

    #[test]
    fn an_event_without_end_is_not_held_for_ever() {
        let mut held = Held::default();
        let piece = Bytes::from(vec![b'x'; HELD_MAX / 2 + 1]);
        assert!(held.pass(piece.clone()).unwrap().is_empty());
        assert_eq!(held.pass(piece).unwrap_err().0.len(), HELD_MAX + 2);
        assert!(held.take().is_empty());
    }

    #[test]
    fn data_is_read_over_lines() {
        let data = |event: &'static [u8]| data_of(event).map(|data| String::from_utf8(data.into()).unwrap());
        assert_eq!(data(b"data: a\n\n").as_deref(), Some("a"));
        assert_eq!(data(b"event: x\r\ndata:a\r\ndata: b\r\n\r\n").as_deref(), Some("a\nb"));
        assert_eq!(data(b": comment\n\n"), None);
    }

    proptest! {
        #[test]
        fn however_it_is_cut_whole_events_pass_in_order(
            text in "(data: [a-c]{0,3}\n\n|: x\n\n|e\r\n\r\n|data: d\ndata: e\n\n){0,6}[a-c]{0,3}",
            cuts in proptest::collection::vec(0usize..80, 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([text.len()]).collect();
            cuts.sort_unstable();
            let (mut held, mut out, mut from) = (Held::default(), Vec::new(), 0);
            for cut in cuts {
                let whole = held.pass(Bytes::copy_from_slice(&text.as_bytes()[from..cut])).unwrap();
                prop_assert!(whole.is_empty() || whole.ends_with(b"\n\n") || whole.ends_with(b"\n\r\n"));
                out.extend_from_slice(&whole);
                from = cut;
            }
            let parts: Vec<u8> = events(&out).flatten().copied().collect();
            prop_assert_eq!(&parts, &out);
            out.extend_from_slice(&held.take());
            prop_assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
