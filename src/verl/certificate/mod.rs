//! Whether the installed verl, configured as an export says, computes what a configuration of ours computes with: the
//! golden cases of exactly these formulas, with the configuration's options in the place of the cases' own.

mod page;
mod parts;

use serde_json::{Map, Value, json};

use crate::conformance::{
    Fault, Hello, Outcome, Reply, Report, Request, Status, Subject, Task, Verdict, run,
};
use crate::evaluate::Question;
use crate::verl::export::Export;

pub use parts::{Part, parts};

/// Somebody whose options come from verl's configuration alone: what a question brings is its overrides.
struct Configured<'a> {
    subject: &'a mut dyn Subject,
    options: Map<String, Value>,
}

impl Subject for Configured<'_> {
    fn hello(&self) -> &Hello {
        self.subject.hello()
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        let question = Question { inputs: request.question.inputs.clone(), options: self.options.clone() };
        self.subject.ask(&Request { question: &question, ..*request })
    }
}

/// What was found about one formula that a configuration computes with.
#[derive(Debug)]
pub struct Judged {
    /// The formula and its options.
    pub part: Part,
    /// The questions that a run under this configuration could come upon; they decide.
    pub within: Vec<Outcome>,
    /// Those that it could not, with why.
    pub beyond: Vec<(&'static str, Outcome)>,
}

/// What is certified, and the questions behind it.
#[derive(Debug)]
pub struct Certificate {
    /// Who was asked.
    pub hello: Hello,
    /// What verl was configured with, as its command line takes it.
    pub overrides: Vec<String>,
    /// What has no exact counterpart there, a sentence each.
    pub notes: Vec<String>,
    /// Formula by formula.
    pub judged: Vec<Judged>,
}

/// Asks about every part under an export, an adapter such as `examples/adapters/verl_configured.py`; `seen` is told of each
/// answer as it comes.
pub fn certify(
    parts: Vec<Part>,
    job: &Export,
    subject: &mut dyn Subject,
    mut seen: impl FnMut(),
) -> Certificate {
    let overrides = job.arguments();
    let options = Map::from_iter([("overrides".to_owned(), json!(overrides))]);
    let mut configured = Configured { subject, options };
    let mut ask = |tasks: Vec<Task>| -> Report { run(&mut configured, "", tasks, |_| seen()) };
    let mut judged = Vec::new();
    for mut part in parts {
        let (within, beyond) = (std::mem::take(&mut part.within), std::mem::take(&mut part.beyond));
        let (why, beyond): (Vec<_>, Vec<_>) = beyond.into_iter().unzip();
        let within = ask(within).outcomes;
        let beyond = why.into_iter().zip(ask(beyond).outcomes).collect();
        judged.push(Judged { part, within, beyond });
    }
    Certificate { hello: configured.hello().clone(), overrides, notes: job.notes.clone(), judged }
}

impl Judged {
    /// Failed if a question that decides was answered wrongly; incomplete if one got no answer, or none could be judged.
    pub fn verdict(&self) -> Verdict {
        let count = |statuses: &[Status]| {
            self.within.iter().filter(|outcome| statuses.contains(&outcome.status)).count()
        };
        match (count(&[Status::Fail]), count(&[Status::Error, Status::Hang]), count(&[Status::Pass])) {
            (0, 0, 1..) => Verdict::Passed,
            (0, ..) => Verdict::Incomplete,
            _ => Verdict::Failed,
        }
    }
}

impl Certificate {
    /// That of the worst formula.
    pub fn verdict(&self) -> Verdict {
        let any = |verdict| self.judged.iter().any(|judged| judged.verdict() == verdict);
        match (any(Verdict::Failed), any(Verdict::Incomplete) || self.judged.is_empty()) {
            (true, _) => Verdict::Failed,
            (false, true) => Verdict::Incomplete,
            (false, false) => Verdict::Passed,
        }
    }
}
