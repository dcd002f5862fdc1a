//! Relays that members of our scopes run, and the guests that other members' invites bring to ours.
//!
//! A node that runs a relay says so in its record, and whoever reads it may use it. A node that issued invites says in its
//! record which tokens their holders show at relays, since the relay that such an invite names can be another member's.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_control::{Finding, Verdict};
use mesh_gossip::{Audience, Gossip, Member, State};
use mesh_identity::{Expiry, RELAY_URL_BYTES_MAX, Role, ScopeId, UnixTime};
use mesh_transport::internet::{HomeRelay, LEARNED_MAX, Relay, Relays};
use serde::{Deserialize, Serialize};

use super::{Node, facts};
use crate::store::StoreError;

/// The key of the relay that a node runs.
const RELAY_KEY: &str = "relay";
/// The key of the tokens of its open invites.
const PASSES_KEY: &str = "relay/passes";
/// Passes told at once: with 64 digits and an end each they fit into one value of 4 KiB.
const PASSES_MAX: usize = 32;
/// Guests of our own relay by the invites of others; half of what its list of tokens holds, which our own invites share.
const GUESTS_MAX: usize = 2048;
/// Length of a relay token.
const TOKEN_BYTES: usize = 64;
/// How long the first invite waits for the home relay, which takes two round trips and a measurement.
const HOME_WAIT: Duration = Duration::from_secs(3);
/// Between two looks at it.
const HOME_LOOK: Duration = Duration::from_millis(50);

/// A relay as its node tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelayFacts {
    url: String,
    /// UDP port of its address discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quic_port: Option<u16>,
}

/// What the holder of an invite shows at relays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Pass {
    token: String,
    /// When the invite ends, Unix seconds; 0 for never.
    #[serde(default)]
    until: u64,
}

impl RelayFacts {
    pub(super) fn of(relay: Relay) -> Self {
        Self { url: relay.url, quic_port: relay.quic_port }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The relay of a member; `None` for what is not the URL of one.
    fn of_member(member: &Member) -> Option<Relay> {
        let told: Self = serde_json::from_slice(member.value(RELAY_KEY)?).ok()?;
        let is_url = told.url.starts_with("https://") || told.url.starts_with("http://");
        (is_url && told.url.len() <= RELAY_URL_BYTES_MAX).then_some(told.into())
    }
}

impl From<RelayFacts> for Relay {
    fn from(told: RelayFacts) -> Self {
        Self { url: told.url, quic_port: told.quic_port, token: None }
    }
}

impl Pass {
    fn end(&self) -> Expiry {
        if self.until == 0 { Expiry::NEVER } else { Expiry::at(UnixTime(self.until)) }
    }

    fn is_well_formed(&self) -> bool {
        self.token.len() == TOKEN_BYTES && self.token.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// Those of a member's open invites; at most [`PASSES_MAX`].
    fn of_member(member: &Member) -> Vec<Self> {
        let told = member.value(PASSES_KEY).filter(|_| member.role == Role::Member);
        let mut passes: Vec<Self> =
            told.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        passes.retain(Self::is_well_formed);
        passes.truncate(PASSES_MAX);
        passes
    }
}

impl Node {
    /// Keeps the relays in use, our record of them and the guests of our own relay up to date, for as long as the node
    /// runs.
    pub(crate) async fn keep_relays(self) {
        let mut guests = BTreeSet::new();
        loop {
            // Whom only the network made members neither learns of relays nor is learned from.
            for scope in self.scopes().list().iter().filter(|scope| scope.uninvited.is_none()) {
                let Some(gossip) = self.gossip(&scope.id()) else { continue };
                self.learn_relays(&scope.id(), &gossip).await;
                if !self.config().client {
                    self.publish_relays(&scope.id(), &gossip).await;
                }
            }
            self.admit_guests(&mut guests);
            tokio::select! {
                () = self.inner.relays_changed.notified() => {}
                () = tokio::time::sleep(facts::LOOK) => {}
                () = self.stopping().cancelled_owned() => return,
            }
        }
    }

    /// Uses the relays that members of a scope run, and our own for it.
    async fn learn_relays(&self, scope: &ScopeId, gossip: &Gossip) {
        let members = gossip.members();
        let mut relays: Vec<Relay> = self.inner.own_relay.clone().map(Relay::from).into_iter().collect();
        let of_members: Vec<Relay> = members
            .iter()
            .filter(|member| member.state != State::Down)
            .filter_map(|m| RelayFacts::of_member(m))
            .collect();
        if self
            .inner
            .relay_trust
            .guest_url(scope)
            .is_some_and(|url| of_members.iter().any(|relay| relay.url == url))
        {
            // Now it is known who runs the relay of our invite, so that its key counts and no other.
            self.inner.relay_trust.end_guest(scope);
        }
        relays.extend(of_members);
        relays.truncate(LEARNED_MAX);
        self.inner.endpoints.learn(*scope, &relays).await;
    }

    async fn publish_relays(&self, scope: &ScopeId, gossip: &Gossip) {
        let own =
            self.inner.own_relay.as_ref().and_then(|own| serde_json::to_vec(own).ok()).unwrap_or_default();
        facts::put(gossip, RELAY_KEY, Audience::Members, own).await;
        match self.own_passes(scope).await {
            Ok(passes) if passes.is_empty() => {
                facts::put(gossip, PASSES_KEY, Audience::Members, Vec::new()).await
            }
            Ok(passes) => {
                let value = serde_json::to_vec(&passes).unwrap_or_default();
                facts::put(gossip, PASSES_KEY, Audience::Members, value).await;
            }
            Err(error) => tracing::warn!(error = %super::chain(&error), "open invites could not be read"),
        }
    }

    /// Of our open invites to a scope that name a relay of somebody else; the newest first.
    async fn own_passes(&self, scope: &ScopeId) -> Result<Vec<Pass>, StoreError> {
        let now = UnixTime::now();
        let own = self.inner.own_relay.as_ref().map(RelayFacts::url);
        let open = self.store().invites().await?.into_iter();
        let open = open.filter(|invite| invite.scope == *scope && invite.revoked_at.is_none());
        let invites = open.filter_map(|issued| issued.token.verify(now).ok());
        let elsewhere = invites
            .filter(|invite| invite.grant().hints.relay.as_deref().is_some_and(|relay| Some(relay) != own));
        let pass = |invite: mesh_identity::Invite| Pass {
            token: invite.relay_token(),
            until: invite.grant().expires_at.time().map_or(0, |time| time.0),
        };
        Ok(elsewhere.map(pass).take(PASSES_MAX).collect())
    }

    /// Lets in at our own relay who holds an open invite of another member. `guests` are those let in so far.
    fn admit_guests(&self, guests: &mut BTreeSet<Pass>) {
        let Some(access) = &self.inner.relay_access else { return };
        let scopes = self.scopes().list();
        let invited = scopes.iter().filter(|scope| scope.uninvited.is_none());
        let gossips = invited.filter_map(|scope| self.gossip(&scope.id()));
        let members = gossips.map(|gossip| gossip.members());
        let passes =
            members.flat_map(|members| members.iter().flat_map(|m| Pass::of_member(m)).collect::<Vec<_>>());
        let told: BTreeSet<Pass> = passes.take(GUESTS_MAX).collect();
        for ended in guests.difference(&told) {
            access.remove_token(&ended.token);
        }
        for new in told.difference(guests) {
            access.allow_token(new.token.clone(), new.end());
        }
        *guests = told;
    }

    /// The relay that an invite names when no home relay is known yet, as in the moment in which a mesh is founded: waits
    /// a little for the one that answers first, then takes the first of the configuration.
    pub(super) async fn first_relay(&self, scope: &ScopeId) -> Option<String> {
        let endpoint = self.inner.endpoints.of(scope).await?;
        let configured = match endpoint.relays() {
            Relays::Disabled => return None,
            Relays::Custom(relays) if relays.is_empty() => return None,
            Relays::Custom(relays) => relays.first().map(|relay| relay.url.clone()),
            Relays::Public => None,
        };
        let found = async {
            loop {
                if let Some(url) = self.own_addr(scope).relay {
                    return url;
                }
                tokio::time::sleep(HOME_LOOK).await;
            }
        };
        tokio::time::timeout(HOME_WAIT, found).await.ok().or(configured)
    }

    /// How the relays of our scopes do, in words that tell the mend; one finding for each home relay.
    pub(super) async fn check_relays(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = Vec::new();
        for scope in self.scopes().list().iter().filter(|scope| scope.uninvited.is_none()) {
            let Some(endpoint) = self.inner.endpoints.of(&scope.id()).await else { continue };
            let addr = self.own_addr(&scope.id());
            let has_public = addr.direct.iter().any(|direct| is_public(direct.ip()));
            let finding = match (endpoint.relays(), endpoint.home_relay()) {
                (Relays::Disabled, _) => continue,
                (Relays::Custom(relays), None) if relays.is_empty() => continue,
                (_, None) => finding(
                    Verdict::Warn,
                    format!("none of the relays of {} answers", scope.name),
                    "check relay_urls, and that this machine reaches them by https and by UDP port 7842",
                ),
                (_, Some(home)) => relay_finding(&home, has_public),
            };
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        findings
    }
}

fn relay_finding(home: &HomeRelay, has_public: bool) -> Finding {
    let url = &home.url;
    match home {
        HomeRelay { refused: Some(reason), .. } => finding(
            Verdict::Warn,
            format!("{url} refuses this node: {reason}"),
            "it takes members of the meshes of the node that runs it: check that this membership holds there, or name \
             another relay in relay_urls",
        ),
        HomeRelay { connected: false, error, .. } => finding(
            Verdict::Warn,
            format!("{url} does not answer: {}", error.as_deref().unwrap_or("no attempt has ended yet")),
            "start the node that runs it, or check that this machine reaches that port; direct links go on, relayed ones \
             come back with it or over the relay of another member",
        ),
        _ if !has_public => finding(
            Verdict::Warn,
            format!("{url} carries this node, but its address discovery (UDP port 7842) does not answer"),
            "open that UDP port at the relay, also in its router; without it nodes behind NAT stay relayed",
        ),
        _ => finding(Verdict::Ok, url.clone(), ""),
    }
}

fn finding(verdict: Verdict, detail: String, mend: &str) -> Finding {
    let mend = (verdict != Verdict::Ok).then(|| mend.to_owned());
    Finding { check: "relay".to_owned(), verdict, detail, mend }
}

/// Whether the internet leads to it.
fn is_public(ip: std::net::IpAddr) -> bool {
    match ip {
        std::net::IpAddr::V4(v4) => {
            let is_shared = v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]); // RFC 6598
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || is_shared)
        }
        std::net::IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unique_local()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_invite_that_founds_a_mesh_names_a_configured_relay_that_has_not_answered_yet() {
        let home = tempfile::tempdir().expect("a folder");
        let mut config = crate::config::Config::at(home.path());
        let relay = "https://127.0.0.1:1".to_owned();
        config.mesh.internet.relays = crate::config::Relays::Custom(vec![relay.clone()]);
        let node = Node::start(config).await.expect("starts");
        let created = node.invite(mesh_control::InviteRequest::default()).await.expect("an invite");
        let token = mesh_identity::InviteToken::parse(&created.token).expect("a token");
        let invite = token.verify(UnixTime::now()).expect("holds");
        assert_eq!(invite.grant().hints.relay, Some(relay));
        node.shutdown().await;
    }

    #[test]
    fn passes_that_are_none_are_left_out() {
        let pass = |token: &str| Pass { token: token.to_owned(), until: 0 };
        assert!(pass(&"0a".repeat(32)).is_well_formed());
        for odd in ["", "0a", &"zz".repeat(32), &"0a".repeat(33)] {
            assert!(!pass(odd).is_well_formed(), "{odd}");
        }
        let all: Vec<Pass> =
            (0..PASSES_MAX).map(|_| Pass { token: "0a".repeat(32), until: u64::MAX }).collect();
        assert!(serde_json::to_vec(&all).is_ok_and(|value| value.len() <= 4096));
    }

    #[test]
    fn findings_say_what_to_do_about_a_relay() {
        let home = HomeRelay { url: "https://r".to_owned(), connected: true, refused: None, error: None };
        assert_eq!(relay_finding(&home, true).verdict, Verdict::Ok);
        let no_discovery = relay_finding(&home, false);
        assert!(no_discovery.detail.contains("address discovery"), "{no_discovery:?}");
        let lost = HomeRelay { connected: false, error: Some("gone".to_owned()), ..home.clone() };
        assert!(relay_finding(&lost, true).detail.ends_with("does not answer: gone"));
        let refused = HomeRelay { refused: Some("not a member".to_owned()), ..lost };
        let refused = relay_finding(&refused, true);
        assert!(refused.detail.contains("refuses this node: not a member") && refused.mend.is_some());
    }

    #[test]
    fn an_address_behind_a_nat_is_not_public() {
        let is = |text: &str| is_public(text.parse().expect("an address"));
        assert!(is("198.18.0.2") && is("2001:db8::1"));
        assert!(!is("192.168.1.2") && !is("100.64.1.2") && !is("fd00::1") && !is("127.0.0.1"));
    }
}
