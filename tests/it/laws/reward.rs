//! Laws of `reward.*`.

use grpo_oracle::options::{Gsm8k, Overlong};
use grpo_oracle::reference::reward;

use super::{Unit, hold};

/// What was found by running the implementations themselves.
#[test]
fn published_code_grades_as_it_does() {
    let far = format!("#### 5{}", " ".repeat(301));
    let expectations: [(&str, &str, Gsm8k, f64); 16] = [
        ("#### 72.", "#### 72", Gsm8k::verl_strict(), 0.0),
        ("#### 1,000", "#### 1,000", Gsm8k::verl_strict(), 1.0),
        ("#### $18", "#### 18", Gsm8k::verl_strict(), 0.0),
        ("####18", "#### 18", Gsm8k::verl_strict(), 0.0),
        ("#### 18.0", "#### 18", Gsm8k::verl_strict(), 0.0),
        ("#### 5 or #### 7", "#### 7", Gsm8k::verl_strict(), 1.0),
        ("#### 5 or #### 7", "#### 5", Gsm8k::gsm(), 1.0),
        (&far, "#### 5", Gsm8k::verl_strict(), 0.0),
        (&far, "#### 5", Gsm8k::gsm(), 1.0),
        ("The answer is 18.", "#### 18", Gsm8k::verl_flexible(), 0.0),
        ("The answer is 18", "#### 18", Gsm8k::verl_flexible(), 1.0),
        ("1,000", "#### 1,000", Gsm8k::verl_flexible(), 0.0),
        ("none.", "#### 1", Gsm8k::verl_flexible(), 0.0),
        ("#### 72.", "#### 72", Gsm8k::strict(), 1.0),
        ("#### $18", "#### 18", Gsm8k::strict(), 1.0),
        ("The answer is 18.", "#### 18", Gsm8k::flexible(), 1.0),
    ];
    for (response, answer, options, expected) in expectations {
        let got = reward::gsm8k(response, answer, &options).expect("a reward");
        assert_eq!(got, expected, "{response:?} for {answer:?} under {options:?}");
    }
}

/// Whatever is right as marked text is right as a number, for canonical numbers.
#[test]
fn text_is_the_narrower_comparison() {
    fn law(number: i32, wrong: bool) -> bool {
        let response = format!("so\n#### {}", if wrong { i64::from(number) + 1 } else { i64::from(number) });
        let grade = |options: &Gsm8k| reward::gsm8k(&response, &format!("#### {number}"), options);
        let right = if wrong { 0.0 } else { 1.0 };
        [Gsm8k::strict(), Gsm8k::flexible(), Gsm8k::verl_strict(), Gsm8k::verl_flexible(), Gsm8k::gsm()]
            .iter()
            .all(|options| grade(options).expect("a reward") == right)
    }
    hold(law as fn(i32, bool) -> bool);
}

#[test]
fn nothing_panics_on_any_text() {
    fn law(response: String, answer: String) -> bool {
        let tagged = format!("</think> <answer>{response}</answer>");
        let grades = reward::r1_zero(&tagged, &answer).is_ok_and(|graded| graded.format_reward != 1.0);
        let boxed = format!("</think> <answer>\\boxed{response}</answer>");
        let _ = (reward::r1_zero(&boxed, &answer), reward::gsm8k(&response, &answer, &Gsm8k::verl_strict()));
        !grades
    }
    hold(law as fn(String, String) -> bool);
}

#[test]
fn the_penalty_is_that_of_its_pieces() {
    fn law(length: u8, factor: Unit) -> bool {
        let (length, factor) = (f64::from(length % 32), factor.0.abs());
        let options =
            Overlong { max_response_length: 20.0, buffer: 8.0, penalty_factor: factor, floor: Some(-factor) };
        let of =
            |options: &Overlong| reward::overlong(&ndarray::array![length], options).expect("a penalty")[0];
        // TRL and EasyR1 write it in pieces.
        let in_pieces = if length <= 12.0 {
            0.0
        } else if length <= 20.0 {
            (12.0 - length) / 8.0 * factor
        } else {
            -factor
        };
        let unbounded = of(&Overlong { floor: None, ..options });
        (of(&options) - in_pieces).abs() < 1e-15 && (length <= 20.0 || unbounded <= in_pieces)
    }
    hold(law as fn(u8, Unit) -> bool);
}
