//! An adapter: a program of any language that is asked over its standard input and output.

mod child;
mod lines;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub use child::end_adapters_on_signals;
use child::{Heard, Running};
use serde_json::{Value, json};

pub use self::lines::{Line, Lines};
use super::protocol::plain;
use super::{Fault, Hello, PROTOCOL, Reply, Request, Subject};
use crate::{Error, Result};

/// The longest line that an adapter may print, in bytes; a longer one is no answer and is not held.
pub const LONGEST_LINE: usize = 8 << 20;
const MID_LINE: &str = "closed its output";
/// How long an adapter may take to end once it is told that no question will come.
const PARTING: Duration = Duration::from_secs(2);

/// How patient the judge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long an answer may take.
    pub answer: Duration,
    /// How long the answer to `hello` may take, which many adapters load a framework for.
    pub hello: Duration,
    /// How many times the adapter is started again before it answers a question again.
    pub restarts: usize,
}

/// An adapter, started from a command line. It is started again when it ended or said nothing, and ended with
/// everything that it started when this is dropped.
#[derive(Debug)]
pub struct Process {
    program: String,
    arguments: Vec<String>,
    limits: Limits,
    hello: Hello,
    running: Option<Running>,
    /// The id of the last line sent. No id is used twice, so that no answer can pass for another's.
    last_id: u64,
    /// Questions that this process has answered with something else than an answer. The answer may yet come.
    garbled: BTreeSet<u64>,
    /// How often it died or hung since it last answered.
    failures: usize,
    last_failure: String,
}

impl Process {
    /// Starts an adapter and greets it. The command line is split into words like a shell does, and no shell runs it.
    ///
    /// # Errors
    /// `adapter` if the command line cannot be split or run, or if the program does not answer `hello` as it must.
    pub fn start(command: &str, limits: Limits) -> Result<Self> {
        let wrong = |problem: String| Error::Adapter { command: command.to_owned(), problem };
        let words = shlex::split(command).ok_or_else(|| {
            wrong("the command line has a quote that is not closed or ends in a backslash".to_owned())
        })?;
        let Some((program, arguments)) = words.split_first() else {
            return Err(wrong(
                "the command line is empty; give what starts the adapter, such as \"python my.py\""
                    .to_owned(),
            ));
        };
        let (running, hello) = greet(program, arguments, limits.hello, 0).map_err(wrong)?;
        Ok(Self {
            program: program.clone(),
            arguments: arguments.to_vec(),
            limits,
            hello,
            running: Some(running),
            last_id: 0,
            garbled: BTreeSet::new(),
            failures: 0,
            last_failure: String::new(),
        })
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The running process: the one there is, or a new one that says the same of itself.
    fn running(&mut self) -> Result<Running, Fault> {
        if let Some(running) = self.running.take() {
            return Ok(running);
        }
        self.garbled.clear();
        let id = self.next_id();
        let (running, hello) = greet(&self.program, &self.arguments, self.limits.hello, id)
            .map_err(|problem| Fault::Died(format!("the adapter was started again: {problem}")))?;
        if hello != self.hello {
            let problem = "the adapter was started again: its answer to hello is another one than at first";
            return Err(Fault::Died(problem.to_owned()));
        }
        Ok(running)
    }

    fn put(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        let mut running = self.running()?;
        let id = self.next_id();
        if !running.say(request.to_json(id).to_string()) {
            return Err(Fault::Died(running.obituary("does not read its input", "")));
        }
        let until = Instant::now() + self.limits.answer;
        loop {
            let reply = match running.hear(until) {
                Heard::Silence => return Err(Fault::Hung(self.limits.answer)),
                Heard::Gone(what) => return Err(Fault::Died(running.obituary(what, ""))),
                Heard::Line(Line::Cut(_)) => {
                    return Err(Fault::Died(running.obituary(MID_LINE, " in the middle of a line")));
                }
                Heard::Line(line) => match json_of(line) {
                    Ok(json) if self.is_late(&json) => continue,
                    Ok(json) => self.reply(&json, id, request.want),
                    Err(problem) => Err(problem),
                },
            };
            self.running = Some(running);
            return reply.map_err(|problem| {
                self.garbled.insert(id);
                Fault::Garbled(problem)
            });
        }
    }

    /// Whether this is the answer to a question that is done with, because what came first was no answer.
    fn is_late(&self, json: &Value) -> bool {
        json.get("id").and_then(Value::as_u64).is_some_and(|id| self.garbled.contains(&id))
    }

    fn reply(&self, json: &Value, id: u64, want: &[String]) -> Result<Reply, String> {
        match json.get("id").and_then(Value::as_u64) {
            Some(earlier) if earlier < id => Err(format!(
                "the answer has the id {earlier}, which was answered before, where {id} was asked"
            )),
            _ => Reply::from_json(json, id, want),
        }
    }
}

impl Subject for Process {
    fn hello(&self) -> &Hello {
        &self.hello
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        if self.failures > self.limits.restarts {
            let (failures, last) = (self.failures, &self.last_failure);
            return Err(Fault::Died(format!(
                "not asked, since the adapter failed {failures} times without an answer in between; the last time: {last}"
            )));
        }
        let reply = self.put(request);
        match &reply {
            Ok(_) => self.failures = 0,
            Err(Fault::Garbled(_)) => {}
            Err(fault) => {
                self.failures += 1;
                self.last_failure = fault.to_string();
            }
        }
        reply
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let id = self.next_id();
        if let Some(mut running) = self.running.take() {
            running.say(json!({ "id": id, "cmd": "bye" }).to_string());
            running.dismiss(PARTING);
        }
    }
}

/// Starts the adapter and asks what it is. What goes wrong is said in a sentence.
fn greet(
    program: &str,
    arguments: &[String],
    patience: Duration,
    id: u64,
) -> Result<(Running, Hello), String> {
    let mut running = Running::start(program, arguments).map_err(|problem| {
        format!("`{program}` cannot be run: {problem}; is it installed, and the path right?")
    })?;
    running.say(json!({ "id": id, "cmd": "hello", "protocol": PROTOCOL }).to_string());
    match running.hear(Instant::now() + patience) {
        Heard::Silence => Err(format!(
            "the adapter did not answer hello within {:.1} s; it must flush its output after each line",
            patience.as_secs_f64()
        )),
        Heard::Gone(what) => Err(running.obituary(what, " before it answered hello")),
        Heard::Line(Line::Cut(_)) => Err(running.obituary(MID_LINE, " in the middle of its answer to hello")),
        Heard::Line(line) => {
            let hello = json_of(line).and_then(|json| Hello::from_line(&json, id))?;
            match twice(&hello.formulas) {
                None => Ok((running, hello)),
                Some(id) => Err(format!("the answer to hello has the formula `{}` twice", plain(id, 80))),
            }
        }
    }
}

/// A line as JSON.
fn json_of(line: Line) -> Result<Value, String> {
    let bytes = match line {
        Line::Whole(bytes) | Line::Cut(bytes) => bytes,
        Line::TooLong(start) => {
            let start = shown(&start);
            return Err(format!(
                "the adapter printed a line of more than {LONGEST_LINE} bytes, which begins: {start}"
            ));
        }
    };
    serde_json::from_slice(&bytes).map_err(|problem| {
        let hint =
            if [&b"NaN"[..], b"Infinity"].iter().any(|word| bytes.windows(word.len()).any(|w| w == *word)) {
                "; in JSON, NaN and infinities are the texts \"NaN\", \"Infinity\" and \"-Infinity\""
            } else {
                "; print answers alone to stdout, and everything else to stderr"
            };
        format!("the adapter printed a line that is not JSON ({problem}): {}{hint}", shown(&bytes))
    })
}

/// What an adapter printed, fit to be shown: not long, and without control characters.
fn shown(bytes: &[u8]) -> String {
    plain(&String::from_utf8_lossy(&bytes[..bytes.len().min(800)]), 200)
}

fn twice(ids: &[String]) -> Option<&String> {
    let mut seen = BTreeSet::new();
    ids.iter().find(|id| !seen.insert(*id))
}
