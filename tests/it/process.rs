//! Adapters that break every promise: each is survived, in bounded time, with the right word for what it did.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use grpo_oracle::conformance::{Fault, LONGEST_LINE, Limits, Line, Lines, Process, Reply, Request, Subject};
use grpo_oracle::evaluate::Question;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the evil adapters share. `serve(evil)` calls `evil(id)` for every question; a good one answers `answer(id)`.
const PRELUDE: &str = r#"
import json, os, subprocess, sys, time
HERE = os.path.dirname(os.path.abspath(__file__))
HELLO = {"protocol": 1, "name": "evil", "version": "6.66", "language": "python", "dtype": "f64", "formulas": ["kl.estimate"]}
def send(text):
    sys.stdout.write(text)
    sys.stdout.flush()
def say(id, **what):
    send(json.dumps({"id": id, **what}) + "\n")
def answer(id):
    say(id, unsupported=f"answer to {id}")
def note(name, text):
    with open(os.path.join(HERE, name), "w") as file:
        file.write(str(text))
def first(name="first"):
    is_first = not os.path.exists(os.path.join(HERE, name))
    note(name, "")
    return is_first
def serve(evil, bye=lambda: sys.exit(0)):
    while line := sys.stdin.readline():
        question = json.loads(line)
        if question["cmd"] == "hello":
            say(question["id"], ok=HELLO)
        elif question["cmd"] == "bye":
            bye()
        else:
            evil(question["id"])
"#;

const LIMITS: Limits =
    Limits { answer: Duration::from_secs(20), hello: Duration::from_secs(60), restarts: 3 };
/// For adapters that say nothing.
const IMPATIENT: Limits = Limits { answer: Duration::from_secs(2), restarts: 1, ..LIMITS };

/// An adapter's script in a folder of its own.
struct Script {
    folder: TempDir,
}

impl Script {
    fn new(code: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("evil.py"), format!("{PRELUDE}\n{code}\n")).unwrap();
        Self { folder }
    }

    fn command(&self) -> String {
        format!("python3 -S '{}'", self.folder.path().join("evil.py").display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What comes of as many questions.
    fn asked(&self, limits: Limits, count: usize) -> Vec<String> {
        let mut process = Process::start(&self.command(), limits).unwrap();
        ask(&mut process, count)
    }

    /// Why it cannot be started.
    fn refused(&self, limits: Limits) -> String {
        let problem = Process::start(&self.command(), limits).unwrap_err().to_string();
        let (command, problem) = problem.split_at(self.command().len() + 2);
        assert_eq!(command, format!("`{}`", self.command()));
        problem.trim_start_matches(": ").to_owned()
    }
}

/// What the adapters are asked.
static QUESTION: LazyLock<Question> = LazyLock::new(|| {
    let inputs = json!({ "inputs": { "logp": [[-1.0, -0.5]], "logp_ref": [[-1.5, -0.5]] } });
    Question::from_json("kl.estimate", &inputs).unwrap()
});

fn ask(process: &mut Process, count: usize) -> Vec<String> {
    let request = Request { formula: "kl.estimate", question: &QUESTION, want: &["kl".to_owned()] };
    let said = |reply| match reply {
        Ok(Reply::Unsupported(text)) => text,
        Ok(other) => format!("{other:?}"),
        Err(Fault::Died(why)) => format!("died: {why}"),
        Err(Fault::Hung(_)) => "hung".to_owned(),
        Err(Fault::Garbled(why)) => format!("garbled: {why}"),
    };
    (0..count).map(|_| said(process.ask(&request))).collect()
}

/// Whether there is no Python to run the scripts with.
fn no_python() -> bool {
    let missing = Command::new("python3").arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: there is no python3");
    }
    missing
}

/// Whether a process has ended, or does within some seconds. One that ended and was not waited for has ended too: what
/// an adapter left behind is waited for by the system.
fn is_gone(file: &Path) -> bool {
    let number = fs::read_to_string(file).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        let state = Command::new("ps").args(["-o", "stat=", "-p", &number]).output().unwrap().stdout;
        if state.is_empty() || state.starts_with(b"Z") {
            return true;
        }
        sleep(Duration::from_millis(50));
    }
    false
}

#[test]
fn what_cannot_be_started_is_told() {
    let problem = |command: &str| Process::start(command, LIMITS).unwrap_err().to_string();
    assert_eq!(
        problem("python3 'my.py"),
        "`python3 'my.py`: the command line has a quote that is not closed or ends in a backslash"
    );
    assert_eq!(
        problem(" "),
        "` `: the command line is empty; give what starts the adapter, such as \"python my.py\""
    );
    assert!(
        problem("/no/such/program x")
            .starts_with("`/no/such/program x`: `/no/such/program` cannot be run: No such file"),
    );
}

#[test]
fn words_are_split_as_a_shell_does_and_no_shell_runs_them() {
    if no_python() {
        return;
    }
    let script = Script::new("note('arguments', sys.argv[1:])\nserve(answer)");
    let command = format!("{} 'a b' \"c'd\" '$HOME;' e\\ f", script.command());
    drop(Process::start(&command, LIMITS).unwrap());
    let arguments = fs::read_to_string(script.file("arguments")).unwrap();
    assert_eq!(arguments, r#"['a b', "c'd", '$HOME;', 'e f']"#);
}

#[test]
fn it_dies_before_hello() {
    if no_python() {
        return;
    }
    let script = Script::new(
        "print('line 1\\nline 2\\nline 3\\nNo module named torch', file=sys.stderr)\nsys.exit(7)",
    );
    assert_eq!(
        script.refused(LIMITS),
        "the adapter ended (exit status: 7) before it answered hello; the end of its stderr: line 2 | line 3 | No \
         module named torch"
    );
    let script = Script::new("send('{\"id\": 0, \"ok\": {\"proto')\nos.abort()");
    assert_eq!(
        script.refused(LIMITS),
        "the adapter ended (signal: 6 (SIGABRT)) in the middle of its answer to hello"
    );
}

/// The conversation is cut after every single byte of it.
#[cfg(unix)]
#[test]
fn it_dies_at_every_point() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let hello = json!({ "id": 0, "ok": { "protocol": 1, "name": "", "version": "", "language": "", "dtype": "f64", "formulas": [] } });
    let (hello, answer) = (format!("{hello}\n"), "{\"id\":1,\"unsupported\":\"answer to 1\"}\n");
    let script =
        file("die.sh", "read -r hello; head -c $2 $1; test $4 = 0 && exit; read -r run; head -c $4 $3");
    let (hello_file, answer_file) = (file("hello", &hello), file("answer", answer));
    // What is said of an adapter that says so many bytes.
    let said = |count: usize| {
        let (first, second) = (count.min(hello.len()), count.saturating_sub(hello.len()));
        let command = format!("sh {script} {hello_file} {first} {answer_file} {second}");
        match Process::start(&command, LIMITS) {
            Ok(mut process) => ask(&mut process, 1).remove(0),
            Err(problem) => problem.to_string().split_once(": ").unwrap().1.to_owned(),
        }
    };
    let ended = "the adapter ended (exit status: 0)";
    assert_eq!(said(0), format!("{ended} before it answered hello"));
    for count in 1..hello.len() {
        assert_eq!(said(count), format!("{ended} in the middle of its answer to hello"), "{count} bytes");
    }
    assert_eq!(said(hello.len()), format!("died: {ended}"));
    for count in 1..answer.len() {
        assert_eq!(
            said(hello.len() + count),
            format!("died: {ended} in the middle of a line"),
            "{count} bytes"
        );
    }
    assert_eq!(said(hello.len() + answer.len()), "answer to 1");
}

#[test]
fn it_never_says_hello() {
    if no_python() {
        return;
    }
    let script = Script::new("note('number', os.getpid())\ntime.sleep(600)");
    let start = Instant::now();
    assert_eq!(
        script.refused(Limits { hello: Duration::from_secs(3), ..LIMITS }),
        "the adapter did not answer hello within 3.0 s; it must flush its output after each line"
    );
    assert!(start.elapsed() < Duration::from_secs(15));
    assert!(is_gone(&script.file("number")));
}

#[test]
fn its_hello_is_no_hello() {
    if no_python() {
        return;
    }
    let refused =
        |hello: &str| Script::new(&format!("send({hello:?} + '\\n')\ntime.sleep(600)")).refused(LIMITS);
    assert_eq!(
        refused("Loading the model ..."),
        "the adapter printed a line that is not JSON (expected value at line 1 column 1): Loading the model ...; print \
         answers alone to stdout, and everything else to stderr"
    );
    assert_eq!(refused("[]"), "the answer to hello is not an object");
    assert_eq!(refused(r#"{"id": 5, "ok": {}}"#), "the answer has the id 5 where 0 was asked");
    assert_eq!(
        refused(r#"{"id": 0, "error": "no"}"#),
        r#"the answer to hello is {"id":0,"error":"no"} where `ok` is needed"#
    );
    assert_eq!(
        refused(r#"{"id": 0, "ok": {"protocol": 2}}"#),
        "the answer to hello has the protocol 2; this judge speaks 1"
    );
    let twice = json!({"id": 0, "ok": {"protocol": 1, "name": "", "version": "", "language": "", "dtype": "f64",
                                       "formulas": ["kl.estimate", "kl.estimate"]}});
    assert_eq!(refused(&twice.to_string()), "the answer to hello has the formula `kl.estimate` twice");
}

#[test]
fn it_dies_in_the_middle_of_a_line_and_is_started_again() {
    if no_python() {
        return;
    }
    let script = Script::new(
        "def evil(id):\n  if id == 2:\n    send('{\"id\": 2, \"ok\"')\n    sys.exit('out of cheese')\n  answer(id)\nserve(evil)",
    );
    assert_eq!(
        script.asked(LIMITS, 3),
        [
            "answer to 1",
            "died: the adapter ended (exit status: 1) in the middle of a line; the end of its stderr: out of cheese",
            "answer to 4", // 3 was the second hello
        ]
    );
}

#[test]
fn a_whole_answer_without_a_newline_before_the_end_is_cut_too() {
    if no_python() {
        return;
    }
    let script =
        Script::new("serve(lambda id: [send(json.dumps({'id': id, 'unsupported': ''})), sys.exit(0)])");
    assert_eq!(script.asked(LIMITS, 1), ["died: the adapter ended (exit status: 0) in the middle of a line"]);
}

#[test]
fn it_answers_twice() {
    if no_python() {
        return;
    }
    let script = Script::new("serve(lambda id: [answer(id), answer(id)])");
    let garbled = |before, id| {
        format!("garbled: the answer has the id {before}, which was answered before, where {id} was asked")
    };
    assert_eq!(
        script.asked(LIMITS, 5),
        [
            "answer to 1".to_owned(),
            garbled(1, 2),
            "answer to 3".to_owned(), // both answers to 2 were too late
            garbled(3, 4),
            "answer to 5".to_owned(),
        ]
    );
}

#[test]
fn it_numbers_its_answers_wrongly() {
    if no_python() {
        return;
    }
    let script = Script::new("serve(lambda id: answer(id + 1))");
    assert_eq!(
        script.asked(LIMITS, 2),
        [
            "garbled: the answer has the id 2 where 1 was asked",
            "garbled: the answer has the id 3 where 2 was asked",
        ]
    );
    let script =
        Script::new("serve(lambda id: answer(str(id)) if id % 2 else send('{\"unsupported\": \"\"}\\n'))");
    assert_eq!(
        script.asked(LIMITS, 2),
        [
            "garbled: the answer has the id \"1\" where 1 was asked",
            "garbled: the answer has no id where 2 was asked",
        ]
    );
}

#[test]
fn a_line_of_100_mb_is_not_held() {
    if no_python() {
        return;
    }
    let script = Script::new(
        "def evil(id):\n  if id == 1:\n    for _ in range(100): send('x' * 1000000)\n    send('\\n')\n  answer(id)\nserve(evil)",
    );
    let shown = "x".repeat(200);
    assert_eq!(
        script.asked(LIMITS, 2),
        [
            format!(
                "garbled: the adapter printed a line of more than {LONGEST_LINE} bytes, which begins: {shown}"
            ),
            "answer to 2".to_owned(),
        ]
    );
}

#[test]
fn a_line_without_an_end_is_not_waited_for() {
    if no_python() {
        return;
    }
    let script = Script::new("def evil(id):\n  while True: send('x' * 100000)\nserve(evil)");
    let start = Instant::now();
    let said = script.asked(IMPATIENT, 3);
    assert!(said[0].starts_with("garbled: the adapter printed a line of more than"), "{said:?}");
    assert_eq!(said[1], "hung");
    assert!(said[2].starts_with("garbled: the adapter printed a line of more than"), "{said:?}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn it_prints_rubbish() {
    if no_python() {
        return;
    }
    let script = Script::new(
        "def evil(id):\n  if id == 1: sys.stdout.buffer.write(b'\\xff\\x00\\x1b[31m\\n')\n  answer(id)\nserve(evil)",
    );
    let said = script.asked(LIMITS, 2);
    assert!(said[0].starts_with("garbled: the adapter printed a line that is not JSON"), "{said:?}");
    assert!(said[0].contains(": \u{fffd}  [31m; print"), "{said:?}");
    assert_eq!(said[1], "answer to 2"); // and not what came late for 1
    let deep = Script::new("serve(lambda id: send('[' * 100000 + '\\n'))");
    assert!(deep.asked(LIMITS, 1)[0].contains("recursion limit exceeded"));
}

#[test]
fn it_gives_what_is_no_number() {
    if no_python() {
        return;
    }
    let ok = |data: &str| {
        let code = format!("serve(lambda id: say(id, ok={{'kl': {{'shape': [1], 'data': [{data}]}}}}))");
        Script::new(&code).asked(LIMITS, 1).remove(0)
    };
    let bare = ok("float('nan')");
    assert!(bare.starts_with("garbled: the adapter printed a line that is not JSON (expected"), "{bare}");
    assert!(
        bare.ends_with("in JSON, NaN and infinities are the texts \"NaN\", \"Infinity\" and \"-Infinity\""),
        "{bare}"
    );
    assert_eq!(
        ok("None"),
        "garbled: input `kl`: entry 0 is null, where a number, \"NaN\", \"Infinity\" or \"-Infinity\" is wanted"
    );
    assert!(ok("'NaN'").contains("Answer({\"kl\": Array { shape: [1], data: Real([NaN]) }})"));
}

#[test]
fn it_never_answers_and_is_started_again() {
    if no_python() {
        return;
    }
    // The answer to the first question comes too late; it is not the answer to the second.
    let script = Script::new(
        "def evil(id):\n  if first(): note('number', os.getpid()); time.sleep(600)\n  answer(id)\nserve(evil)",
    );
    let start = Instant::now();
    assert_eq!(script.asked(IMPATIENT, 3), ["hung", "answer to 3", "answer to 4"]);
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(is_gone(&script.file("number")));
}

#[test]
fn it_floods_its_output_unasked() {
    if no_python() {
        return;
    }
    let script =
        Script::new("say(0, ok=HELLO)\nwhile True: send('{\"id\": 1, \"what\": \"ever\"}\\n' * 1000)");
    let start = Instant::now();
    let said = script.asked(IMPATIENT, 40);
    assert_eq!(said[0], "garbled: the answer has the unknown field `what`");
    // What it says about 1 is late from then on, and nothing else is ever heard.
    assert_eq!(said[1], "hung");
    assert_eq!(said[39], said[38]);
    assert!(said[39].starts_with("died: not asked, since the adapter failed 2 times"), "{said:?}");
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn it_floods_its_stderr() {
    if no_python() {
        return;
    }
    let script = Script::new(
        "def evil(id):\n  for _ in range(2000): sys.stderr.write('y' * 999 + '\\n')\n  sys.stderr.write('z' * 3000000)\n  answer(id)\nserve(evil)",
    );
    assert_eq!(script.asked(LIMITS, 2), ["answer to 1", "answer to 2"]);
}

#[test]
fn it_closes_its_input_or_its_output() {
    if no_python() {
        return;
    }
    let script = Script::new("def evil(id):\n  os.close(0)\n  answer(id)\n  time.sleep(600)\nserve(evil)");
    let start = Instant::now();
    assert_eq!(script.asked(LIMITS, 2), ["answer to 1", "died: the adapter closed its input"]);
    let script = Script::new("def evil(id):\n  os.close(1)\n  time.sleep(600)\nserve(evil)");
    assert_eq!(script.asked(LIMITS, 1), ["died: the adapter closed its output"]);
    assert!(start.elapsed() < Duration::from_secs(15), "no time limit was waited for");
}

#[test]
fn it_answers_without_reading() {
    if no_python() {
        return;
    }
    let script =
        Script::new("say(0, ok=HELLO)\nfor id in range(1, 1000): send('rubbish\\n')\ntime.sleep(600)");
    let mut process = Process::start(&script.command(), IMPATIENT).unwrap();
    // Questions of 100 KB, which no pipe holds.
    let want: Vec<String> = (0..10_000).map(|number| format!("a name {number}")).collect();
    let request = Request { formula: "kl.estimate", question: &QUESTION, want: &want };
    let start = Instant::now();
    let faults: Vec<Fault> = (0..20).map(|_| process.ask(&request).unwrap_err()).collect();
    assert!(faults.contains(&Fault::Died("the adapter does not read its input".to_owned())), "{faults:?}");
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn it_ignores_bye() {
    if no_python() {
        return;
    }
    let script = Script::new(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('number', os.getpid())\n\
         serve(answer, bye=lambda: time.sleep(600))",
    );
    let mut process = Process::start(&script.command(), LIMITS).unwrap();
    assert_eq!(ask(&mut process, 1), ["answer to 1"]);
    let start = Instant::now();
    drop(process);
    assert!(start.elapsed() < Duration::from_secs(8));
    assert!(is_gone(&script.file("number")));
}

#[test]
fn it_says_goodbye_in_peace() {
    if no_python() {
        return;
    }
    let script = Script::new("serve(answer, bye=lambda: [time.sleep(0.3), note('done', ''), sys.exit(0)])");
    drop(Process::start(&script.command(), LIMITS).unwrap());
    assert!(script.file("done").exists());
}

#[test]
fn its_children_hold_the_pipes_open() {
    if no_python() {
        return;
    }
    let script = Script::new(
        "def evil(id):\n  note('number', subprocess.Popen(['sleep', '600']).pid)\n  os._exit(5)\nserve(evil)",
    );
    let start = Instant::now();
    assert_eq!(script.asked(LIMITS, 1), ["died: the adapter ended (exit status: 5)"]);
    assert!(start.elapsed() < Duration::from_secs(15), "no time limit was waited for");
    assert!(is_gone(&script.file("number")));
    // Nor is a child left behind by one that ends well.
    let script = Script::new("note('number', subprocess.Popen(['sleep', '600']).pid)\nserve(answer)");
    assert_eq!(script.asked(LIMITS, 1), ["answer to 1"]);
    assert!(is_gone(&script.file("number")));
}

#[test]
fn it_is_not_started_again_for_ever() {
    if no_python() {
        return;
    }
    let script = Script::new("serve(lambda id: sys.exit('again'))");
    let said = script.asked(LIMITS, 100);
    let died = "the adapter ended (exit status: 1); the end of its stderr: again";
    assert!(said[..4].iter().all(|said| *said == format!("died: {died}")), "{said:?}");
    let given_up = format!(
        "died: not asked, since the adapter failed 4 times without an answer in between; the last time: {died}"
    );
    assert!(said[4..].iter().all(|said| *said == given_up), "{said:?}");
    // An answer starts the count anew.
    let script =
        Script::new("serve(lambda id: answer(id) if first('a') or not first('b') else sys.exit('again'))");
    let said = script.asked(Limits { restarts: 1, ..LIMITS }, 3);
    assert_eq!(said, ["answer to 1".to_owned(), format!("died: {died}"), "answer to 4".to_owned()]);
}

#[test]
fn it_is_another_one_when_started_again() {
    if no_python() {
        return;
    }
    let script = Script::new("HELLO['dtype'] = 'f64' if first() else 'f32'\nserve(lambda id: sys.exit(1))");
    assert_eq!(
        script.asked(LIMITS, 2),
        [
            "died: the adapter ended (exit status: 1)",
            "died: the adapter was started again: its answer to hello is another one than at first",
        ]
    );
}

#[test]
fn lines_are_those_of_a_plain_reading_however_they_come() {
    let text = b"a\n\nlonger than ten\n0123456789\n01234567890\nb\r\nlast";
    for piece in 1..text.len() + 1 {
        let lines: Vec<Line> = Lines::new(std::io::BufReader::with_capacity(piece, &text[..]), 10).collect();
        let whole = |text: &str| Line::Whole(text.into());
        // How much is kept of what is too long depends on the pieces.
        let kinds: Vec<Line> = lines
            .into_iter()
            .map(|line| if matches!(line, Line::TooLong(_)) { Line::TooLong(Vec::new()) } else { line })
            .collect();
        let too_long = Line::TooLong(Vec::new());
        let last = Line::Cut("last".into());
        assert_eq!(
            kinds,
            [whole("a"), whole(""), too_long.clone(), whole("0123456789"), too_long, whole("b\r"), last],
            "in pieces of {piece}"
        );
    }
}

/// Runs the command; its exit status and what it said.
fn oracle(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_grpo-oracle")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_run_that_was_not_complete_is_never_green() {
    if no_python() {
        return;
    }
    let verify = |code: &str, more: &[&str]| {
        let script = Script::new(code);
        oracle(&[&["verify", "--adapter", &script.command(), "--no-relations"], more].concat())
    };
    assert_eq!(verify("serve(answer)", &[]).0, Some(3), "nothing was judged");
    let (status, said) = verify("serve(lambda id: sys.exit(1))", &["--restarts", "1"]);
    assert_eq!(status, Some(3), "{said}");
    let zero = "serve(lambda id: say(id, ok={'kl': 0, 'grad:logp': 0, 'grad:logp_ref': 0}))";
    let (status, said) = verify(zero, &[]);
    assert_eq!(status, Some(1), "{said}");
    let (status, said) = verify("sys.exit(0)", &[]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("the adapter ended (exit status: 0) before it answered hello"), "{said}");
    let (status, said) = oracle(&["verify", "--adapter", "true", "--builtin", "reference"]);
    assert_eq!(status, Some(2), "{said}");
    assert_eq!(oracle(&["verify"]).0, Some(2));
}

#[cfg(unix)]
#[test]
fn a_judge_that_is_told_to_end_takes_its_adapter_along() {
    if no_python() {
        return;
    }
    let script = Script::new("note('number', os.getpid())\nserve(lambda id: time.sleep(600))");
    let mut judge = Command::new(env!("CARGO_BIN_EXE_grpo-oracle"))
        .args(["verify", "--adapter", &script.command()])
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !script.file("number").exists() && Instant::now() < until {
        sleep(Duration::from_millis(20));
    }
    sleep(Duration::from_millis(300));
    let told = Command::new("kill").args(["-TERM", &judge.id().to_string()]).status().unwrap();
    assert!(told.success());
    assert_eq!(judge.wait().unwrap().code(), None, "ended by the signal");
    assert!(is_gone(&script.file("number")));
}

/// The reference behind pipes, by way of `grpo-oracle eval`: right in f64.
const RIGHT: &str = r#"
HELLO["formulas"] = ["kl.estimate", "advantage.group_ppo"]
for line in sys.stdin:
    question = json.loads(line)
    id = question["id"]
    if question["cmd"] == "hello":
        say(id, ok=HELLO)
    elif question["cmd"] == "run":
        if question["formula"] != "kl.estimate":
            answer(id)
            continue
        asked = json.dumps({"options": question["options"], "inputs": question["inputs"]})
        run = subprocess.run([sys.argv[1], "eval", question["formula"]], input=asked, capture_output=True, text=True)
        said = json.loads(run.stdout)
        if "error" in said:
            say(id, error=said["error"])
        else:
            gradients = {"grad:" + name: array for name, array in said["gradients"].items()}
            say(id, ok={name: array for name, array in {**said["outputs"], **gradients}.items() if name in question["want"]})
"#;

#[test]
fn answers_in_a_file_are_judged_like_those_of_a_pipe() {
    if no_python() {
        return;
    }
    let script = Script::new(RIGHT);
    let file = |name: &str| script.file(name).display().to_string();
    let (prompts, answers) = (file("prompts.jsonl"), file("answers.jsonl"));
    let selection = ["--formula", "kl.estimate", "--no-relations"];
    let (status, said) = oracle(&[&["export", "--out", &prompts, "--dtype", "f64"], &selection[..]].concat());
    assert_eq!(status, Some(0), "{said}");
    let answered = Command::new("python3")
        .args([&file("evil.py"), env!("CARGO_BIN_EXE_grpo-oracle")])
        .stdin(fs::File::open(&prompts).unwrap())
        .stdout(fs::File::create(&answers).unwrap())
        .status();
    assert!(answered.unwrap().success());

    let text = fs::read_to_string(&answers).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let prompted = fs::read_to_string(&prompts).unwrap();
    assert_eq!(lines.len(), prompted.lines().count() - 1, "bye has no answer");
    for secret in ["\"case\"", "\"flags\"", "\"expect", "\"bounds\""] {
        assert!(!prompted.contains(secret), "{secret} is told");
    }
    let judge = |lines: &[&str], more: &[&str]| {
        fs::write(&answers, lines.join("\n")).unwrap();
        oracle(&[&["judge", &answers], &selection[..], more].concat())
    };
    let by_pipe = format!("{} {}", script.command(), env!("CARGO_BIN_EXE_grpo-oracle"));
    let by_pipe = oracle(&[&["verify", "--adapter", &by_pipe], &selection[..]].concat());
    assert_eq!(by_pipe.0, Some(0), "{}", by_pipe.1);
    assert_eq!(judge(&lines, &[]), by_pipe);
    let backwards: Vec<&str> = lines.iter().rev().copied().collect();
    assert_eq!(judge(&backwards, &["--dtype", "f64"]), by_pipe);
    // Without the answer to hello, the format must be told.
    assert_eq!(judge(&lines[1..], &["--dtype", "f64"]).0, Some(0));
    let (status, said) = judge(&lines[1..], &[]);
    assert_eq!(status, Some(2));
    assert!(said.contains("does not say what the implementation computes in; add the --dtype"), "{said}");

    assert_eq!(judge(&lines[..lines.len() - 1], &[]).0, Some(3), "an answer is missing");
    assert_eq!(judge(&[], &["--dtype", "f64"]).0, Some(3), "every answer is missing");
    let mut wrong: Value = serde_json::from_str(lines[1]).unwrap();
    wrong["ok"]["kl"] = json!({ "shape": [1], "data": [42] });
    let wrong = wrong.to_string();
    assert_eq!(judge(&[&[lines[0], &wrong], &lines[2..]].concat(), &[]).0, Some(1), "an answer is wrong");

    let refused = |lines: &[&str], more: &[&str]| {
        let (status, said) = judge(lines, more);
        assert_eq!(status, Some(2), "{said}");
        said
    };
    assert!(refused(&[&lines[..], &lines[1..2]].concat(), &[]).contains("a second time, after line 2"));
    assert!(
        refused(&["", "{\"id\": 12, \"unsupported\": \"\"}"], &["--dtype", "f64"])
            .contains("line 2 answers the question 12, which is none of these")
    );
    assert!(refused(&["rubbish"], &[]).contains("line 1 is not JSON"));
    assert!(refused(&["{}"], &[]).contains("line 1 has no id"));
    assert!(refused(&lines, &["--dtype", "f32"]).contains("computes in f64 and is judged in f32"));
    // Another plan has other ids.
    let said = refused(&lines, &["--formula", "kl.controller"]);
    assert!(said.contains("which is none of these; judge with the same version"), "{said}");
}
