//! The run as one page: curves, health, rollouts with every token shaded by its advantage. It needs nothing but a browser,
//! and while the run lasts it loads itself anew.

use minijinja::Environment;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::curves;
use crate::{Error, Result};

/// What the page shows.
#[derive(Debug)]
pub struct Page<'a> {
    /// What stands over it.
    pub title: &'a str,
    /// Where the run is.
    pub state: State,
    /// What it is, in pairs of words.
    pub facts: &'a [(String, String)],
    /// The curves.
    pub charts: &'a [Chart],
    /// What the health rules say, the newest last.
    pub health: &'a [String],
    /// Rollouts to look at, the newest last.
    pub rollouts: &'a [Group],
}

/// Where a run is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Under way.
    Running {
        /// Steps made.
        step: usize,
        /// Steps to make.
        of: usize,
        /// How long it will go on, by the steps so far.
        seconds_left: Option<f64>,
    },
    /// At its end.
    Done,
    /// Ended before its end, for this reason.
    Stopped(String),
}

/// One quantity over the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What it is, with its unit.
    pub title: String,
    /// Step and value.
    pub points: Vec<(f64, f64)>,
    /// A second quantity of the same unit, with its name.
    pub beside: Option<(String, Vec<(f64, f64)>)>,
}

/// The responses to one problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The step.
    pub step: usize,
    /// The question.
    pub prompt: String,
    /// The worked solution.
    pub answer: String,
    /// The responses.
    pub responses: Vec<Response>,
}

/// One response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Its reward.
    pub reward: f64,
    /// Its tokens as text, each with its advantage.
    pub tokens: Vec<(String, f64)>,
}

/// The page as HTML.
///
/// # Errors
/// What the drawing library reports.
pub fn html(page: &Page<'_>) -> Result<String> {
    let wrong = |problem: minijinja::Error| Error::file("page.html", format!("{problem:#}"));
    let charts = page.charts.iter().map(|chart| curves::chart(chart).map(without_size));
    let charts =
        charts.collect::<Result<Vec<_>, _>>().map_err(|problem| Error::file("page.html", problem))?;
    let (running, words) = state(&page.state);
    let mut environment = Environment::new();
    environment.add_template("page.html", include_str!("page.html")).map_err(wrong)?;
    let template = environment.get_template("page.html").map_err(wrong)?;
    let values = json!({
        "title": page.title, "running": running, "state": words, "facts": page.facts, "charts": charts,
        "stopped": matches!(page.state, State::Stopped(_)), "health": page.health,
        "groups": page.rollouts.iter().rev().map(shaded).collect::<Vec<_>>(),
    });
    template.render(minijinja::value::Serde(values)).map_err(wrong)
}

fn state(state: &State) -> (bool, String) {
    match state {
        State::Running { step, of, seconds_left } => {
            let left =
                seconds_left.map_or_else(String::new, |seconds| format!(", about {} left", span(seconds)));
            (true, format!("step {step} of {of}{left}"))
        }
        State::Done => (false, "finished".to_owned()),
        State::Stopped(why) => (false, format!("stopped: {why}")),
    }
}

/// A length of time as one says it.
fn span(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// The picture takes the width that it gets.
fn without_size(svg: String) -> String {
    let (width, height) = curves::CHART;
    svg.replacen(&format!("width=\"{width}\" height=\"{height}\""), "", 1)
}

/// A group with the strength of every token's shade, -1 to 1: the farthest advantage of the group is 1.
fn shaded(group: &Group) -> serde_json::Value {
    let all = group.responses.iter().flat_map(|response| &response.tokens);
    let farthest = all.map(|token| token.1.abs()).filter(|size| size.is_finite()).fold(0.0, f64::max);
    let responses = group.responses.iter().map(|response| {
        let tokens = response.tokens.iter().map(|(text, advantage)| {
            let shade = if farthest > 0.0 && advantage.is_finite() { advantage / farthest } else { 0.0 };
            json!({"text": text, "advantage": format!("{advantage:+.3}"),
                   "side": if shade > 0.0 { "up" } else { "down" }, "percent": (40.0 * shade.abs()).round()})
        });
        json!({"reward": format!("{:.2}", response.reward), "right": response.reward > 0.0,
               "tokens": tokens.collect::<Vec<_>>()})
    });
    json!({"step": group.step, "prompt": group.prompt, "answer": group.answer,
           "responses": responses.collect::<Vec<_>>()})
}
