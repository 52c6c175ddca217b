//! The kill map and the relations: what the questions can tell, computed.

use std::collections::BTreeSet;
use std::path::Path;

use grpo_oracle::conformance::{Derived, Dtype, Image, RELATIONS, Task, derived};
use grpo_oracle::evaluate::{Evaluation, Question, evaluate};
use grpo_oracle::fixture::{self, Expected, Fixture};
use grpo_oracle::formula::{Formula, Role};
use grpo_oracle::value::{Array, Data};

fn fixtures() -> Vec<Fixture> {
    fixture::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1")).unwrap()
}

/// Every rival, and every option read as another of its sample values, fails some case in f64 and in f32, unless
/// `fixtures/indistinct.json` says why no case can tell. What it lists is what it has to list.
#[test]
fn every_wrong_variant_is_given_away() {
    let excuses =
        fixture::indistinct(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/indistinct.json")).unwrap();
    let kills = fixture::kills(&fixtures()).unwrap();
    assert!(kills.len() > 1500, "{} variants", kills.len());
    let mut wrong = Vec::new();
    for kill in &kills {
        for dtype in [Dtype::F64, Dtype::F32] {
            let excuse = excuses.iter().find(|excuse| excuse.covers(kill, dtype));
            match (kill.case(dtype), excuse) {
                (None, None) => wrong.push(format!("{} in {}: {}", kill.formula, dtype.name(), kill.variant)),
                (Some(case), Some(_)) => {
                    wrong.push(format!("{} is excused, but {case} tells {}", kill.formula, kill.variant));
                }
                _ => {}
            }
        }
    }
    for excuse in &excuses {
        let is_of_use = kills.iter().any(|kill| excuse.covers(kill, Dtype::F64));
        if !is_of_use || !excuse.why.ends_with('.') {
            wrong.push(format!("{} {} excuses nothing, or says not why", excuse.formula, excuse.option));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Without the cases of a formula nothing of it is given away: the map is not true by itself.
#[test]
fn the_kill_map_knows_a_gap() {
    let mut fixtures = fixtures();
    fixtures.retain(|fixture| fixture.formula == "objective.clip");
    fixtures[0].cases.retain(|case| case.question.options["clip_ratio_c"].is_null());
    let kills = fixture::kills(&fixtures).unwrap();
    let kill = kills.iter().find(|kill| kill.variant.to_string() == "clip_ratio_c 3.0 read as null").unwrap();
    assert_eq!(kill.case(Dtype::F64), None);
}

/// The families that tell implementations apart, of every formula that reads what they are about.
#[test]
fn every_formula_has_the_families_that_its_inputs_allow() {
    type Wanted = (&'static str, fn(&[Role]) -> bool);
    let wanted: [Wanted; 7] = [
        ("family-binary", |roles| roles.contains(&Role::Reward) || roles.contains(&Role::Advantage)),
        ("family-nearly-equal", |roles| roles.contains(&Role::Reward)),
        ("family-tiny", |roles| roles.contains(&Role::Reward)),
        ("family-huge-offset", |roles| roles.contains(&Role::Reward)),
        ("family-rubbish", |roles| roles.contains(&Role::Mask)),
        ("family-singleton-groups", |roles| roles.contains(&Role::Group)),
        ("family-log-ratio-88", |roles| roles.contains(&Role::LogpOther)),
    ];
    let mut missing = Vec::new();
    for fixture in fixtures() {
        let formula = Formula::<f64>::find(&fixture.formula).unwrap();
        let defaults = (formula.defaults)();
        let read = formula.inputs.iter().filter(|input| input.is_read(&defaults));
        let roles: Vec<Role> = read.map(|input| input.role).collect();
        for (name, applies) in wanted {
            if applies(&roles) && !fixture.cases.iter().any(|case| case.id == name) {
                missing.push(format!("{}: {name}", fixture.formula));
            }
        }
        let codes: BTreeSet<&str> = fixture.cases.iter().filter_map(error_of).collect();
        let is_about_texts = roles.contains(&Role::Response);
        if !is_about_texts && !codes.contains("input") {
            missing.push(format!("{}: the error input", fixture.formula));
        }
        if !formula.options.is_empty() && !codes.contains("option") {
            missing.push(format!("{}: the error option", fixture.formula));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

fn error_of(case: &fixture::Case) -> Option<&str> {
    match &case.expected {
        Expected::Error(code) => Some(code),
        Expected::Answer(_) => None,
    }
}

fn all_derived() -> Vec<(Fixture, Vec<Derived>)> {
    let derive = |fixture: Fixture| {
        let tasks: Vec<Task> = fixture.cases.iter().map(|case| Task::of(&fixture.formula, case)).collect();
        let derived = derived(&tasks);
        (fixture, derived)
    };
    fixtures().into_iter().map(derive).collect()
}

/// The reference's own answers follow from each other as the relations say, within the rounding of both.
#[test]
fn relations_hold_of_the_reference() {
    let (mut count, mut names, mut wrong) = (0, BTreeSet::new(), Vec::new());
    for (fixture, derived) in all_derived() {
        for derived in derived {
            count += 1;
            names.extend(derived.task.relation);
            let origin = fixture.cases.iter().find(|case| case.id == derived.origin).unwrap();
            for (name, image) in &derived.images {
                if !follows(name, image, answer(&origin.expected), answer(&derived.task.expected)) {
                    wrong.push(format!(
                        "{} {}: `{name}` is not {image:?}",
                        fixture.formula, derived.task.case
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unused: Vec<_> = RELATIONS.iter().filter(|relation| !names.contains(relation.name)).collect();
    assert!(unused.is_empty(), "{unused:?}");
    assert!((500..2000).contains(&count), "{count} questions");
}

fn answer(expected: &Expected) -> &Evaluation {
    match expected {
        Expected::Answer(answer) => answer,
        Expected::Error(code) => panic!("{code}"),
    }
}

fn array<'a>(answer: &'a Evaluation, name: &str) -> &'a Array {
    match name.strip_prefix("grad:") {
        Some(input) => &answer.gradients[input],
        None => &answer.outputs[name],
    }
}

fn follows(name: &str, image: &Image, origin: &Evaluation, derived: &Evaluation) -> bool {
    let (expected, got) = (image.of(array(origin, name)), array(derived, name));
    let (of_expected, of_got) = (image.of(&origin.bounds[name]), &derived.bounds[name]);
    let pairs = expected.reals().iter().zip(got.reals());
    let bounds = of_expected.reals().iter().zip(of_got.reals());
    let is_near = |((&expected, &got), (of_expected, of_got)): ((&f64, &f64), (&f64, &f64))| {
        let bound = if of_expected.is_finite() { of_expected.abs() + of_got } else { *of_got };
        let is_unsaid = matches!(image, Image::RowsBut(_)) && expected.is_nan();
        is_unsaid || expected == got || (expected - got).abs() <= 4.0 * Dtype::F64.unit_roundoff() * bound
    };
    expected.shape == got.shape && pairs.zip(bounds).all(is_near)
}

/// The losses of the two halves, with the counts of the whole, sum to the whole.
#[test]
fn micro_batches_sum_to_the_whole() {
    let mut sums = 0;
    for (fixture, derived) in all_derived() {
        let part = |origin: &str, relation: &str| {
            let name = Some(RELATIONS.iter().find(|other| other.name == relation).unwrap().name);
            derived.iter().find(|other| other.origin == origin && other.task.relation == name)
        };
        for first in derived.iter().filter(|derived| derived.task.relation == Some("micro-batch-1")) {
            let second = part(&first.origin, "micro-batch-2").unwrap();
            let case = fixture.cases.iter().find(|case| case.id == first.origin).unwrap();
            let loss = |expected: &Expected| {
                let answer = answer(expected);
                (answer.outputs["loss"].reals()[0], answer.bounds["loss"].reals()[0])
            };
            let (whole, bound) = loss(&case.expected);
            let ((one, of_one), (two, of_two)) = (loss(&first.task.expected), loss(&second.task.expected));
            let allowed = 4.0 * Dtype::F64.unit_roundoff() * (bound + of_one + of_two + whole.abs());
            let place = format!("{} {}", fixture.formula, first.origin);
            assert!((one + two - whole).abs() <= allowed, "{place}: {one} + {two} is not {whole}");
            sums += 1;
        }
    }
    assert!(sums >= 10, "{sums}");
}

/// Somebody who multiplies by the mask is caught by the relation, and not only by a golden case.
#[test]
fn relations_bite() {
    let mut caught = BTreeSet::new();
    for (_, derived) in all_derived() {
        for derived in derived.iter().filter(|derived| derived.task.formula == "mask.mean") {
            let multiplied = |question: &Question| {
                let (values, mask) = (&question.inputs["values"], &question.inputs["mask"]);
                let Data::Mask(mask) = &mask.data else { panic!("no mask") };
                let products =
                    values.reals().iter().zip(mask).map(|(value, keep)| value * f64::from(u8::from(*keep)));
                products.sum::<f64>() / mask.len() as f64
            };
            let right = evaluate("mask.mean", &derived.task.question).unwrap();
            let mean = right.outputs["mean"].reals();
            if mean.len() == 1
                && (multiplied(&derived.task.question) - mean[0]).abs().partial_cmp(&1e-9).is_none()
            {
                caught.extend(derived.task.relation);
            }
        }
    }
    assert!(caught.contains("masked-nan") && caught.contains("masked-infinity"), "{caught:?}");
}
