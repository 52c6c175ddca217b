//! Small questions as one large one: what a formula computes row by row, or group by group, is asked in one call.

use grpo_oracle::evaluate::Question;
use grpo_oracle::value::Data;
use serde_json::{Map, Value};

use crate::backend::Answer;

/// The formulas whose rows (and groups, with their labels moved apart) know nothing of each other: questions are joined
/// along the first axis, unless an option has the value that makes the formula look at the whole batch.
const JOINED: &[(&str, Option<(&str, &str)>)] = &[
    ("advantage.group_norm", Some(("std_scope", r#""batch""#))),
    ("advantage.relative", None),
    ("advantage.rloo", None),
    ("advantage.opo", None),
    ("advantage.pass_at_k", None),
    ("advantage.remax", None),
    ("advantage.reinforce_plus_plus", Some(("whiten", "true"))),
    ("advantage.reinforce_plus_plus_baseline", Some(("whiten", "true"))),
    ("advantage.td_error", None),
    ("advantage.gae", Some(("whiten", "true"))),
    ("kl.estimate", None),
    ("kl.full", None),
    ("logprob.token", None),
    ("logprob.entropy", None),
    ("logprob.ratio", None),
    ("logprob.sequence_ratio", None),
    ("objective.policy_gradient", None),
    ("objective.reinforce_with_baseline", None),
    ("objective.off_policy", None),
    ("objective.cispo", None),
    ("objective.gmpo", None),
    ("objective.sapo", None),
    ("reward.overlong", None),
    ("sampling.distribution", None),
];

/// Whether the formula treats the rows, or the groups, of a question with these options each by itself.
pub(super) fn may_join(id: &str, options: &Map<String, Value>) -> bool {
    let looks_at_all = |(option, value): (&str, &str)| {
        let given = options[option].to_string();
        given == value
    };
    JOINED.iter().any(|(joined, unless)| *joined == id && !unless.is_some_and(looks_at_all))
}

/// Whether two questions differ in nothing but the entries of their inputs.
pub(super) fn is_alike(one: &Question, other: &Question) -> bool {
    one.options == other.options && one.inputs.keys().eq(other.inputs.keys())
}

/// The questions one below another, each with groups of its own.
pub(super) fn joined(questions: &[&Question]) -> Question {
    let mut all = questions[0].clone();
    if questions.len() == 1 {
        return all;
    }
    for (name, array) in &mut all.inputs {
        let step = if name == "group" { array.shape[0] } else { 0 };
        for (index, question) in questions.iter().enumerate().skip(1) {
            append(&mut array.data, &question.inputs[name].data, index * step);
        }
        array.shape[0] *= questions.len();
    }
    all
}

/// Labels are below a question's number of rows, so that moving them by the rows before keeps groups apart.
fn append(data: &mut Data, more: &Data, moved_by: usize) {
    match (data, more) {
        (Data::Real(data), Data::Real(more)) => data.extend(more),
        (Data::Mask(data), Data::Mask(more)) => data.extend(more),
        (Data::Integer(data), Data::Integer(more)) => {
            data.extend(more.iter().map(|label| label + moved_by as i64));
        }
        (Data::Text(data), Data::Text(more)) => data.extend_from_slice(more),
        _ => unreachable!("an input is of one kind"),
    }
}

/// The answer to one of the questions that were joined.
pub(super) fn part(answer: &Answer, index: usize, count: usize) -> Answer {
    let parts = answer.iter().map(|(name, values, dtype)| {
        let length = values.len() / count;
        (name.clone(), values[index * length..(index + 1) * length].to_vec(), *dtype)
    });
    parts.collect()
}
