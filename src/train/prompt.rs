//! The conversation that asks for an answer in GSM8K's format.

use super::data::Problem;
use crate::llm::{Llm, Message, Role, Tokenizer};
use crate::{Error, Result};

/// What the model is told first.
pub const SYSTEM: &str = "Solve the problem. Show each calculation, then give the final number after '####'.";

/// One worked exchange. Without it a small model never writes the mark and no response is rewarded; the mark
/// `<<12+5=17>>` is how GSM8K writes a calculation.
pub const EXAMPLE: (&str, &str) = ("What is 12 + 5?", "12 + 5 = <<12+5=17>>17\n#### 17");

/// The conversation up to the point where the model answers.
pub fn messages(question: &str) -> Vec<Message> {
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    vec![
        message(Role::System, SYSTEM),
        message(Role::User, EXAMPLE.0),
        message(Role::Assistant, EXAMPLE.1),
        message(Role::User, question),
    ]
}

/// The tokens of a problem's conversation in the model's own chat format.
///
/// # Errors
/// As [`Tokenizer::chat`].
pub fn tokens(tokenizer: &Tokenizer, problem: &Problem) -> Result<Vec<i64>> {
    tokenizer.chat(&messages(&problem.question))
}

/// The problems whose prompts have at most `longest` tokens.
///
/// # Errors
/// `option` for a longer one, unless those are to be left out; otherwise as [`Tokenizer::chat`].
pub fn within(
    tokenizer: &Tokenizer,
    problems: Vec<Problem>,
    longest: usize,
    leave_out: bool,
) -> Result<Vec<Problem>> {
    let mut kept = Vec::with_capacity(problems.len());
    for problem in problems {
        let length = tokens(tokenizer, &problem)?.len();
        if length <= longest {
            kept.push(problem);
        } else if !leave_out {
            let start: String = problem.question.chars().take(40).collect();
            let sentence = format!(
                "a prompt (\"{start}...\") has {length} tokens and {longest} are allowed; raise it or set \
                 data.filter_overlong_prompts"
            );
            return Err(Error::option("data.max_prompt_length", sentence));
        }
    }
    match kept.is_empty() {
        true => {
            Err(Error::option("data.max_prompt_length", format!("no prompt has at most {longest} tokens")))
        }
        false => Ok(kept),
    }
}

/// The error of the first problem whose conversation and answer would not fit into the model's context, if any: asked
/// before the long work starts.
///
/// # Errors
/// `option` for `data.max_response_length`, which names the problem's length; otherwise as [`Tokenizer::chat`].
pub fn fit(llm: &Llm, problems: &[Problem], max_new_tokens: usize) -> Result<()> {
    let context = llm.model.config().max_position_embeddings as usize;
    for problem in problems {
        let length = tokens(&llm.tokenizer, problem)?.len();
        if length + max_new_tokens > context {
            let start: String = problem.question.chars().take(40).collect();
            let sum = format!("{length} tokens of prompt (\"{start}...\") and {max_new_tokens} new ones");
            let way_out = "use fewer new tokens or leave the problem out";
            let problem = format!("{sum} exceed the model's context of {context}; {way_out}");
            return Err(Error::option("data.max_response_length", problem));
        }
    }
    Ok(())
}
