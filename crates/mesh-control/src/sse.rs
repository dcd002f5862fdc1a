//! Reading server-sent events: bytes in, `data` texts out. Pure and bounded. Events of the control API come this way, and
//! so do the answers of a node's gateway.

/// The stream sent an event longer than the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {max} bytes")]
pub struct EventTooLong {
    /// The bound, bytes.
    pub max: usize,
}

/// Cuts a byte stream into events. Accepts LF and CRLF, joins several `data` lines, skips comments and other fields.
#[derive(Debug)]
pub struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    max: usize,
}

impl Parser {
    /// A parser for one stream that takes events of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { line: Vec::new(), data: Vec::new(), has_data: false, max }
    }

    /// Takes the next bytes and appends the data of every event completed by them to `out`.
    ///
    /// # Errors
    /// [`EventTooLong`]; the parser is of no use after it.
    pub fn push(&mut self, bytes: &[u8], out: &mut impl Extend<Vec<u8>>) -> Result<(), EventTooLong> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            if self.line.len() + self.data.len() + text.len() > self.max {
                return Err(EventTooLong { max: self.max });
            }
            self.line.extend_from_slice(text);
            if ended && let Some(event) = self.end_line() {
                out.extend([event]);
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.is_empty() {
            return std::mem::take(&mut self.has_data).then(|| std::mem::take(&mut self.data));
        }
        let value = line.strip_prefix(b"data:")?;
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        self.has_data = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::new(1000);
        let mut out = Vec::new();
        for chunk in chunks {
            parser.push(chunk, &mut out).expect("within the bound");
        }
        out.into_iter().map(|event| String::from_utf8(event).expect("test text")).collect()
    }

    #[test]
    fn joins_data_lines_and_skips_all_else() {
        let text =
            b": heartbeat\n\nid: 1\nevent: x\ndata: a\ndata:b\r\n\r\nretry: 5\n\ndata:\n\ndata: unfinished\n";
        assert_eq!(parse(&[text]), ["a\nb", ""]);
    }

    #[test]
    fn refuses_an_endless_event() {
        let mut parser = Parser::new(8);
        let mut out: Vec<Vec<u8>> = Vec::new();
        assert_eq!(parser.push(b"data: 123", &mut out), Err(EventTooLong { max: 8 }));
        let mut parser = Parser::new(20);
        assert!((0..10).any(|_| parser.push(b"data: 1234\n", &mut out).is_err()));
    }

    proptest! {
        #[test]
        fn cutting_the_bytes_elsewhere_changes_nothing(
            lines in prop::collection::vec("(data: ?)?[a-z:]{0,6}(\r)?", 0..20), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)
        ) {
            let text = lines.join("\n").into_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).chain([0, text.len()]).collect();
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&chunks), parse(&[&text]));
        }

        #[test]
        fn any_bytes_are_taken_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut out: Vec<Vec<u8>> = Vec::new();
            let _ = Parser::new(100).push(&bytes, &mut out);
        }
    }
}
