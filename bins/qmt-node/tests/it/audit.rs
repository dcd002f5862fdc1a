//! The audit trail of real nodes: each change of who belongs to a mesh leaves its row, and a damaged trail is told.

use std::time::Duration;

use mesh_control::{
    AuditEntry, AuditQuery, InviteRequest, LeaveRequest, NodeState, RevokeRequest, RevokedKind, Verdict,
};
use serde_json::Value;

use crate::support::process::Folder;
use crate::support::{Host, PATIENCE, Place, pair, stop_both, until};

async fn trail(host: &Host) -> Vec<AuditEntry> {
    host.client.audit(&AuditQuery::default()).await.unwrap().entries
}

/// What happened, to whom and by whom, in order, as one word each.
async fn told(host: &Host) -> Vec<(String, String, String)> {
    let row = |entry: AuditEntry| {
        let subject =
            if entry.subject_kind == RevokedKind::Invite { "an invite".into() } else { entry.subject_name };
        (entry.kind, subject, entry.actor_name)
    };
    trail(host).await.into_iter().map(row).collect()
}

fn rows(rows: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    rows.iter().map(|(kind, whom, by)| ((*kind).into(), (*whom).into(), (*by).into())).collect()
}

/// Waits for exactly these rows, in whatever order the events came.
async fn until_told(host: &Host, expected: &[(&str, &str, &str)]) {
    let mut expected = rows(expected);
    expected.sort();
    let mut last = Vec::new();
    let in_time = async {
        loop {
            last = told(host).await;
            last.sort();
            if last == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, in_time).await.is_err() {
        panic!("the trail of {} tells {last:?} and not {expected:?}", host.node.name());
    }
}

fn count(entry: &AuditEntry, ended: &str) -> u64 {
    entry.details[ended]["count"].as_u64().unwrap()
}

fn names(entry: &AuditEntry, ended: &str, id: &str) -> bool {
    entry.details[ended]["ids"].as_array().unwrap().contains(&Value::from(id))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_let_whom_in_and_what_a_revocation_ended_is_told_everywhere() {
    let (first, second, third) = tokio::join!(Host::new("first"), Host::new("second"), Host::new("third"));
    let may_invite = InviteRequest { can_invite: Some(true), ..InviteRequest::default() };
    second.join(&first.client.invite(&may_invite).await.unwrap().token).await;
    let below = second.invite().await;
    third.join(&below.token).await;
    let unused = second.invite().await;
    for (one, other) in [(&first, &third), (&third, &first), (&second, &third), (&first, &second)] {
        one.sees(other, NodeState::Alive).await;
    }
    until_told(
        &first,
        &[
            ("founded", "first", "first"),
            ("invited", "an invite", "first"),
            ("admitted", "second", "first"),
            ("seen", "third", "second"),
        ],
    )
    .await;
    until_told(
        &second,
        &[
            ("joined", "second", "first"),
            ("seen", "first", "first"),
            ("invited", "an invite", "second"),
            ("admitted", "third", "second"),
            ("invited", "an invite", "second"),
        ],
    )
    .await;
    let told = trail(&second).await;
    let admitted = told.iter().find(|row| row.kind == "admitted").unwrap();
    assert_eq!((admitted.subject.as_str(), admitted.actor.as_str()), (&*third.id(), &*second.id()));
    assert_eq!((&admitted.details["invite"], &admitted.details["use"]), (&below.invite_id.into(), &1.into()));

    let linked = || async { (first.client.status().await.unwrap().links.direct >= 2).then_some(()) };
    until("the first is linked with both", linked).await;

    // The second falls, and with it who came by it: both rows say so, at who revoked and at who heard of it.
    first.client.revoke(&RevokeRequest { subject: "second".into(), scope: None }).await.unwrap();
    let revoked = trail(&first).await.pop().unwrap();
    assert_eq!(
        (&*revoked.kind, &*revoked.subject, &*revoked.actor),
        ("revoked", &*second.id(), &*first.id())
    );
    for ended in ["members", "links"] {
        assert_eq!(count(&revoked, ended), 2, "{revoked:?}");
        assert!(names(&revoked, ended, &second.id()) && names(&revoked, ended, &third.id()), "{revoked:?}");
    }
    assert_eq!(count(&revoked, "invites"), 0);
    assert!(!revoked.details.contains_key("observed"));
    let heard = until("the second hears that it is revoked, or is cut before", || async {
        let last = trail(&second).await.pop().unwrap();
        if last.kind == "revoked" {
            return Some(Some(last));
        }
        let view = second.view_of(&first.id()).await;
        view.is_none_or(|view| view.state == NodeState::Down).then_some(None)
    })
    .await;
    if let Some(heard) = heard {
        assert_eq!((heard.actor.as_str(), &heard.details["observed"]), (&*first.id(), &true.into()));
        assert_eq!(count(&heard, "invites"), 2, "{heard:?}");
        assert!(names(&heard, "invites", &unused.invite_id), "{heard:?}");
    }
    for host in [&first, &second, &third] {
        let verified = AuditQuery { verify: true, ..AuditQuery::default() };
        assert!(host.client.audit(&verified).await.unwrap().chain.unwrap().holds);
    }
    tokio::join!(first.stop(), second.stop(), third.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_coming_back_and_ending_an_invite_are_told_once() {
    let (place, first) = (Place::new("second"), Host::new("first").await);
    let second = place.start().await;
    let invite = first.invite().await;
    let joined = second.join(&invite.token).await;
    second.join(&invite.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    second.stop().await;
    let second = place.start().await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    second.client.leave(&LeaveRequest { scope: joined.scope }).await.unwrap();
    until_told(
        &first,
        &[
            ("founded", "first", "first"),
            ("invited", "an invite", "first"),
            ("admitted", "second", "first"),
            ("left", "second", "second"),
        ],
    )
    .await;
    until_told(
        &second,
        &[("joined", "second", "first"), ("seen", "first", "first"), ("left", "second", "second")],
    )
    .await;
    for _ in 0..2 {
        first.client.revoke(&RevokeRequest { subject: invite.invite_id.clone(), scope: None }).await.unwrap();
    }
    let told: Vec<String> = told(&first).await.into_iter().skip(4).map(|(kind, ..)| kind).collect();
    assert_eq!(told.iter().filter(|kind| *kind == "ended").count(), 1, "{told:?}");
    assert_eq!(told[..2], ["ended", "revoked"], "the ledger first");
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_that_somebody_changed_is_told_in_log_status_and_doctor() {
    let folder = Folder::new();
    let mut node = folder.start(&["--port", "0", "--mesh-invite=home"]).await;
    until("the node has made its invite", || async {
        let told = node.client.audit(&AuditQuery::default()).await.unwrap().entries;
        (told.len() == 2).then_some(())
    })
    .await;
    node.terminate().await;
    let changed = std::process::Command::new("python3")
        .arg("-c")
        .arg("import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute(\"UPDATE audit SET actor_name = 'nobody' WHERE number = 2\"); d.commit()")
        .arg(folder.home().join("node.db"))
        .status();
    if !changed.is_ok_and(|status| status.success()) {
        println!("skipped: no python3 with sqlite3 here");
        return;
    }
    let said = "the audit trail is broken: row 2 was changed after it was written";
    let node = folder.start(&["--port", "0"]).await;
    until("the status warns", || async {
        let warnings = node.client.status().await.unwrap().warnings;
        warnings.iter().any(|warning| warning.starts_with(said)).then_some(())
    })
    .await;
    assert!(folder.written().contains(said), "{}", folder.written());
    let findings = node.client.doctor().await.unwrap();
    let finding = findings.iter().find(|finding| finding.check == "audit trail").unwrap();
    assert_eq!((finding.verdict, finding.detail.as_str()), (Verdict::Warn, said));
    assert!(finding.mend.is_some());
    let chain = node.client.audit(&AuditQuery { verify: true, ..AuditQuery::default() }).await.unwrap().chain;
    let chain = chain.unwrap();
    assert_eq!((chain.holds, chain.row, chain.breaks), (false, Some(2), 1));
    // It warns and goes on: the next row is written.
    node.client.invite(&InviteRequest::default()).await.unwrap();
    let entries = node.client.audit(&AuditQuery::default()).await.unwrap().entries;
    assert_eq!(entries.last().unwrap().kind, "invited", "{entries:?}");
    assert_eq!(entries.last().unwrap().number, 3, "{entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_is_searched_by_what_people_know() {
    let (first, second) = pair().await;
    let ask = async |query: AuditQuery| {
        let rows = first.client.audit(&query).await.map_err(|error| error.code().to_owned())?.entries;
        Ok::<_, String>(rows.into_iter().map(|row| row.kind).collect::<Vec<_>>())
    };
    let any = AuditQuery::default();
    let node = |text: &str| AuditQuery { node: Some(text.to_owned()), ..any.clone() };
    let scope = |text: &str| AuditQuery { scope: Some(text.to_owned()), ..any.clone() };
    assert_eq!(ask(node("SECOND")).await.unwrap(), ["admitted"]);
    assert_eq!(ask(node(&second.id())).await.unwrap(), ["admitted"]);
    assert_eq!(ask(node("first")).await.unwrap(), ["founded", "invited", "admitted"]);
    assert_eq!(ask(node("nobody")).await.unwrap_err(), "unknown_node");
    assert_eq!(ask(scope("home")).await.unwrap().len(), 3);
    assert_eq!(ask(scope("elsewhere")).await.unwrap_err(), "unknown_scope");
    assert_eq!(ask(AuditQuery { limit: Some(1), ..any.clone() }).await.unwrap(), ["admitted"]);
    let later = first.client.audit(&any).await.unwrap().entries.last().unwrap().at + 1;
    assert!(ask(AuditQuery { since: Some(later), ..any.clone() }).await.unwrap().is_empty());
    stop_both(first, second).await;
}
