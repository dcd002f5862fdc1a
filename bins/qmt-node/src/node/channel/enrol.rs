//! A node's own certificate, asked for over the mesh, and the list of revoked ones that every node keeps.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use mesh_identity::ca::{
    By, CaChain, Crl, Csr, Folder, FolderError, Held, Leaf, LeafKey, PublicKey, Request, SKEW_SECONDS, Usage,
    Wallet,
};
use mesh_identity::{NodeId, NodeName, ScopeId, SignedGrant, UnixTime};
use mesh_sessions::channel::Credentials;
use mesh_transport::Transport;
use tokio::time::Instant;

use super::super::scopes::Scope;
use super::super::{Node, chain as causes};
use super::ca::{ADDRESSES_MAX, Ask, Given, LocalCa, REFRESH, TTL, Told, Watch};
use super::files::CHANNEL_FOLDER;

/// How often members and the CA's folder are looked at. A revocation is to be honoured within 2 s: one look at the CA's node, one
/// here, and a second until files that others keep are read again.
const LOOK: Duration = Duration::from_millis(250);
/// For a request and its answer; a signature takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);
/// Members that are asked for a list at once: those that tell of the latest ones.
const LISTS_AT_ONCE: usize = 8;
/// After a failure, doubled with each, up to the second one.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(600);

/// A member that has a CA.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    scope: ScopeId,
    node: NodeId,
    told: Told,
}

/// Why this node has no new certificate.
#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("the CA's node did not answer: {0}")]
    Call(#[from] mesh_transport::CallError),
    #[error("{0}")]
    Folder(#[from] FolderError),
    #[error("the CA's node answered with something else: {0}")]
    Answer(String),
    #[error("it is another CA than the one that this node believes; to believe it, remove {}", .0.display())]
    AnotherCa(std::path::PathBuf),
    #[error("the task was ended")]
    Ended,
}

/// What a certificate comes with: the CA's chain, and its list.
type Certified = (Held, CaChain, Option<Crl>);

/// Keeps the certificate and the list.
struct Keeper {
    node: Node,
    /// What this node is called where it is its own CA.
    name: NodeName,
    wallet: Wallet,
    watch: Watch,
    /// Whether the certificate comes by enrolment; a configured one stays as its owner keeps it.
    enrols: bool,
    held: Option<Held>,
    /// The chain that lists are verified by.
    chain: Option<CaChain>,
    crl: Option<Crl>,
    /// What is held has been given to the channel.
    is_given: bool,
    /// Not before then, after a failure.
    retry: Retry,
    lists: Retry,
    gives: Retry,
    sources: BTreeSet<(ScopeId, NodeId, String)>,
    /// A member that is being asked for a certificate: lists do not wait for it.
    asking: Option<BoxFuture<'static, Result<Certified, EnrolError>>>,
    /// By what it was last decided whose certificates the CA here revokes, and when.
    judged: Option<(BTreeSet<NodeId>, usize, Instant)>,
    withdrawals: Retry,
}

/// When to try again.
struct Retry {
    at: Instant,
    pause: Duration,
    told: String,
}

impl Retry {
    fn new() -> Self {
        Self { at: Instant::now(), pause: RETRY, told: String::new() }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.at
    }

    /// Waits longer each time. True when this reason was not told yet.
    fn failed(&mut self, reason: &str) -> bool {
        self.at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MAX);
        let is_new = self.told != reason;
        self.told = reason.to_owned();
        is_new
    }
}

impl Node {
    /// Sees to this node's certificate and to the list of revoked ones, for as long as the node runs.
    pub(in super::super) async fn keep_certificate(self) {
        let Some(config) = self.config().agent_channel.clone() else { return };
        let is_kept = config.tls.cert_path.exists() && config.tls.key_path.exists();
        let enrols = !config.tls.asked && !is_kept;
        let wallet = Wallet::new(self.config().home.join(CHANNEL_FOLDER));
        let stopping = self.stopping();
        let mut keeper = Keeper {
            node: self,
            name: config.node_name.clone(),
            wallet,
            watch: Watch::default(),
            enrols,
            held: None,
            chain: None,
            crl: None,
            is_given: false,
            retry: Retry::new(),
            lists: Retry::new(),
            gives: Retry::new(),
            sources: BTreeSet::new(),
            asking: None,
            judged: None,
            withdrawals: Retry::new(),
        };
        if let Err(error) = keeper.open(&config.tls.ca_path) {
            tracing::warn!(error = %causes(&error), mend = error.mend(), "what this node kept of its certificate cannot be used");
            return;
        }
        loop {
            keeper.look().await;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                done = answered(&mut keeper.asking) => keeper.enrolled(done),
                () = stopping.cancelled() => return,
            }
        }
    }
}

/// What the one who is asked answers; nothing ever while nobody is.
async fn answered(
    asking: &mut Option<BoxFuture<'static, Result<Certified, EnrolError>>>,
) -> Result<Certified, EnrolError> {
    let Some(answer) = asking else { return std::future::pending().await };
    let answer = answer.await;
    *asking = None;
    answer
}

impl Keeper {
    /// Takes up what the last run left.
    fn open(&mut self, ca_path: &std::path::Path) -> Result<(), FolderError> {
        let configured = std::fs::read_to_string(ca_path).ok().and_then(|text| CaChain::from_pem(&text).ok());
        let kept = self.wallet.chain()?;
        self.chain = if self.enrols { kept.or(configured) } else { configured };
        if self.enrols {
            self.held = self.wallet.identity()?;
        }
        if let Some(chain) = &self.chain {
            self.crl = self.wallet.crl(chain)?;
        }
        Ok(())
    }

    async fn look(&mut self) {
        let local = match self.node.ca_folder() {
            Some(folder) => self.watch.look(&folder).await.cloned(),
            None => None,
        };
        if let Some(local) = &local {
            self.withdraw(local).await;
            self.node.tell_ca(local).await;
            if self.enrols && self.chain.as_ref() != Some(&local.chain) {
                self.chain = Some(local.chain.clone());
                self.crl = None;
            }
            if let Some(crl) = &local.crl {
                self.take_list(crl.clone()).await;
            }
        }
        let sources = self.sources();
        self.fetch_lists(&sources).await;
        if self.enrols {
            self.note_sources(&sources);
            self.enrol(local.as_ref(), &sources).await;
            self.give().await;
        }
    }

    /// Has the CA here revoke the certificates of who is a member no more. Looked at anew when somebody was revoked or
    /// certified, and now and then, since memberships end by themselves too.
    async fn withdraw(&mut self, local: &LocalCa) {
        let revoked: usize = self.node.scopes().list().iter().map(|scope| scope.revoked.len()).sum();
        let is_judged = self.judged.as_ref().is_some_and(|(holders, count, at)| {
            *holders == local.holders && *count == revoked && at.elapsed() < REFRESH
        });
        if is_judged || !self.withdrawals.is_due() {
            return;
        }
        match self.node.withdraw_certificates(local).await {
            Ok(()) => {
                self.judged = Some((local.holders.clone(), revoked, Instant::now()));
                self.withdrawals = Retry::new();
            }
            Err(error) => {
                if self.withdrawals.failed(&error.to_string()) {
                    tracing::warn!(error = %causes(&error), mend = error.mend(), "certificates of revoked members could not be revoked");
                }
            }
        }
    }

    /// Members that have a CA, and may: their grants let them admit.
    fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        for scope in self.node.scopes().list().into_iter().filter(|scope| scope.uninvited.is_none()) {
            let Some(gossip) = self.node.gossip(&scope.id()) else { continue };
            for member in gossip.members().alive() {
                let Some(told) = Told::of(member) else { continue };
                if may_admit(&scope, member) {
                    sources.push(Source { scope: scope.id(), node: member.id, told });
                }
            }
        }
        sources
    }

    /// A CA that was not there before is asked at once.
    fn note_sources(&mut self, sources: &[Source]) {
        let now: BTreeSet<_> =
            sources.iter().map(|source| (source.scope, source.node, source.told.ca.clone())).collect();
        if !now.is_subset(&self.sources) {
            self.retry = Retry::new();
        }
        self.sources = now;
    }

    /// Gets the list from whoever has a later one.
    async fn fetch_lists(&mut self, sources: &[Source]) {
        let Some(chain) = self.chain.clone() else { return };
        let fingerprint = chain.fingerprint();
        let above = self.crl.as_ref().map_or(0, |crl| crl.number);
        let later = sources.iter().filter(|source| source.told.ca == fingerprint && source.told.crl > above);
        let mut later: Vec<Source> = later.cloned().collect();
        later.sort_by_key(|source| std::cmp::Reverse(source.told.crl));
        later.truncate(LISTS_AT_ONCE);
        if later.is_empty() || !self.lists.is_due() {
            return;
        }
        // At once, so that one who does not answer holds nobody up.
        let asked = later.into_iter().map(|source| {
            let transport = self.node.transport().clone();
            async move { (fetch_list(&transport, &source, above).await, source) }
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        while let Some((fetched, source)) = asked.next().await {
            match fetched {
                Ok(crl) => {
                    if self.take_list(crl).await {
                        self.lists = Retry::new();
                        return;
                    }
                }
                Err(error) => {
                    if self.lists.failed(&error.to_string()) {
                        tracing::warn!(node = %source.node.short(), %error, "the list of revoked certificates was not fetched");
                    }
                    self.lists.pause = RETRY; // a member that lies does not delay what others tell
                }
            }
        }
    }

    /// Honours a list if it is a later one of the CA that this node believes, and says whether it is.
    async fn take_list(&mut self, crl: Crl) -> bool {
        let Some(chain) = self.chain.clone() else { return false };
        if self.crl.as_ref().is_some_and(|held| held.number >= crl.number) {
            return false;
        }
        let (wallet, taken) = (self.wallet.clone(), crl.clone());
        let kept = tokio::task::spawn_blocking(move || wallet.keep_crl(&chain, &taken)).await;
        match kept {
            Ok(Ok(_)) => {
                tracing::info!(
                    number = crl.number,
                    revoked = crl.revoked().count(),
                    "a new list of revoked certificates"
                );
                self.crl = Some(crl);
                self.is_given = false;
                self.retry = Retry::new(); // who was shut out may have been let in again
                return true;
            }
            Ok(Err(error)) => {
                if self.lists.failed(&error.to_string()) {
                    tracing::warn!(error = %causes(&error), "a list of revoked certificates was not kept");
                }
            }
            Err(error) => tracing::warn!(%error, "a list of revoked certificates was not kept"),
        }
        false
    }

    /// Whether a certificate has to be asked for.
    fn is_due(&self, now: UnixTime) -> bool {
        let Some(held) = &self.held else { return true };
        let begin = held.leaf.not_before.0.saturating_add(SKEW_SECONDS);
        let half = held.leaf.not_after.0.saturating_sub(begin) / 2;
        let is_revoked = self.crl.as_ref().is_some_and(|crl| crl.revokes(&held.leaf.serial));
        let is_good =
            self.chain.as_ref().is_some_and(|chain| chain.verify(&held.der, Usage::Server, &[], now).is_ok());
        let is_mine = held.leaf.node == Some(self.node.id()) && self.names().contains(&held.leaf.name);
        now.0 >= held.leaf.not_after.0.saturating_sub(half) || is_revoked || !is_good || !is_mine
    }

    /// What this node is called: by its grants, and where it is the CA by itself.
    fn names(&self) -> BTreeSet<NodeName> {
        let scopes = self.node.scopes().list();
        let grants =
            scopes.iter().filter(|scope| scope.uninvited.is_none()).map(|scope| scope.grant.name.clone());
        grants.chain(self.node.ca_folder().map(|_| self.name.clone())).collect()
    }

    async fn enrol(&mut self, local: Option<&LocalCa>, sources: &[Source]) {
        if self.asking.is_some() || !self.retry.is_due() || !self.is_due(UnixTime::now()) {
            return;
        }
        if let Some(local) = local {
            let done = self.certify_here(local.folder.clone()).await;
            return self.enrolled(done);
        }
        // Another CA is not even asked: it would sign for nothing, and its node note it.
        let believed = self.chain.as_ref().map(CaChain::fingerprint);
        let is_believed =
            |source: &&Source| believed.as_ref().is_none_or(|believed| *believed == source.told.ca);
        if sources.is_empty() {
            return;
        }
        let sources: Vec<Source> = sources.iter().filter(is_believed).cloned().collect();
        let asker =
            Asker { node: self.node.clone(), wallet: self.wallet.clone(), believed: self.chain.clone() };
        self.asking = Some(Box::pin(async move { asker.ask_in_turn(&sources).await }));
    }

    fn enrolled(&mut self, done: Result<Certified, EnrolError>) {
        match done {
            Ok((held, chain, crl)) => {
                tracing::info!(name = %held.leaf.name, until = %held.leaf.not_after, "this node has a new certificate");
                (self.held, self.is_given, self.retry) = (Some(held), false, Retry::new());
                if let Some(crl) =
                    crl.filter(|crl| self.crl.as_ref().is_none_or(|held| held.number < crl.number))
                {
                    self.crl = Some(crl);
                }
                self.chain = Some(chain);
            }
            Err(error) => {
                if self.retry.failed(&error.to_string()) {
                    tracing::warn!(error = %causes(&error), "this node got no certificate");
                }
            }
        }
    }

    /// By the CA of this node itself.
    async fn certify_here(&mut self, folder: Folder) -> Result<Certified, EnrolError> {
        let (wallet, me, name) = (self.wallet.clone(), self.node.id(), self.name.clone());
        let addresses = addresses(&self.node);
        let done = tokio::task::spawn_blocking(move || -> Result<Certified, EnrolError> {
            let key = LeafKey::generate().map_err(|error| EnrolError::Answer(error.to_string()))?;
            let (authority, now) = (folder.authority()?, UnixTime::now());
            let ips = addresses.into_iter().filter(|ip| authority.constraints().permits_ip(*ip)).collect();
            let request = Request { node: Some(me), ips, ..Request::new(name, key.public(), TTL) };
            let issued = folder.issue(&authority, &request, By::Enrol, None, now)?;
            let held = wallet.keep(&key, &issued.der, &issued.leaf, authority.chain())?;
            Ok((held, authority.chain().clone(), folder.crl()?))
        });
        done.await.map_err(|_| EnrolError::Ended)?
    }

    /// Hands to the channel what changed.
    async fn give(&mut self) {
        let (Some(held), Some(chain_held)) = (&self.held, &self.chain) else { return };
        let now = UnixTime::now();
        if self.is_given
            || !self.gives.is_due()
            || chain_held.verify(&held.der, Usage::Server, &[], now).is_err()
        {
            return;
        }
        let pem = held.pem.as_bytes().to_vec();
        let credentials = Credentials {
            chain_pem: chain_held.to_pem().into_bytes(),
            cert_pem: pem.clone(),
            key_pem: pem,
            crls: self.crl.iter().map(|crl| crl.to_pem().into_bytes()).collect(),
        };
        match self.node.take_credentials(&credentials).await {
            Ok(()) => (self.is_given, self.gives) = (true, Retry::new()),
            Err(error) => {
                if self.gives.failed(&error.to_string()) {
                    tracing::error!(error = %causes(&error), "the agent channel does not take this node's certificate");
                }
            }
        }
    }
}

/// What a certificate is asked for with.
struct Asker {
    node: Node,
    wallet: Wallet,
    /// The CA that this node believes, if it does any.
    believed: Option<CaChain>,
}

impl Asker {
    async fn ask_in_turn(&self, sources: &[Source]) -> Result<Certified, EnrolError> {
        let mut done = Err(EnrolError::AnotherCa(self.wallet.chain_path()));
        for source in sources {
            done = self.ask(source).await;
            if done.is_ok() {
                break;
            }
        }
        done
    }

    /// By a member that has a CA.
    async fn ask(&self, source: &Source) -> Result<Certified, EnrolError> {
        let scope = self.node.scopes().get(&source.scope).ok_or(EnrolError::Ended)?;
        let wrong = |error: &dyn std::fmt::Display| EnrolError::Answer(error.to_string());
        let key = LeafKey::generate().map_err(|error| wrong(&error))?;
        let name = scope.grant.name.clone();
        let csr = Csr::make(&key, &name, Some(&self.node.id()), &addresses(&self.node))
            .map_err(|error| wrong(&error))?;
        let given =
            self.node.transport().call(&source.scope, &source.node, &Ask::Enrol { csr }, DEADLINE).await?;
        let Given::Certificate { certificate, chain, crl } = given else {
            return Err(wrong(&"no certificate"));
        };
        let chain = CaChain::from_pem(&chain).map_err(|error| wrong(&error))?;
        if self.believed.as_ref().is_some_and(|believed| !believed.has_roots_of(&chain)) {
            return Err(EnrolError::AnotherCa(self.wallet.chain_path()));
        }
        let leaf =
            chain.verify(&certificate, Usage::Server, &[], UnixTime::now()).map_err(|error| wrong(&error))?;
        check(&leaf, &certificate, &key, &name, self.node.id()).map_err(|reason| wrong(&reason))?;
        let crl = Crl::read(&crl).ok().filter(|crl| chain.vouches_for(crl).is_ok());
        let wallet = self.wallet.clone();
        let kept = tokio::task::spawn_blocking(move || -> Result<Certified, EnrolError> {
            let held = wallet.keep(&key, &certificate, &leaf, &chain)?;
            if let Some(crl) = &crl {
                wallet.keep_crl(&chain, crl)?;
            }
            Ok((held, chain, crl))
        });
        kept.await.map_err(|_| EnrolError::Ended)?
    }
}

async fn fetch_list(transport: &Transport, source: &Source, above: u64) -> Result<Crl, EnrolError> {
    match transport.call(&source.scope, &source.node, &Ask::List { above }, DEADLINE).await? {
        Given::List { crl: Some(crl) } => {
            Crl::read(&crl).map_err(|error| EnrolError::Answer(error.to_string()))
        }
        _ => Err(EnrolError::Answer("it has no later list".to_owned())),
    }
}

/// Where a node serves.
fn addresses(node: &Node) -> Vec<IpAddr> {
    let scopes = node.scopes().list();
    let all = scopes.iter().flat_map(|scope| node.own_addr(&scope.id()).direct).map(|addr| addr.ip());
    let kept: BTreeSet<IpAddr> = all.filter(|ip| !ip.is_unspecified() && !ip.is_multicast()).collect();
    kept.into_iter().take(ADDRESSES_MAX).collect()
}

/// Whether a member's grant lets it admit: what it shows in its record, verified again.
fn may_admit(scope: &Scope, member: &Arc<mesh_gossip::Member>) -> bool {
    let grant = SignedGrant::decode(&member.grant);
    let grant = grant
        .ok()
        .and_then(|grant| grant.verify_for(&member.id, &scope.id(), UnixTime::now(), &scope.revoked).ok());
    grant.is_some_and(|grant| grant.permissions.may_admit())
}

/// What came is what was asked for.
fn check(leaf: &Leaf, der: &[u8], key: &LeafKey, name: &NodeName, me: NodeId) -> Result<(), String> {
    let is_mine = PublicKey::of_certificate(der).is_ok_and(|found| found == key.public());
    match () {
        () if !is_mine => Err("a certificate for another key".to_owned()),
        () if leaf.name != *name => Err(format!("a certificate for {}", leaf.name)),
        () if leaf.node != Some(me) => Err("a certificate for another node".to_owned()),
        () => Ok(()),
    }
}
