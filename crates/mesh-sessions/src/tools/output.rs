//! Texts that grow as they like, bounded.

/// The beginning and the end of a text of any length; what stood between is counted.
#[derive(Debug)]
pub(crate) struct HeadTail {
    head: Vec<u8>,
    head_max: usize,
    tail: std::collections::VecDeque<u8>,
    tail_max: usize,
    dropped_bytes: u64,
    dropped_lines: u64,
}

impl HeadTail {
    /// Keeps at most `bytes_max`, three quarters of them from the end: that is where a command says what went wrong.
    pub(crate) fn new(bytes_max: usize) -> Self {
        let head_max = bytes_max / 4;
        Self {
            head: Vec::new(),
            head_max,
            tail: std::collections::VecDeque::new(),
            tail_max: bytes_max - head_max,
            dropped_bytes: 0,
            dropped_lines: 0,
        }
    }

    /// More of the text.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(self.head_max - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(self.tail_max);
        let lines = self.tail.drain(..over).filter(|byte| *byte == b'\n').count();
        self.dropped_bytes += over as u64;
        self.dropped_lines += lines as u64;
    }

    /// What is kept, with a line that says what is not.
    pub(crate) fn into_text(mut self) -> String {
        if self.dropped_bytes == 0 {
            self.head.extend(self.tail);
            return String::from_utf8_lossy(&self.head).into_owned();
        }
        let tail: Vec<u8> = self.tail.into();
        // A character that the cut went through is left out on both sides.
        let head = &self.head[..self.head.len() - cut_short(&self.head)];
        let begun = tail.iter().take(3).take_while(|byte| is_continuation(**byte)).count();
        format!(
            "{}\n[… {} bytes in {} lines left out …]\n{}",
            String::from_utf8_lossy(head),
            self.dropped_bytes,
            self.dropped_lines,
            String::from_utf8_lossy(&tail[begun..]),
        )
    }
}

/// Lines up to a number of bytes.
#[derive(Debug)]
pub(crate) struct Report {
    text: String,
    bytes_max: usize,
}

impl Report {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { text: String::new(), bytes_max }
    }

    /// Adds a line, unless it does not fit; then none should follow.
    #[must_use]
    pub(crate) fn line(&mut self, line: &str) -> bool {
        let fits = self.text.len() + line.len() < self.bytes_max;
        if fits {
            self.text.push_str(line);
            self.text.push('\n');
        }
        fits
    }

    /// Adds a last line about the ones before, whether it fits or not.
    pub(crate) fn close(mut self, note: Option<&str>) -> String {
        if let Some(note) = note {
            self.text.push_str(note);
        } else if self.text.ends_with('\n') {
            self.text.pop();
        }
        self.text
    }
}

/// A line of at most `bytes_max` bytes, with a note of what was cut off.
pub(crate) fn cut_line(line: &str, bytes_max: usize) -> std::borrow::Cow<'_, str> {
    if line.len() <= bytes_max {
        return line.into();
    }
    let end = line.floor_char_boundary(bytes_max);
    format!("{} [… {} bytes more]", &line[..end], line.len() - end).into()
}

/// How many bytes at the end are the beginning of a character whose rest is not there.
pub(crate) fn cut_short(bytes: &[u8]) -> usize {
    let back = bytes.iter().rev().take(3).position(|byte| !is_continuation(*byte));
    let Some(back) = back else { return 0 };
    let first = bytes[bytes.len() - 1 - back];
    let whole = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    if back + 1 < whole { back + 1 } else { 0 }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_tail_are_kept_and_the_middle_counted() {
        let mut kept = HeadTail::new(16);
        for line in 0..1000 {
            kept.push(format!("{line}\n").as_bytes());
        }
        let text = kept.into_text();
        assert_eq!(text, "0\n1\n\n[… 3874 bytes in 995 lines left out …]\n997\n998\n999\n");
    }

    #[test]
    fn what_fits_is_whole() {
        let mut kept = HeadTail::new(16);
        kept.push("äöü".as_bytes());
        kept.push("ß 1234567".as_bytes());
        assert_eq!(kept.into_text(), "äöüß 1234567");
    }

    #[test]
    fn a_cut_never_goes_through_a_character() {
        for bytes_max in 8..40 {
            let mut kept = HeadTail::new(bytes_max);
            kept.push("€".repeat(100).as_bytes());
            let text = kept.into_text();
            assert!(!text.contains(char::REPLACEMENT_CHARACTER), "{bytes_max}: {text}");
        }
        assert_eq!(cut_line("€€€", 5), "€ [… 6 bytes more]");
        for (bytes, short) in [(&b"ab"[..], 0), (&b"a\xe2"[..], 1), (&b"a\xe2\x82"[..], 2), (&b"\xff"[..], 0)]
        {
            assert_eq!(cut_short(bytes), short, "{bytes:?}");
        }
    }

    #[test]
    fn a_report_is_bounded() {
        let mut report = Report::new(10);
        assert!(report.line("1234"));
        assert!(report.line("123"));
        assert!(!report.line("1"));
        assert_eq!(report.close(Some("[more]")), "1234\n123\n[more]");
    }
}
