//! Models: `models`, `load`, `unload`, `drop`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use mesh_control::{
    Client, DropRequest, Dropped, LoadRequest, ModelState, ModelView, PlanRequest, ProviderKind, ProviderView,
};
use tokio::time::sleep;

use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;
use crate::units;

/// How often a model that loads is looked at: what a person takes for at once, at no cost to the node.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The word of a model that another node was told to load crosses the mesh within this time.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

pub(crate) async fn list(client: &Client, screen: &Screen) -> Result<(), Failure> {
    let models = client.models().await?;
    screen.show(&models, |models| listing(models))?;
    if models.is_empty() {
        screen.note("no models; serve one from this machine's disk with `qmt-cli load NAME`");
    }
    Ok(())
}

fn listing(models: &[ModelView]) -> String {
    if models.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["MODEL", "STATE", "NODES", "DETAIL"]);
    for model in models {
        let at: Vec<String> = model.providers.iter().map(provider).collect();
        let size = model.size_bytes.map(units::bytes);
        let details: Vec<String> =
            size.into_iter().chain(model.providers.iter().filter_map(detail)).collect();
        table.row([model.name.clone(), model.state.to_string(), at.join(", "), details.join("; ")]);
    }
    table.to_string()
}

fn provider(provider: &ProviderView) -> String {
    let here = if provider.local { " (this node)" } else { "" };
    format!("{}{here}", provider.node_name)
}

/// What a provider says beyond its state.
fn detail(provider: &ProviderView) -> Option<String> {
    let over = (!provider.workers.is_empty()).then(|| format!("over {}", provider.workers.join(", ")));
    let said: Vec<String> = over.into_iter().chain(said(provider)).collect();
    (!said.is_empty()).then(|| said.join("; "))
}

fn said(provider: &ProviderView) -> Option<String> {
    let word = provider.state.to_string();
    let says = provider.detail.strip_prefix(word.as_str()).unwrap_or(&provider.detail);
    let says = says.trim_start_matches([':', ' ']);
    let says = says.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(says);
    match (provider.kind, says) {
        (ProviderKind::Provider, "") => Some("by another server".to_owned()),
        (_, "") => None,
        (_, says) => Some(says.to_owned()),
    }
}

/// What `load` was asked for.
pub(crate) struct Load {
    pub(crate) model: String,
    pub(crate) node: Option<String>,
    pub(crate) split: bool,
    pub(crate) wait: bool,
}

pub(crate) async fn load(client: &Client, screen: &Screen, asked: Load) -> Result<(), Failure> {
    let begin = Instant::now();
    let elsewhere = asked.node.is_some();
    let request =
        LoadRequest { model: from_here(asked.model), node: asked.node, split: asked.split.then_some(true) };
    let accepted = client.load(&request).await?;
    if !asked.wait {
        return screen.show(&accepted, |model| format!("{} is {}", model.name, model.state));
    }
    let in_question = if elsewhere { anywhere } else { here };
    let model = until_ready(client, screen, accepted, in_question).await?;
    let took = units::elapsed(begin.elapsed());
    screen.show(&model, |model| format!("{} is ready{}, after {took}", model.name, ready_at(model)))
}

/// Where it runs, when that is another node: one that holds it alone, or hosts it over this one's memory too.
fn ready_at(model: &ModelView) -> String {
    let ready: Vec<&ProviderView> =
        model.providers.iter().filter(|one| one.state == ModelState::Ready && anywhere(one)).collect();
    if ready.is_empty() || ready.iter().any(|one| one.local) {
        return String::new();
    }
    let names: Vec<&str> = ready.iter().map(|one| one.node_name.as_str()).collect();
    format!(" at {}", names.join(", "))
}

/// A path is this program's, not the node's: the node runs in another folder.
fn from_here(model: String) -> String {
    let path = Path::new(&model);
    if path.is_relative() && path.is_file() {
        return std::path::absolute(path).map_or(model, |path| path.display().to_string());
    }
    model
}

/// Shows where a model would run, and why.
pub(crate) async fn plan(client: &Client, screen: &Screen, request: PlanRequest) -> Result<(), Failure> {
    let request = PlanRequest { model: from_here(request.model), ..request };
    let view = client.plan(&request).await?;
    if screen.is_json() {
        return screen.show(&view.plan, |_| String::new());
    }
    screen.show(&view, |view| view.text.trim_end().to_owned())
}

/// A llama-server of any node.
fn anywhere(provider: &ProviderView) -> bool {
    provider.kind == ProviderKind::Local
}

/// The llama-server of the answering node itself.
fn here(provider: &ProviderView) -> bool {
    provider.local && provider.kind == ProviderKind::Local
}

/// Waits until one of the providers in question is ready, or another node that runs the model instead, or none of them will be.
/// Ctrl-C ends the wait, not the loading.
pub(crate) async fn until_ready(
    client: &Client,
    screen: &Screen,
    mut model: ModelView,
    in_question: fn(&ProviderView) -> bool,
) -> Result<ModelView, Failure> {
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let begin = Instant::now();
    let mut is_seen = false;
    loop {
        let best = |of: fn(&ProviderView) -> bool| {
            model.providers.iter().filter(|provider| of(provider)).min_by_key(|one| one.state)
        };
        let best = best(in_question).or_else(|| best(anywhere));
        is_seen |= best.is_some();
        match best {
            Some(provider) if provider.state == ModelState::Ready => return Ok(model),
            Some(provider) if provider.state == ModelState::Loading => {
                let says = detail(provider).map_or_else(String::new, |says| format!(": {says}"));
                screen.progress(&format!("loading {}{says}", model.name));
            }
            Some(provider) => return Err(not_ready(&model.name, provider)),
            None if !is_seen && begin.elapsed() < ON_ITS_WAY => {}
            None => return Err(Failure::new("dropped", format!("{} was dropped meanwhile", model.name))),
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            _ = &mut interrupt => {
                let message = format!("{} goes on loading", model.name);
                return Err(Failure::interrupted(message).with_mend("see `qmt-cli models`"));
            }
        }
        let listed = client.models().await?.into_iter().find(|one| one.name == model.name);
        model = listed.unwrap_or(ModelView { name: model.name, ..ModelView::default() });
    }
}

fn not_ready(model: &str, provider: &ProviderView) -> Failure {
    let why = detail(provider).unwrap_or_else(|| format!("it is {}", provider.state));
    Failure::new("not_loaded", format!("{model} did not load: {why}"))
        .with_mend("see `qmt-cli doctor` and the logs in QMT_HOME")
}

pub(crate) async fn unload(client: &Client, screen: &Screen, model: String) -> Result<(), Failure> {
    let me = client.status().await?.node_id;
    drop(client, screen, model, Some(me)).await
}

pub(crate) async fn drop(
    client: &Client,
    screen: &Screen,
    model: String,
    node: Option<String>,
) -> Result<(), Failure> {
    let names: BTreeMap<String, String> =
        client.nodes().await?.into_iter().map(|node| (node.id, node.name)).collect();
    let me = client.status().await?;
    let name = |id: &String| match names.get(id) {
        _ if *id == me.node_id => "this node".to_owned(),
        Some(name) => name.clone(),
        None => id.clone(),
    };
    let model = whole_name(client.models().await?, model);
    let dropped = client.drop_model(&DropRequest { model, node }).await?;
    let list = |ids: &[String]| ids.iter().map(name).collect::<Vec<_>>().join(", ");
    screen.show(&dropped, |dropped: &Dropped| {
        if dropped.nodes.is_empty() {
            String::new()
        } else {
            format!("dropped {} at {}", dropped.model, list(&dropped.nodes))
        }
    })?;
    if dropped.unreached.is_empty() {
        return Ok(());
    }
    screen.note(&format!(
        "error: {} may still be served at {}, which could not be told",
        dropped.model,
        list(&dropped.unreached)
    ));
    Err(Failure::shown())
}

/// The model that `text` names or, alone among all, begins; else `text` itself, which the node will refuse.
fn whole_name(models: Vec<ModelView>, text: String) -> String {
    let mut names: Vec<String> = models.into_iter().map(|model| model.name).collect();
    if names.contains(&text) {
        return text;
    }
    names.retain(|name| name.starts_with(&text));
    if names.len() == 1 { names.swap_remove(0) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_names_a_model_when_it_fits_no_other() {
        let whole = |text: &str| {
            let view = |name: &str| ModelView { name: name.to_owned(), ..ModelView::default() };
            whole_name(["gemma-3", "gemma-3-it", "qwen"].map(view).into(), text.to_owned())
        };
        assert_eq!(["q", "gemma-3", "gemma", "llama"].map(whole), ["qwen", "gemma-3", "gemma", "llama"]);
    }

    fn at(name: &str, local: bool, state: ModelState, kind: ProviderKind, detail: &str) -> ProviderView {
        ProviderView {
            node: format!("id of {name}"),
            node_name: name.to_owned(),
            local,
            state,
            kind,
            detail: detail.to_owned(),
            workers: Vec::new(),
        }
    }

    #[test]
    fn models_are_listed_with_what_their_providers_say() {
        let models = [
            ModelView {
                name: "gemma".to_owned(),
                state: ModelState::Ready,
                providers: vec![
                    at("desk", true, ModelState::Ready, ProviderKind::Local, "ready"),
                    at("lap", false, ModelState::Failed, ProviderKind::Local, "failed: no memory"),
                ],
                size_bytes: Some(253_113_024),
                context_tokens: None,
            },
            ModelView {
                name: "qwen".to_owned(),
                state: ModelState::Loading,
                providers: vec![at(
                    "lap",
                    false,
                    ModelState::Loading,
                    ProviderKind::Local,
                    "loading (12 of 99 MB read, 3 s)",
                )],
                ..ModelView::default()
            },
            ModelView {
                name: "served".to_owned(),
                state: ModelState::Ready,
                providers: vec![at("lap", false, ModelState::Ready, ProviderKind::Provider, "ready")],
                ..ModelView::default()
            },
        ];
        let expected = "\
MODEL   STATE    NODES                  DETAIL
gemma   ready    desk (this node), lap  253 MB; no memory
qwen    loading  lap                    12 of 99 MB read, 3 s
served  ready    lap                    by another server
";
        assert_eq!(listing(&models), expected);
    }

    #[test]
    fn a_file_is_named_from_the_folder_of_the_caller() {
        assert_eq!(from_here("gemma-3".to_owned()), "gemma-3");
        let here = std::path::absolute("Cargo.toml").expect("a folder");
        assert_eq!(from_here("Cargo.toml".to_owned()), here.display().to_string());
    }
}
