//! Who may use the console: a link opens it once, a cookie from then on.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_identity::UnixTime;

/// How long an unused link can be used, seconds: a person copies it from a terminal to a browser.
const LINK_SECS: u64 = 10 * 60;
/// Links that wait to be used; with one more the oldest counts no more.
const LINKS_MAX: usize = 64;
/// How long a cookie holds, seconds.
pub(super) const COOKIE_SECS: u64 = 7 * 24 * 3600;
/// Version, access, end, chance.
const CLAIM_BYTES: usize = 1 + 1 + 8 + 16;
const VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
/// What the cookies' key is derived for (BLAKE3's key derivation wants a text that nothing else uses).
const CONTEXT: &str = "qmt-mesh 2026 console cookie v1";

/// What whoever came in may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// All that the node's own user may.
    Full,
    /// Look.
    Watch,
}

impl Access {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Watch => "watch",
        }
    }
}

/// The links that were given out, and the secret under which cookies are made. Cookies outlive the node, links do not.
pub(crate) struct Door {
    key: RwLock<[u8; 32]>,
    links: Mutex<VecDeque<Link>>,
}

struct Link {
    key: [u8; 32],
    access: Access,
    until: UnixTime,
}

impl Door {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self { key: RwLock::new(blake3::derive_key(CONTEXT, secret)), links: Mutex::default() }
    }

    /// No link and no cookie that was given out before counts any more.
    pub(crate) fn close(&self, secret: &[u8]) {
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = blake3::derive_key(CONTEXT, secret);
        self.links.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn mac(&self, claim: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.key.read().unwrap_or_else(PoisonError::into_inner), claim)
    }

    /// The key of a new link, and until when it can be used.
    pub(crate) fn link(&self, access: Access, now: UnixTime) -> (String, UnixTime) {
        let key: [u8; 32] = rand::random();
        let until = UnixTime(now.0.saturating_add(LINK_SECS));
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| link.until > now);
        if links.len() == LINKS_MAX {
            links.pop_front();
        }
        links.push_back(Link { key, access, until });
        (URL_SAFE_NO_PAD.encode(key), until)
    }

    /// A cookie for a link's key; the link is used up.
    pub(crate) fn open(&self, key: &str, now: UnixTime) -> Option<String> {
        let key = blake3::Hash::from_bytes(URL_SAFE_NO_PAD.decode(key).ok()?.try_into().ok()?);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        // Comparing hashes takes the same time wherever they differ.
        let at = links.iter().position(|link| blake3::Hash::from_bytes(link.key) == key)?;
        let link = links.remove(at).filter(|link| link.until > now)?;
        Some(self.cookie(link.access, UnixTime(now.0.saturating_add(COOKIE_SECS))))
    }

    fn cookie(&self, access: Access, until: UnixTime) -> String {
        let mut bytes = Vec::with_capacity(CLAIM_BYTES + MAC_BYTES);
        bytes.extend([VERSION, u8::from(access == Access::Watch)]);
        bytes.extend(until.0.to_be_bytes());
        bytes.extend(rand::random::<[u8; 16]>());
        bytes.extend(self.mac(&bytes).as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// What the bearer of the cookie may do.
    pub(crate) fn check(&self, cookie: &str, now: UnixTime) -> Option<Access> {
        if cookie.len() > 2 * (CLAIM_BYTES + MAC_BYTES) {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(cookie).ok()?;
        let (claim, mac) = bytes.split_at_checked(CLAIM_BYTES)?;
        let mac = blake3::Hash::from_bytes(mac.try_into().ok()?);
        if self.mac(claim) != mac {
            return None;
        }
        let until = u64::from_be_bytes(claim.get(2..10)?.try_into().ok()?);
        match claim {
            [VERSION, 0, ..] if until > now.0 => Some(Access::Full),
            [VERSION, 1, ..] if until > now.0 => Some(Access::Watch),
            _ => None,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn a_link_opens_once_and_its_cookie_holds_as_long_as_it_says() {
        let door = Door::new(b"secret");
        for access in [Access::Full, Access::Watch] {
            let (key, until) = door.link(access, NOW);
            assert_eq!(until.0, NOW.0 + LINK_SECS);
            let cookie = door.open(&key, NOW).unwrap();
            assert_eq!(door.open(&key, NOW), None, "a link was used twice");
            assert_eq!(door.check(&cookie, UnixTime(NOW.0 + COOKIE_SECS - 1)), Some(access));
            assert_eq!(door.check(&cookie, UnixTime(NOW.0 + COOKIE_SECS)), None);
        }
    }

    #[test]
    fn an_old_link_opens_nothing_and_only_so_many_wait() {
        let door = Door::new(b"secret");
        let (old, until) = door.link(Access::Full, NOW);
        assert_eq!(door.open(&old, until), None);
        let keys: Vec<String> = (0..=LINKS_MAX).map(|_| door.link(Access::Full, NOW).0).collect();
        assert_eq!(door.open(&keys[0], NOW), None, "the oldest gave way");
        assert!(keys[1..].iter().all(|key| door.open(key, NOW).is_some()));
    }

    #[test]
    fn a_closed_door_lets_nobody_in_who_was_in_before() {
        let door = Door::new(b"secret");
        let (key, _) = door.link(Access::Full, NOW);
        let cookie = door.open(&key, NOW).unwrap();
        let (unused, _) = door.link(Access::Full, NOW);
        door.close(b"another");
        assert_eq!((door.check(&cookie, NOW), door.open(&unused, NOW)), (None, None));
        let (key, _) = door.link(Access::Full, NOW);
        assert!(door.open(&key, NOW).is_some());
    }

    #[test]
    fn a_cookie_of_another_secret_or_with_any_bit_changed_is_none() {
        let door = Door::new(b"secret");
        let (key, _) = door.link(Access::Watch, NOW);
        let cookie = door.open(&key, NOW).unwrap();
        assert_eq!(Door::new(b"secret").check(&cookie, NOW), Some(Access::Watch), "it outlives the node");
        assert_eq!(Door::new(b"other").check(&cookie, NOW), None);
        let bytes = URL_SAFE_NO_PAD.decode(&cookie).unwrap();
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert_eq!(door.check(&URL_SAFE_NO_PAD.encode(wrong), NOW), None, "byte {at}");
        }
        for text in ["", "x", "AAAA", &cookie[1..], &"A".repeat(10_000)] {
            assert_eq!(door.check(text, NOW), None);
        }
    }
}
