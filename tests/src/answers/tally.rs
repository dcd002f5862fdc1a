//! What a run has shown.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::caller::{Answer, End, Model};
use super::harm::{Group, Kind};
use super::heard::{Difference, Pause};
use crate::stand_in;

/// Answers kept in words when they are not what they must be.
const TOLD_MAX: usize = 20;

/// Counts of a run.
#[derive(Debug, Default)]
pub struct Tally {
    strikes: Vec<(Kind, Instant)>,
    rows: BTreeMap<Kind, Row>,
    /// What the split model says, by a run in peace: its text and the tokens of its prompt.
    alphabet: Option<(String, u64)>,
    /// Answers that ended well.
    pub ended: usize,
    /// Answers that ended in a declared error.
    pub errors: usize,
    /// Answers to callers who cannot resume, whose gateway was killed.
    pub gateway_gone: usize,
    /// Times that another gateway gave the rest.
    pub resumed: usize,
    /// Attempts that were refused before the first byte.
    pub refused: usize,
    /// Characters that were not told.
    pub lost: usize,
    /// Characters that were told twice, or that nobody said.
    pub doubled: usize,
    /// Characters in the wrong place.
    pub reordered: usize,
    /// Answers with no terminal event, or several.
    pub wrong_ends: usize,
    /// Answers whose tokens were counted wrongly.
    pub wrong_counts: usize,
    /// All that was not as it must be, in words; some of it when there is much.
    pub faults: Vec<String>,
}

/// One kind of harm.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// How often.
    pub number: usize,
    /// Answers under way at the time in that part of the mesh.
    pub under_way: usize,
    /// How long callers waited who were interrupted, sorted.
    pub pauses: Vec<Duration>,
}

impl Row {
    /// The pause that this part of all are not longer than.
    pub fn pause(&self, part: f64) -> Option<Duration> {
        let last = self.pauses.len().checked_sub(1)?;
        let at = (last as f64 * part).round();
        // A part of a length is a number of its elements.
        self.pauses.iter().enumerate().find(|(number, _)| *number as f64 >= at).map(|(_, pause)| *pause)
    }
}

impl Tally {
    pub(super) fn new(alphabet: Option<Answer>) -> Self {
        let mut tally = Self::default();
        if let Some(answer) = alphabet {
            let tokens = answer.heard.usage.map_or(0, |(prompt, _)| prompt);
            tally.alphabet = Some((answer.heard.text.clone(), tokens));
            tally.check_alphabet(&answer.heard.text);
        }
        tally
    }

    /// How often it was struck.
    pub fn kills(&self) -> usize {
        self.strikes.len()
    }

    /// By kind of harm.
    pub fn rows(&self) -> &BTreeMap<Kind, Row> {
        &self.rows
    }

    /// Whether all is as it must be, but for what callers ask for who cannot resume.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn strike(&mut self, kind: Kind, at: Instant, under_way: usize) {
        self.strikes.push((kind, at));
        let row = self.rows.entry(kind).or_default();
        row.number += 1;
        row.under_way += under_way;
    }

    pub(super) fn add(&mut self, answer: &Answer) {
        self.refused += answer.heard.refused;
        self.resumed += answer.heard.resumed;
        for pause in &answer.heard.pauses {
            self.add_pause(answer.wish.model, pause);
        }
        let (expected, prompt) = self.expected(answer);
        let told = answer.heard.text.len();
        let whole = matches!(answer.end, End::Told) && answer.heard.error.is_none();
        let expected = if whole { &expected[..] } else { expected.get(..told).unwrap_or(&expected) };
        let difference = Difference::between(&answer.heard.text, expected);
        self.lost += difference.lost;
        self.doubled += difference.doubled;
        self.reordered += difference.reordered;
        if difference != Difference::default() {
            self.tell(answer, &format!("{difference:?}: {:?}", answer.heard.text));
        }
        for fault in &answer.heard.faults {
            self.tell(answer, fault);
        }
        match &answer.end {
            End::GatewayGone => {
                self.gateway_gone += 1;
                return;
            }
            End::Broken(why) => self.tell(answer, why),
            End::Told => {}
        }
        if answer.heard.terminal != 1 {
            self.wrong_ends += 1;
            self.tell(answer, &format!("{} terminal events", answer.heard.terminal));
        }
        if let Some(error) = &answer.heard.error {
            self.errors += 1;
            self.tell(answer, error);
        } else if whole {
            self.ended += 1;
            let counts = (prompt, answer.wish.tokens as u64);
            if answer.heard.usage != Some(counts) {
                self.wrong_counts += 1;
                self.tell(answer, &format!("counted as {:?} instead of {counts:?}", answer.heard.usage));
            }
        }
    }

    /// The latest blow to that part of the mesh before the pause ended is what the pause is counted with.
    fn add_pause(&mut self, model: Model, pause: &Pause) {
        let group = match (pause.resumed, model) {
            (true, _) => Group::Gateways,
            (false, Model::Talks) => Group::Hosts,
            (false, Model::Alphabet) => Group::Split,
        };
        let struck = self.strikes.iter().rev().find(|(kind, at)| kind.group() == group && *at <= pause.to);
        if let Some(row) = struck.and_then(|(kind, _)| self.rows.get_mut(kind)) {
            let pause = pause.to - pause.from;
            row.pauses.insert(row.pauses.partition_point(|other| *other <= pause), pause);
        }
    }

    fn expected(&self, answer: &Answer) -> (String, u64) {
        match (answer.wish.model, &self.alphabet) {
            (Model::Alphabet, Some((text, prompt))) => (text.clone(), *prompt),
            _ => (stand_in::text(&answer.name, answer.wish.tokens), stand_in::PROMPT_TOKENS),
        }
    }

    /// Each letter follows from the one before, or nothing could be told from the text.
    fn check_alphabet(&mut self, text: &str) {
        const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
        let at = |letter: u8| LETTERS.iter().position(|other| *other == letter);
        let follows =
            |two: &[u8]| at(two[0]).is_some_and(|before| at(two[1]) == Some((before + 1) % LETTERS.len()));
        if text.is_empty() || !text.as_bytes().windows(2).all(follows) {
            self.faults.push(format!("the split model does not say the alphabet: {text:?}"));
        }
    }

    fn tell(&mut self, answer: &Answer, what: &str) {
        if self.faults.len() < TOLD_MAX {
            let who = if answer.wish.resumable { "resumable" } else { "plain" };
            self.faults.push(format!("{who} answer {} of {}: {what}", answer.name, answer.wish.model.name()));
        }
    }
}

/// The table of a run.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| what was done | number | answers under way | interrupted | pause p50 | pause p99 |\n|---|---|---|---|---|---|"
        )?;
        let time = |pause: Option<Duration>| {
            pause.map_or_else(|| "-".to_owned(), |pause| format!("{:.2} s", pause.as_secs_f64()))
        };
        for (kind, row) in &self.rows {
            let (half, most) = (time(row.pause(0.5)), time(row.pause(0.99)));
            let (number, under_way, pauses) = (row.number, row.under_way, row.pauses.len());
            writeln!(f, "| {} | {number} | {under_way} | {pauses} | {half} | {most} |", kind.name())?;
        }
        writeln!(
            f,
            "\n{} answers ended well, {} in a declared error; {} were resumed elsewhere; {} were lost with the gateway of a caller that cannot \
             resume; {} attempts were refused before the first byte.\ncharacters lost: {}, doubled: {}, reordered: {}; answers without exactly one \
             terminal event: {}; answers counted wrongly: {}",
            self.ended,
            self.errors,
            self.resumed,
            self.gateway_gone,
            self.refused,
            self.lost,
            self.doubled,
            self.reordered,
            self.wrong_ends,
            self.wrong_counts
        )?;
        self.faults.iter().try_for_each(|fault| writeln!(f, "WRONG: {fault}"))
    }
}
