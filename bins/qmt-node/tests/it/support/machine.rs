//! Machines with llama.cpp and a node each, over which tiny models are served and split.

use std::path::PathBuf;

use mesh_control::{Client, InviteRequest, JoinRequest, ModelState, ModelView};
use mesh_inference::gguf::tiny::TinyModel;

use super::process::{Folder, Process, Served, llama_bin_dir};
use super::{gateway, http, until};

/// Length of an answer: a tiny model says one letter a token.
pub(crate) const TOKENS: usize = 8;

/// A machine of ours: a folder with models, and the node on it.
pub(crate) struct Machine {
    pub(crate) folder: Folder,
    pub(crate) bin_dir: PathBuf,
    pub(crate) process: Option<Process>,
}

impl Machine {
    /// A machine with llama.cpp; none where this one has none.
    pub(crate) async fn new(name: &str) -> Option<Self> {
        let bin_dir = llama_bin_dir().await?;
        let folder = Folder::new();
        std::fs::create_dir_all(folder.home()).unwrap();
        let config = format!(
            "mesh.enabled = true\nmesh.transport = \"iroh\"\nmesh.internet.relay_mode = \"disabled\"\n\
             mesh.node_name = \"{name}\"\n\
             [inference]\ndebounce_secs = 0.2\nleft_out_secs = 2\npatience_secs = 2\n"
        );
        std::fs::write(folder.home().join("config.toml"), config).unwrap();
        Some(Self { folder, bin_dir, process: None })
    }

    /// Adds a line to `[inference]` of its configuration.
    pub(crate) fn configure(&self, line: &str) {
        let path = self.folder.home().join("config.toml");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, format!("{before}{line}\n")).unwrap();
    }

    pub(crate) fn with_model(self, name: &str, seed: u64) -> Self {
        self.folder.add_model(name, seed);
        self
    }

    pub(crate) fn with(self, name: &str, model: TinyModel) -> Self {
        model.write(&self.folder.models().join(format!("{name}.gguf"))).unwrap();
        self
    }

    pub(crate) async fn start(&mut self, arguments: &[&str]) {
        let bin_dir = self.bin_dir.to_str().unwrap().to_owned();
        let mut all = vec!["--port", "0", "--bin-dir", &bin_dir];
        all.extend(arguments);
        self.process = Some(self.folder.start(&all).await);
    }

    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.process().client
    }

    pub(crate) async fn join(&self, inviter: &Machine) {
        let invite = inviter.client().invite(&InviteRequest::default()).await.unwrap();
        self.client().join(&JoinRequest { token: invite.token }).await.unwrap();
    }

    pub(crate) async fn id(&self) -> String {
        self.client().status().await.unwrap().node_id
    }

    pub(crate) async fn model(&self, name: &str) -> Option<ModelView> {
        self.client().models().await.unwrap().into_iter().find(|model| model.name == name)
    }

    /// Waits until a model is ready at exactly these nodes, as seen from here.
    pub(crate) async fn ready_at(&self, model: &str, nodes: &[&str]) {
        until(&format!("{model} is ready at {nodes:?}"), || async {
            let view = self.model(model).await?;
            let ready = view.providers.iter().filter(|provider| provider.state == ModelState::Ready);
            let mut names: Vec<&str> = ready.map(|provider| provider.node_name.as_str()).collect();
            names.sort_unstable();
            (names == nodes).then_some(())
        })
        .await;
    }

    pub(crate) async fn ask(&self, model: &str) -> (u16, String) {
        let body = serde_json::json!({
            "model": model, "max_tokens": TOKENS, "temperature": 0, "messages": [{ "role": "user", "content": "say something" }],
        });
        let answer = http::post(gateway(self.client()).await, "/v1/chat/completions", body.to_string()).await;
        let text = answer.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
        (answer.status.as_u16(), text)
    }

    pub(crate) async fn answers(&self, model: &str) -> String {
        until(&format!("{model} answers"), || async {
            let (status, text) = self.ask(model).await;
            (status == 200).then_some(text)
        })
        .await
    }

    pub(crate) fn processes(&self, program: &str) -> Vec<Served> {
        let of =
            |served: &Served| served.words.split('\0').next().is_some_and(|word| word.ends_with(program));
        self.process().served().into_iter().filter(of).collect()
    }

    pub(crate) fn llama_servers(&self) -> Vec<Served> {
        self.processes("/llama-server")
    }

    pub(crate) fn rpc_servers(&self) -> Vec<Served> {
        self.processes("rpc-server")
    }

    /// Waits until a model runs here over so many rpc-servers, and returns its llama-server.
    pub(crate) async fn hosts_over(&self, rpc_servers: usize) -> Served {
        until(&format!("a llama-server over {rpc_servers} rpc-servers"), || async {
            let found =
                self.llama_servers().into_iter().find(|server| rpc_entries(server).len() == rpc_servers)?;
            Some(found)
        })
        .await
    }

    pub(crate) fn lines_with(&self, text: &str) -> usize {
        self.folder.written().lines().filter(|line| line.contains(text)).count()
    }
}

/// What a llama-server was told with a flag.
pub(crate) fn told(server: &Served, flag: &str) -> Option<String> {
    let mut words = server.words.split('\0').skip_while(|word| *word != flag);
    words.nth(1).map(str::to_owned)
}

pub(crate) fn rpc_entries(server: &Served) -> Vec<String> {
    told(server, "--rpc").map(|list| list.split(',').map(str::to_owned).collect()).unwrap_or_default()
}

pub(crate) fn shares(server: &Served) -> Vec<f32> {
    told(server, "--tensor-split").unwrap().split(',').map(|share| share.parse().unwrap()).collect()
}
