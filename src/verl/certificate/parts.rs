//! The formulas that a configuration computes with, and what is asked about each.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::{Config, estimator, kl_in_reward, loss_options, value_clip};
use crate::conformance::Task;
use crate::evaluate::{Question, evaluate};
use crate::fixture::{Case, Expected, Fixture, exact_in, rivals};
use crate::formula::Formula;
use crate::options::{ActorLoss, Estimator, LossOptions, Objective};
use crate::value::{Array, Data};
use crate::{Error, Result};

/// A formula with a configuration's options, and the questions about it.
#[derive(Debug)]
pub struct Part {
    /// What it is in a run.
    pub title: &'static str,
    /// The formula's id.
    pub formula: &'static str,
    /// What is known of it in verl, where there is something.
    pub remark: Option<&'static str>,
    /// All of its options.
    pub options: Map<String, Value>,
    /// What a run under this configuration could come upon.
    pub within: Vec<Task>,
    /// What it could not, and why.
    pub beyond: Vec<(&'static str, Task)>,
}

/// Where only some of the tokens are trained on.
const COUNTED: &str = "verl's engines count the tokens and responses of a mini-batch before the loss is asked, and hand these \
counts to it: what is not trained on is counted. KL and entropy are verl's own terms and go over all tokens. With \
`loss_agg_mode` = `seq-mean-token-mean`, which counts each response's tokens by itself, GROUP-PPO's policy term is exact.";

/// Makes a question of a case's: false where there is none to be made of it.
type Shape = fn(&mut Question) -> bool;

/// Everything between rewards and the number that the policy and the critic are trained on.
///
/// # Errors
/// `option` for a configuration that is outside a formula's domain.
pub fn parts(config: &Config, fixtures: &[Fixture]) -> Result<Vec<Part>> {
    let part = |title, formula, options: Result<Map<String, Value>>, shape| -> Result<Part> {
        asked(config, fixtures, title, formula, options?, shape)
    };
    let loss = loss_options(config)?;
    let estimator = estimator(config);
    let mut all = Vec::new();
    if let Some(kl) = kl_in_reward(config) {
        all.push(part("KL in the rewards", "kl.in_reward", flat(&kl), as_it_is)?);
    }
    let (formula, options) = of_estimator(&estimator);
    let moves = config.actor_rollout_ref.actor.ppo_epochs > 1;
    let on_policy = matches!(estimator, Estimator::GroupPpo(_)) && !moves;
    all.push(part("advantages", formula, options, if on_policy { as_before_updates } else { as_it_is })?);
    let (formula, options) = of_objective(&loss);
    all.push(part("policy loss of a token", formula, options, as_it_is)?);
    if !matches!(loss.objective, Objective::GeoMean(_)) {
        all.push(part("from tokens to one loss", "aggregate.loss", flat(&loss.terms.aggregate), as_it_is)?);
    }
    if loss.terms.kl_loss_coef != 0.0 {
        all.push(part("KL in the loss", "kl.estimate", flat(&loss.terms.kl()), as_it_is)?);
    }
    if let Some((title, shape)) = whole_loss(&loss, &estimator) {
        let part = part(title, "objective.actor_loss", flat(&loss.terms), shape)?;
        let is_masked = matches!(estimator, Estimator::GroupPpo(_) | Estimator::Filtered(_));
        all.push(Part { remark: is_masked.then_some(COUNTED), ..part });
    }
    if matches!(estimator, Estimator::Gae(_) | Estimator::GroupPpo(_)) {
        all.push(part("critic's loss", "value.clipped", flat(&value_clip(config)), as_it_is)?);
    }
    Ok(all)
}

fn of_estimator(estimator: &Estimator) -> (&'static str, Result<Map<String, Value>>) {
    match estimator {
        Estimator::Grpo(options) => ("advantage.group_norm", flat(options)),
        Estimator::Filtered(options) => ("advantage.filter", flat(options)),
        Estimator::Rloo(options) => ("advantage.rloo", flat(options)),
        Estimator::ReinforcePlusPlus(options) => ("advantage.reinforce_plus_plus", flat(options)),
        Estimator::ReinforcePlusPlusBaseline(options) => {
            ("advantage.reinforce_plus_plus_baseline", flat(options))
        }
        Estimator::Remax => ("advantage.remax", Ok(Map::new())),
        Estimator::Opo(options) => ("advantage.opo", flat(options)),
        Estimator::Gpg(options) => ("advantage.gpg", flat(options)),
        Estimator::Gae(options) => ("advantage.gae", flat(options)),
        Estimator::GroupPpo(options) => ("advantage.group_ppo", flat(options)),
    }
}

fn of_objective(loss: &LossOptions) -> (&'static str, Result<Map<String, Value>>) {
    match &loss.objective {
        Objective::Vanilla => ("objective.clip", flat(&loss.terms.clip)),
        Objective::Gpg => ("objective.policy_gradient", Ok(Map::new())),
        Objective::Gspo(options) => ("objective.gspo", flat(options)),
        Objective::Cispo(options) => ("objective.cispo", flat(options)),
        Objective::GeoMean(options) => ("objective.gmpo", flat(options)),
        Objective::Sapo(options) => ("objective.sapo", flat(options)),
    }
}

/// Which cases of `objective.actor_loss` show the whole loss; none where it is the aggregated objective and nothing else,
/// which is no formula of its own.
fn whole_loss(loss: &LossOptions, estimator: &Estimator) -> Option<(&'static str, Shape)> {
    let ActorLoss { kl_loss_coef, entropy_coeff, .. } = loss.terms;
    match (&loss.objective, estimator) {
        (Objective::Vanilla, Estimator::GroupPpo(_)) => Some(("whole loss over endpoints", over_endpoints)),
        (Objective::Vanilla, Estimator::Filtered(_)) => Some(("whole loss of what is kept", half_filtered)),
        (Objective::Vanilla, _) => Some(("whole loss", over_all_tokens)),
        _ if kl_loss_coef == 0.0 && entropy_coeff == 0.0 => None,
        _ => Some(("KL and entropy in the loss", without_advantages)),
    }
}

/// Options as a formula's row names them.
fn flat(options: &impl Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(options) {
        Ok(Value::Object(options)) => Ok(options),
        _ => Err(Error::Unsupported { what: "options that are no JSON object".to_owned() }),
    }
}

fn asked(
    config: &Config,
    fixtures: &[Fixture],
    title: &'static str,
    formula: &'static str,
    options: Map<String, Value>,
    shape: Shape,
) -> Result<Part> {
    let options = Formula::<f64>::find(formula)?.resolve(&options)?;
    let cases =
        fixtures.iter().filter(|fixture| fixture.formula == formula).flat_map(|fixture| &fixture.cases);
    let (mut within, mut beyond, mut known) = (Vec::new(), Vec::new(), Vec::new());
    let scored = rewards_are_scores(config);
    let cases = cases.filter(|case| matches!(case.expected, Expected::Answer(_)));
    for task in cases.flat_map(|case| tasks(formula, case, &options, shape, scored)) {
        if known.contains(&task.question.inputs) {
            continue;
        }
        known.push(task.question.inputs.clone());
        match out_of_reach(config, &task) {
            Some(why) => beyond.push((why, task)),
            None => within.push(task),
        }
    }
    Ok(Part { title, formula, remark: None, options, within, beyond })
}

/// The case's inputs with these options, none where the two do not go together; and once more with rewards of 0 and 1, if
/// that is what a run has.
fn tasks(
    formula: &str,
    case: &Case,
    options: &Map<String, Value>,
    shape: Shape,
    scored: bool,
) -> impl Iterator<Item = Task> {
    let mut question = Question { options: options.clone(), inputs: case.question.inputs.clone() };
    let is_one = shape(&mut question);
    padded_with_zeros(&mut question);
    let other = if scored { as_scored(&question) } else { None };
    let of_other = other.and_then(|question| task(formula, case, question));
    let of_other = of_other.map(|task| Task { case: format!("{}~scored", task.case), ..task });
    let own = task(formula, case, question);
    own.into_iter().chain(of_other).filter(move |_| is_one)
}

fn task(formula: &str, case: &Case, mut question: Question) -> Option<Task> {
    complete(&mut question);
    let answer = evaluate(formula, &question).ok()?;
    let rivals = rivals(formula, &question, &answer).ok()?;
    let of_case = Task::of(formula, case);
    Some(Task {
        exact_in: exact_in(&question),
        expected: Expected::Answer(answer),
        flags: Vec::new(),
        rivals,
        question,
        ..of_case
    })
}

/// Masked slots hold NaN in the golden cases. In verl's batches they are padding, and padding is 0.
fn padded_with_zeros(question: &mut Question) {
    for array in question.inputs.values_mut() {
        if let Data::Real(data) = &mut array.data {
            data.iter_mut().filter(|entry| !entry.is_finite()).for_each(|entry| *entry = 0.0);
        }
    }
}

/// What the loss's options need and the case leaves out: the reference policy is the old one then, and entropies are the
/// negative log-probabilities.
fn complete(question: &mut Question) {
    let is_on = |name: &str| question.options.get(name).and_then(Value::as_f64).is_some_and(|x| x != 0.0);
    let (with_kl, with_entropy) = (is_on("kl_loss_coef"), is_on("entropy_coeff"));
    if let Some(old) = question.inputs.get("logp_old").cloned().filter(|_| with_kl) {
        question.inputs.entry("logp_ref".to_owned()).or_insert(old);
    }
    if let Some(mut entropy) = question.inputs.get("logp").cloned().filter(|_| with_entropy) {
        if let Data::Real(data) = &mut entropy.data {
            data.iter_mut().for_each(|entry| *entry = -*entry);
        }
        question.inputs.entry("entropy".to_owned()).or_insert(entropy);
    }
}

/// Whether a response earns 1 or 0 and nothing else.
fn rewards_are_scores(config: &Config) -> bool {
    !config.reward.overlong_buffer.enable && !config.algorithm.use_kl_in_reward
}

/// The question with 1 for rewards of responses above their mean and 0 for the others.
fn as_scored(question: &Question) -> Option<Question> {
    let mut question = question.clone();
    let rewards = question.inputs.get_mut("rewards").filter(|rewards| rewards.shape.len() == 1)?;
    let Data::Real(data) = &mut rewards.data else { return None };
    let mean = data.iter().sum::<f64>() / data.len() as f64;
    data.iter_mut().for_each(|reward| *reward = f64::from(u8::from(*reward > mean)));
    Some(question)
}

/// Why no run under this configuration comes upon such a question.
fn out_of_reach(config: &Config, task: &Task) -> Option<&'static str> {
    let input = |name: &str| task.question.inputs.get(name);
    if task.clauses.iter().any(|clause| clause == "value.clipped.tie") {
        return Some("a value exactly at its bound");
    }
    if rows_of(input("response_mask")).any(|row| !row.iter().any(|keep| *keep)) {
        return Some("a response without a token");
    }
    let rewards = input("rewards").filter(|rewards| rewards.shape.len() == 1 && rewards_are_scores(config));
    if rewards.is_some_and(|rewards| rewards.reals().iter().any(|reward| ![0.0, 1.0].contains(reward))) {
        return Some("rewards other than 0 and 1");
    }
    if let Some(Array { data: Data::Integer(labels), .. }) = input("group")
        && labels.iter().any(|label| labels.iter().filter(|other| *other == label).count() == 1)
    {
        return Some("a group of one response");
    }
    None
}

fn rows_of(mask: Option<&Array>) -> impl Iterator<Item = &[bool]> {
    let rows = match mask {
        Some(Array { shape, data: Data::Mask(mask) }) => shape.get(1).map(|width| (mask, (*width).max(1))),
        _ => None,
    };
    rows.into_iter().flat_map(|(mask, width)| mask.chunks(width))
}

fn as_it_is(_: &mut Question) -> bool {
    true
}

/// Advantages are asked for before the first update, when the policy is still the old one.
fn as_before_updates(question: &mut Question) -> bool {
    let old = question.inputs.get("logp_old").cloned();
    old.is_some_and(|old| question.inputs.insert("logp".to_owned(), old).is_some())
}

fn over_all_tokens(question: &mut Question) -> bool {
    !question.inputs.contains_key("group_endpoints")
}

/// With the case's own endpoints, or every second token from a response's last one, which always is an endpoint.
fn over_endpoints(question: &mut Question) -> bool {
    question.inputs.contains_key("group_endpoints") || trained_on(question, |_, later| later % 2 == 0)
}

/// Every second response filtered out.
fn half_filtered(question: &mut Question) -> bool {
    over_all_tokens(question) && trained_on(question, |row, _| row % 2 == 0)
}

/// Leaves the tokens to be trained on by their row and by how many come later in it; false where none is left out.
fn trained_on(question: &mut Question, keeps: fn(usize, usize) -> bool) -> bool {
    let Some(Array { shape, data: Data::Mask(mask) }) = question.inputs.get("response_mask") else {
        return false;
    };
    let mut endpoints = mask.clone();
    let width = shape.get(1).map_or(1, |width| (*width).max(1));
    for (row, tokens) in endpoints.chunks_mut(width).enumerate() {
        for (later, token) in tokens.iter_mut().rev().filter(|token| **token).enumerate() {
            *token = keeps(row, later);
        }
    }
    let leaves_out = endpoints != *mask;
    let endpoints = Array { shape: shape.clone(), data: Data::Mask(endpoints) };
    question.inputs.insert("group_endpoints".to_owned(), endpoints);
    leaves_out
}

/// Then the objective is 0, whichever it is, and the other terms are the whole loss.
fn without_advantages(question: &mut Question) -> bool {
    if let Some(Array { data: Data::Real(data), .. }) = question.inputs.get_mut("advantages") {
        data.fill(0.0);
    }
    over_all_tokens(question)
}
