//! The page of a run.

use grpo_oracle::train::page::{Chart, Group, Page, Response, State, html};

fn page(state: State) -> String {
    let chart = |title: &str, beside: Option<&str>| Chart {
        title: title.to_owned(),
        points: (0..40).map(|step| (f64::from(step), f64::from(step) / (10.0 + f64::from(step)))).collect(),
        beside: beside.map(|name| (name.to_owned(), vec![(0.0, 0.1), (20.0, 0.5), (39.0, 0.9)])),
    };
    let token = |text: &str, advantage: f64| (text.to_owned(), advantage);
    let group = Group {
        step: 7,
        prompt: "What is 1 < 2 & 3?".to_owned(),
        answer: "1 + 2 = <<1+2=3>>3\n#### 3".to_owned(),
        responses: vec![
            Response { reward: 1.0, tokens: vec![token("It is\n", 0.5), token("#### 3", 2.0)] },
            Response { reward: 0.0, tokens: vec![token("No", -1.0), token(" idea<script>", f64::NAN)] },
        ],
    };
    html(&Page {
        title: "GRPO: a small model",
        state,
        facts: &[("model".to_owned(), "tiny".to_owned()), ("seed".to_owned(), "0".to_owned())],
        charts: &[
            chart("reward", Some("held out")),
            chart("KL", None),
            Chart { title: "one point".to_owned(), points: vec![(1.0, f64::NAN), (2.0, 3.0)], beside: None },
            Chart { title: "nothing yet".to_owned(), points: Vec::new(), beside: None },
        ],
        health: &["step 5: the KL is 0.2, above 0.1".to_owned()],
        rollouts: &[group],
    })
    .unwrap()
}

#[test]
fn it_loads_itself_anew_only_while_the_run_lasts() {
    let running = page(State::Running { step: 7, of: 40, seconds_left: Some(200.0) });
    assert!(running.contains("http-equiv=\"refresh\"") && running.contains("step 7 of 40, about 3 min left"));
    let done = page(State::Done);
    assert!(!done.contains("http-equiv=\"refresh\"") && done.contains("finished"));
    let stopped = page(State::Stopped("the loss is NaN".to_owned()));
    assert!(stopped.contains("stopped: the loss is NaN"));
}

#[test]
fn tokens_are_shaded_by_their_advantage_and_escaped() {
    let page = page(State::Done);
    if let Some(path) = std::env::var_os("PAGE") {
        std::fs::write(path, &page).unwrap();
    }
    assert!(page.contains(r#"<span class="t up" style="--a:40.0%" title="+2.000">#### 3</span>"#));
    assert!(page.contains(r#"<span class="t down" style="--a:20.0%" title="-1.000">No</span>"#));
    assert!(page.contains(" idea&lt;script&gt;") && !page.contains("idea<script>"));
    assert_eq!(page.matches("<svg").count(), 4);
}
