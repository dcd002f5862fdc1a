//! Where downloads come from, where they go, and how long they wait.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::source::SourceError;
use super::way::Proxies;
use crate::backend::Secret;

/// Parameters of [`super::Fetch`].
#[derive(Debug, Clone)]
pub struct Config {
    /// The model folders. Downloads go into the first; files of all of them are given to members.
    pub folders: Vec<PathBuf>,
    /// The hub: `https://huggingface.co`, or a mirror of it.
    pub endpoint: Url,
    /// What the hub asks for with gated models. It is sent to `endpoint`'s scheme, host and port and nowhere else, and never
    /// unencrypted to another machine.
    pub token: Option<Secret>,
    /// The way to the hub and other servers. Members are never asked over a proxy.
    pub proxies: Proxies,
    /// Folder for the hashes of files whose own folder cannot be written.
    pub cache: Option<PathBuf>,
    /// From asking for a connection to having it (10 s), name and TLS included.
    pub connect_timeout: Duration,
    /// Without a byte for this long a connection counts as broken (30 s).
    pub silence_timeout: Duration,
    /// Faults in a row, without a piece of the file in between, after which a download ends (8).
    pub faults_max: u32,
    /// The first wait after a fault (1 s); it doubles with each, up to `backoff_max`, and is jittered down to its half.
    pub backoff: Duration,
    /// The longest wait (30 s), and the longest that a server's `Retry-After` is followed, ten times as long.
    pub backoff_max: Duration,
    /// Bytes of the disk that a download leaves free (64 MiB): the node itself writes there too.
    pub disk_reserve_bytes: u64,
    /// Downloads at a time (4); more wait.
    pub pulls_max: usize,
    /// Members that one file comes from at a time (8).
    pub members_max: usize,
    /// Streams to each of them (3); each holds one chunk of 1 MiB.
    pub streams_per_member: usize,
    /// For a member's answer, and for each chunk of 1 MiB (10 s).
    pub member_timeout: Duration,
    /// How long a member's hashing of a file is waited for (2 min).
    pub index_wait: Duration,
    /// A member further away than this is not asked (20 ms), unless the LAN transport carries its link.
    pub member_rtt_max: Duration,
}

/// The hub, unless `HF_ENDPOINT` names another.
pub const ENDPOINT: &str = "https://huggingface.co";

impl Config {
    /// The same, with another hub (`HF_ENDPOINT`): an http or https URL.
    ///
    /// # Errors
    /// When the text is none.
    pub fn with_endpoint(mut self, text: &str) -> Result<Self, SourceError> {
        let bad = |why: String| SourceError::BadUrl { url: text.to_owned(), why };
        let url = Url::parse(text.trim()).map_err(|error| bad(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.query().is_some() {
            return Err(bad("it is no address of a server".to_owned()));
        }
        self.endpoint = url;
        Ok(self)
    }

    /// Downloads into the first of `folders`.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self {
            folders,
            endpoint: Url::parse(ENDPOINT).expect("a URL"),
            token: None,
            proxies: Proxies::default(),
            cache: None,
            connect_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(30),
            faults_max: 8,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            disk_reserve_bytes: 64 << 20,
            pulls_max: 4,
            members_max: 8,
            streams_per_member: 3,
            member_timeout: Duration::from_secs(10),
            index_wait: Duration::from_secs(120),
            member_rtt_max: Duration::from_millis(20),
        }
    }
}
