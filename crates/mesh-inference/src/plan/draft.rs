//! Whether a draft model speaks the vocabulary of the model that it drafts for.

use crate::gguf::Tokenizer;

/// Tokens by which two vocabularies may differ at the end, as llama.cpp has it.
const ROUNDED_UP_MAX: u64 = 128;

/// Why a draft model cannot draft for a model. Nothing has changed; another draft model may fit, and none is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DraftError {
    /// One of the files has no tokenizer.
    #[error("{0} carries no vocabulary")]
    NoVocabulary(&'static str),
    /// Texts are cut in different manners.
    #[error("the vocabularies are of different kinds: `{draft}` for the draft, `{model}` for the model")]
    Kind {
        /// Of the draft model.
        draft: String,
        /// Of the model.
        model: String,
    },
    /// Equal numbers do not mean equal words.
    #[error(
        "the vocabularies differ: {draft} tokens for the draft, {model} for the model; take a draft model of the same family"
    )]
    Words {
        /// Tokens of the draft model.
        draft: u64,
        /// Tokens of the model.
        model: u64,
    },
    /// Texts begin or end with different tokens.
    #[error("the two models begin or end a text with different tokens")]
    Ends,
}

/// Checks that equal numbers mean equal words in both.
///
/// # Errors
/// [`DraftError`] says in what they differ.
pub fn check_vocabulary(model: Option<&Tokenizer>, draft: Option<&Tokenizer>) -> Result<(), DraftError> {
    let model = model.ok_or(DraftError::NoVocabulary("the model"))?;
    let draft = draft.ok_or(DraftError::NoVocabulary("the draft model"))?;
    if model.model != draft.model {
        return Err(DraftError::Kind { draft: draft.model.clone(), model: model.model.clone() });
    }
    let is_close = model.vocabulary.abs_diff(draft.vocabulary) <= ROUNDED_UP_MAX;
    if model.hash != draft.hash && !(is_close && model.words_hash == draft.words_hash) {
        return Err(DraftError::Words { draft: draft.vocabulary, model: model.vocabulary });
    }
    let differ =
        |model: Option<u64>, draft: Option<u64>| matches!((model, draft), (Some(a), Some(b)) if a != b);
    if differ(model.begin, draft.begin) || differ(model.end, draft.end) {
        return Err(DraftError::Ends);
    }
    Ok(())
}
