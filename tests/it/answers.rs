//! What becomes of an answer that does not give everything that was wanted.

use grpo_oracle::conformance::{Dtype, Outcome, Reply, Status, Task, judge};
use grpo_oracle::fixture;
use serde_json::{Value, json};

/// The outcome of the first case of `logprob.token`, whose outputs are `logp` and `entropy`, with these changes to the
/// right answer.
fn outcome(changes: &[(&str, Value)]) -> Outcome {
    let fixtures = fixture::built_in().unwrap();
    let fixture = fixtures.iter().find(|fixture| fixture.formula == "logprob.token").unwrap();
    let task = Task::of(&fixture.formula, &fixture.cases[0]);
    let case = serde_json::to_value(fixture.to_json()).unwrap()["cases"][0]["expect"].clone();
    let mut ok = case["outputs"].clone();
    ok["grad:logits"] = case["gradients"]["logits"].clone();
    for (name, value) in changes {
        ok[*name] = value.clone();
    }
    let reply = Reply::from_json(&json!({ "id": 7, "ok": ok }), 7, &task.want()).unwrap();
    judge(task, Dtype::F64, Ok(reply))
}

#[test]
fn what_is_not_given_is_told_and_the_rest_is_judged() {
    let whole = outcome(&[]);
    assert_eq!((whole.status, whole.message.as_str()), (Status::Pass, ""));

    let part = outcome(&[("entropy", Value::Null), ("grad:logits", Value::Null)]);
    assert_eq!((part.status, part.message.as_str()), (Status::Pass, "not given: `entropy`, `grad:logits`"));
    assert_eq!(part.judged.len(), 1);
}

#[test]
fn a_case_is_not_passed_without_the_first_output() {
    let part = outcome(&[("logp", Value::Null)]);
    assert_eq!((part.status, part.message.as_str()), (Status::Unsupported, "not given: `logp`"));
}

#[test]
fn what_is_given_must_be_right_all_the_same() {
    let mut entropy =
        outcome(&[]).judged.iter().find(|judged| judged.name == "entropy").unwrap().expected.to_json();
    entropy["data"][0] = json!(-1.0);
    let part = outcome(&[("logp", Value::Null), ("entropy", entropy)]);
    assert_eq!(part.status, Status::Fail);
}

#[test]
fn leaving_a_name_out_altogether_is_no_answer() {
    let want = ["logp".to_owned(), "entropy".to_owned()];
    let line = json!({ "id": 7, "ok": { "logp": [[0.0]] } });
    assert!(Reply::from_json(&line, 7, &want).unwrap_err().contains("`entropy`"));
}
