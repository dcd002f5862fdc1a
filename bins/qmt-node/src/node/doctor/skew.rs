//! Members whose clock or version differs from ours.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mesh_control::Finding;
use mesh_identity::{CLOCK_SKEW, NodeId, UnixTime};
use mesh_transport::{Call, Member, Protocol, Transport, serve_call};
use serde::{Deserialize, Serialize};

use super::super::Node;
use super::super::views::node_facts;
use super::{fail, ok, warn};

/// Of a member on a link that stands; longer, and its clock stays unknown.
const DEADLINE: Duration = Duration::from_secs(3);
/// Members whose clock is asked: enough to tell who of many is wrong.
const ASKED_MAX: usize = 8;
/// Differences below this are those of healthy clocks and of slow links, seconds.
const WORTH_A_LOOK_SECS: u64 = 5;

const CLOCK_MEND: &str =
    "`sudo timedatectl set-ntp true` there (Linux), `sudo sntp -sS time.apple.com` (macOS)";

/// `clock/1`: what time it is at a member.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Clock;

impl Call for Clock {
    const PROTOCOL: Protocol = Protocol::new("clock/1");
    /// Seconds since 1970.
    type Reply = u64;
}

pub(crate) fn serve(transport: &Transport) {
    serve_call::<Clock, _, _>(transport, |_: Member, _: Clock| async move { Ok(UnixTime::now().0) });
}

/// How far a member's clock is ahead of ours, in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ahead {
    name: String,
    seconds: i64,
}

impl Node {
    /// Compares our clock with those of members to whom a link stands.
    pub(super) async fn check_clocks(&self) -> Option<Finding> {
        let links = self.transport().links();
        let asked = links.iter().take(ASKED_MAX).map(|link| async move {
            let begin = (Instant::now(), UnixTime::now().0);
            let (scope, node) = (&link.peer.scope, &link.peer.id);
            let told = self.transport().call(scope, node, &Clock, DEADLINE).await.ok()?;
            let here = begin.1.saturating_add(begin.0.elapsed().as_secs() / 2);
            let seconds = i64::try_from(told).ok()?.checked_sub(i64::try_from(here).ok()?)?;
            Some(Ahead { name: self.member_name(scope, node), seconds })
        });
        judge_clocks(join_all(asked).await.into_iter().flatten().collect())
    }

    /// Compares our version with those that other members tell.
    pub(super) fn check_versions(&self) -> Finding {
        judge_versions(env!("CARGO_PKG_VERSION"), self.told_versions())
    }

    /// Name and version of each other member that is alive.
    fn told_versions(&self) -> Vec<(String, String)> {
        // One machine may be met in several scopes, and under another name in each.
        let mut told: BTreeMap<NodeId, (String, String)> = BTreeMap::new();
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            let members = gossip.members();
            for member in members.iter().filter(|member| member.is_alive() && member.id != self.id()) {
                let version = node_facts(member).version;
                if !version.is_empty() {
                    told.insert(member.id, (member.name.to_string(), version));
                }
            }
        }
        told.into_values().collect()
    }
}

/// None when nobody could be asked.
fn judge_clocks(mut others: Vec<Ahead>) -> Option<Finding> {
    others.sort_by_key(|one| one.seconds);
    let median = others.get(others.len() / 2)?.seconds;
    let is_off = |seconds: i64| seconds.unsigned_abs() > WORTH_A_LOOK_SECS;
    let graded = |seconds: i64, text: String| {
        let mend = CLOCK_MEND;
        if seconds.unsigned_abs() > CLOCK_SKEW.as_secs() {
            let text = format!("{text}; invites and grants will seem to lie in the future, or to have ended");
            fail("clock", text, mend)
        } else {
            warn("clock", text, mend)
        }
    };
    if let [one] = &others[..]
        && is_off(one.seconds)
    {
        let text = format!(
            "the clock of {} is {}: one of the two is wrong",
            one.name,
            compared(one.seconds, "this machine's")
        );
        return Some(graded(one.seconds, text));
    }
    if is_off(median) {
        let text = format!(
            "this machine's clock is {} (of {} asked)",
            compared(-median, "its members'"),
            others.len()
        );
        return Some(graded(median, text));
    }
    let wrong: Vec<&Ahead> = others.iter().filter(|one| is_off(one.seconds)).collect();
    let Some(worst) = wrong.iter().map(|one| one.seconds).max_by_key(|seconds| seconds.unsigned_abs()) else {
        return Some(ok("clock", format!("as at {} members", others.len())));
    };
    let each: Vec<String> =
        wrong.iter().map(|one| format!("{} is {}", one.name, compared(one.seconds, "this one"))).collect();
    Some(graded(worst, format!("clocks differ: {}", each.join(", "))))
}

fn compared(seconds: i64, with: &str) -> String {
    let side = if seconds < 0 { "behind" } else { "ahead of" };
    format!("{} s {side} {with}", seconds.unsigned_abs())
}

/// `others`: name and version of each.
fn judge_versions(own: &str, mut others: Vec<(String, String)>) -> Finding {
    let told = others.len();
    others.retain(|(_, version)| version != own);
    if others.is_empty() {
        return ok("version", format!("{own}, as at {told} other members"));
    }
    others.sort_unstable();
    let odd: Vec<String> = others.iter().map(|(name, version)| format!("{name} {version}")).collect();
    warn(
        "version",
        format!("this node is {own}; others are not: {}", odd.join(", ")),
        "install one version of qmt-node on all of them, the older first (docs/service.md), and start them again",
    )
}

#[cfg(test)]
mod tests {
    use mesh_control::{InviteRequest, JoinRequest, Verdict};

    use super::*;
    use crate::config::Config;

    fn judged(others: &[(&str, i64)]) -> Option<(Verdict, String)> {
        let ahead = |(name, seconds): &(&str, i64)| Ahead { name: (*name).to_owned(), seconds: *seconds };
        judge_clocks(others.iter().map(ahead).collect()).map(|finding| (finding.verdict, finding.detail))
    }

    #[test]
    fn whose_clock_is_wrong_follows_from_what_most_say() {
        assert_eq!(judged(&[]), None);
        assert_eq!(judged(&[("a", 5), ("b", -5)]).expect("asked").0, Verdict::Ok);
        let (verdict, text) = judged(&[("a", 6)]).expect("asked");
        assert_eq!((verdict, text.contains("one of the two")), (Verdict::Warn, true), "{text}");
        let (verdict, text) = judged(&[("a", 3_600), ("b", 3_601), ("c", 0)]).expect("asked");
        assert_eq!(verdict, Verdict::Fail);
        assert!(text.starts_with("this machine's clock is 3600 s behind"), "{text}");
        let (verdict, text) = judged(&[("a", 0), ("b", 1), ("c", -61)]).expect("asked");
        assert_eq!((verdict, text.contains("c is 61 s behind this one")), (Verdict::Fail, true), "{text}");
    }

    #[test]
    fn another_version_is_named_with_its_node() {
        let told =
            |versions: &[&str]| versions.iter().map(|one| ("box".to_owned(), (*one).to_owned())).collect();
        assert_eq!(judge_versions("1.2.3", told(&["1.2.3"])).verdict, Verdict::Ok);
        let odd = judge_versions("1.2.3", told(&["1.1.9", "1.2.3"]));
        assert_eq!(odd.verdict, Verdict::Warn);
        assert!(odd.detail.ends_with("others are not: box 1.1.9"), "one name, two machines: {odd:?}");
    }

    /// A member that answers with a clock of its own, and tells its version, over a real link.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_member_with_another_clock_and_another_version_is_found() {
        let homes = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let here = Box::pin(Node::start(Config::at(homes[0].path()))).await.expect("starts");
        let there = Box::pin(Node::start(Config::at(homes[1].path()))).await.expect("starts");
        let invite = here.invite(InviteRequest::default()).await.expect("an invite");
        there.join(JoinRequest { token: invite.token }).await.expect("joins");
        let linked = async {
            loop {
                if let Some(clock) = here.check_clocks().await {
                    return clock;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let clock = tokio::time::timeout(Duration::from_secs(30), linked).await.expect("a link");
        assert_eq!(clock.verdict, Verdict::Ok, "{clock:?}");

        serve_call::<Clock, _, _>(
            there.transport(),
            |_: Member, _| async move { Ok(UnixTime::now().0 + 7_200) },
        );
        let told = async {
            loop {
                if let [told] = &here.told_versions()[..] {
                    return told.clone();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(30), told).await.expect("gossip tells");
        assert_eq!(told.1, env!("CARGO_PKG_VERSION"));
        assert_eq!(here.check_versions().verdict, Verdict::Ok);
        let version = judge_versions("9.9.9", vec![told.clone()]);
        assert_eq!((version.verdict, version.mend.is_some()), (Verdict::Warn, true), "{version:?}");
        assert!(version.detail.ends_with(&format!("others are not: {} {}", told.0, told.1)), "{version:?}");
        let clock = here.check_clocks().await.expect("a member is asked");
        assert_eq!(clock.verdict, Verdict::Fail, "{clock:?}");
        assert!(clock.detail.contains("7200 s ahead") || clock.detail.contains("7199 s ahead"), "{clock:?}");
        there.shutdown().await;
        here.shutdown().await;
    }
}
