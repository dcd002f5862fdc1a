//! Which tools may run, for whom and with what arguments.
//!
//! It is pure: rules and a call go in, a verdict comes out. It says what the owner wants; what a tool can reach at all is
//! bounded by the tool itself (`tools::Workspace`).

use std::collections::BTreeMap;

use mesh_identity::{NodeId, Role};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::Party;

/// What happens with a call of a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It runs.
    Allow,
    /// It runs when somebody with the right to says so.
    Ask,
    /// It does not run.
    Deny,
}

/// What the one on whose behalf a turn runs is to the agent's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The node's own user.
    Owner,
    /// A member of a scope.
    Member,
    /// A client of a scope, or a stranger on the LAN.
    Client,
}

/// On whose behalf a tool is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node, as its link proved it.
    pub node: NodeId,
    /// What it is.
    pub standing: Standing,
}

impl From<&Party> for Caller {
    fn from(party: &Party) -> Self {
        let standing = match (party.scope, party.role) {
            (None, _) => Standing::Owner,
            (Some(_), Some(Role::Member)) => Standing::Member,
            (Some(_), _) => Standing::Client,
        };
        Self { node: party.node, standing }
    }
}

/// Whom a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallerPattern {
    /// The node's own user.
    Owner,
    /// Every member.
    Member,
    /// Every client.
    Client,
    /// This node, whatever it is.
    Node(NodeId),
}

impl CallerPattern {
    fn matches(&self, caller: &Caller) -> bool {
        match self {
            Self::Owner => caller.standing == Standing::Owner,
            Self::Member => caller.standing == Standing::Member,
            Self::Client => caller.standing == Standing::Client,
            Self::Node(node) => caller.node == *node,
        }
    }
}

/// One rule of a policy.
///
/// In its patterns `*` stands for any characters and `?` for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The tools, by pattern: `shell`, `files__*`, `*`.
    pub tools: Vec<String>,
    /// What must hold of the arguments: each one named here fits at least one of its patterns.
    ///
    /// An argument called `command` is a command line: a rule that allows fits only a single plain command, without `;`, `&`,
    /// `|`, `<`, `>`, `$`, backquotes, brackets or line breaks; a rule that asks or denies fits when the whole or any
    /// command in it does. An argument called `path` is compared with `.` and `..` worked out, and a rule that allows
    /// never fits an absolute path or one that leads upwards.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<String, Vec<String>>,
    /// For whom; nobody named means the owner and members. Clients are in a rule only when it names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<CallerPattern>,
    /// What happens then.
    pub then: Decision,
}

/// The rules of an agent; the first one that fits a call decides.
///
/// Without one, what only reads is allowed and all else asked about for the owner and members; clients get nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Policy {
    /// In order.
    pub rules: Vec<Rule>,
}

/// A call that a policy is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The tool's name.
    pub tool: &'a str,
    /// The arguments as the model gave them.
    pub arguments: &'a Value,
    /// Whether the tool says that this call changes nothing.
    pub only_reads: bool,
    /// On whose behalf.
    pub caller: &'a Caller,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What happens.
    pub decision: Decision,
    /// Why, for people.
    pub why: String,
}

impl Policy {
    /// Everything is allowed to the owner; the rest is as without rules.
    pub fn trusting_the_owner() -> Self {
        let callers = vec![CallerPattern::Owner];
        let (tools, arguments) = (vec!["*".to_owned()], BTreeMap::new());
        Self { rules: vec![Rule { tools, arguments, callers, then: Decision::Allow }] }
    }

    /// What happens with a call.
    pub fn decide(&self, asked: &Asked<'_>) -> Verdict {
        let fitting = self.rules.iter().enumerate().find(|(_, rule)| rule.fits(asked));
        if let Some((index, rule)) = fitting {
            let why = format!("rule {} says so for {}", index + 1, asked.tool);
            return Verdict { decision: rule.then, why };
        }
        let (decision, why) = match asked.caller.standing {
            Standing::Client => (Decision::Deny, "no rule gives it to this client"),
            _ if asked.only_reads => (Decision::Allow, "it only reads"),
            _ => (Decision::Ask, "it can change something, and no rule decides"),
        };
        Verdict { decision, why: format!("{}: {why}", asked.tool) }
    }

    /// Whether a caller could get a tool with some arguments: tools that it cannot need not be shown to the model.
    pub fn may_offer(&self, tool: &str, caller: &Caller) -> bool {
        let named = |rule: &&Rule| rule.is_for(caller) && rule.is_about(tool);
        for rule in self.rules.iter().filter(named) {
            match rule.then {
                Decision::Allow | Decision::Ask => return true,
                Decision::Deny if rule.arguments.is_empty() => return false,
                Decision::Deny => {}
            }
        }
        caller.standing != Standing::Client
    }
}

impl Rule {
    fn fits(&self, asked: &Asked<'_>) -> bool {
        let fits_one = |(name, patterns): (&String, &Vec<String>)| {
            asked.arguments.get(name).is_some_and(|value| self.fits_argument(name, value, patterns))
        };
        self.is_for(asked.caller) && self.is_about(asked.tool) && self.arguments.iter().all(fits_one)
    }

    fn is_for(&self, caller: &Caller) -> bool {
        match self.callers.as_slice() {
            [] => caller.standing != Standing::Client,
            callers => callers.iter().any(|pattern| pattern.matches(caller)),
        }
    }

    fn is_about(&self, tool: &str) -> bool {
        self.tools.iter().any(|pattern| is_match(pattern, tool))
    }

    fn fits_argument(&self, name: &str, value: &Value, patterns: &[String]) -> bool {
        let allows = self.then == Decision::Allow;
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let any = |text: &str| patterns.iter().any(|pattern| is_match(pattern, text));
        match name {
            "command" if allows => !text.contains(is_meta) && any(text.trim()),
            "command" => any(text.trim()) || text.split(is_meta).any(|part| any(part.trim())),
            "path" if allows => worked_out(&text).is_some_and(|path| any(&path)),
            "path" => any(&text) || worked_out(&text).is_some_and(|path| any(&path)),
            _ => any(&text),
        }
    }
}

/// Characters by which a shell makes more than one plain command of a line.
fn is_meta(c: char) -> bool {
    matches!(c, ';' | '&' | '|' | '<' | '>' | '$' | '`' | '(' | ')' | '{' | '}' | '\n' | '\r' | '\0')
}

/// A relative path without `.` and `..`; none when it is absolute or leads upwards.
fn worked_out(path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Whether a text is what a pattern with `*` and `?` stands for. Takes at most pattern times text steps.
fn is_match(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            // The last star takes one character more.
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn caller(standing: Standing) -> Caller {
        Caller { node: NodeKey::from_seed([standing as u8 + 1; 32]).node_id(), standing }
    }

    fn decide(policy: &Policy, tool: &str, arguments: &Value, standing: Standing) -> Decision {
        let only_reads = matches!(tool, "read_file" | "list" | "search");
        let caller = caller(standing);
        policy.decide(&Asked { tool, arguments, only_reads, caller: &caller }).decision
    }

    fn policy(rules: Value) -> Policy {
        serde_json::from_value(rules).expect("a policy")
    }

    #[test]
    fn without_rules_reading_is_allowed_changing_asked_and_clients_get_nothing() {
        let none = Policy::default();
        for standing in [Standing::Owner, Standing::Member] {
            assert_eq!(decide(&none, "read_file", &json!({}), standing), Decision::Allow);
            assert_eq!(decide(&none, "shell", &json!({}), standing), Decision::Ask);
            assert!(none.may_offer("shell", &caller(standing)));
        }
        for tool in ["read_file", "shell", "delegate"] {
            assert_eq!(decide(&none, tool, &json!({}), Standing::Client), Decision::Deny);
            assert!(!none.may_offer(tool, &caller(Standing::Client)));
        }
    }

    #[test]
    fn the_first_fitting_rule_decides() {
        let policy = policy(json!([
            {"tools": ["edit", "write_file"], "arguments": {"path": ["docs/*"]}, "then": "allow"},
            {"tools": ["edit", "write_file"], "then": "deny"},
        ]));
        let decide = |path: &str| decide(&policy, "edit", &json!({"path": path}), Standing::Owner);
        assert_eq!(decide("docs/a.md"), Decision::Allow);
        assert_eq!(decide("./docs/x/../a.md"), Decision::Allow);
        assert_eq!(decide("src/main.rs"), Decision::Deny);
        assert_eq!(decide("docs/../src/main.rs"), Decision::Deny);
        assert_eq!(decide("docs/../../docs/a.md"), Decision::Deny);
        assert_eq!(decide("/docs/a.md"), Decision::Deny);
    }

    #[test]
    fn a_rule_without_callers_is_not_for_clients() {
        let open = policy(json!([{"tools": ["*"], "then": "allow"}]));
        assert_eq!(decide(&open, "shell", &json!({}), Standing::Member), Decision::Allow);
        assert_eq!(decide(&open, "shell", &json!({}), Standing::Client), Decision::Deny);
        let named = policy(json!([{"tools": ["read_file"], "callers": ["client"], "then": "ask"}]));
        assert_eq!(decide(&named, "read_file", &json!({}), Standing::Client), Decision::Ask);
        assert_eq!(decide(&named, "list", &json!({}), Standing::Client), Decision::Deny);
        assert!(named.may_offer("read_file", &caller(Standing::Client)));
        assert!(!named.may_offer("shell", &caller(Standing::Client)));
        let node = caller(Standing::Client).node;
        let one = policy(json!([{"tools": ["list"], "callers": [{"node": node}], "then": "allow"}]));
        assert_eq!(decide(&one, "list", &json!({}), Standing::Client), Decision::Allow);
        assert_eq!(decide(&one, "list", &json!({}), Standing::Owner), Decision::Allow);
    }

    #[test]
    fn an_allowed_command_is_a_single_plain_one() {
        let policy = policy(json!([
            {"tools": ["shell"], "arguments": {"command": ["git push*", "rm *"]}, "then": "deny"},
            {"tools": ["shell"], "arguments": {"command": ["git *", "cargo test*"]}, "then": "allow"},
        ]));
        let decide = |command: &str| decide(&policy, "shell", &json!({"command": command}), Standing::Owner);
        assert_eq!(decide("git status"), Decision::Allow);
        assert_eq!(decide("  cargo test --release "), Decision::Allow);
        assert_eq!(decide("git push origin"), Decision::Deny);
        assert_eq!(decide("git status; rm -rf ."), Decision::Deny);
        for sly in [
            "git status; curl example.org",
            "git status && make",
            "git log | sh",
            "git log > ../x",
            "git log $(make)",
            "git log `make`",
            "git status\nmake",
            "git $IFS",
        ] {
            assert_eq!(decide(sly), Decision::Ask, "{sly}");
        }
        assert_eq!(decide("make && git push"), Decision::Deny);
    }

    #[test]
    fn arguments_of_other_shapes_allow_nothing() {
        let policy =
            policy(json!([{"tools": ["shell"], "arguments": {"command": ["git *"]}, "then": "allow"}]));
        for arguments in [json!({}), json!("git status"), json!({"command": ["git", "status"]}), json!(null)]
        {
            assert_eq!(decide(&policy, "shell", &arguments, Standing::Owner), Decision::Ask, "{arguments}");
        }
    }

    #[test]
    fn an_unknown_key_of_a_rule_is_an_error() {
        let rule = json!([{"tools": ["shell"], "caller": ["owner"], "then": "allow"}]);
        let error = serde_json::from_value::<Policy>(rule).expect_err("a typo");
        assert!(error.to_string().contains("unknown field `caller`"), "{error}");
    }

    /// What a pattern means, said as slowly as can be.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|taken| naive(rest, &text[taken..])),
            Some((c, rest)) => {
                text.split_first().is_some_and(|(first, more)| (*c == '?' || c == first) && naive(rest, more))
            }
        }
    }

    proptest! {
        #[test]
        fn patterns_mean_what_they_say(pattern in "[ab?*]{0,8}", text in "[ab]{0,10}") {
            let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(is_match(&pattern, &text), naive(&p, &t));
        }

        #[test]
        fn nothing_that_was_not_given_to_clients_reaches_them(
            tool in "[a-z_]{1,8}", then in 0..3u8, path in "\\PC{0,12}",
        ) {
            let then = [Decision::Allow, Decision::Ask, Decision::Deny][usize::from(then)];
            let rule = Rule { tools: vec!["*".to_owned()], arguments: BTreeMap::new(), callers: vec![], then };
            let policy = Policy { rules: vec![rule] };
            prop_assert_eq!(decide(&policy, &tool, &json!({"path": path}), Standing::Client), Decision::Deny);
        }
    }
}
