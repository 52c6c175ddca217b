//! The `grpo-oracle` command as its users type it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn run(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_grpo-oracle"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails before reading closes the pipe; that is not this test's business.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn eval(formula: &str, question: &Value) -> Value {
    let output = run(&["eval", formula], &question.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What is said on standard error, the exit code being 2.
fn refused(arguments: &[&str], input: &str) -> String {
    let output = run(arguments, input);
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn lists_the_formulas() {
    insta::assert_snapshot!(String::from_utf8(run(&["list"], "").stdout).unwrap());
}

#[test]
fn explains_a_formula() {
    insta::assert_snapshot!(String::from_utf8(run(&["explain", "kl.estimate"], "").stdout).unwrap());
}

#[test]
fn evaluates_with_defaults_and_nested_lists() {
    let question = json!({ "inputs": { "rewards": [1, 0, 0, 0], "group": ["a", "a", "a", "a"] }, "options": { "eps": 0 } });
    let answer = eval("advantage.group_norm", &question);
    assert_eq!(answer["outputs"]["advantages"], json!({ "shape": [4], "data": [1.5, -0.5, -0.5, -0.5] }));
    assert_eq!(answer["bounds"]["advantages"]["shape"], json!([4]));
}

#[test]
fn evaluates_gradients_and_keeps_masked_slots_out() {
    let question = json!({
        "inputs": {
            "logp": { "shape": [1, 3], "data": [-1.0, -0.5, "NaN"] },
            "logp_old": { "shape": [1, 3], "data": [-1.0, -1.0, "NaN"] },
            "advantages": [1.0],
            "response_mask": { "shape": [1, 3], "data": [1, 1, 0] },
        },
    });
    let answer = eval("objective.clip", &question);
    assert_eq!(answer["outputs"]["loss"]["data"], json!([-1.0, -1.2, 0.0]));
    assert_eq!(answer["gradients"]["logp"]["data"], json!([-1.0, 0.0, 0.0]));
    assert_eq!(answer["gradients"]["logp_old"]["data"], json!([0.0, 0.0, 0.0]));
    assert_eq!(answer["bounds"]["grad:logp"]["data"][2], json!(0.0));
    assert_eq!(answer["outputs"]["clip_fraction"], json!({ "shape": [], "data": [0.5] }));
}

#[test]
fn evaluates_large_input_without_gradients() {
    let wide = vec![vec![-1.0; 2000]; 20];
    let question = json!({ "inputs": { "logp": wide, "logp_ref": wide } });
    let output = run(&["eval", "--no-gradients", "kl.estimate"], &question.to_string());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["outputs"]["kl"]["shape"], json!([20, 2000]));
    assert_eq!(answer["gradients"], json!({}));
}

#[test]
fn evaluates_text() {
    let question = json!({ "inputs": { "response": "#### 1,000", "answer": "so it is\n#### 1000" } });
    assert_eq!(eval("reward.gsm8k", &question)["outputs"]["reward"], json!({ "shape": [], "data": [1.0] }));
}

#[test]
fn answers_an_error_with_its_code() {
    let output = run(&["eval", "kl.estimate"], r#"{"inputs": {"logp": [[0]], "logp_ref": [[0, 0]]}}"#);
    assert_eq!(output.status.code(), Some(2));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["error"]["kind"], "shape");
}

#[test]
fn refuses_in_one_sentence() {
    let eval = |formula: &str, input: &str| refused(&["eval", formula], input);
    insta::assert_snapshot!(
        [
            eval("objective.clp", ""),
            eval("kl.estimate", "{"),
            eval("kl.estimate", "[]"),
            eval("kl.estimate", r#"{"inputs": {"logp": [[0]]}}"#),
            eval("kl.estimate", r#"{"inputs": {"logp": [[0]], "logp_rev": [[0]]}}"#),
            eval("kl.estimate", r#"{"inputs": {"logp": [[0], [0, 1]], "logp_ref": [[0]]}}"#),
            eval("kl.estimate", r#"{"inputs": {"logp": [["x"]], "logp_ref": [[0]]}}"#),
            eval("kl.estimate", r#"{"inputs": {"logp": [0], "logp_ref": [0]}}"#),
            eval("kl.estimate", r#"{"inputs": {"logp": [["NaN"]], "logp_ref": [[0]]}}"#),
            eval(
                "kl.estimate",
                r#"{"inputs": {"logp": [[0]], "logp_ref": [[0]]}, "options": {"kl_penaltie": "k1"}}"#
            ),
            eval(
                "kl.estimate",
                r#"{"inputs": {"logp": [[0]], "logp_ref": [[0]]}, "options": {"kl_penalty": "k4"}}"#
            ),
            eval(
                "kl.estimate",
                r#"{"inputs": {"logp": [[0]], "logp_ref": [[0]]}, "options": {"input_clamp": -1}}"#
            ),
            eval("logprob.token", r#"{"inputs": {"logits": [[[0, 0]]], "tokens": [[2]]}}"#),
            eval("mask.mean", r#"{"inputs": {"values": {"shape": [2], "data": [1]}, "mask": [1]}}"#),
            eval("mask.mean", r#"{"inputs": {"values": [1], "mask": [2]}}"#),
        ]
        .concat()
    );
}
