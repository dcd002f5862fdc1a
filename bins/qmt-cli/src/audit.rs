//! `audit`: who let whom in, when, and what a revocation ended, also when no node runs.

use mesh_control::{
    ApiError, AuditChain, AuditEntry, AuditQuery, AuditView, Client, ClientError, RevokedKind,
};
use mesh_identity::{UnixTime, ttl};
use serde_json::Value;

use crate::args::AuditArgs;
use crate::doctor::{PROGRAM, ask_program, find_program};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;
use crate::units;

pub(crate) async fn audit(client: &Client, screen: &Screen, args: AuditArgs) -> Result<(), Failure> {
    let query = asked(args)?;
    let view = match client.audit(&query).await {
        Ok(view) => view,
        Err(error @ ClientError::NoNode { .. }) => without_node(&query, error).await?,
        Err(error) => return Err(error.into()),
    };
    screen.show(&view, described)?;
    if view.entries.is_empty() && query.since.is_none() && query.node.is_none() {
        screen.note("nothing has happened yet; found a mesh with `qmt-cli invite`, or join one with `qmt-cli join TOKEN`");
    } else if view.entries.is_empty() {
        screen.note("the trail has no such row");
    }
    let is_broken = view.chain.as_ref().is_some_and(|chain| !chain.holds);
    if is_broken { Err(Failure::shown()) } else { Ok(()) }
}

fn asked(args: AuditArgs) -> Result<AuditQuery, Failure> {
    let since = match &args.since {
        Some(text) => ttl::parse(text).map_err(|error| Failure::usage(error.to_string()))?,
        None => None,
    };
    Ok(AuditQuery {
        scope: args.scope,
        since: since.map(|since| UnixTime::now().0.saturating_sub(since.as_secs())),
        node: args.node,
        limit: Some(args.limit),
        verify: args.verify,
    })
}

/// What `qmt-node` prints of the trail.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Printed {
    View(AuditView),
    Failed { error: ApiError },
}

/// The trail as `qmt-node` reads it without running as a node; without that program the failure stands.
async fn without_node(query: &AuditQuery, no_node: ClientError) -> Result<AuditView, Failure> {
    let Some(program) = find_program() else { return Err(no_node.into()) };
    let query = serde_json::to_string(query).map_err(|error| Failure::new("internal", error.to_string()))?;
    match ask_program(&program, &["__audit", &query]).await {
        Ok(Printed::View(view)) => Ok(view),
        Ok(Printed::Failed { error }) => Err(ClientError::from(error).into()),
        Err(why) => Err(Failure::new("broken", format!("{}: {why}", program.display()))
            .with_mend(format!("install {PROGRAM} and qmt-cli of one version"))),
    }
}

fn described(view: &AuditView) -> String {
    let mut text = String::new();
    if !view.entries.is_empty() {
        let mut table = Table::new(&["NR", "WHEN", "WHAT", "WHOM", "BY", "MESH", "DETAILS"]);
        for entry in &view.entries {
            table.row([
                entry.number.to_string(),
                UnixTime(entry.at).to_string(),
                entry.kind.clone(),
                subject(entry),
                named(&entry.actor_name, &entry.actor),
                named(&entry.scope_name, &entry.scope),
                details(entry),
            ]);
        }
        text = table.to_string();
    }
    if let Some(chain) = &view.chain {
        text.push_str(&verdict(chain));
    }
    text
}

fn subject(entry: &AuditEntry) -> String {
    match entry.subject_kind {
        RevokedKind::Invite => format!("invite {}", entry.subject),
        _ => named(&entry.subject_name, &entry.subject),
    }
}

/// The name, with as much of the id as tells two apart.
fn named(name: &str, id: &str) -> String {
    // Ids of nodes begin alike, so their end is shown.
    let part: String = id.chars().skip(id.chars().count().saturating_sub(6)).collect();
    match (name, id) {
        (_, "") => String::new(),
        ("", _) => format!("..{part}"),
        _ => format!("{name} (..{part})"),
    }
}

/// The fields of a row that people look for, in words.
fn details(entry: &AuditEntry) -> String {
    let mut words = Vec::new();
    let text = |key: &str| entry.details.get(key).and_then(Value::as_str);
    let number = |key: &str| entry.details.get(key).and_then(Value::as_u64);
    if let Some(role) = text("role").or(text("gives")) {
        words.push(role.to_owned());
    }
    if let Some(uses) = number("uses").filter(|_| entry.kind == "invited") {
        words.push(if uses == 0 { "any number of uses".to_owned() } else { units::count(size(uses), "use") });
    }
    if let Some(used) = number("uses").filter(|_| entry.kind == "ended") {
        words.push(format!("used {used} times"));
    }
    if let Some(which) = number("use") {
        words.push(format!("use {which}"));
    }
    if let Some(invite) = text("invite") {
        words.push(format!("invite {invite}"));
    }
    if let Some(until) = number("until") {
        words.push(format!("until {}", UnixTime(until)));
    }
    if entry.details.contains_key("again") {
        words.push("again".to_owned());
    }
    for (key, what) in [("members", "member"), ("links", "link"), ("invites", "invite")] {
        if let Some(count) =
            entry.details.get(key).and_then(|ended| ended.get("count")).and_then(Value::as_u64)
            && count > 0
        {
            words.push(format!("ended {}", units::count(size(count), what)));
        }
    }
    words.join(", ")
}

fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn verdict(chain: &AuditChain) -> String {
    match &chain.fault {
        None if chain.last < chain.first => "the chain holds: no rows\n".to_owned(),
        None => {
            format!("the chain holds: rows {} to {}, last hash {}\n", chain.first, chain.last, chain.hash)
        }
        Some(fault) => {
            format!("THE CHAIN IS BROKEN at {}: {fault}\n", units::count(size(chain.breaks), "place"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(number: u64, kind: &str, details: Value) -> AuditEntry {
        AuditEntry {
            number,
            at: 1_800_000_000,
            kind: kind.to_owned(),
            scope: "ab".repeat(32),
            scope_name: "home".to_owned(),
            subject: "12D3KooWlap123456".to_owned(),
            subject_kind: RevokedKind::Node,
            subject_name: "lap".to_owned(),
            actor: "12D3KooWdeskabcdef".to_owned(),
            actor_name: "desk".to_owned(),
            details: details.as_object().cloned().unwrap_or_default(),
            ..AuditEntry::default()
        }
    }

    #[test]
    fn rows_say_who_let_whom_in_and_what_a_revocation_ended() {
        let ended = json!({"members": {"count": 2, "ids": []}, "links": {"count": 1, "ids": []}, "invites": {"count": 0, "ids": []}});
        let entries = vec![
            entry(1, "admitted", json!({"use": 1, "invite": "0190"})),
            AuditEntry { actor: String::new(), ..entry(2, "seen", json!({"observed": true})) },
            entry(3, "revoked", ended),
        ];
        let chain = AuditChain { holds: true, first: 1, last: 3, hash: "ff".into(), ..AuditChain::default() };
        let expected = "\
NR  WHEN                  WHAT      WHOM            BY               MESH             DETAILS
1   2027-01-15T08:00:00Z  admitted  lap (..123456)  desk (..abcdef)  home (..ababab)  use 1, invite 0190
2   2027-01-15T08:00:00Z  seen      lap (..123456)  -                home (..ababab)  -
3   2027-01-15T08:00:00Z  revoked   lap (..123456)  desk (..abcdef)  home (..ababab)  ended 2 members, ended 1 link
the chain holds: rows 1 to 3, last hash ff
";
        assert_eq!(described(&AuditView { entries, chain: Some(chain) }), expected);
        let broken = AuditChain {
            first: 1,
            last: 3,
            breaks: 1,
            row: Some(2),
            fault: Some("row 2 was changed after it was written".into()),
            ..AuditChain::default()
        };
        assert_eq!(
            verdict(&broken),
            "THE CHAIN IS BROKEN at 1 place: row 2 was changed after it was written\n"
        );
    }
}
