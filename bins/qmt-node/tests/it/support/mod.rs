//! Nodes in homes of their own, servers behind them, callers in front of them.

pub(crate) mod http;
pub(crate) mod machine;
pub(crate) mod process;
pub(crate) mod script;
pub(crate) mod stub;
pub(crate) mod tap;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_control::{
    ApiError, Client, ClientError, InviteCreated, InviteRequest, JoinRequest, Joined, NodeState, NodeView,
};
use mesh_identity::NodeName;
use mesh_inference::gguf::tiny::TinyModel;
use qmt_node::Node;
use qmt_node::config::{Config, Listener};
use tempfile::TempDir;

/// Longest wait of a test for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer.
pub(crate) async fn until<T, Fut: Future<Output = Option<T>>>(what: &str, ask: impl FnMut() -> Fut) -> T {
    until_within(PATIENCE, what, ask).await
}

pub(crate) async fn until_within<T, Fut: Future<Output = Option<T>>>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> Fut,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = tokio::time::timeout(patience, asking).await;
    answer.unwrap_or_else(|_| panic!("waited {patience:?} in vain: {what}"))
}

/// A home folder that lasts longer than the node in it, so that the node can be started again.
#[derive(Clone)]
pub(crate) struct Place {
    folder: Arc<TempDir>,
    name: &'static str,
}

impl Place {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { folder: Arc::new(tempfile::tempdir().unwrap()), name }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A node on loopback and direct paths alone, with a gateway on a free port and no models.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::at(self.home());
        config.node_name = NodeName::new(self.name).unwrap();
        config.gateway.listener = Listener { addr: SocketAddr::from(([127, 0, 0, 1], 0)), asked: true };
        config.inference.model_dirs = vec![self.folder.path().join("models")];
        config
    }

    pub(crate) async fn start(&self) -> Host {
        self.start_with(|_| {}).await
    }

    pub(crate) async fn start_with(&self, change: impl FnOnce(&mut Config)) -> Host {
        let mut config = self.config();
        change(&mut config);
        let node = Box::pin(Node::start(config)).await.unwrap();
        Host { client: Client::new(node.control_socket()), node, place: self.clone() }
    }
}

/// A running node of this process, driven over its control socket and its gateway as its owner would.
pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) client: Client,
    place: Place,
}

impl Host {
    pub(crate) async fn new(name: &'static str) -> Self {
        Place::new(name).start().await
    }

    /// Puts a model into its folder; the node looks at once when it is asked for one, and else after a while.
    pub(crate) fn add_model(&self, name: &str, model: &TinyModel) {
        let folder = self.place.config().inference.model_dirs.remove(0);
        std::fs::create_dir_all(&folder).unwrap();
        model.write(&folder.join(format!("{name}.gguf"))).unwrap();
    }

    pub(crate) fn id(&self) -> String {
        self.node.id().to_string()
    }

    pub(crate) async fn invite(&self) -> InviteCreated {
        self.client.invite(&InviteRequest::default()).await.unwrap()
    }

    pub(crate) async fn join(&self, token: &str) -> Joined {
        self.client.join(&JoinRequest { token: token.to_owned() }).await.unwrap()
    }

    /// The refusal that a join must end with.
    pub(crate) async fn refused(&self, token: &str) -> ApiError {
        api_error(self.client.join(&JoinRequest { token: token.to_owned() }).await)
    }

    /// How it sees another node, once it knows it.
    pub(crate) async fn view_of(&self, id: &str) -> Option<NodeView> {
        self.client.nodes().await.unwrap().into_iter().find(|node| node.id == id)
    }

    pub(crate) async fn sees(&self, other: &Host, state: NodeState) -> NodeView {
        let what = format!("{} sees {} as {state}", self.node.name(), other.node.name());
        let id = other.id();
        until(&what, || async { self.view_of(&id).await.filter(|node| node.state == state) }).await
    }

    pub(crate) async fn gateway(&self) -> SocketAddr {
        gateway(&self.client).await
    }

    /// Waits until its gateway offers a model.
    pub(crate) async fn offers(&self, model: &str) {
        let gateway = self.gateway().await;
        let what = format!("{} offers {model}", self.node.name());
        until(&what, || async { http::models(gateway).await.contains(&model.to_owned()).then_some(()) })
            .await;
    }

    /// Ends the node; fails when a part of it does not end.
    pub(crate) async fn stop(self) {
        let stopped = tokio::time::timeout(PATIENCE, self.node.shutdown()).await;
        stopped.unwrap_or_else(|_| panic!("{} does not shut down", self.node.name()));
    }
}

/// Two nodes in one scope that see each other.
pub(crate) async fn pair() -> (Host, Host) {
    let (first, second) = tokio::join!(Host::new("first"), Host::new("second"));
    second.join(&first.invite().await.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    (first, second)
}

pub(crate) async fn stop_both(first: Host, second: Host) {
    tokio::join!(first.stop(), second.stop());
}

pub(crate) async fn gateway(client: &Client) -> SocketAddr {
    let url = client.status().await.unwrap().gateway_url.unwrap();
    let authority = url.strip_prefix("http://").unwrap();
    authority.split('/').next().unwrap().parse().unwrap()
}

/// The node's own words for a request that must fail.
pub(crate) fn api_error<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ApiError {
    match result {
        Err(ClientError::Api(error)) => error,
        other => panic!("expected the node's refusal, got {other:?}"),
    }
}

pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
