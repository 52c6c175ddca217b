//! Questions and answers in files, for implementations that no pipe reaches.
//!
//! The file of questions is word for word what an adapter would be told, so a program that speaks the protocol answers it
//! with its input and output redirected. An id carries a digest of all questions: answers to other questions than those
//! that are judged do not fit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde_json::{Value, json};

use super::process::{LONGEST_LINE, Line, Lines};
use super::{Dtype, Fault, Hello, PROTOCOL, Reply, Request, Subject, Task};
use crate::{Error, Result};

/// The lower digits of an id count the questions, the upper ones are the digest.
const COUNT: u64 = 1_000_000;

/// The lines that put the questions of a plan to an implementation that computes in this format, from `hello` to `bye`.
pub fn export(tasks: &[Task], dtype: Dtype) -> Vec<String> {
    let asked: Vec<&Task> = asked(tasks, dtype).collect();
    let first = first_id(&asked, dtype);
    let mut lines = vec![json!({ "id": 0, "cmd": "hello", "protocol": PROTOCOL }).to_string()];
    lines.extend((first..).zip(&asked).map(|(id, task)| line(task, id)));
    lines.push(json!({ "id": first + asked.len() as u64, "cmd": "bye" }).to_string());
    lines
}

/// The answers of a file. It is asked in the order of the plan that it was read for.
#[derive(Debug)]
pub struct Answers {
    hello: Hello,
    /// The ids of the questions that are still to come.
    ids: std::vec::IntoIter<u64>,
    answers: BTreeMap<u64, Value>,
}

impl Answers {
    /// Reads the answers to what [`export`] gives for these tasks, in any order, with or without the answer to `hello`;
    /// and leaves those tasks to be judged that the implementation says it has. Without a format, that of the answer to
    /// `hello` is taken.
    ///
    /// # Errors
    /// `file`, naming the line, if it is not an answer to one of the questions or the second one to it, or if the format
    /// is not known or another.
    pub fn read(path: &Path, tasks: &mut Vec<Task>, dtype: Option<Dtype>) -> Result<Self> {
        let mut answers = lines(path)?;
        let wrong = |problem: String| Error::file(path, problem);
        let said =
            answers.remove(&0).map(|(_, json)| Hello::from_line(&json, 0)).transpose().map_err(wrong)?;
        let dtype = match (dtype, &said) {
            (Some(dtype), Some(hello)) if hello.dtype != dtype => {
                let (said, asked) = (hello.dtype.name(), dtype.name());
                return Err(wrong(format!(
                    "the implementation says that it computes in {said} and is judged in {asked}; export and judge \
                     with --dtype {said}"
                )));
            }
            (Some(dtype), _) => dtype,
            (None, Some(hello)) => hello.dtype,
            (None, None) => {
                let problem =
                    "does not say what the implementation computes in; add the --dtype of the export";
                return Err(wrong(problem.to_owned()));
            }
        };
        let asked: Vec<&Task> = asked(tasks, dtype).collect();
        let first = first_id(&asked, dtype);
        let bye = first + asked.len() as u64;
        answers.remove(&bye);
        if let Some((id, (line, _))) = answers.iter().find(|(id, _)| !(first..bye).contains(*id)) {
            return Err(wrong(format!(
                "line {line} answers the question {id}, which is none of these; judge with the same version, --dtype, \
                 --formula, --fixtures and --no-relations as exported"
            )));
        }
        let hello = said.unwrap_or_else(|| unnamed(path, dtype, tasks));
        let has = |task: &Task| hello.formulas.contains(&task.formula);
        let ids: Vec<u64> = (first..).zip(&asked).filter(|(_, task)| has(task)).map(|(id, _)| id).collect();
        tasks.retain(has);
        let answers = answers.into_iter().map(|(id, (_, json))| (id, json)).collect();
        Ok(Self { hello, ids: ids.into_iter(), answers })
    }
}

impl Subject for Answers {
    fn hello(&self) -> &Hello {
        &self.hello
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        let id = self.ids.next().ok_or_else(|| Fault::Died("the question was not exported".to_owned()))?;
        let json = self.answers.get(&id);
        let json = json.ok_or_else(|| Fault::Died(format!("there is no answer to the question {id}")))?;
        Reply::from_json(json, id, request.want).map_err(Fault::Garbled)
    }
}

/// What is known of an implementation that says nothing of itself.
fn unnamed(path: &Path, dtype: Dtype, tasks: &[Task]) -> Hello {
    let mut formulas: Vec<String> = tasks.iter().map(|task| task.formula.clone()).collect();
    formulas.dedup();
    let unknown = || "unknown".to_owned();
    Hello { name: path.display().to_string(), version: unknown(), language: unknown(), dtype, formulas }
}

/// The lines of a file by their ids, each with its number.
fn lines(path: &Path) -> Result<BTreeMap<u64, (usize, Value)>> {
    let file = File::open(path).map_err(|problem| Error::file(path, problem))?;
    let mut answers: BTreeMap<u64, (usize, Value)> = BTreeMap::new();
    for (number, line) in (1..).zip(Lines::new(BufReader::new(file), LONGEST_LINE)) {
        let wrong = |problem: String| Error::file(path, format!("line {number} {problem}"));
        let (Line::Whole(bytes) | Line::Cut(bytes)) = line else {
            return Err(wrong(format!("is longer than {LONGEST_LINE} bytes")));
        };
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|problem| wrong(format!("is not JSON: {problem}")))?;
        let id = json.get("id").and_then(Value::as_u64);
        let id = id.ok_or_else(|| wrong("has no id; give it the id of the question".to_owned()))?;
        if let Some((earlier, _)) = answers.insert(id, (number, json)) {
            return Err(wrong(format!("answers the question {id} a second time, after line {earlier}")));
        }
    }
    Ok(answers)
}

/// The questions that are put to an implementation that computes in this format.
fn asked(tasks: &[Task], dtype: Dtype) -> impl Iterator<Item = &Task> {
    tasks.iter().filter(move |task| task.not_applicable(dtype).is_none())
}

fn line(task: &Task, id: u64) -> String {
    let request = Request { formula: &task.formula, question: &task.question, want: &task.want() };
    request.to_json(id).to_string()
}

/// The id of the first question: a digest of all (FNV-1a, six digits of it).
fn first_id(asked: &[&Task], dtype: Dtype) -> u64 {
    let lines = asked.iter().map(|task| line(task, 0));
    let bytes = lines.flat_map(String::into_bytes).chain(dtype.name().bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (100_000 + hash % 900_000) * COUNT + 1
}
