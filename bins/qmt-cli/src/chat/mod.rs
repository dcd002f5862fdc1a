//! `chat`: one answer, or a conversation, by the node's gateway.

mod answer;
mod gateway;
mod talk;

use std::io::{self, IsTerminal, Read};

use mesh_control::{Client, ModelState, ModelView};
use serde::Serialize;

use crate::args::ChatArgs;
use crate::failure::Failure;
use crate::models::until_ready;
use crate::screen::{Screen, harmless};

pub(crate) use answer::Piece;
pub(crate) use talk::typed_lines;

use answer::Answer;
use gateway::{Gateway, Question, Turn};

/// Longest prompt that is read from standard input, bytes: the gateway takes no longer request.
const PROMPT_BYTES_MAX: u64 = 16 * 1024 * 1024;

pub(crate) async fn chat(client: &Client, screen: &Screen, args: ChatArgs) -> Result<(), Failure> {
    let prompt = prompt(&args.prompt)?;
    if prompt.is_none() && screen.is_json() {
        return Err(Failure::usage("--json needs a prompt: an argument, or standard input"));
    }
    let status = client.status().await?;
    let gateway = Gateway::new(status.gateway_url.as_deref(), args.api_key)?;
    let model = choose(client.models().await?, args.model.as_deref())?;
    let model = if model.state == ModelState::Loading {
        until_ready(client, screen, model, |_| true).await?
    } else {
        model
    };
    screen.clear_progress();
    let turns = args.system.map(Turn::system).into_iter().collect();
    let question = Question {
        model: model.name,
        turns,
        complete: args.complete,
        max_tokens: args.max_tokens,
        temperature: args.temperature,
    };
    match prompt {
        Some(prompt) => once(screen, &gateway, question, prompt).await,
        None => talk::talk(screen, &gateway, question).await,
    }
}

/// The words of the command line, with standard input in the place of a `-`, or standard input alone when it is no
/// terminal; none for a conversation.
pub(crate) fn prompt(words: &[String]) -> Result<Option<String>, Failure> {
    if words.is_empty() && io::stdin().is_terminal() {
        return Ok(None);
    }
    let input =
        if words.is_empty() || words.iter().any(|word| word == "-") { stdin()? } else { String::new() };
    let prompt = if words.is_empty() {
        input
    } else {
        let part = |word: &String| if word == "-" { format!("\n{}\n", input.trim()) } else { word.clone() };
        words.iter().map(part).collect::<Vec<_>>().join(" ")
    };
    match prompt.trim() {
        "" => Err(Failure::usage("the prompt is empty")),
        prompt => Ok(Some(prompt.to_owned())),
    }
}

/// The same for commands that always need some.
pub(crate) fn words(words: &[String]) -> Result<String, Failure> {
    prompt(words)?.ok_or_else(|| Failure::usage("something must be said: words, or - for standard input"))
}

fn stdin() -> Result<String, Failure> {
    let mut text = String::new();
    let read = io::stdin().lock().take(PROMPT_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::new("input", format!("standard input cannot be read: {error}")))?;
    if text.len() as u64 > PROMPT_BYTES_MAX {
        return Err(Failure::usage(format!("standard input is longer than {PROMPT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The model that is meant: the one of this name, the only one with this in its name, or the only one there is.
fn choose(models: Vec<ModelView>, wanted: Option<&str>) -> Result<ModelView, Failure> {
    let usable = |model: &ModelView| matches!(model.state, ModelState::Ready | ModelState::Loading);
    let (mut usable, others): (Vec<ModelView>, Vec<ModelView>) = models.into_iter().partition(usable);
    if let Some(wanted) = wanted {
        if let Some(at) = usable.iter().position(|model| model.name == wanted) {
            return Ok(usable.swap_remove(at));
        }
        if let Some(model) = others.iter().find(|model| model.name == wanted) {
            return Err(Failure::new(
                "model_not_ready",
                format!("{wanted} does not answer: it is {}", model.state),
            )
            .with_mend("see `qmt-cli models`, and `qmt-cli doctor` where it runs"));
        }
        let lower = wanted.to_lowercase();
        usable.retain(|model| model.name.to_lowercase().contains(&lower));
    }
    let names = usable.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
    match (usable.len(), wanted) {
        (1, _) => Ok(usable.swap_remove(0)),
        (0, None) => Err(Failure::new("no_model", "no model of this mesh answers")
            .with_mend("serve one with `qmt-cli load NAME`; `qmt-cli models` shows what there is")),
        (0, Some(wanted)) => Err(Failure::new("unknown_model", format!("no model is called {wanted:?}"))
            .with_mend("`qmt-cli models` lists what there is")),
        (_, None) => Err(Failure::new("ambiguous", format!("there are several models: {names}"))
            .with_mend("choose one with --model NAME")),
        (_, Some(wanted)) => {
            Err(Failure::new("ambiguous", format!("{wanted:?} fits several models: {names}"))
                .with_mend("write more of the name"))
        }
    }
}

/// What one answer was, with `--json`.
#[derive(Serialize)]
struct Once<'a> {
    model: &'a str,
    #[serde(flatten)]
    answer: &'a Answer,
    /// From the question to the first piece of the answer.
    first_token_ms: Option<f64>,
    /// From the question to the end of the answer.
    total_ms: f64,
    /// Tokens of the answer a second after the first one.
    tokens_per_second: Option<f64>,
}

async fn once(
    screen: &Screen,
    gateway: &Gateway,
    mut question: Question,
    prompt: String,
) -> Result<(), Failure> {
    question.turns.push(Turn::user(prompt));
    let mut answer = Answer::default();
    let mut writer = Writer::new(screen);
    let asked = gateway.ask(&question, &mut answer, &mut |piece| writer.write(piece)).await;
    writer.end()?;
    asked?;
    if !screen.is_json() {
        hint_at_base_model(screen, &answer);
        return Ok(());
    }
    let once = Once {
        model: &question.model,
        first_token_ms: answer.first_ms(),
        total_ms: answer.total_ms(),
        tokens_per_second: answer.tokens_per_second(),
        answer: &answer,
    };
    screen.show(&once, |_| String::new())
}

/// llama-server lends a model without a chat template the marks of another one, which a base model then babbles.
fn hint_at_base_model(screen: &Screen, answer: &Answer) {
    if answer.text.contains("<|im_start|>") || answer.text.contains("<|im_end|>") {
        screen.note("this seems to be a base model, which knows no conversation; --complete continues the prompt instead");
    }
}

/// Writes an answer while it comes: nothing with `--json`, and nothing that steers a terminal to one.
pub(crate) struct Writer<'a> {
    screen: &'a Screen,
    terminal: bool,
    thinking: bool,
    line_open: bool,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(screen: &'a Screen) -> Self {
        Self { screen, terminal: io::stdout().is_terminal(), thinking: false, line_open: false }
    }

    pub(crate) fn write(&mut self, piece: Piece<'_>) -> Result<(), Failure> {
        if self.screen.is_json() {
            return Ok(());
        }
        match piece {
            // Thoughts are for who watches; a pipe gets the answer.
            Piece::Thought(text) if self.terminal => {
                let start = if self.thinking { "" } else { "\x1b[2m" };
                self.thinking = true;
                self.put(start, text)
            }
            Piece::Thought(_) => Ok(()),
            Piece::Text(text) => {
                let start = if self.thinking { "\x1b[0m\n\n" } else { "" };
                self.thinking = false;
                self.put(start, text)
            }
        }
    }

    fn put(&mut self, start: &str, text: &str) -> Result<(), Failure> {
        if let Some(last) = text.chars().last() {
            self.line_open = last != '\n';
        }
        if self.terminal {
            self.screen.print(&format!("{start}{}", harmless(text)))
        } else {
            self.screen.print(text)
        }
    }

    /// Ends the line that the answer left open.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        let reset = if std::mem::take(&mut self.thinking) { "\x1b[0m" } else { "" };
        if std::mem::take(&mut self.line_open) || !reset.is_empty() {
            return self.screen.print(&format!("{reset}\n"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(all: &[(&str, ModelState)]) -> Vec<ModelView> {
        let view = |(name, state): &(&str, ModelState)| ModelView {
            name: (*name).to_owned(),
            state: *state,
            ..ModelView::default()
        };
        all.iter().map(view).collect()
    }

    #[test]
    fn the_only_model_needs_no_name() {
        let all = models(&[("gemma", ModelState::Ready), ("qwen", ModelState::Failed)]);
        assert_eq!(choose(all, None).expect("one is usable").name, "gemma");
        let failure = choose(models(&[]), None).expect_err("there is none");
        assert_eq!(failure.code(), "no_model");
    }

    #[test]
    fn one_of_several_is_chosen_by_a_part_of_its_name() {
        let all = || {
            models(&[
                ("gemma-3-270m", ModelState::Ready),
                ("gemma-3", ModelState::Ready),
                ("Qwen", ModelState::Loading),
            ])
        };
        assert_eq!(choose(all(), Some("gemma-3")).expect("the whole name wins").name, "gemma-3");
        assert_eq!(choose(all(), Some("qwen")).expect("a part").name, "Qwen");
        let failure = choose(all(), None).expect_err("several");
        assert_eq!(failure.message(), "there are several models: gemma-3-270m, gemma-3, Qwen");
        let failure = choose(all(), Some("gemma")).expect_err("fits two");
        assert_eq!(failure.message(), "\"gemma\" fits several models: gemma-3-270m, gemma-3");
        assert_eq!(choose(all(), Some("llama")).expect_err("fits none").code(), "unknown_model");
    }

    #[test]
    fn a_model_that_failed_is_named_as_such() {
        let all = models(&[("gemma", ModelState::Failed)]);
        assert_eq!(
            choose(all, Some("gemma")).expect_err("failed").message(),
            "gemma does not answer: it is failed"
        );
    }
}
