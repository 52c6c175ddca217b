//! Questions made of questions: what must not change the answer, or must change it in a known way.

mod image;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

pub use image::Image;
use image::{append_row, pad_columns, select_rows};

use super::{Dtype, Task, is_applicable};
use crate::evaluate::{Question, evaluate};
use crate::fixture::{Expected, exact_in};
use crate::formula::{ANY, Formula, Input, Role};
use crate::value::{Array, Data, Kind};

/// A way of making a question of another whose answer follows from the other's.
#[derive(Debug)]
pub struct Relation {
    /// What stands after the `~` in the slug of a question.
    pub name: &'static str,
    /// What an implementation that answers the first question rightly and this one wrongly got wrong.
    pub meaning: &'static str,
    make: fn(&Formula<f64>, &Task) -> Option<Made>,
}

/// A question that a relation made, and what it says of the answer.
#[derive(Debug, Clone)]
pub struct Derived {
    /// The question, with the reference's own answer to it.
    pub task: Task,
    /// The slug of the case that it was made of.
    pub origin: String,
    /// How outputs, and gradients as `grad:` and the input's name, follow from the origin's; some may not.
    pub images: BTreeMap<String, Image>,
}

/// A question, and which output or gradient follows how.
type Made = (Question, BTreeMap<String, Image>);

/// How many questions a relation makes of a formula's cases.
const MOST: usize = 4;

/// Every relation.
pub const RELATIONS: &[Relation] = &[
    Relation {
        name: "masked-nan",
        meaning: "masked slots leak: NaN in them changes the answer",
        make: masked_nan,
    },
    Relation {
        name: "masked-infinity",
        meaning: "masked slots leak: infinities in them change the answer",
        make: masked_infinity,
    },
    Relation {
        name: "masked-huge",
        meaning: "masked slots leak: large numbers in them change the answer",
        make: masked_huge,
    },
    Relation {
        name: "padded",
        meaning: "the padded width counts: two masked columns at the end change the answer",
        make: padded,
    },
    Relation {
        name: "empty-sequence",
        meaning: "a sequence without a token counts: appending one changes the answer of the others",
        make: empty_sequence,
    },
    Relation {
        name: "permuted",
        meaning: "the order of the batch counts: the answer is not permuted as the sequences are",
        make: permuted,
    },
    Relation {
        name: "relabelled",
        meaning: "the labels of groups count, and not only which of them are equal",
        make: relabelled,
    },
    Relation {
        name: "rewards-shifted",
        meaning: "2 more on every reward changes what only their differences decide",
        make: rewards_shifted,
    },
    Relation {
        name: "scaled",
        meaning: "an input of four times the size has not four times the effect",
        make: scaled,
    },
    Relation {
        name: "logps-shifted",
        meaning: "log-probabilities count, and not only their differences",
        make: logps_shifted,
    },
    Relation {
        name: "logits-shifted",
        meaning: "64 more on every logit changes the distribution: the softmax has no shift of its own, or overflows",
        make: logits_shifted,
    },
    Relation {
        name: "one-row-changed",
        meaning: "sequences are not independent: changing the last one changes the answer of the others",
        make: one_row_changed,
    },
    Relation {
        name: "first-half",
        meaning: "sequences are not independent: without the second half of the batch the first has another answer",
        make: first_half,
    },
    Relation {
        name: "one-group",
        meaning: "groups are not independent: without the others a group has another answer",
        make: one_group,
    },
    Relation {
        name: "micro-batch-1",
        meaning: "micro-batches do not sum to the whole: the first half with the counts of the whole batch is wrong",
        make: first_micro_batch,
    },
    Relation {
        name: "micro-batch-2",
        meaning: "micro-batches do not sum to the whole: the second half with the counts of the whole batch is wrong",
        make: second_micro_batch,
    },
];

/// The questions that the relations make of the golden cases of one formula: of each relation a few, on cases with
/// options of their own.
pub fn derived(tasks: &[Task]) -> Vec<Derived> {
    let mut all = Vec::new();
    for relation in RELATIONS {
        let mut options = BTreeSet::new();
        for task in tasks.iter().filter(|task| is_telling(task)) {
            if options.len() == MOST {
                break;
            }
            let key = json!(task.question.options).to_string();
            if options.contains(&key) {
                continue;
            }
            if let Some(derived) = derive(relation, task) {
                options.insert(key);
                all.push(derived);
            }
        }
    }
    all
}

/// Whether the case is put in single precision, and its answer is all numbers that are not huge.
fn is_telling(task: &Task) -> bool {
    let Expected::Answer(answer) = &task.expected else { return false };
    let values = answer.outputs.values().chain(answer.gradients.values());
    let mut values = values.flat_map(|array| array.reals());
    task.exact_in.iter().any(|format| format == Dtype::F32.name())
        && is_applicable(answer.margin, Dtype::F32)
        && values.all(|value| value.abs() < 1e6)
}

fn derive(relation: &Relation, task: &Task) -> Option<Derived> {
    let formula = Formula::<f64>::find(&task.formula).ok()?;
    let (question, images) = (relation.make)(formula, task)?;
    let answer = evaluate(formula.id, &question).ok()?;
    if !is_applicable(answer.margin, Dtype::F32) {
        return None;
    }
    let task = Task {
        case: format!("{}~{}", task.case, relation.name),
        relation: Some(relation.name),
        exact_in: exact_in(&question),
        question,
        expected: Expected::Answer(answer),
        rivals: Vec::new(),
        ..task.clone()
    };
    let origin = task.case.split('~').next().unwrap_or_default().to_owned();
    Some(Derived { task, origin, images })
}

/// The same image for every output and every gradient.
fn all(task: &Task, image: &Image) -> BTreeMap<String, Image> {
    let Expected::Answer(answer) = &task.expected else { return BTreeMap::new() };
    answer.bounds.keys().map(|name| (name.clone(), image.clone())).collect()
}

/// An image for whatever has sequences as its first axis, by the row's axes; the rest as `scalars` says.
fn by_row(
    formula: &Formula<f64>,
    task: &Task,
    rows: &Image,
    rest: Option<&Image>,
) -> Option<BTreeMap<String, Image>> {
    let Expected::Answer(answer) = &task.expected else { return None };
    let mut images = BTreeMap::new();
    for name in answer.bounds.keys() {
        let axes = match name.strip_prefix("grad:") {
            Some(input) => formula.inputs.iter().find(|other| other.name == input)?.axes,
            None => formula.outputs.iter().find(|other| other.name == name)?.axes,
        };
        let array = match name.strip_prefix("grad:") {
            Some(input) => answer.gradients.get(input)?,
            None => answer.outputs.get(name)?,
        };
        let has_rows = match axes.first() {
            Some(&"B") => true,
            Some(&"...") => match (name.starts_with("grad:"), task.question.options.get("axis")) {
                (false, Some(axis)) => axis.as_u64().is_some_and(|axis| axis > 0),
                _ => !array.shape.is_empty(),
            },
            Some(&("M" | "N")) => return None,
            _ => false,
        };
        match (has_rows, rest) {
            (true, _) => images.insert(name.clone(), rows.clone()),
            (false, Some(rest)) => images.insert(name.clone(), rest.clone()),
            (false, None) => None,
        };
    }
    Some(images)
}

fn has_rows(input: &Input) -> bool {
    matches!(input.axes.first(), Some(&("B" | "...")))
}

fn has_columns(input: &Input) -> bool {
    input.axes == ANY || input.axes.get(1) == Some(&"T")
}

/// The number of sequences, of inputs that agree about it.
fn rows(formula: &Formula<f64>, task: &Task) -> Option<usize> {
    let mut arrays = formula.inputs.iter().filter(|input| has_rows(input));
    arrays.find_map(|input| task.question.inputs.get(input.name)?.shape.first().copied())
}

fn option<'a>(task: &'a Task, name: &str) -> &'a Value {
    task.question.options.get(name).unwrap_or(&Value::Null)
}

fn is_option(task: &Task, name: &str, values: &[Value]) -> bool {
    task.question.options.get(name).is_none_or(|value| values.contains(value))
}

/// The first mask that has a slot for every token: what it leaves out reaches no output.
fn mask<'a>(formula: &Formula<f64>, task: &'a Task) -> Option<(&'a Array, &'a [bool])> {
    let input = formula.inputs.iter().find(|input| input.kind == Kind::Mask)?;
    let array = task.question.inputs.get(input.name)?;
    match &array.data {
        Data::Mask(mask) => Some((array, mask)),
        _ => None,
    }
}

fn masked_nan(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    rubbish(formula, task, &[f64::NAN])
}

fn masked_infinity(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    rubbish(formula, task, &[f64::INFINITY, f64::NEG_INFINITY])
}

fn masked_huge(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    // Some 10^30, exact in every format.
    let huge = 2.0_f64.powi(100);
    rubbish(formula, task, &[huge, -huge])
}

fn rubbish(formula: &Formula<f64>, task: &Task, rubbish: &[f64]) -> Option<Made> {
    let (shape, mask) = mask(formula, task).map(|(array, mask)| (&array.shape, mask))?;
    let mut question = task.question.clone();
    let mut changed = 0;
    for array in question.inputs.values_mut().filter(|array| array.shape == *shape) {
        if let Data::Real(data) = &mut array.data {
            for (entry, _) in data.iter_mut().zip(mask).filter(|(_, keep)| !**keep) {
                *entry = rubbish[changed % rubbish.len()];
                changed += 1;
            }
        }
    }
    (changed > 0).then(|| (question, all(task, &Image::Same)))
}

fn padded(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    let (array, _) = mask(formula, task)?;
    let is_axis_of_tokens = option(task, "axis").as_u64() == Some(0);
    let depends_on_width = option(task, "loss_agg_mode") == "seq-mean-token-sum-norm"
        && option(task, "loss_scale_factor").is_null();
    if array.shape.len() != 2 || is_axis_of_tokens || depends_on_width {
        return None;
    }
    let mut question = task.question.clone();
    for input in formula.inputs.iter().filter(|input| has_columns(input)) {
        if let Some(array) = question.inputs.get_mut(input.name).filter(|array| array.shape.len() == 2) {
            *array = pad_columns(array, 2);
        }
    }
    let width = array.shape[1];
    let mut images = all(task, &Image::Same);
    let Expected::Answer(answer) = &task.expected else { return None };
    for (name, bound) in &answer.bounds {
        if bound.shape.len() == 2 && bound.shape[1] == width {
            images.insert(name.clone(), Image::Padded(2));
        }
    }
    Some((question, images))
}

fn empty_sequence(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    // Of a batch of groups the new sequence would be a member, and one label more is one part more.
    let has_groups = formula.inputs.iter().any(|input| input.role == Role::Group);
    let is_whole = is_option(task, "axis", &[Value::Null]);
    if has_groups || !is_whole || mask(formula, task)?.0.shape.len() != 2 {
        return None;
    }
    let mut question = task.question.clone();
    for input in formula.inputs.iter().filter(|input| has_rows(input)) {
        if let Some(array) = question.inputs.get_mut(input.name) {
            *array = append_row(array);
        }
    }
    let mut images = by_row(formula, task, &Image::Lengthened(0.0), Some(&Image::Same))?;
    // The ratio of no token is 1.
    images.entry("ratio".to_owned()).and_modify(|image| *image = Image::Lengthened(1.0));
    Some((question, images))
}

/// The sequences of odd places first.
fn permuted(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    // These are told in the order of the batch: the earlier of equals, the first so many, the copies.
    const ORDERED: [&str; 4] =
        ["advantage.filter", "sampling.resample", "sampling.repeat", "aggregate.micro_batches"];
    let count = rows(formula, task).filter(|rows| *rows > 1)?;
    if ORDERED.contains(&formula.id) {
        return None;
    }
    let order: Vec<usize> = (1..count).step_by(2).chain((0..count).step_by(2)).collect();
    let question = with_rows(formula, task, &order);
    Some((question, by_row(formula, task, &Image::Rows(order), Some(&Image::Same))?))
}

fn with_rows(formula: &Formula<f64>, task: &Task, rows: &[usize]) -> Question {
    let mut question = task.question.clone();
    for input in formula.inputs.iter().filter(|input| has_rows(input)) {
        if let Some(array) = question.inputs.get_mut(input.name).filter(|array| !array.shape.is_empty()) {
            *array = select_rows(array, rows);
        }
    }
    question
}

fn relabelled(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    let input = formula.inputs.iter().find(|input| input.role == Role::Group)?;
    let mut question = task.question.clone();
    let Data::Integer(labels) = &mut question.inputs.get_mut(input.name)?.data else { return None };
    if labels.is_empty() {
        return None;
    }
    // The order of the new labels is not that of the old ones.
    labels.iter_mut().for_each(|label| *label = 1000 - 7 * *label);
    Some((question, all(task, &Image::Same)))
}

fn rewards_shifted(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    const SHIFT: f64 = 2.0;
    let is_invariant = match formula.id {
        "advantage.group_norm"
        | "advantage.rloo"
        | "advantage.opo"
        | "advantage.relative"
        | "advantage.pass_at_k"
        | "advantage.filter"
        | "advantage.reinforce_plus_plus_baseline"
        | "sampling.resample"
        | "metrics.rewards" => true,
        "advantage.gpg" => option(task, "alpha") != "nonzero_rewards",
        "sampling.dynamic" => option(task, "rule") == "differ",
        _ => false,
    };
    if !is_invariant || (has_singleton(task) && option(task, "singleton") != "zero") {
        return None;
    }
    let mut question = task.question.clone();
    shift(question.inputs.get_mut("rewards")?, SHIFT)?;
    let mut images = all(task, &Image::Same);
    let moved: &[&str] = match formula.id {
        "advantage.relative" => &["baseline"],
        "metrics.rewards" => &["mean", "max", "min"],
        _ => &[],
    };
    images.extend(moved.iter().map(|name| ((*name).to_owned(), Image::Plus(SHIFT))));
    Some((question, images))
}

/// Whether some group has one member.
fn has_singleton(task: &Task) -> bool {
    let Some(Data::Integer(labels)) = task.question.inputs.get("group").map(|array| &array.data) else {
        return false;
    };
    labels.iter().any(|label| labels.iter().filter(|other| *other == label).count() == 1)
}

/// Adds to every entry; `None` if that rounds, or if there is none.
fn shift(array: &mut Array, by: f64) -> Option<()> {
    let Data::Real(data) = &mut array.data else { return None };
    let is_exact = |value: f64| (value + by) - by == value && Dtype::F32.represents(value + by);
    if data.is_empty() || !data.iter().all(|&value| !value.is_finite() || is_exact(value)) {
        return None;
    }
    data.iter_mut().for_each(|value| *value += by);
    Some(())
}

/// A formula that is of a degree in some inputs.
struct Homogeneous {
    formula: &'static str,
    inputs: &'static [&'static str],
    /// Outputs with their degree; the others do not change.
    outputs: &'static [(&'static str, i32)],
    /// The degree of every gradient.
    gradient: i32,
}

const fn degree(
    formula: &'static str,
    inputs: &'static [&'static str],
    outputs: &'static [(&'static str, i32)],
    gradient: i32,
) -> Homogeneous {
    Homogeneous { formula, inputs, outputs, gradient }
}

const HOMOGENEOUS: &[Homogeneous] = &[
    degree("objective.policy_gradient", &["advantages"], &[("loss", 1)], 1),
    degree("objective.reinforce_with_baseline", &["rewards", "baselines"], &[("loss", 1)], 1),
    degree("objective.off_policy", &["advantages"], &[("loss", 1)], 1),
    degree("objective.clip", &["advantages"], &[("loss", 1)], 1),
    degree("objective.gspo", &["advantages"], &[("loss", 1)], 1),
    degree("objective.cispo", &["advantages"], &[("loss", 1)], 1),
    degree("objective.gmpo", &["advantages"], &[("loss", 1)], 1),
    degree("objective.sapo", &["advantages"], &[("loss", 1)], 1),
    degree("aggregate.loss", &["loss"], &[("loss", 1)], 0),
    degree("aggregate.micro_batches", &["loss"], &[("loss", 1), ("parts", 1)], 0),
    degree("mask.sum", &["values"], &[("sum", 1)], 0),
    degree("mask.mean", &["values"], &[("mean", 1)], 0),
    degree("mask.normalize", &["values"], &[("normalized", 1)], 0),
    degree("mask.variance", &["values"], &[("variance", 2)], 1),
    degree("advantage.group_norm", &["rewards"], &[("advantages", 1)], 1),
    degree("advantage.rloo", &["rewards"], &[("advantages", 1)], 1),
    degree("advantage.relative", &["rewards"], &[("relative", 1), ("baseline", 1)], 1),
    degree("advantage.opo", &["rewards"], &[("advantages", 1)], 1),
    degree("advantage.gpg", &["rewards"], &[("advantages", 1)], 1),
    degree("advantage.remax", &["rewards", "baselines"], &[("advantages", 1), ("returns", 1)], 1),
    degree("advantage.reinforce_plus_plus", &["rewards"], &[("advantages", 1), ("returns", 1)], 1),
    degree("advantage.td_error", &["rewards", "values"], &[("td_error", 1)], 0),
    degree("advantage.gae", &["rewards", "values"], &[("advantages", 1), ("returns", 1)], 0),
    degree("metrics.rewards", &["rewards"], &[("mean", 1), ("std", 1), ("max", 1), ("min", 1)], 1),
];

fn scaled(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    const FACTOR: f64 = 4.0;
    let row = HOMOGENEOUS.iter().find(|row| row.formula == formula.id)?;
    let is_linear = is_option(task, "whiten", &[json!(false)]) && is_option(task, "std", &[json!("none")]);
    if !is_linear {
        return None;
    }
    let mut question = task.question.clone();
    for name in row.inputs {
        let Data::Real(data) = &mut question.inputs.get_mut(*name)?.data else { return None };
        if data.iter().all(|&value| value == 0.0) {
            return None;
        }
        data.iter_mut().for_each(|value| *value *= FACTOR);
    }
    let times = |degree: i32| if degree == 0 { Image::Same } else { Image::Times(FACTOR.powi(degree)) };
    let mut images = all(task, &Image::Same);
    for (name, image) in &mut images {
        let degree = row.outputs.iter().find(|(output, _)| output == name).map_or(0, |(_, degree)| *degree);
        *image = times(if name.starts_with("grad:") { row.gradient } else { degree });
    }
    Some((question, images))
}

fn logps_shifted(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    // These weigh by a log-probability itself.
    const OF_ITSELF: [&str; 4] = [
        "objective.policy_gradient",
        "objective.reinforce_with_baseline",
        "objective.cispo",
        "objective.dispatch",
    ];
    let moved = |input: &&Input| [Role::Logp, Role::LogpOther].contains(&input.role);
    if OF_ITSELF.contains(&formula.id) || !formula.inputs.iter().any(|input| moved(&input)) {
        return None;
    }
    let mut question = task.question.clone();
    for input in formula.inputs.iter().filter(moved) {
        if let Some(array) = question.inputs.get_mut(input.name) {
            shift(array, -2.0)?;
        }
    }
    Some((question, all(task, &Image::Same)))
}

fn logits_shifted(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    if !formula.inputs.iter().any(|input| input.role == Role::Logit) {
        return None;
    }
    let mut question = task.question.clone();
    for input in formula.inputs.iter().filter(|input| input.role == Role::Logit) {
        shift(question.inputs.get_mut(input.name)?, 64.0)?;
    }
    Some((question, all(task, &Image::Same)))
}

/// Whether each sequence has an answer of its own.
fn is_by_row(task: &Task) -> bool {
    match task.formula.as_str() {
        "objective.policy_gradient"
        | "objective.reinforce_with_baseline"
        | "objective.off_policy"
        | "objective.clip"
        | "objective.gspo"
        | "objective.cispo"
        | "objective.gmpo"
        | "objective.sapo"
        | "objective.dispatch"
        | "logprob.token"
        | "logprob.entropy"
        | "logprob.ratio"
        | "logprob.sequence_ratio"
        | "kl.estimate"
        | "kl.full"
        | "kl.in_reward"
        | "advantage.td_error"
        | "advantage.remax"
        | "advantage.group_ppo"
        | "reward.overlong"
        | "sampling.distribution"
        | "metrics.pass_at_k" => true,
        "advantage.gae" | "advantage.reinforce_plus_plus" => option(task, "whiten") == false,
        "rollout.weights" => option(task, "batch_normalize") == false,
        _ => false,
    }
}

fn one_row_changed(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    let last = rows(formula, task)?.checked_sub(1).filter(|last| *last > 0 && is_by_row(task))?;
    let mut question = task.question.clone();
    let mut has_changed = false;
    for input in formula.inputs.iter().filter(|input| has_rows(input) && input.role != Role::Count) {
        let Some(array) = question.inputs.get_mut(input.name) else { continue };
        let row = array.len() / array.shape.first().copied().filter(|rows| *rows > 0)?;
        if let Data::Real(data) = &mut array.data {
            for value in &mut data[last * row..] {
                has_changed |= value.is_finite() && *value != 0.0;
                *value *= 2.0;
            }
        }
    }
    let images = by_row(formula, task, &Image::RowsBut(last), None)?;
    has_changed.then_some((question, images))
}

fn first_half(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    let half = rows(formula, task)?.div_ceil(2);
    if !is_by_row(task) || Some(half) == rows(formula, task) {
        return None;
    }
    let order: Vec<usize> = (0..half).collect();
    let question = with_rows(formula, task, &order);
    Some((question, by_row(formula, task, &Image::Rows(order), None)?))
}

fn one_group(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    let is_by_group = match formula.id {
        "advantage.group_norm" => option(task, "std_scope") != "batch",
        "advantage.rloo"
        | "advantage.relative"
        | "advantage.opo"
        | "advantage.pass_at_k"
        | "advantage.filter"
        | "sampling.dynamic"
        | "sampling.resample" => true,
        _ => false,
    };
    let Data::Integer(labels) = &task.question.inputs.get("group")?.data else { return None };
    let members: Vec<usize> =
        (0..labels.len()).filter(|member| labels.get(*member) == labels.first()).collect();
    if !is_by_group || members.len() == labels.len() {
        return None;
    }
    let question = with_rows(formula, task, &members);
    Some((question, by_row(formula, task, &Image::Rows(members), None)?))
}

fn first_micro_batch(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    let rows = rows(formula, task).filter(|rows| *rows > 1)?;
    micro_batch(formula, task, &(0..rows / 2).collect::<Vec<_>>())
}

fn second_micro_batch(formula: &Formula<f64>, task: &Task) -> Option<Made> {
    let rows = rows(formula, task).filter(|rows| *rows > 1)?;
    micro_batch(formula, task, &(rows / 2..rows).collect::<Vec<_>>())
}

/// Some of the sequences, with the counts of the whole batch.
fn micro_batch(formula: &Formula<f64>, task: &Task, part: &[usize]) -> Option<Made> {
    if !["aggregate.loss", "objective.actor_loss", "value.clipped"].contains(&formula.id) {
        return None;
    }
    let (array, mask) = mask(formula, task)?;
    let &[_, width] = array.shape.as_slice() else { return None };
    let kept: Vec<usize> = mask.chunks(width).map(|row| row.iter().filter(|keep| **keep).count()).collect();
    let tokens: usize = kept.iter().sum();
    let sequences = kept.iter().filter(|tokens| **tokens > 0).count();
    let has_tokens = |inside: bool| (0..kept.len()).any(|row| part.contains(&row) == inside && kept[row] > 0);
    let is_split = has_tokens(true) && has_tokens(false);
    // With a second mask the tokens that count are others.
    if !is_split || task.question.inputs.contains_key("group_endpoints") {
        return None;
    }
    let mut question = with_rows(formula, task, part);
    let counts =
        [("batch_num_tokens", tokens), ("global_batch_size", sequences), ("loss_scale_factor", width)];
    for (name, count) in counts {
        if option(task, name).is_null() {
            question.options.insert(name.to_owned(), json!(count as f64));
        }
    }
    Some((question, BTreeMap::new()))
}
