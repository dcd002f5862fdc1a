//! Downloads as the owner of a node sees them: asked for by themselves, by loading, and by a flag.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use mesh_control::{
    Client, DropRequest, ErrorCode, LoadRequest, ModelState, PullRequest, PullState, PullView,
};
use mesh_inference::gguf::tiny::TinyModel;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::process::{Folder, llama_bin_dir};
use crate::support::{Host, Place, api_error, until};

/// A model that llama-server loads, made long by zeros behind it.
fn model(padding: usize) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    TinyModel { name: "tiny".to_owned(), ..TinyModel::default() }.write(file.path()).unwrap();
    let mut body = std::fs::read(file.path()).unwrap();
    body.extend(std::iter::repeat_n(0, padding));
    body
}

/// A hub that gives one file under every name; bodies beyond the first `free` ones stop in their middle and stay silent.
struct Hub {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    free: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Hub {
    async fn start(body: Vec<u8>, free: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (asked, free) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(free)));
        let (count, limit, body) = (asked.clone(), free.clone(), Arc::new(body));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp, body.clone(), count.clone(), limit.clone()));
            }
        });
        Self { addr, asked, free, _task: task }
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Requests for bytes so far.
    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    fn gives(&self) {
        self.free.store(usize::MAX, SeqCst);
    }
}

async fn serve(tcp: TcpStream, body: Arc<Vec<u8>>, asked: Arc<AtomicUsize>, free: Arc<AtomicUsize>) {
    let mut tcp = BufReader::new(tcp);
    let (mut first, mut from) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if tcp.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        if first.is_empty() {
            first = line.clone();
        }
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            from = range.split('-').next().unwrap().parse().unwrap();
        }
        if line.trim_end().is_empty() {
            break;
        }
    }
    let hash: String = Sha256::digest(&body[..]).iter().map(|byte| format!("{byte:02x}")).collect();
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\nx-linked-etag: \"{hash}\"\r\nx-linked-size: {all}\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{all}\r\n\r\n",
        body.len() - from,
        body.len() - 1,
        all = body.len(),
    );
    let mut tcp = tcp.into_inner();
    let _ = tcp.write_all(head.as_bytes()).await; // the caller may have left
    if first.starts_with("HEAD") {
        return;
    }
    if asked.fetch_add(1, SeqCst) >= free.load(SeqCst) {
        let middle = from + (body.len() - from) / 2;
        let _ = tcp.write_all(&body[from..middle]).await;
        std::future::pending::<()>().await;
    }
    let _ = tcp.write_all(&body[from..]).await;
    let _ = tcp.shutdown().await;
}

const NAME: &str = "org/repo/tiny.gguf";

fn request() -> PullRequest {
    PullRequest { model: NAME.to_owned() }
}

/// The download, once it is as wanted.
async fn pull_that(client: &Client, what: &str, holds: impl Fn(&PullView) -> bool) -> PullView {
    until(what, || async { client.pulls().await.unwrap().into_iter().find(|view| holds(view)) }).await
}

async fn at_hub(place: &Place, hub: &Hub) -> Host {
    let url = hub.url();
    place.start_with(|config| config.hub.endpoint = Some(url)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_followed_stopped_and_taken_up_again() {
    let hub = Hub::start(model(6 << 20), 0).await;
    let place = Place::new("first");
    let host = at_hub(&place, &hub).await;
    assert!(host.client.pulls().await.unwrap().is_empty());
    host.client.pull(&request()).await.unwrap();
    let half = pull_that(&host.client, "half of it came", |view| view.bytes > 2 << 20).await;
    assert_eq!((half.model.as_str(), half.state), (NAME, PullState::Downloading));
    assert!(half.total_bytes.is_some_and(|total| total > half.bytes));
    assert!(half.detail.contains(&format!("from {}", hub.addr)), "{half:?}");
    let stopped = host.client.stop_pull(&request()).await.unwrap();
    assert_eq!(stopped.state, PullState::Stopped);
    hub.gives();
    host.client.pull(&request()).await.unwrap();
    let done = pull_that(&host.client, "it is here", |view| view.state == PullState::Done).await;
    assert_eq!((done.checked.as_deref(), Some(done.bytes)), (Some("sha256"), done.total_bytes));
    assert!(done.files[0].ends_with(NAME), "{done:?}");
    let odd = api_error(host.client.pull(&PullRequest { model: "../x".to_owned() }).await);
    assert_eq!(odd.code, ErrorCode::BadRequest);
    let none = api_error(host.client.stop_pull(&PullRequest { model: "org/repo/x.gguf".to_owned() }).await);
    assert_eq!(none.code, ErrorCode::UnknownModel);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_has_the_file_gives_it() {
    let body = model(6 << 20);
    let hub = Hub::start(body.clone(), 0).await;
    let (one, two) = (Place::new("first"), Place::new("second"));
    let (first, second) = (at_hub(&one, &hub).await, at_hub(&two, &hub).await);
    let models = one.config().inference.model_dirs.remove(0);
    std::fs::create_dir_all(&models).unwrap();
    std::fs::write(models.join("tiny.gguf"), &body).unwrap();
    second.join(&first.invite().await.token).await;
    tokio::join!(
        first.sees(&second, mesh_control::NodeState::Alive),
        second.sees(&first, mesh_control::NodeState::Alive)
    );
    second.client.pull(&request()).await.unwrap();
    pull_that(&second.client, "it is here", |view| view.state == PullState::Done).await;
    let came = two.config().inference.model_dirs.remove(0).join(NAME);
    assert_eq!((std::fs::read(came).unwrap(), hub.asked()), (body, 0), "no byte from the hub");
    crate::support::stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_in_a_download_goes_on_from_there() {
    let hub = Hub::start(model(6 << 20), 0).await;
    let folder = Folder::new();
    let start = ["env", &format!("HF_ENDPOINT={}", hub.url())].map(str::to_owned);
    let starter: Vec<&str> = start.iter().map(String::as_str).collect();
    let mut process = folder.start_by(&starter, &["--port", "0"]).await;
    process.client.pull(&request()).await.unwrap();
    pull_that(&process.client, "half of it came", |view| view.bytes > 2 << 20).await;
    process.kill();
    hub.gives();
    let mut process = folder.start_by(&starter, &["--port", "0"]).await;
    process.client.pull(&request()).await.unwrap();
    let done = pull_that(&process.client, "it is here", |view| view.state == PullState::Done).await;
    assert_eq!((done.checked.as_deref(), hub.asked()), (Some("sha256"), 2));
    let left: Vec<_> = std::fs::read_dir(folder.models().join("org/repo")).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| !entry.path().to_string_lossy().contains(".part")), "{left:?}");
    process.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_loaded_comes_first_and_shows_how_far_it_is() {
    let Some(bin_dir) = llama_bin_dir().await else { return };
    let hub = Hub::start(model(6 << 20), 0).await;
    let place = Place::new("first");
    let url = hub.url();
    let host = place
        .start_with(|config| {
            config.hub.endpoint = Some(url);
            config.inference.bin_dir = Some(bin_dir);
        })
        .await;
    let load = LoadRequest { model: NAME.to_owned(), ..LoadRequest::default() };
    let view = host.client.load(&load).await.unwrap();
    assert_eq!((view.name.as_str(), view.state), ("tiny", ModelState::Loading));
    until("its bytes are shown", || async {
        let models = host.client.models().await.unwrap();
        models[0].providers[0].detail.contains("downloading: ").then_some(())
    })
    .await;
    // Dropped while it comes: the place among the models is gone.
    let dropped =
        host.client.drop_model(&DropRequest { model: "tiny".to_owned(), node: None }).await.unwrap();
    assert_eq!(dropped.nodes, [host.id()]);
    assert!(host.client.models().await.unwrap().is_empty());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_come_says_why_where_models_are_listed() {
    let place = Place::new("first");
    let host = place.start_with(|config| config.hub.endpoint = Some("http://127.0.0.1:1".to_owned())).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/m.gguf", listener.local_addr().unwrap());
    let refuses = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut line = String::new();
            let _ = BufReader::new(&mut tcp).read_line(&mut line).await;
            let _ = tcp.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    host.client.load(&LoadRequest { model: url, ..LoadRequest::default() }).await.unwrap();
    let failed = until("it has failed", || async {
        let models = host.client.models().await.unwrap();
        models.into_iter().find(|model| model.state == ModelState::Failed)
    })
    .await;
    assert!(failed.providers[0].detail.contains("has no file"), "{failed:?}");
    refuses.abort();
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_begins_like_a_model_and_is_none_says_so_where_models_are_listed() {
    let Some(bin_dir) = llama_bin_dir().await else { return };
    let hub = Hub::start([b"GGUF\x03\0\0\0".as_slice(), &[0xff; 5000]].concat(), usize::MAX).await;
    let place = Place::new("first");
    let url = hub.url();
    let host = place
        .start_with(|config| {
            config.hub.endpoint = Some(url);
            config.inference.bin_dir = Some(bin_dir);
        })
        .await;
    host.client.load(&LoadRequest { model: NAME.to_owned(), ..LoadRequest::default() }).await.unwrap();
    let failed = until("it has failed", || async {
        let models = host.client.models().await.unwrap();
        models.into_iter().find(|model| model.state == ModelState::Failed)
    })
    .await;
    let detail = &failed.providers[0].detail;
    assert!(detail.contains("tiny cannot be run: ") && detail.contains("above the limit"), "{detail}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_the_command_line_is_downloaded_and_served() {
    let Some(bin_dir) = llama_bin_dir().await else { return };
    let hub = Hub::start(model(0), usize::MAX).await;
    let folder = Folder::new();
    let endpoint = format!("HF_ENDPOINT={}", hub.url());
    let arguments = ["--port", "0", "--bin-dir", bin_dir.to_str().unwrap(), "--model", NAME];
    let mut process = folder.start_by(&["env", &endpoint], &arguments).await;
    process.ready("tiny").await;
    assert_eq!(hub.asked(), 1);
    process.terminate().await;
}
