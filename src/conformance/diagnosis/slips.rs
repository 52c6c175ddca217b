//! The table of slips that no option reproduces: each with its name and what it answers, most often the reference's answer
//! to a changed question. Adding one is adding a row.

use serde_json::{Map, Value, json};

use super::look::{has_rubbish, mask, members};
use super::reference;
use crate::Result;
use crate::evaluate::{Evaluation, Question};
use crate::formula::Formula;
use crate::value::{Array, Data, Kind, Named};

/// A slip.
pub(super) struct Slip {
    /// Its name.
    pub(super) words: &'static str,
    /// Whether a formula can have it.
    pub(super) applies: fn(&Formula<f64>) -> bool,
    /// What it answers.
    pub(super) answer: Answer,
}

/// What a slip answers; `None` where it says nothing.
pub(super) type Answer = fn(&Ask<'_>) -> Option<Result<Evaluation>>;

pub(super) const SLIPS: &[Slip] = &[
    slip("the mask is ignored", has_mask, |ask| ask.unmasked(false)),
    slip("masked slots count as zeros", has_mask, |ask| ask.unmasked(true)),
    slip(
        "sequences without a kept token are counted",
        |row| has(row, "global_batch_size"),
        |ask| {
            let rows = ask.mask()?.shape.first().copied()? as f64;
            ask.where_null("global_batch_size", rows)
        },
    ),
    slip(
        "masked tokens are counted in the denominator",
        |row| has(row, "batch_num_tokens"),
        |ask| {
            let slots = ask.mask()?.len() as f64;
            ask.where_null("batch_num_tokens", slots)
        },
    ),
    slip("log-ratio with the wrong sign", has_log_ratio, log_ratio_turned),
    slip("groups by position instead of label", has_groups, groups_by_position),
    slip("the whole batch as one group", has_groups, |ask| {
        ask.relabelled(|labels| labels.iter().map(|_| 0).collect())
    }),
    slip("eps inside the root", |row| has(row, "eps") && has(row, "std"), eps_inside),
    slip(
        "the baseline includes the response itself",
        |row| row.id == "advantage.rloo",
        |ask| of_the_others(ask, |advantage, _, size| advantage * (size - 1.0) / size),
    ),
    slip(
        "the sum of the others divided by n",
        |row| row.id == "advantage.rloo",
        |ask| {
            of_the_others(ask, |advantage, reward, size| reward - (reward - advantage) * (size - 1.0) / size)
        },
    ),
    slip("min(ratio, 1 - low) for max where A < 0", is_clip, clipped_the_wrong_way),
    slip("dual clip also where A > 0", is_clip, dual_clip_everywhere),
    slip(
        "the clip bounds exchanged",
        |row| has(row, "clip_ratio_low") && has(row, "clip_ratio_high"),
        |ask| ask.exchanged("clip_ratio_low", "clip_ratio_high"),
    ),
    slip(
        "entropy bonus with the wrong sign",
        |row| has(row, "entropy_coeff"),
        |ask| ask.with_number("entropy_coeff", |coefficient| -coefficient),
    ),
    slip("KL added after the aggregation, as a mean over all slots", is_actor_loss, kl_after_aggregation),
    slip("the smaller of the two squared errors", |row| row.id == "value.clipped", smaller_error),
    slip(
        "temperature applied twice",
        |row| has(row, "temperature"),
        |ask| ask.with_number("temperature", |temperature| temperature * temperature),
    ),
    slip(
        "multiplied by the temperature",
        |row| has(row, "temperature"),
        |ask| ask.with_number("temperature", |temperature| 1.0 / temperature),
    ),
    slip("top-p before the temperature", |row| has(row, "top_p"), top_p_first),
    slip("`tokens` shifted by one to the left", |row| takes(row, "tokens"), |ask| ask.shifted("tokens", 1)),
    slip("`tokens` shifted by one to the right", |row| takes(row, "tokens"), |ask| ask.shifted("tokens", -1)),
    slip("`rewards` shifted by one to the left", has_token_rewards, |ask| ask.shifted("rewards", 1)),
    slip("`rewards` shifted by one to the right", has_token_rewards, |ask| ask.shifted("rewards", -1)),
    slip("`values` shifted by one to the left", has_token_rewards, |ask| ask.shifted("values", 1)),
    slip(
        "`logp_old` shifted by one to the left",
        |row| takes(row, "logp_old"),
        |ask| ask.shifted("logp_old", 1),
    ),
    slip(
        "`logp_old` shifted by one to the right",
        |row| takes(row, "logp_old"),
        |ask| ask.shifted("logp_old", -1),
    ),
    slip(
        "`logp_ref` shifted by one to the left",
        |row| takes(row, "logp_ref"),
        |ask| ask.shifted("logp_ref", 1),
    ),
    slip(
        "`logp_ref` shifted by one to the right",
        |row| takes(row, "logp_ref"),
        |ask| ask.shifted("logp_ref", -1),
    ),
    slip(
        "advantages spread over sequences instead of tokens",
        |row| takes(row, "advantages"),
        spread_wrongly,
    ),
    slip("values read at masked slots", has_token_rewards, |ask| {
        ask.unmasked(false).and_then(|all| ask.within_mask(all))
    }),
    slip("decay added to the gradient (L2)", |row| row.id == "optim.adamw", decay_in_gradient),
    slip("no bias correction", |row| row.id == "optim.adamw", |ask| ask.with_step(|_| 1e6)),
    slip(
        "bias correction one step ahead",
        |row| row.id == "optim.adamw",
        |ask| ask.with_step(|step| step + 1.0),
    ),
    slip(
        "bias correction one step behind",
        |row| row.id == "optim.adamw",
        |ask| ask.with_step(|step| step - 1.0),
    ),
    slip("1 - (1 - c/n)^k, which is biased", |row| row.id == "metrics.pass_at_k", biased_pass_at_k),
];

const fn slip(words: &'static str, applies: fn(&Formula<f64>) -> bool, answer: Answer) -> Slip {
    Slip { words, applies, answer }
}

fn has(row: &Formula<f64>, option: &str) -> bool {
    row.options.iter().any(|field| field.name == option)
}

fn takes(row: &Formula<f64>, input: &str) -> bool {
    row.inputs.iter().any(|field| field.name == input && field.axes.len() == 2)
}

fn has_mask(row: &Formula<f64>) -> bool {
    row.inputs.iter().any(|input| input.kind == Kind::Mask)
}

fn has_groups(row: &Formula<f64>) -> bool {
    row.inputs.iter().any(|input| input.name == "group")
}

fn has_token_rewards(row: &Formula<f64>) -> bool {
    takes(row, "rewards") && takes(row, "values")
}

fn is_clip(row: &Formula<f64>) -> bool {
    row.id == "objective.clip"
}

fn is_actor_loss(row: &Formula<f64>) -> bool {
    row.id == "objective.actor_loss"
}

/// What a slip is asked.
pub(super) struct Ask<'a> {
    row: &'static Formula<f64>,
    question: &'a Question,
    expected: Option<&'a Evaluation>,
    with_gradients: bool,
}

impl<'a> Ask<'a> {
    pub(super) fn new(
        row: &'static Formula<f64>,
        question: &'a Question,
        expected: Option<&'a Evaluation>,
        with_gradients: bool,
    ) -> Self {
        Self { row, question, expected, with_gradients }
    }

    /// The reference's answer to a changed question.
    fn put(&self, question: &Question) -> Option<Result<Evaluation>> {
        Some(reference(self.row.id, question, self.with_gradients))
    }

    /// The reference's answer of another formula, if it has one.
    fn other(&self, id: &str, options: Map<String, Value>, inputs: &[(&str, &Array)]) -> Option<Evaluation> {
        let inputs = inputs.iter().map(|(name, array)| ((*name).to_owned(), (*array).clone())).collect();
        let options = Formula::<f64>::find(id).ok()?.resolve(&options).ok()?;
        reference(id, &Question { options, inputs }, self.with_gradients).ok()
    }

    fn input(&self, name: &str) -> Option<&'a Array> {
        self.question.inputs.get(name)
    }

    fn mask(&self) -> Option<&'a Array> {
        mask(self.question, self.row.inputs.iter())
    }

    fn number(&self, option: &str) -> Option<f64> {
        self.question.options.get(option)?.as_f64()
    }

    fn with_input(&self, name: &str, array: Array) -> Question {
        let mut question = self.question.clone();
        question.inputs.insert(name.to_owned(), array);
        question
    }

    fn with_options(&self, options: &[(&str, Value)]) -> Question {
        let mut question = self.question.clone();
        question.options.extend(options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        question
    }

    fn with_number(&self, option: &str, change: impl Fn(f64) -> f64) -> Option<Result<Evaluation>> {
        self.put(&self.with_options(&[(option, json!(change(self.number(option)?)))]))
    }

    /// With a count given where the question leaves it to be taken from the batch.
    fn where_null(&self, option: &str, value: f64) -> Option<Result<Evaluation>> {
        if self.question.options.get(option) != Some(&Value::Null) || value == 0.0 {
            return self.put(self.question);
        }
        self.put(&self.with_options(&[(option, json!(value))]))
    }

    fn exchanged(&self, one: &str, other: &str) -> Option<Result<Evaluation>> {
        let value = |name: &str| self.question.options.get(name).cloned();
        self.put(&self.with_options(&[(one, value(other)?), (other, value(one)?)]))
    }

    fn with_step(&self, change: impl Fn(f64) -> f64) -> Option<Result<Evaluation>> {
        let step = *self.input("step")?.reals().first()?;
        self.put(&self.with_input("step", real(vec![], vec![change(step)])))
    }

    fn relabelled(&self, labels: impl Fn(&[i64]) -> Vec<i64>) -> Option<Result<Evaluation>> {
        let group = self.input("group")?;
        let Data::Integer(old) = &group.data else { return None };
        self.put(
            &self.with_input("group", Array { shape: group.shape.clone(), data: Data::Integer(labels(old)) }),
        )
    }

    /// With every slot kept, those that were masked as they are or as zeros.
    fn unmasked(&self, as_zeros: bool) -> Option<Result<Evaluation>> {
        let mask = self.mask()?;
        let Data::Mask(keeps) = &mask.data else { return None };
        if !as_zeros && has_rubbish(self.question, mask) {
            return None;
        }
        let mut question = self.question.clone();
        for (name, input) in &mut question.inputs {
            if input.shape != mask.shape || self.row.inputs.iter().all(|known| known.name != name) {
                continue;
            }
            match &mut input.data {
                Data::Mask(mask) => mask.fill(true),
                Data::Real(values) if as_zeros => {
                    values
                        .iter_mut()
                        .zip(keeps)
                        .filter(|(_, keep)| !**keep)
                        .for_each(|(value, _)| *value = 0.0);
                }
                _ => {}
            }
        }
        let mut answer = match self.put(&question)? {
            Ok(answer) => answer,
            error => return Some(error),
        };
        if as_zeros {
            // A product with the mask has no gradient where the mask is 0.
            answer.gradients.values_mut().for_each(|gradient| clear(gradient, mask, keeps));
        }
        Some(Ok(answer))
    }

    /// The answer with masked slots emptied.
    fn within_mask(&self, answer: Result<Evaluation>) -> Option<Result<Evaluation>> {
        let mask = self.mask()?;
        let Data::Mask(keeps) = &mask.data else { return None };
        Some(answer.map(|mut answer| {
            answer.outputs.values_mut().for_each(|output| clear(output, mask, keeps));
            answer
        }))
    }

    /// One input moved along its last axis, the entry that falls out put back in at the other end.
    fn shifted(&self, name: &str, by: isize) -> Option<Result<Evaluation>> {
        let array = self.input(name)?;
        let &[rows, width] = array.shape.as_slice() else { return None };
        if width < 2 {
            return None;
        }
        let from = |at: usize| {
            let (row, column) = (at / width, (at % width) as isize);
            row * width + (column + by).rem_euclid(width as isize) as usize
        };
        let data = match &array.data {
            Data::Real(values) => Data::Real((0..rows * width).map(|at| values[from(at)]).collect()),
            Data::Integer(values) => Data::Integer((0..rows * width).map(|at| values[from(at)]).collect()),
            _ => return None,
        };
        self.put(&self.with_input(name, Array { shape: array.shape.clone(), data }))
    }

    /// The right answer with one array of it, and its gradient by one input, made anew entry by entry.
    fn revised(
        &self,
        output: &str,
        values: Vec<f64>,
        gradient: Option<(&str, Vec<f64>)>,
    ) -> Option<Result<Evaluation>> {
        let mut answer = self.expected?.clone();
        replace(&mut answer.outputs, &mut answer.bounds, output, output, values)?;
        if let Some((input, values)) = gradient {
            replace(&mut answer.gradients, &mut answer.bounds, input, &format!("grad:{input}"), values)?;
        }
        Some(Ok(answer))
    }
}

fn replace(arrays: &mut Named, bounds: &mut Named, name: &str, bound: &str, values: Vec<f64>) -> Option<()> {
    let shape = arrays.get(name)?.shape.clone();
    let widened = |(bound, value): (&f64, &f64)| bound + 8.0 * value.abs();
    let wide = bounds.get(bound)?.reals().iter().zip(&values).map(widened).collect();
    bounds.insert(bound.to_owned(), real(shape.clone(), wide));
    arrays.insert(name.to_owned(), real(shape, values));
    Some(())
}

fn real(shape: Vec<usize>, values: Vec<f64>) -> Array {
    Array { shape, data: Data::Real(values) }
}

fn clear(array: &mut Array, mask: &Array, keeps: &[bool]) {
    if array.shape == mask.shape
        && let Data::Real(values) = &mut array.data
    {
        values.iter_mut().zip(keeps).filter(|(_, keep)| !**keep).for_each(|(value, _)| *value = 0.0);
    }
}

/// The pairs that log-ratios are taken of.
const PAIRS: &[(&str, &str)] = &[("logp", "logp_old"), ("logp", "logp_ref"), ("logp_old", "logp_rollout")];

fn has_log_ratio(row: &Formula<f64>) -> bool {
    // These use a log-probability beside the ratio too, or two ratios.
    let others = ["objective.cispo", "objective.actor_loss", "objective.dispatch"];
    !others.contains(&row.id) && PAIRS.iter().any(|(one, other)| takes(row, one) && takes(row, other))
}

/// The two exchanged: what depends on their difference alone has it with the other sign.
fn log_ratio_turned(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let (one, other) = PAIRS.iter().find(|(one, other)| takes(ask.row, one) && takes(ask.row, other))?;
    let mut question = ask.with_input(one, ask.input(other)?.clone());
    question.inputs.insert((*other).to_owned(), ask.input(one)?.clone());
    Some(ask.put(&question)?.map(|mut answer| {
        if let Some(Array { data: Data::Real(gradient), .. }) = answer.gradients.get_mut(*one) {
            gradient.iter_mut().for_each(|entry| *entry = -*entry);
        }
        answer
    }))
}

fn groups_by_position(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    ask.relabelled(|labels| {
        let size = (labels.len() / members(labels).len().max(1)).max(1);
        (0..labels.len()).map(|index| (index / size) as i64).collect()
    })
}

/// (r - mean) / sqrt(variance + eps), from what the reference says without a division and with an eps of 0.
fn eps_inside(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let (std, eps) = (ask.question.options.get("std")?.as_str()?, ask.number("eps")?);
    let mode = ask.question.options.get("eps_mode").and_then(Value::as_str).unwrap_or("add");
    if std == "none" || mode != "add" {
        return ask.put(ask.question);
    }
    let plain = |options: &[(&str, Value)]| reference(ask.row.id, &ask.with_options(options), false).ok();
    let centred = plain(&[("std", json!("none"))])?;
    let normalised = plain(&[("eps", json!(0.0))])?;
    let (name, expected) = ask.expected?.outputs.first_key_value()?;
    let Data::Integer(labels) = &ask.input("group")?.data else { return None };
    let is_alone = |at: usize| labels.iter().filter(|label| **label == labels[at]).count() == 1;
    let entries = centred.outputs.get(name)?.reals().iter().zip(normalised.outputs.get(name)?.reals());
    let values =
        entries.zip(expected.reals()).enumerate().map(|(at, ((&centred, &normalised), &expected))| {
            let deviation = centred / normalised;
            let is_left_alone =
                is_alone(at) || expected == 0.0 || centred == expected || !deviation.is_finite();
            if is_left_alone { expected } else { centred / (deviation * deviation + eps).sqrt() }
        });
    ask.revised(name, values.collect(), None)
}

/// Another advantage for every member of a group of two or more, from the right one, the reward and the group's size.
fn of_the_others(ask: &Ask<'_>, advantage: fn(f64, f64, f64) -> f64) -> Option<Result<Evaluation>> {
    let Data::Integer(labels) = &ask.input("group")?.data else { return None };
    let mut values = ask.expected?.outputs.get("advantages")?.reals().to_vec();
    let rewards = ask.input("rewards")?.reals();
    let groups = members(labels);
    for group in groups.iter().filter(|group| group.len() > 1) {
        for &member in group {
            values[member] = advantage(values[member], rewards[member], group.len() as f64);
        }
    }
    // A group of equal rewards may be seen to before: it tells nothing.
    let is_equal = |group: &&Vec<usize>| {
        group.len() > 1 && group.iter().all(|&member| rewards[member] == rewards[group[0]])
    };
    let equal: Vec<usize> = groups.iter().filter(is_equal).flatten().copied().collect();
    Some(ask.revised("advantages", values, None)?.map(|answer| free(answer, "advantages", &equal)))
}

/// With some entries left open.
fn free(mut answer: Evaluation, name: &str, entries: &[usize]) -> Evaluation {
    if let Some(Array { data: Data::Real(bounds), .. }) = answer.bounds.get_mut(name) {
        entries.iter().for_each(|&entry| bounds[entry] = f64::INFINITY);
    }
    answer
}

/// Advantages by token, whichever way they are given.
fn advantages_by_token(ask: &Ask<'_>) -> Option<Vec<f64>> {
    let (advantages, logp) = (ask.input("advantages")?, ask.input("logp")?);
    let width = *logp.shape.get(1)?;
    let by_token = advantages.shape.len() == 2;
    Some((0..logp.len()).map(|at| advantages.reals()[if by_token { at } else { at / width }]).collect())
}

/// The tokens' losses and gradients, changed where a token is kept.
fn losses_changed(
    ask: &Ask<'_>,
    change: impl Fn(usize, f64, f64) -> Option<(f64, f64)>,
) -> Option<Result<Evaluation>> {
    let Data::Mask(keeps) = &ask.mask()?.data else { return None };
    let expected = ask.expected?;
    let mut losses = expected.outputs.get("loss")?.reals().to_vec();
    let mut gradients = expected.gradients.get("logp")?.reals().to_vec();
    for at in (0..losses.len()).filter(|&at| keeps[at]) {
        if let Some((loss, gradient)) = change(at, losses[at], gradients[at]) {
            (losses[at], gradients[at]) = (loss, gradient);
        }
    }
    // The share of tokens that dual clip lowers may be counted by what goes wrong.
    let answer = ask.revised("loss", losses, Some(("logp", gradients)))?;
    Some(answer.map(|answer| free(answer, "clip_fraction_lower", &[0])))
}

fn clipped_the_wrong_way(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let advantages = advantages_by_token(ask)?;
    let low = ask.number("clip_ratio_low")?;
    let clamp = ask.question.options.get("log_ratio_clamp")?.clone();
    let (logp, old) = (ask.input("logp")?.reals(), ask.input("logp_old")?.reals());
    let bound = clamp.as_f64().unwrap_or(f64::INFINITY);
    losses_changed(ask, |at, _, _| {
        let (advantage, difference) = (advantages[at], logp[at] - old[at]);
        let ratio = difference.clamp(-bound, bound).exp();
        let is_flat = ratio > 1.0 - low || difference.abs() > bound;
        let gradient = if is_flat { 0.0 } else { -ratio * advantage };
        (advantage < 0.0).then(|| (-ratio.min(1.0 - low) * advantage, gradient))
    })
}

fn dual_clip_everywhere(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let Some(most) = ask.number("clip_ratio_c") else { return ask.put(ask.question) };
    let advantages = advantages_by_token(ask)?;
    losses_changed(ask, |at, loss, _| {
        let bound = -most * advantages[at];
        (advantages[at] > 0.0 && bound < loss).then_some((bound, 0.0))
    })
}

fn spread_wrongly(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let (advantages, logp) = (ask.input("advantages")?, ask.input("logp")?);
    let &[rows, width] = logp.shape.as_slice() else { return None };
    if advantages.shape.len() != 1 || rows != width {
        return ask.put(ask.question);
    }
    let values = (0..logp.len()).map(|at| advantages.reals()[at % width]).collect();
    ask.put(&ask.with_input("advantages", real(logp.shape.clone(), values)))
}

/// The options of an aggregation that a formula passes on.
fn aggregate_options(ask: &Ask<'_>) -> Map<String, Value> {
    let is_one = |name: &str| has_named("aggregate.loss", name);
    ask.question
        .options
        .iter()
        .filter(|(name, _)| is_one(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn has_named(id: &str, option: &str) -> bool {
    Formula::<f64>::find(id).is_ok_and(|row| has(row, option))
}

/// agg(policy) + coefficient * (sum of the kept tokens' kl) / (number of slots)
fn kl_after_aggregation(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let coefficient = ask.number("kl_loss_coef")?;
    if coefficient == 0.0 {
        return ask.put(ask.question);
    }
    let kl = kl_of_kept_tokens(ask)?;
    let slots = kl.outputs.get("kl")?.len() as f64;
    let mean = kl.outputs.get("kl")?.reals().iter().sum::<f64>() / slots;
    let without = ask.with_options(&[("kl_loss_coef", json!(0.0))]);
    let without = reference(ask.row.id, &without, ask.with_gradients).ok()?;
    let share = coefficient / ask.number("gradient_accumulation_steps")?;
    let loss = without.outputs.get("loss")?.reals().first()? + share * mean;
    let gradient = without.gradients.get("logp").zip(kl.gradients.get("logp")).map(|(policy, kl)| {
        let entries = policy.reals().iter().zip(kl.reals());
        ("logp", entries.map(|(policy, kl)| policy + share * kl / slots).collect())
    });
    let mut answer = ask.revised("loss", vec![loss], gradient)?.ok()?;
    replace(&mut answer.outputs, &mut answer.bounds, "kl_loss", "kl_loss", vec![mean])?;
    Some(Ok(answer))
}

/// The KL estimates of an actor loss, 0 at the slots that it does not keep.
fn kl_of_kept_tokens(ask: &Ask<'_>) -> Option<Evaluation> {
    let option = |from: &str| ask.question.options.get(from).cloned().unwrap_or_default();
    let options = Map::from_iter([
        ("kl_penalty".to_owned(), option("kl_loss_type")),
        ("input_clamp".to_owned(), option("kl_input_clamp")),
        ("output_clamp".to_owned(), option("kl_output_clamp")),
    ]);
    let masks: Vec<&Array> =
        ["response_mask", "group_endpoints"].iter().filter_map(|name| ask.input(name)).collect();
    let is_kept = |at: usize| masks.iter().all(|mask| matches!(&mask.data, Data::Mask(keeps) if keeps[at]));
    let emptied = |name: &str| {
        let array = ask.input(name)?;
        let values = array.reals().iter().enumerate();
        let values = values.map(|(at, &value)| if is_kept(at) { value } else { 0.0 });
        Some(real(array.shape.clone(), values.collect()))
    };
    let (logp, logp_ref) = (emptied("logp")?, emptied("logp_ref")?);
    ask.other("kl.estimate", options, &[("logp", &logp), ("logp_ref", &logp_ref)])
}

fn smaller_error(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let Some(range) = ask.number("cliprange_value") else { return ask.put(ask.question) };
    let half = if ask.question.options.get("half") == Some(&json!(true)) { 0.5 } else { 1.0 };
    let (values, old) = (ask.input("values")?, ask.input("values_old")?.reals());
    let returns = ask.input("returns")?.reals();
    let (mut losses, mut slopes) = (Vec::new(), Vec::new());
    for (at, &value) in values.reals().iter().enumerate() {
        let clipped = value.max(old[at] - range).min(old[at] + range);
        let (plain, other) = ((value - returns[at]).powi(2), (clipped - returns[at]).powi(2));
        losses.push(half * plain.min(other));
        slopes.push(if other < plain { 0.0 } else { 2.0 * half * (value - returns[at]) });
    }
    let losses = real(values.shape.clone(), losses);
    let inputs = [("loss", &losses), ("response_mask", ask.mask()?)];
    let aggregated = ask.other("aggregate.loss", aggregate_options(ask), &inputs)?;
    let gradient = aggregated.gradients.get("loss").map(|weights| {
        let entries = weights.reals().iter().zip(slopes);
        ("values", entries.map(|(weight, slope)| if *weight == 0.0 { 0.0 } else { weight * slope }).collect())
    });
    ask.revised("loss", aggregated.outputs.get("loss")?.reals().to_vec(), gradient)
}

/// The filters at temperature 1, the temperature on what they leave.
fn top_p_first(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    if ask.number("temperature")? == 0.0 {
        return ask.put(ask.question);
    }
    let kept = reference(ask.row.id, &ask.with_options(&[("temperature", json!(1.0))]), false).ok()?;
    let logits = ask.input("logits")?;
    let entries = logits.reals().iter().zip(kept.outputs.get("probs")?.reals());
    let left = entries.map(|(&logit, &prob)| if prob > 0.0 { logit } else { f64::NEG_INFINITY }).collect();
    let mut question = ask.with_options(&[("top_k", Value::Null), ("top_p", Value::Null)]);
    question.inputs.insert("logits".to_owned(), real(logits.shape.clone(), left));
    ask.put(&question)
}

fn decay_in_gradient(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let decay = ask.number("weight_decay")?;
    let (param, grad) = (ask.input("param")?, ask.input("grad")?);
    let sums = grad.reals().iter().zip(param.reals()).map(|(grad, param)| grad + decay * param).collect();
    let mut question = ask.with_options(&[("weight_decay", json!(0.0))]);
    question.inputs.insert("grad".to_owned(), real(grad.shape.clone(), sums));
    ask.put(&question)
}

fn biased_pass_at_k(ask: &Ask<'_>) -> Option<Result<Evaluation>> {
    let Data::Integer(samples) = &ask.input("num_samples")?.data else { return None };
    let Data::Integer(correct) = &ask.input("num_correct")?.data else { return None };
    let drawn = ask.number("k")?;
    let values = samples.iter().zip(correct).map(|(&n, &c)| 1.0 - (1.0 - c as f64 / n as f64).powf(drawn));
    ask.revised("pass_at_k", values.collect(), None)
}
