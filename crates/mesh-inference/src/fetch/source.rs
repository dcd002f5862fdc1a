//! What a user names: a file at the hub, a URL, or a model that members have.

use std::fmt;
use std::path::Path;

use url::Url;

use super::digest::Sha256Hash;
use crate::gguf::SplitName;

/// Longest name of one file, bytes: what file systems take.
const FILE_NAME_BYTES_MAX: usize = 255;
/// Longest name that is looked at, bytes.
const NAME_BYTES_MAX: usize = 2048;
/// Parts of a split model at most; the largest models have about a hundred.
const PARTS_MAX: u16 = 1000;
/// Folders of a repository that a file may lie in: the catalogue looks no deeper.
const FOLDERS_MAX: usize = 2;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of a repository at the hub.
    Hub(HubFile),
    /// A file at a URL.
    Url(UrlFile),
    /// A model that members have, by its name.
    Members(String),
}

/// A file of a repository at the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// `org/repo`.
    pub(crate) repo: String,
    /// A branch, tag or commit.
    pub(crate) revision: String,
    /// Its path in the repository.
    pub(crate) file: String,
}

/// A file at a URL, without the fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlFile {
    pub(crate) url: Url,
    pub(crate) sha256: Option<Sha256Hash>,
}

/// One file to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where it goes, below the first model folder.
    pub(crate) path: String,
    pub(crate) from: Source,
}

/// Why a text names nothing that can be downloaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Empty, too long, or with characters that no model's name has.
    #[error("`{0}` is no name of a model; give org/repo/file.gguf, a URL, or a name that a member has")]
    NoName(String),
    /// The file is not a GGUF file by its name.
    #[error("`{0}` does not end in .gguf; name one GGUF file, such as org/repo/model-Q4_K_M.gguf")]
    NoGguf(String),
    /// The URL cannot be read, or is neither http nor https.
    #[error("`{url}` is no http or https URL: {why}")]
    BadUrl {
        /// As it was given, without what may be secret.
        url: String,
        /// Why.
        why: String,
    },
    /// A URL with a user name or password in it.
    #[error("the URL of {0} carries a password; leave it out")]
    Password(String),
    /// The fragment is not `#sha256=` and 64 hex digits, or it is given for one of several parts.
    #[error("`#{0}` is not #sha256= and 64 hex digits of one file")]
    BadFragment(String),
    /// Too many parts.
    #[error("`{0}` has more than {PARTS_MAX} parts")]
    TooManyParts(String),
}

impl Source {
    /// Reads what a user typed. `endpoint` is the hub: a URL of one of its files means that file.
    ///
    /// # Errors
    /// [`SourceError`], in words for that user.
    pub fn parse(text: &str, endpoint: &Url) -> Result<Self, SourceError> {
        if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(SourceError::NoName(text.chars().filter(|c| !c.is_control()).take(80).collect()));
        }
        if text.contains("://") {
            return of_url(text, endpoint);
        }
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [_] if is_plain(text) => Ok(Self::Members(text.to_owned())),
            [org, repo, ref file @ ..] if !file.is_empty() && file.len() <= FOLDERS_MAX + 1 => {
                let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
                if ![org, repo, revision].into_iter().chain(file.iter().copied()).all(is_plain) {
                    return Err(SourceError::NoName(text.to_owned()));
                }
                let file = file.join("/");
                if !file.ends_with(".gguf") {
                    return Err(SourceError::NoGguf(text.to_owned()));
                }
                let repo = format!("{org}/{repo}");
                Ok(Self::Hub(HubFile { repo, revision: revision.to_owned(), file }))
            }
            _ => Err(SourceError::NoName(text.to_owned())),
        }
    }

    /// The name that the model has here once it has come.
    pub fn model_name(&self) -> String {
        let file = match self {
            Self::Hub(hub) => hub.file.rsplit('/').next().unwrap_or(&hub.file),
            Self::Url(from) => url_file(&from.url).unwrap_or_default(),
            Self::Members(name) => name,
        };
        match SplitName::of(Path::new(file)) {
            Some(split) => split.stem,
            None => file.strip_suffix(".gguf").unwrap_or(file).to_owned(),
        }
    }

    /// The files of the model: all parts of a split one, whichever was named.
    pub(crate) fn files(&self) -> Result<Vec<Wanted>, SourceError> {
        let last = match self {
            Self::Hub(hub) => hub.file.rsplit('/').next().unwrap_or(&hub.file),
            Self::Url(from) => url_file(&from.url).unwrap_or_default(),
            Self::Members(name) => {
                return Ok(vec![Wanted { path: name.clone(), from: self.clone() }]);
            }
        };
        let Some(split) = SplitName::of(Path::new(last)) else { return Ok(vec![self.wanted(last, last)]) };
        if split.count > PARTS_MAX {
            return Err(SourceError::TooManyParts(last.to_owned()));
        }
        if let Self::Url(UrlFile { sha256: Some(sha256), .. }) = self
            && split.count > 1
        {
            return Err(SourceError::BadFragment(format!("sha256={sha256}")));
        }
        let part = |number| {
            let path = split.path(Path::new(""), number);
            self.wanted(last, &path.to_string_lossy())
        };
        Ok((1..=split.count).map(part).collect())
    }

    /// This source with `part` in the place of its last file name.
    fn wanted(&self, last: &str, part: &str) -> Wanted {
        match self {
            Self::Hub(hub) => {
                let folder = &hub.file[..hub.file.len() - last.len()];
                let file = format!("{folder}{part}");
                Wanted {
                    path: format!("{}/{file}", hub.repo),
                    from: Self::Hub(HubFile { file, ..hub.clone() }),
                }
            }
            Self::Url(from) => {
                let mut url = from.url.clone();
                if last != part {
                    let path = url.path();
                    url.set_path(&format!("{}{part}", &path[..path.len() - last.len()].to_owned()));
                }
                let from = UrlFile { url, sha256: from.sha256 };
                Wanted { path: part.to_owned(), from: Self::Url(from) }
            }
            Self::Members(name) => Wanted { path: name.clone(), from: self.clone() },
        }
    }
}

impl HubFile {
    /// Its address at a hub.
    pub(crate) fn url(&self, endpoint: &Url) -> Url {
        let mut url = endpoint.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{}/resolve/{}/{}", self.repo, self.revision, self.file));
        url
    }
}

impl fmt::Display for Source {
    /// Without a URL's query, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(HubFile { repo, revision, file }) if revision == "main" => write!(f, "{repo}/{file}"),
            Self::Hub(HubFile { repo, revision, file }) => write!(f, "{repo}@{revision}/{file}"),
            Self::Url(from) => f.write_str(&shown(&from.url)),
            Self::Members(name) => f.write_str(name),
        }
    }
}

/// A URL for people: without its query, which may be a secret.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

fn of_url(text: &str, endpoint: &Url) -> Result<Source, SourceError> {
    let mut url = Url::parse(text).map_err(|error| {
        let url = text.split(['?', '#', '@']).next().unwrap_or_default().to_owned();
        SourceError::BadUrl { url, why: error.to_string() }
    })?;
    let named = shown(&url);
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(SourceError::BadUrl { url: named, why: "the scheme is another one".to_owned() });
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(SourceError::Password(named));
    }
    let fragment = url.fragment().map(str::to_owned);
    url.set_fragment(None);
    let sha256 = match fragment.as_deref() {
        None | Some("") => None,
        Some(fragment) => {
            let hash = fragment.strip_prefix("sha256=").and_then(Sha256Hash::from_hex);
            Some(hash.ok_or_else(|| SourceError::BadFragment(fragment.to_owned()))?)
        }
    };
    if let Some(hub) = hub_page(&url, endpoint)
        && sha256.is_none()
    {
        return Ok(Source::Hub(hub));
    }
    match url_file(&url) {
        Some(_) => Ok(Source::Url(UrlFile { url, sha256 })),
        None => Err(SourceError::NoGguf(named)),
    }
}

/// The hub's file that a URL copied from a browser means: `/org/repo/(blob|resolve)/revision/file`.
fn hub_page(url: &Url, endpoint: &Url) -> Option<HubFile> {
    if url.origin() != endpoint.origin() {
        return None;
    }
    let rest = url.path().strip_prefix(endpoint.path().trim_end_matches('/'))?;
    let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
    let [org, repo, "blob" | "resolve", revision, ref file @ ..] = parts[..] else { return None };
    let plain = [org, repo, revision].into_iter().chain(file.iter().copied()).all(is_plain);
    let fits = plain && (1..=FOLDERS_MAX + 1).contains(&file.len()) && file.last()?.ends_with(".gguf");
    fits.then(|| HubFile {
        repo: format!("{org}/{repo}"),
        revision: revision.to_owned(),
        file: file.join("/"),
    })
}

/// The file name at the end of a URL, if a file here may be called so.
fn url_file(url: &Url) -> Option<&str> {
    let last = url.path_segments()?.next_back()?;
    (is_plain(last) && last.ends_with(".gguf")).then_some(last)
}

/// A name that is a file name everywhere and means nothing to a shell, a URL or a path.
pub(crate) fn is_plain(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
    (1..=FILE_NAME_BYTES_MAX - ".part.journal.new".len()).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(letter)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Source, SourceError> {
        Source::parse(text, &Url::parse("https://hub.example/").unwrap())
    }

    #[test]
    fn a_hub_file_a_page_of_it_and_a_url_are_told_apart() {
        let hub = parse("org/repo/sub/m.gguf").unwrap();
        let Source::Hub(file) = &hub else { panic!("{hub:?}") };
        let endpoint = Url::parse("https://mirror.example/hub/").unwrap();
        assert_eq!(
            file.url(&endpoint).as_str(),
            "https://mirror.example/hub/org/repo/resolve/main/sub/m.gguf"
        );
        assert_eq!(parse("https://hub.example/org/repo/blob/main/sub/m.gguf").unwrap(), hub);
        let elsewhere = parse("https://other.example/org/repo/blob/main/m.gguf?key=secret").unwrap();
        assert!(matches!(&elsewhere, Source::Url(_)));
        assert!(!elsewhere.to_string().contains("secret"), "{elsewhere}");
        assert_eq!(parse("org/repo@v2/m.gguf").unwrap().to_string(), "org/repo@v2/m.gguf");
        assert_eq!(parse("gemma-3").unwrap(), Source::Members("gemma-3".to_owned()));
    }

    #[test]
    fn a_hash_in_the_fragment_is_taken_out_of_the_url() {
        let hash = "ab".repeat(32);
        let Source::Url(from) = parse(&format!("http://h.example/m.gguf#sha256={hash}")).unwrap() else {
            panic!("a URL")
        };
        assert_eq!(
            (from.url.as_str(), from.sha256.unwrap().to_string()),
            ("http://h.example/m.gguf", hash.clone())
        );
        for fragment in ["sha256=12", "md5=00", "part"] {
            let error = parse(&format!("http://h.example/m.gguf#{fragment}")).unwrap_err();
            assert!(matches!(error, SourceError::BadFragment(_)), "{error}");
        }
        let split = parse(&format!("http://h.example/m-00001-of-00002.gguf#sha256={hash}")).unwrap();
        assert!(matches!(split.files(), Err(SourceError::BadFragment(_))));
    }

    #[test]
    fn any_part_of_a_split_model_means_all_of_it() {
        let files = parse("org/repo/q/m-00002-of-00003.gguf").unwrap().files().unwrap();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [1, 2, 3].map(|n| format!("org/repo/q/m-0000{n}-of-00003.gguf")).each_ref().map(String::as_str)
        );
        let files = parse("http://h.example/a/m-00001-of-00002.gguf?x=1").unwrap().files().unwrap();
        assert_eq!(files[1].from.to_string(), "http://h.example/a/m-00002-of-00002.gguf");
        assert_eq!(parse("org/repo/q/m-00002-of-00003.gguf").unwrap().model_name(), "m");
        assert_eq!(parse("org/repo/m.gguf").unwrap().model_name(), "m");
        assert!(parse("org/repo/m-00001-of-60000.gguf").unwrap().files().is_err());
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        for text in [
            "",
            "../m.gguf",
            "org/../m.gguf",
            "org/repo/../../../m.gguf",
            "/etc/m.gguf",
            "org/repo/.m.gguf",
            "org/repo/a/b/c/d/m.gguf",
            "http://h.example/..%2fm.gguf",
            "http://u:p@h.example/m.gguf",
            "ftp://h.example/m.gguf",
            "http://h.example/m.bin",
            "org/repo/m.bin",
            "a\nb",
            "org/repo/m\u{e9}.gguf",
        ] {
            let parsed = parse(text);
            let inside = |wanted: &Wanted| !wanted.path.contains("..") && !wanted.path.starts_with('/');
            match parsed {
                Err(_) => {}
                Ok(source) => {
                    panic!("{text}: {source:?} {}", source.files().unwrap().iter().all(inside))
                }
            }
        }
    }
}
