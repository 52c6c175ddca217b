//! Laws of `logprob.*`.

use grpo_oracle::evaluate::{Evaluation, Question, evaluate};
use grpo_oracle::options::{Ratio, SequenceRatio, Softmax};
use grpo_oracle::reference::logprob;
use ndarray::{Array2, Array3, array};
use serde_json::{Value, json};

use super::{Unit, hold};

/// The reference's full answer.
pub(super) fn ask(formula: &str, options: Value, inputs: Value) -> Evaluation {
    let question = json!({"options": options, "inputs": inputs});
    let question = Question::from_json(formula, &question).expect("a question");
    evaluate(formula, &question).expect("an answer")
}

#[test]
fn the_entropy_is_the_expected_surprise() {
    fn law(logits: (Unit, Unit, Unit)) -> bool {
        let logits = [logits.0.0, logits.1.0, logits.2.0].map(|z| 4.0 * z);
        let of_tokens = |token: i64| {
            let logits = Array3::from_shape_fn((1, 1, 3), |(_, _, v)| logits[v]);
            let answer = logprob::token(&logits, &array![[token]], &Softmax::at(1.5)).expect("an answer");
            answer.logp[[0, 0]]
        };
        let logp = [0, 1, 2].map(of_tokens);
        let expected: f64 = logp.iter().map(|logp| -logp.exp() * logp).sum();
        let answer = ask("logprob.entropy", json!({"temperature": 1.5}), json!({"logits": [[logits]]}));
        let (entropy, gradient) = (answer.outputs["entropy"].reals()[0], answer.gradients["logits"].reals());
        let slope = |v: usize| -logp[v].exp() * (logp[v] + expected) / 1.5;
        (entropy - expected).abs() < 1e-14 && (0..3).all(|v| (gradient[v] - slope(v)).abs() < 1e-14)
    }
    hold(law as fn((Unit, Unit, Unit)) -> bool);
}

#[test]
fn the_sequences_ratio_is_the_product_of_its_tokens() {
    fn law(tokens: Vec<(Unit, Unit, bool)>) -> bool {
        let row = |of: fn(&(Unit, Unit, bool)) -> f64| {
            let entries = tokens.iter().map(of).collect();
            Array2::from_shape_vec((1, tokens.len()), entries).expect("a row")
        };
        let (logp, old) = (row(|token| token.0.0), row(|token| token.1.0));
        let kept = Array2::from_shape_fn(logp.raw_dim(), |(_, t)| tokens[t].2);
        let of_tokens = logprob::ratio(&logp, &old, &Ratio::unclamped()).expect("ratios");
        let product: f64 =
            of_tokens.iter().zip(&kept).filter(|(_, keep)| **keep).map(|(ratio, _)| ratio).product();
        let count = f64::max(1.0, kept.iter().filter(|keep| **keep).count() as f64);
        let of = |options: SequenceRatio| {
            logprob::sequence_ratio(&logp, &old, &kept, &options).expect("a ratio")[0]
        };
        let near = |left: f64, right: f64| (left / right - 1.0).abs() < 1e-11;
        near(of(SequenceRatio::whole()), product)
            && near(of(SequenceRatio::gspo()), product.powf(1.0 / count))
    }
    hold(law as fn(Vec<(Unit, Unit, bool)>) -> bool);
}
