//! One download from asking to the file in its place.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use mesh_transport::Transport;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::blob::{Blobs, Found, Spread, spread, who_has};
use super::config::Config;
use super::digest::Sha256Hash;
use super::disk::{check_room, write_fault};
use super::error::FetchError;
use super::index::{FILE_BYTES_MAX, Index, Stamp};
use super::part::{Identity, OpenFault, Part};
use super::progress::{Meter, Stage};
use super::source::{HubFile, Source, Wanted};
use super::stats::Counters;
use super::stream::{Coming, Remote, StreamFault};
use super::web::{Answer, Web, WebFault, host};
use super::{Checked, Pulled, jittered};
use crate::catalogue::Catalogue;
use crate::gguf::SplitName;

/// Versions of one file that are begun.
const VERSIONS_MAX: u32 = 3;
/// How often a file that another process downloads is looked at.
const BUSY_TIME: Duration = Duration::from_millis(500);
/// Longest wait that a server may ask for, in times of the longest own one.
const RETRY_AFTER_TIMES: u32 = 10;

pub(crate) struct Job {
    pub(crate) config: Arc<Config>,
    pub(crate) web: Web,
    pub(crate) transport: Option<Transport>,
    pub(crate) blobs: Blobs,
    pub(crate) meter: Meter,
    pub(crate) stop: CancellationToken,
}

/// A file that is known well enough to be fetched.
#[derive(Debug, Clone)]
struct Known {
    wanted: Wanted,
    target: PathBuf,
    identity: Identity,
    /// Where a server has it.
    url: Option<Url>,
    /// What members said of it, when nobody else is asked.
    found: Vec<Found>,
}

/// How a try at a file ended.
enum Ended {
    Here(Checked),
    /// It is another file at the server now.
    Changed,
}

impl Job {
    pub(crate) async fn run(&self, source: Source) -> Result<Pulled, FetchError> {
        if let Some(pulled) = self.here(&source).await {
            self.meter.stands_at(pulled.bytes);
            self.meter.stage(Stage::Done);
            return Ok(pulled);
        }
        let mut files = match &source {
            Source::Members(name) => self.of_members(name).await?,
            _ => {
                let mut files = Vec::new();
                for wanted in source.files()? {
                    files.push(self.know(wanted).await?);
                }
                files
            }
        };
        let total = files.iter().map(|file| file.identity.bytes).fold(0, u64::saturating_add);
        self.meter.total(total);
        let (mut done, mut checked) = (0, Checked::Here);
        for file in &mut files {
            checked = checked.min(self.file(file, done, total).await?);
            done += file.identity.bytes;
            self.meter.stands_at(done);
        }
        self.meter.stage(Stage::Done);
        let files = files.into_iter().map(|file| file.target).collect();
        Ok(Pulled { files, bytes: done, checked })
    }

    /// What the catalogue has already. A URL is no name there.
    async fn here(&self, source: &Source) -> Option<Pulled> {
        let (name, folders) = (source.to_string(), self.config.folders.clone());
        if matches!(source, Source::Url(_)) {
            return None;
        }
        let resolve = move || {
            let model = Catalogue::scan(&folders).resolve(&name).ok()?;
            // The beginning of a name may mean a model here; whoever pulls means a whole name.
            let is_named =
                name.contains('/') || model.name.eq_ignore_ascii_case(name.trim_end_matches(".gguf"));
            is_named.then_some(model)
        };
        let model = tokio::task::spawn_blocking(resolve).await.ok()??;
        Some(Pulled { files: vec![model.path], bytes: model.file_bytes, checked: Checked::Here })
    }

    fn target(&self, path: &str) -> Result<PathBuf, FetchError> {
        Ok(self.config.folders.first().ok_or(FetchError::NoFolder)?.join(path))
    }

    /// The files of a model that nothing but the name is known of: those that all members agree on who have it.
    async fn of_members(&self, name: &str) -> Result<Vec<Known>, FetchError> {
        let found = self.members_have(name, None, None).await;
        let none = || FetchError::NoMember(name.to_owned());
        let mut files: Vec<Known> = Vec::new();
        for one in &found {
            if !super::source::is_plain(&one.name) || !one.name.ends_with(".gguf") {
                continue;
            }
            if files.iter().any(|file| file.wanted.path == one.name) {
                let files = found.iter().map(|one| {
                    let at: Vec<&str> = one.holders.iter().map(|holder| holder.name.as_str()).collect();
                    format!("{} of {} bytes at {}", one.name, one.bytes, at.join(" and "))
                });
                return Err(FetchError::Differs { name: name.to_owned(), files: files.collect() });
            }
            files.push(Known {
                wanted: Wanted { path: one.name.clone(), from: Source::Members(one.name.clone()) },
                target: self.target(&one.name)?,
                identity: Identity { bytes: one.bytes, sha256: Some(one.sha256), validator: None },
                url: None,
                found: vec![one.clone()],
            });
        }
        files.sort_by(|a, b| a.target.cmp(&b.target));
        let count =
            files.first().map(|file| SplitName::of(&file.target).map_or(1, |split| split.count.into()));
        if count.is_none_or(|count: usize| count != files.len()) {
            return Err(none());
        }
        Ok(files)
    }

    async fn members_have(&self, name: &str, bytes: Option<u64>, sha256: Option<Sha256Hash>) -> Vec<Found> {
        let Some(transport) = &self.transport else { return Vec::new() };
        who_has(transport, &self.config, name, bytes, sha256).await
    }

    /// What a server says of a file. A hub that does not answer is stood in for by members, where they agree.
    async fn know(&self, wanted: Wanted) -> Result<Known, FetchError> {
        self.meter.stage(Stage::Asking);
        let mut faults = 0;
        loop {
            let url = match &wanted.from {
                Source::Hub(hub) => hub.url(&self.config.endpoint),
                Source::Url(from) => from.url.clone(),
                Source::Members(name) => return Err(FetchError::NoMember(name.clone())),
            };
            // Addresses with a signature in them are often good for GET only.
            let method = if matches!(wanted.from, Source::Hub(_)) { Method::HEAD } else { Method::GET };
            let fault = match self.web.ask(method, &url, &HeaderMap::new()).await {
                Ok(answer) => return self.known(wanted, url, &answer),
                Err(fault) => fault,
            };
            if faults == 0
                && matches!((&wanted.from, &fault), (Source::Hub(_), WebFault::Transient { .. }))
                && let Some(known) = self.known_by_members(&wanted).await?
            {
                return Ok(known);
            }
            faults += 1;
            self.wait(&host(&url), fault, faults).await?;
        }
    }

    async fn known_by_members(&self, wanted: &Wanted) -> Result<Option<Known>, FetchError> {
        let name = wanted.path.rsplit('/').next().unwrap_or(&wanted.path);
        let found = self.members_have(name, None, None).await;
        let [one] = &found[..] else { return Ok(None) };
        tracing::info!(file = name, "the hub does not answer; members have the file");
        Ok(Some(Known {
            wanted: Wanted { from: Source::Members(name.to_owned()), ..wanted.clone() },
            target: self.target(&wanted.path)?,
            identity: Identity { bytes: one.bytes, sha256: Some(one.sha256), validator: None },
            url: None,
            found: found.clone(),
        }))
    }

    fn known(&self, wanted: Wanted, url: Url, answer: &Answer) -> Result<Known, FetchError> {
        let bytes = answer.linked.bytes.or_else(|| answer.length());
        let server = |why: &str| FetchError::Server { host: host(&url), why: why.to_owned() };
        let bytes = bytes.ok_or_else(|| server("it does not say how long the file is"))?;
        if !(1..=FILE_BYTES_MAX).contains(&bytes) {
            return Err(server(&format!("a file of {bytes} bytes is no model")));
        }
        let target = self.target(&wanted.path)?;
        let (sha256, validator, url) = match &wanted.from {
            // A commit names the same bytes for ever; whatever gives them in the end is checked by their hash.
            Source::Hub(hub) => {
                let revision = answer.linked.commit.clone().unwrap_or_else(|| hub.revision.clone());
                let url = HubFile { revision, ..hub.clone() }.url(&self.config.endpoint);
                let sha256 = answer.linked.sha256;
                (sha256, answer.validator().filter(|_| sha256.is_none()), url)
            }
            Source::Url(from) => (from.sha256, answer.validator(), url),
            Source::Members(_) => (None, None, url),
        };
        let identity = Identity { bytes, sha256, validator };
        Ok(Known { wanted, target, identity, url: Some(url), found: Vec::new() })
    }

    /// Brings one file. `done` bytes of `total` are here of others.
    async fn file(&self, file: &mut Known, done: u64, total: u64) -> Result<Checked, FetchError> {
        for _ in 0..VERSIONS_MAX {
            if let Some(checked) = self.existing(file).await? {
                return Ok(checked);
            }
            let part = self.open(file, done).await?;
            if file.target.exists() {
                part.discard(); // another process had the lock until the file was whole
                continue;
            }
            let more = (total - done).saturating_sub(part.bytes());
            let folder = file.target.parent().unwrap_or(Path::new("/"));
            check_room(folder, more, self.config.disk_reserve_bytes, part.bytes())?;
            match self.fill(file, &part, done).await? {
                Ended::Here(checked) => return Ok(checked),
                Ended::Changed => {
                    tracing::info!(
                        file = file.wanted.path,
                        "the file was replaced at its server; it begins anew"
                    );
                    drop(part);
                    *file = self.know(file.wanted.clone()).await?;
                }
            }
        }
        let host = file.url.as_ref().map(host).unwrap_or_default();
        Err(FetchError::Changing { what: file.wanted.from.to_string(), host })
    }

    /// A file that is there under the name: the right one, or an error.
    async fn existing(&self, file: &Known) -> Result<Option<Checked>, FetchError> {
        let Ok(facts) = file.target.metadata() else { return Ok(None) };
        let occupied = |why: String| FetchError::Occupied { path: file.target.clone(), why };
        if facts.len() != file.identity.bytes {
            return Err(occupied(format!("it has {} bytes, not {}", facts.len(), file.identity.bytes)));
        }
        let Some(expected) = file.identity.sha256 else { return Ok(Some(Checked::Here)) };
        self.meter.stage(Stage::Checking);
        let (path, blobs, cache, stop) =
            (file.target.clone(), self.blobs.clone(), self.config.cache.clone(), self.stop.clone());
        let index = blocking(move || {
            let opened = File::open(&path)?;
            let stamp = Stamp::of(&opened)?;
            if let Some(index) = blobs.index(&path, stamp) {
                return Ok(index);
            }
            let index = Arc::new(Index::read(&opened, stamp.bytes, |_| !stop.is_cancelled())?);
            index.store(&path, stamp, cache.as_deref());
            blobs.learn(&path, stamp, index.clone());
            Ok(index)
        });
        let index = index.await.map_err(|error| self.io(&file.target, error))?;
        if index.sha256 != expected {
            return Err(occupied(format!("its SHA-256 is {}, not {expected}", index.sha256)));
        }
        Ok(Some(Checked::Sha256))
    }

    async fn open(&self, file: &Known, done: u64) -> Result<Arc<Part>, FetchError> {
        loop {
            self.meter.stage(Stage::Checking);
            let (target, identity, stop) = (file.target.clone(), file.identity.clone(), self.stop.clone());
            let opened =
                tokio::task::spawn_blocking(move || Part::open(&target, identity, |_| !stop.is_cancelled()));
            match opened.await {
                Ok(Ok(part)) => {
                    self.meter.stands_at(done + part.bytes());
                    return Ok(Arc::new(part));
                }
                Ok(Err(OpenFault::Io(error))) => {
                    return Err(write_fault(&file.target, self.stopped(error)?, file.identity.bytes, 0));
                }
                Ok(Err(OpenFault::Busy)) => {
                    self.meter.stage(Stage::Waiting("another program downloads it".to_owned()));
                    sleep(BUSY_TIME).await;
                }
                Err(panic) => return Err(self.io(&file.target, io::Error::other(panic))),
            }
        }
    }

    /// Fetches what is missing and puts the file into its place.
    async fn fill(&self, file: &Known, part: &Arc<Part>, done: u64) -> Result<Ended, FetchError> {
        let was_there = part.bytes() > 0;
        let helped = self.ask_members(file, part, done).await?;
        if !part.is_whole()
            && let Some(url) = &file.url
            && let Ended::Changed = self.ask_server(file, part, url).await?
        {
            return Ok(Ended::Changed);
        }
        let (mut got, checked) = (self.sha256(part, file).await?, checked(file));
        if let (Some(expected), Some(url)) = (file.identity.sha256, &file.url)
            && got != expected
            && (was_there || helped)
        {
            // What was here before, or what a member gave, may be to blame: once more, by the server alone.
            tracing::warn!(
                file = file.wanted.path,
                "what came has another SHA-256; it is fetched again from its server"
            );
            self.clear(file, part, done).await?;
            if let Ended::Changed = self.ask_server(file, part, url).await? {
                return Ok(Ended::Changed);
            }
            got = self.sha256(part, file).await?;
        }
        if let Some(expected) = file.identity.sha256
            && got != expected
        {
            part.discard();
            return Err(FetchError::WrongHash { what: file.wanted.from.to_string(), expected, got });
        }
        let (part, blobs, cache, target) =
            (part.clone(), self.blobs.clone(), self.config.cache.clone(), file.target.clone());
        let finish = blocking(move || {
            let index = part.finish(got)?;
            let stamp = Stamp::of(&File::open(&target)?)?;
            index.store(&target, stamp, cache.as_deref());
            blobs.learn(&target, stamp, Arc::new(index));
            Ok(())
        });
        match finish.await {
            Ok(()) => Ok(Ended::Here(checked)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let why = "it came while this one was downloaded".to_owned();
                Err(FetchError::Occupied { path: file.target.clone(), why })
            }
            Err(error) => Err(write_fault(&file.target, error, 0, file.identity.bytes)),
        }
    }

    /// What members give; says whether they gave anything. Without a SHA-256 to check it by, they are not asked.
    async fn ask_members(&self, file: &Known, part: &Arc<Part>, done: u64) -> Result<bool, FetchError> {
        let (Some(transport), Some(expected)) = (&self.transport, file.identity.sha256) else {
            return Ok(false);
        };
        let name = file.wanted.path.rsplit('/').next().unwrap_or(&file.wanted.path);
        let (mut helped, mut faults, mut found) = (false, 0, file.found.clone());
        while !part.is_whole() {
            if found.is_empty() {
                found = self.members_have(name, Some(file.identity.bytes), Some(expected)).await;
            }
            let before = part.bytes();
            for one in std::mem::take(&mut found) {
                let spread = spread(transport, &self.config, part, &one, &self.meter).await;
                match spread.map_err(|error| self.write(file, part, error))? {
                    Spread::Whole if self.sha256(part, file).await? == expected => return Ok(true),
                    Spread::Whole => {
                        let at: Vec<&str> = one.holders.iter().map(|holder| holder.name.as_str()).collect();
                        tracing::warn!(
                            file = file.wanted.path,
                            members = at.join(", "),
                            "members said their file has a SHA-256 that it does not have"
                        );
                        Counters::add(&self.meter.counters.lies, at.len() as u64);
                        self.clear(file, part, done).await?;
                    }
                    Spread::Rest | Spread::Another => {}
                }
            }
            helped |= part.bytes() > before;
            if file.url.is_some() {
                break;
            }
            // Nobody else has it: they may be back in a moment.
            faults = if part.bytes() > before { 1 } else { faults + 1 };
            self.wait("members", WebFault::transient("nobody who has the rest answers"), faults).await?;
        }
        Ok(helped)
    }

    async fn ask_server(&self, file: &Known, part: &Arc<Part>, url: &Url) -> Result<Ended, FetchError> {
        let remote = Remote { web: &self.web, url, part, meter: &self.meter };
        let (mut coming, mut faults) = (Coming::default(), 0);
        while !part.is_whole() {
            let before = (part.bytes(), coming.bytes());
            match remote.fetch_gap(&mut coming).await {
                Ok(()) => faults = 0,
                Err(StreamFault::Write(error)) => return Err(self.write(file, part, error)),
                Err(StreamFault::Web(WebFault::Changed)) => return Ok(Ended::Changed),
                Err(StreamFault::Web(fault)) => {
                    faults = if (part.bytes(), coming.bytes()) == before { faults + 1 } else { 1 };
                    self.wait(&host(url), fault, faults).await?;
                }
            }
        }
        Ok(Ended::Here(checked(file)))
    }

    /// Waits after a fault, or ends with it.
    async fn wait(&self, host: &str, fault: WebFault, faults: u32) -> Result<(), FetchError> {
        let (why, after) = match fault {
            WebFault::Final(error) => return Err(error),
            WebFault::Changed => ("the file is another one".to_owned(), None),
            WebFault::Transient { why, after } => (why, after),
        };
        if faults > self.config.faults_max {
            return Err(FetchError::Unreachable { host: host.to_owned(), why, tries: faults });
        }
        let doubled = self.config.backoff.saturating_mul(1 << (faults - 1).min(16));
        let own = jittered(doubled.min(self.config.backoff_max));
        let asked = after.map(|after| after.min(self.config.backoff_max * RETRY_AFTER_TIMES));
        let time = asked.unwrap_or(own).max(own);
        tracing::debug!(host, why, faults, wait_ms = time.as_millis(), "a download waits");
        self.meter.stage(Stage::Waiting(format!("{host}: {why}; again in {} s", time.as_secs_f64().ceil())));
        sleep(time).await;
        Ok(())
    }

    async fn sha256(&self, part: &Arc<Part>, file: &Known) -> Result<Sha256Hash, FetchError> {
        self.meter.stage(Stage::Checking);
        if !part.is_whole() {
            return Err(FetchError::NoMember(file.wanted.path.clone()));
        }
        let (part, stop) = (part.clone(), self.stop.clone());
        let hash = blocking(move || part.sha256(|_| !stop.is_cancelled())).await;
        hash.map_err(|error| self.io(&file.target, error))
    }

    async fn clear(&self, file: &Known, part: &Arc<Part>, done: u64) -> Result<(), FetchError> {
        let cleared = part.clone();
        blocking(move || cleared.clear()).await.map_err(|error| self.io(&file.target, error))?;
        self.meter.stands_at(done);
        Ok(())
    }

    fn write(&self, file: &Known, part: &Part, error: io::Error) -> FetchError {
        let kept = part.bytes();
        write_fault(&file.target, error, file.identity.bytes - kept, kept)
    }

    fn io(&self, path: &Path, error: io::Error) -> FetchError {
        match self.stopped(error) {
            Ok(error) => FetchError::io(path, error),
            Err(cancelled) => cancelled,
        }
    }

    /// Work on a blocking thread ends with an error when the download is stopped.
    fn stopped(&self, error: io::Error) -> Result<io::Error, FetchError> {
        if self.stop.is_cancelled() { Err(FetchError::Cancelled) } else { Ok(error) }
    }
}

/// What says that the file is right, once it is whole.
fn checked(file: &Known) -> Checked {
    match (&file.wanted.from, file.identity.sha256) {
        (_, None) => Checked::Not,
        (Source::Members(_), _) => Checked::Members,
        _ => Checked::Sha256,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}
