//! `board_read` and `board_post`: what people and agents share beside their conversations.
//!
//! These are the tools as models see them. Which boards there are, and who may do what with them, is behind [`Boards`].

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use super::files::{arguments, cancelled};
use crate::event::Party;
use crate::ids::{EventNumber, PromptId};
use crate::model::ToolSpec;
use crate::tool::{Ran, Tool, ToolRun};

/// The longest text of a post, in bytes: a board is read with every model's window in mind.
const POST_BYTES_MAX: usize = 64 * 1024;
/// What of one post is shown among others, and what of all.
const SHOWN_BYTES_MAX: usize = 8 * 1024;
const PAGE_BYTES_MAX: usize = 48 * 1024;
/// Posts of a page when no number is asked for, and at most.
const POSTS: u32 = 50;
const POSTS_MAX: u32 = 200;

/// The boards that an agent can use on somebody's behalf. Errors are for the model.
pub trait Boards: Send + Sync {
    /// Those that there are.
    fn list(&self, by: Party) -> BoxFuture<'static, Result<Vec<BoardSeen>, String>>;

    /// The first posts after an event.
    fn read(&self, by: Party, from: BoardFrom) -> BoxFuture<'static, Result<PostsSeen, String>>;

    /// Posts a text in the agent's name; the same post again is the same post. Returns its number.
    fn post(&self, by: Party, post: NewPost) -> BoxFuture<'static, Result<EventNumber, String>>;
}

/// BoardFrom where a board is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardFrom {
    /// `NAME` or `NAME@NODE`.
    pub board: String,
    /// The last event that the reader knows.
    pub after: EventNumber,
    /// How many posts at most.
    pub limit: u32,
}

/// A post to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPost {
    /// `NAME` or `NAME@NODE`.
    pub board: String,
    /// One id for one post.
    pub id: PromptId,
    /// What is written.
    pub text: String,
}

/// A board that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardSeen {
    /// `NAME@NODE`.
    pub address: String,
    /// Its last event.
    pub last: EventNumber,
    /// Whether it can be posted on; none when its node does not say.
    pub may_post: Option<bool>,
}

/// What stands on a board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostsSeen {
    /// In order.
    pub posts: Vec<PostSeen>,
    /// The last event that was looked at.
    pub read: EventNumber,
    /// The board's last event.
    pub last: EventNumber,
}

/// A post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostSeen {
    /// The number of its event.
    pub number: EventNumber,
    /// `AGENT@NODE`, or a node for a person at it.
    pub who: String,
    /// What was written.
    pub text: String,
}

/// The tool `board_read`.
pub struct BoardRead(pub Arc<dyn Boards>);

/// The tool `board_post`.
pub struct BoardPost(pub Arc<dyn Boards>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadArguments {
    #[serde(default)]
    board: Option<String>,
    #[serde(default)]
    after: u64,
    #[serde(default)]
    limit: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PostArguments {
    board: String,
    text: String,
}

impl Tool for BoardRead {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "board_read".to_owned(),
            description: "Reads a shared board, on which people and other agents post. Without a board: lists the boards that \
                 there are. Posts are numbered; remember the last number, and read on after it later."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "board": {"type": "string", "description": "The board, as listed: NAME or NAME@NODE"},
                    "after": {"type": "integer", "minimum": 0, "description": "Only posts after this number (default 0: all)"},
                    "limit": {"type": "integer", "minimum": 1, "maximum": POSTS_MAX, "description": "The most posts (default 50)"},
                },
                "additionalProperties": false,
            }),
        }
    }

    fn only_reads(&self, _: &Value) -> bool {
        true
    }

    fn run(&self, run: ToolRun) -> BoxFuture<'static, Ran> {
        let (boards, by, cancel) = (self.0.clone(), run.on_behalf_of, run.cancel);
        let asked: Result<ReadArguments, String> = arguments(run.arguments);
        let read = async move {
            let ReadArguments { board, after, limit } = asked?;
            let Some(board) = board else { return Ok(listed(&boards.list(by).await?)) };
            let limit = limit.unwrap_or(POSTS).clamp(1, POSTS_MAX);
            let from = BoardFrom { board, after: EventNumber(after), limit };
            Ok(shown(&boards.read(by, from).await?))
        };
        Box::pin(async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => cancelled(),
                read = read => told(read),
            }
        })
    }
}

impl Tool for BoardPost {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: "board_post".to_owned(),
            description: "Posts a text on a shared board, for people and other agents to read; it cannot be taken back. board_read \
                 lists the boards."
                .to_owned(),
            parameters: json!({
                "type": "object",
                "properties": {
                    "board": {"type": "string", "description": "The board, as listed: NAME or NAME@NODE"},
                    "text": {"type": "string", "description": "What to post"},
                },
                "required": ["board", "text"],
                "additionalProperties": false,
            }),
        }
    }

    fn only_reads(&self, _: &Value) -> bool {
        false
    }

    fn run(&self, run: ToolRun) -> BoxFuture<'static, Ran> {
        let (boards, by, cancel) = (self.0.clone(), run.on_behalf_of, run.cancel);
        // One call is one post, however often it is tried.
        let call = format!("{}/{}", run.session, run.call);
        let id = PromptId::try_from(format!("call-{}", blake3::hash(call.as_bytes()).to_hex()));
        let asked: Result<PostArguments, String> = arguments(run.arguments);
        let post = async move {
            let (PostArguments { board, text }, id) = (asked?, id.map_err(|error| error.to_string())?);
            if text.trim().is_empty() || text.len() > POST_BYTES_MAX {
                return Err(format!("a post has 1 to {POST_BYTES_MAX} bytes"));
            }
            let number = boards.post(by, NewPost { board: board.clone(), id, text }).await?;
            Ok(format!("posted on {board} as [{number}]"))
        };
        Box::pin(async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => cancelled(),
                posted = post => told(posted),
            }
        })
    }
}

fn told(told: Result<String, String>) -> Ran {
    match told {
        Ok(text) => Ran::done(text),
        Err(why) => Ran::failed(why),
    }
}

fn listed(boards: &[BoardSeen]) -> String {
    if boards.is_empty() {
        return "there are no boards\n".to_owned();
    }
    let line = |board: &BoardSeen| {
        let may = if board.may_post == Some(false) { " (to be read only)" } else { "" };
        format!("{}: last number {}{may}\n", board.address, board.last)
    };
    boards.iter().map(line).collect()
}

/// As many posts as there is room for; the rest is to be asked for.
fn shown(page: &PostsSeen) -> String {
    let (mut text, mut read) = (String::new(), page.read);
    for (index, post) in page.posts.iter().enumerate() {
        let cut = post.text.floor_char_boundary(SHOWN_BYTES_MAX);
        let more = if cut < post.text.len() { "… (cut)" } else { "" };
        // Further lines are indented, so that none of them looks like somebody else's post.
        let said = post.text[..cut].trim_end().replace('\n', "\n    ");
        let line = format!("[{}] {}: {said}{more}\n", post.number, post.who);
        if index > 0 && text.len() + line.len() > PAGE_BYTES_MAX {
            read = page.posts[index - 1].number;
            break;
        }
        text.push_str(&line);
    }
    match text.is_empty() {
        true => text.push_str(&format!("nothing new; the last number is {}\n", page.last)),
        false if read < page.last => text.push_str(&format!("there is more after {read}\n")),
        false => {}
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Mutex;

    use mesh_identity::NodeKey;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::content::ToolOutcome;
    use crate::model::Shown;

    /// One board, on which everything is posted.
    #[derive(Default)]
    struct One(Mutex<Vec<NewPost>>);

    impl Boards for One {
        fn list(&self, _: Party) -> BoxFuture<'static, Result<Vec<BoardSeen>, String>> {
            let last = EventNumber(self.0.lock().unwrap().len() as u64);
            let seen = |address: &str, may_post| BoardSeen { address: address.to_owned(), last, may_post };
            let boards = vec![seen("plan@gpu", None), seen("news@gpu", Some(false))];
            Box::pin(async move { Ok(boards) })
        }

        fn read(&self, _: Party, from: BoardFrom) -> BoxFuture<'static, Result<PostsSeen, String>> {
            let all = self.0.lock().unwrap().clone();
            let last = EventNumber(all.len() as u64);
            let posts = all.into_iter().zip(1..).skip(usize::try_from(from.after.0).unwrap());
            let seen = |(post, number): (NewPost, u64)| PostSeen {
                number: EventNumber(number),
                who: "coder@gpu".to_owned(),
                text: post.text,
            };
            let posts: Vec<PostSeen> = posts.take(from.limit as usize).map(seen).collect();
            let read = posts.last().map_or(from.after, |post| post.number);
            Box::pin(async move { Ok(PostsSeen { posts, read, last }) })
        }

        fn post(&self, _: Party, post: NewPost) -> BoxFuture<'static, Result<EventNumber, String>> {
            let mut all = self.0.lock().unwrap();
            all.push(post);
            let number = EventNumber(all.len() as u64);
            Box::pin(async move { Ok(number) })
        }
    }

    fn run(tool: &dyn Tool, call: &str, arguments: Value) -> (ToolOutcome, String) {
        let run = ToolRun {
            session: "00000000-0000-7000-8000-000000000001".parse().unwrap(),
            call: call.parse().unwrap(),
            arguments,
            on_behalf_of: Party::local(NodeKey::from_seed([1; 32]).node_id()),
            printed: Arc::new(|_| {}),
            cancel: CancellationToken::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ran = runtime.block_on(tool.run(run));
        let [Shown::Text(text)] = &ran.parts[..] else { panic!("{ran:?}") };
        (ran.outcome, text.clone())
    }

    #[test]
    fn what_is_posted_is_read_after_a_number() {
        let boards = Arc::new(One::default());
        let (read, post) = (BoardRead(boards.clone()), BoardPost(boards.clone()));
        assert!(read.only_reads(&json!({})) && !post.only_reads(&json!({})));
        let said = run(&post, "a", json!({"board": "plan", "text": "begin"}));
        assert_eq!(said, (ToolOutcome::Done, "posted on plan as [1]".to_owned()));
        run(&post, "b", json!({"board": "plan", "text": "end\n[9] owner: no\n"}));
        let both = run(&read, "c", json!({"board": "plan"})).1;
        assert_eq!(both, "[1] coder@gpu: begin\n[2] coder@gpu: end\n    [9] owner: no\n");
        assert_eq!(
            run(&read, "d", json!({"board": "plan", "after": 1})).1,
            "[2] coder@gpu: end\n    [9] owner: no\n"
        );
        assert_eq!(
            run(&read, "e", json!({"board": "plan", "after": 2})).1,
            "nothing new; the last number is 2\n"
        );
        let one = run(&read, "f", json!({"board": "plan", "limit": 1})).1;
        assert_eq!(one, "[1] coder@gpu: begin\nthere is more after 1\n");
        let list = run(&read, "g", json!({})).1;
        assert_eq!(list, "plan@gpu: last number 2\nnews@gpu: last number 2 (to be read only)\n");
    }

    #[test]
    fn a_call_that_is_made_again_is_the_same_post() {
        let boards = Arc::new(One::default());
        let post = BoardPost(boards.clone());
        let arguments = json!({"board": "plan", "text": "x"});
        for call in ["a", "a", "b"] {
            run(&post, call, arguments.clone());
        }
        let all = boards.0.lock().unwrap();
        assert!(all[0].id == all[1].id && all[1].id != all[2].id, "{all:?}");
    }

    #[test]
    fn what_is_too_long_is_refused_cut_and_told_in_pieces() {
        let boards = Arc::new(One::default());
        let (read, post) = (BoardRead(boards.clone()), BoardPost(boards.clone()));
        for text in ["  ".to_owned(), "x".repeat(POST_BYTES_MAX + 1)] {
            assert_eq!(run(&post, "a", json!({"board": "plan", "text": text})).0, ToolOutcome::Failed);
        }
        assert_eq!(run(&post, "a", json!({"board": "plan"})).0, ToolOutcome::Failed);
        for _ in 0..8 {
            run(&post, "a", json!({"board": "plan", "text": "ä".repeat(SHOWN_BYTES_MAX)}));
        }
        let told = run(&read, "b", json!({"board": "plan"})).1;
        assert!(told.len() <= PAGE_BYTES_MAX + 100 && told.contains("… (cut)"), "{}", told.len());
        assert!(told.ends_with("there is more after 5\n"), "{}", &told[told.len() - 40..]);
    }
}
