//! What a CA signed and revoked: a line of JSON for each, in the order in which it happened.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Leaf, Reason, RevokedSerial, Serial};
use crate::{NodeId, NodeName, UnixTime};

/// For how long after its end a certificate stays on the list of revoked ones, and in the index: somebody whose clock is
/// behind may still take it for valid.
const GRACE_SECONDS: u64 = 86_400;

/// How a certificate came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// `qmt-cli ca issue`: the CA made the key too.
    Issue,
    /// `qmt-cli ca sign`: for a request that somebody brought.
    Sign,
    /// `qmt-cli ca renew`: for a key that had one already.
    Renew,
    /// A node of the mesh asked for it over its link.
    Enrol,
    /// It lay in the folder, made by another program.
    Found,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Issue => "issue",
            Self::Sign => "sign",
            Self::Renew => "renew",
            Self::Enrol => "enrol",
            Self::Found => "found",
        })
    }
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Line {
    Issued {
        serial: Serial,
        name: NodeName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeId>,
        at: u64,
        until: u64,
        by: By,
    },
    Revoked {
        serial: Serial,
        at: u64,
        reason: Reason,
        #[serde(default)]
        may_return: bool,
    },
}

impl Line {
    pub(super) fn issued(leaf: &Leaf, by: By, now: UnixTime) -> Self {
        Self::Issued {
            serial: leaf.serial.clone(),
            name: leaf.name.clone(),
            node: leaf.node,
            at: now.0,
            until: leaf.not_after.0,
            by,
        }
    }
}

/// When and why a certificate was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Struck {
    /// When.
    pub at: UnixTime,
    /// Why.
    pub reason: Reason,
    /// Whether its node may have another one without being asked about.
    pub may_return: bool,
}

/// A certificate that the CA signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub serial: Serial,
    /// Whose it is.
    pub name: NodeName,
    /// The node's id, when it carries one.
    pub node: Option<NodeId>,
    /// When it was signed.
    pub at: UnixTime,
    /// Until when it holds.
    pub until: UnixTime,
    /// How it came to be.
    pub by: By,
    /// Its revocation.
    pub struck: Option<Struck>,
}

impl Row {
    pub(super) fn found(leaf: &Leaf) -> Self {
        Self {
            serial: leaf.serial.clone(),
            name: leaf.name.clone(),
            node: leaf.node,
            at: leaf.not_before,
            until: leaf.not_after,
            by: By::Found,
            struck: None,
        }
    }

    /// Whether it is neither revoked nor over.
    pub fn is_live(&self, now: UnixTime) -> bool {
        self.struck.is_none() && now <= self.until
    }

    /// Whether nobody can take it for valid any more.
    fn is_gone(&self, now: UnixTime) -> bool {
        now.0 > self.until.0.saturating_add(GRACE_SECONDS)
    }
}

/// Everything that a CA signed and revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    rows: Vec<Row>,
}

/// A line that says nothing known, counted from 1, and what is wrong with it.
pub(super) type Damage = (usize, String);

impl Index {
    /// Reads the file. What follows the last line end was being written when the writer died, and was never promised to
    /// anybody.
    pub(super) fn parse(text: &str) -> Result<Self, Damage> {
        let mut index = Self::default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (number, line) in whole.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line = serde_json::from_str(line).map_err(|error| (number + 1, error.to_string()))?;
            index.take(line);
        }
        Ok(index)
    }

    pub(super) fn take(&mut self, line: Line) {
        match line {
            Line::Issued { serial, name, node, at, until, by } => {
                let (at, until) = (UnixTime(at), UnixTime(until));
                self.rows.push(Row { serial, name, node, at, until, by, struck: None });
            }
            Line::Revoked { serial, at, reason, may_return } => {
                for row in self.rows.iter_mut().filter(|row| row.serial == serial) {
                    let at = row.struck.as_ref().map_or(UnixTime(at), |struck| struck.at);
                    row.struck = Some(Struck { at, reason, may_return });
                }
            }
        }
    }

    /// The lines that say all that is still of use: what is gone is left out, but not that a node was shut out.
    pub(super) fn kept(&self, now: UnixTime) -> Vec<Line> {
        let shuts_out = |row: &Row| self.shut_out(&row.name, row.node.as_ref()).is_some();
        let kept = self.rows.iter().filter(|row| !row.is_gone(now) || shuts_out(row));
        kept.flat_map(Row::lines).collect()
    }

    /// Every certificate, the oldest first.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(super) fn knows(&self, serial: &Serial) -> bool {
        self.rows.iter().any(|row| row.serial == *serial)
    }

    /// Who else than `node` has the name now.
    pub(super) fn holder(&self, name: &NodeName, node: &NodeId, now: UnixTime) -> Option<&Row> {
        let same = |row: &&Row| row.name.as_str().eq_ignore_ascii_case(name.as_str());
        self.rows.iter().filter(same).find(|row| row.is_live(now) && row.node.as_ref() != Some(node))
    }

    /// The revocation after which nothing was signed for this node, if it was not told that it may return.
    pub(super) fn shut_out(&self, name: &NodeName, node: Option<&NodeId>) -> Option<&Struck> {
        let of_node = |row: &&Row| match node {
            Some(_) => row.node.as_ref() == node,
            None => row.node.is_none() && row.name == *name,
        };
        let last = self.rows.iter().rev().find(of_node)?;
        last.struck.as_ref().filter(|struck| !struck.may_return)
    }

    /// What the list of revoked certificates has to name.
    pub(super) fn revoked(&self, now: UnixTime) -> Vec<RevokedSerial> {
        let listed = self.rows.iter().filter(|row| !row.is_gone(now));
        let listed = listed.filter_map(|row| {
            let struck = row.struck.as_ref()?;
            Some(RevokedSerial { serial: row.serial.clone(), at: struck.at, reason: struck.reason })
        });
        listed.collect()
    }
}

impl Row {
    pub(super) fn lines(&self) -> Vec<Line> {
        let issued = Line::Issued {
            serial: self.serial.clone(),
            name: self.name.clone(),
            node: self.node,
            at: self.at.0,
            until: self.until.0,
            by: self.by,
        };
        let revoked = self.struck.as_ref().map(|struck| Line::Revoked {
            serial: self.serial.clone(),
            at: struck.at.0,
            reason: struck.reason,
            may_return: struck.may_return,
        });
        std::iter::once(issued).chain(revoked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file outlives this version of the program: what these lines say does not change.
    const LINES: &str = r#"{"event":"issued","serial":"03e9","name":"ct110","node":"12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA","at":1000,"until":2000,"by":"enrol"}
{"event":"issued","serial":"03ea","name":"ct111","at":1000,"until":2000,"by":"sign"}
{"event":"revoked","serial":"03e9","at":1500,"reason":"key-compromise","may_return":false}
"#;

    #[test]
    fn lines_are_read_and_written_as_they_always_were() {
        let index = Index::parse(LINES).expect("three lines");
        let [first, second] = index.rows() else { panic!("{index:?}") };
        let struck = Struck { at: UnixTime(1500), reason: Reason::KeyCompromise, may_return: false };
        assert_eq!((first.by, &first.struck), (By::Enrol, &Some(struck)));
        assert_eq!((second.node, second.struck.as_ref(), second.until), (None, None, UnixTime(2000)));
        let lines: Vec<Line> = [second, first].into_iter().flat_map(Row::lines).collect();
        let written: Vec<String> =
            lines.iter().map(|line| serde_json::to_string(line).expect("a line")).collect();
        let golden: Vec<&str> = LINES.lines().collect();
        assert_eq!(written, [golden[1], golden[0], golden[2]]);
    }

    #[test]
    fn a_line_without_its_end_does_not_count_and_one_that_says_nothing_is_named() {
        let cut = LINES.trim_end();
        assert!(Index::parse(cut).expect("two lines").rows().iter().all(|row| row.struck.is_none()));
        assert_eq!(Index::parse("").expect("nothing"), Index::default());
        let (line, reason) = Index::parse(&LINES.replace("ct111", "c t")).expect_err("damaged");
        assert!(line == 2 && reason.contains("not a node name"), "{reason}");
    }
}
