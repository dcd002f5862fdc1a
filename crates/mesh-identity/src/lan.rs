//! The well-known scope `lan`, in which nodes of a local network meet that nobody invited.

use crate::{
    Authority, Founding, GrantError, IssueError, NodeId, NodeKey, NodeName, Permissions, ScopeId, ScopeRoot,
    SignedGrant, UnixTime,
};

// Contexts of blake3's key derivation: fixed for ever, one per purpose.
const FOUNDER_CONTEXT: &str = "qmt-mesh 2026-11 lan scope founder key v1";
const RECOVERY_CONTEXT: &str = "qmt-mesh 2026-11 lan scope recovery key v1";
/// Of argon2id: 19 MiB, two passes, one lane, as OWASP recommends for passwords. Part of the protocol: other parameters
/// make another scope.
const STRETCH_KIB: u32 = 19 * 1024;
const STRETCH_PASSES: u32 = 2;
const STRETCH_SALT: &[u8] = b"qmt-mesh 2026-11 lan pre-shared key v1";

/// The scope of uninvited peers: one for each pre-shared key, and one for none.
///
/// Its founder's key is no secret of anybody: it follows from the pre-shared key or, without one, from nothing. So
/// whoever knows the pre-shared key signs a grant for itself, and whoever does not can neither make such a grant nor
/// have one verified. It also means that a grant of this scope proves nothing beyond that. What its subject may do is for
/// each node to say, whatever the grant says, and revocations of this scope are worth nothing and must not be obeyed.
///
/// The scope's id is told to whoever is dialed, and a key that was guessed can be compared with it; the guess is made
/// costly (argon2id), so a pre-shared key of a few random words is enough, and a name or a year is not.
#[derive(Debug, Clone)]
pub struct LanScope {
    founder: NodeKey,
    root: ScopeRoot,
}

impl LanScope {
    /// The scope of this pre-shared key, or the one of none. With a key this takes some 20 ms and 19 MiB.
    pub fn new(psk: Option<&[u8]>) -> Self {
        let secret = psk.map_or([0; 32], stretched);
        let derive = |context| NodeKey::from_seed(blake3::derive_key(context, &secret));
        let founder = derive(FOUNDER_CONTEXT);
        let root = Founding::with_recovery(&founder, derive(RECOVERY_CONTEXT)).root;
        Self { founder, root }
    }

    /// The scope's name.
    pub fn id(&self) -> ScopeId {
        self.root.id()
    }

    /// The scope's root.
    pub fn root(&self) -> ScopeRoot {
        self.root
    }

    /// A grant that the node makes for itself, for [`crate::GRANT_TTL`] from `now`.
    ///
    /// # Errors
    /// Never for a real time: what the scope's own founder signs is in order.
    pub fn sign_for(
        &self,
        subject: NodeId,
        name: NodeName,
        now: UnixTime,
    ) -> Result<SignedGrant, IssueError> {
        let authority = Authority::founder(self.founder.clone(), self.root)?;
        authority.sign_grant(subject, name, Permissions::MEMBER, None, now)
    }
}

/// Makes each guess at a pre-shared key cost as much as it costs us.
fn stretched(psk: &[u8]) -> [u8; 32] {
    let params =
        argon2::Params::new(STRETCH_KIB, STRETCH_PASSES, 1, Some(32)).expect("constants within bounds");
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut secret = [0; 32];
    // It fails beyond 4 GiB of input only; hashed first, any input is 32 bytes.
    let input = blake3::hash(psk);
    argon2.hash_password_into(input.as_bytes(), STRETCH_SALT, &mut secret).expect("lengths within bounds");
    secret
}

impl ScopeId {
    /// [`LanScope::id`] for a caller that needs nothing else of it.
    pub fn lan(psk: Option<&[u8]>) -> Self {
        LanScope::new(psk).id()
    }
}

impl SignedGrant {
    /// [`SignedGrant::verify_for`] in a scope `lan`, where nothing can be revoked.
    ///
    /// # Errors
    /// [`GrantError`] names the first fault.
    pub fn verify_uninvited(
        &self,
        peer: &NodeId,
        scope: &ScopeId,
        now: UnixTime,
    ) -> Result<crate::Grant, GrantError> {
        self.verify_for(peer, scope, now, &crate::RevocationSet::new(*scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn node(seed: u8) -> NodeId {
        NodeKey::from_seed([seed; 32]).node_id()
    }

    fn name() -> NodeName {
        NodeName::new("laptop").expect("a name")
    }

    #[test]
    fn scopes_differ_by_their_key() {
        let ids = [None, Some("".as_bytes()), Some(b"a"), Some(b"b")].map(ScopeId::lan);
        let distinct: std::collections::BTreeSet<_> = ids.into_iter().collect();
        assert_eq!(distinct.len(), ids.len());
        assert_eq!(ScopeId::lan(Some(b"a")), LanScope::new(Some(b"a")).id());
    }

    #[test]
    fn who_knows_the_key_is_in_and_nobody_else() {
        let scope = LanScope::new(Some(b"correct horse"));
        let grant = scope.sign_for(node(1), name(), NOW).expect("signs");
        let verified = grant.verify_uninvited(&node(1), &scope.id(), NOW).expect("holds");
        assert_eq!((verified.subject, verified.name), (node(1), name()));
        assert_eq!(grant.verify_uninvited(&node(2), &scope.id(), NOW), Err(GrantError::WrongSubject));

        // A stranger that has learned the scope's root from a hello, and signs with a key of its own.
        let own = NodeKey::from_seed([9; 32]);
        let forged = Authority::founder(own.clone(), ScopeRoot { founder: own.node_id(), ..scope.root() });
        let forged =
            forged.expect("of another scope").sign_grant(node(9), name(), Permissions::MEMBER, None, NOW);
        let forged = forged.expect("signs");
        assert_eq!(forged.verify_uninvited(&node(9), &scope.id(), NOW), Err(GrantError::WrongScope));
        assert!(Authority::founder(own, scope.root()).is_err());

        let elsewhere = LanScope::new(None).sign_for(node(1), name(), NOW).expect("signs");
        assert_eq!(elsewhere.verify_uninvited(&node(1), &scope.id(), NOW), Err(GrantError::WrongScope));
    }
}
