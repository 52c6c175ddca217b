//! What is told of a run: table, JSON lines, JUnit, page, badge, and what changed since another run.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use grpo_oracle::conformance::report::{
    Detail, Entry, Header, LinesFile, Record, badge, diff, diff_table, html, junit, read, table,
};
use grpo_oracle::conformance::{
    Dtype, Fault, Hello, Reference, Reply, Request, Status, Subject, Task, Verdict, plan, run,
};
use grpo_oracle::fixture::{self, Fixture};
use grpo_oracle::value::{Array, Data};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Right about most things, and wrong in every way that there is a word for.
struct Wrong(Reference);

impl Subject for Wrong {
    fn hello(&self) -> &Hello {
        self.0.hello()
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        let reply = self.0.ask(request);
        match (request.formula, reply) {
            ("kl.estimate", Ok(Reply::Answer(mut answer))) => {
                for (name, array) in &mut answer {
                    if name.starts_with("grad:") {
                        array.data = Data::Real(array.reals().iter().map(|entry| -entry).collect());
                    }
                }
                Ok(Reply::Answer(answer))
            }
            ("mask.sum", Ok(Reply::Error { .. })) => {
                let zero = Array { shape: Vec::new(), data: Data::Real(vec![0.0]) };
                Ok(Reply::Answer(request.want.iter().map(|name| (name.clone(), zero.clone())).collect()))
            }
            ("mask.mean", _) => Ok(Reply::Unsupported("means are <b>not</b> done here".to_owned())),
            ("sampling.repeat", _) => Err(Fault::Died("ended with \u{1b}[31m status 1 & \"]]>".to_owned())),
            ("value.clipped", _) => Err(Fault::Hung(std::time::Duration::from_secs(2))),
            (_, reply) => reply,
        }
    }
}

const JUDGED: [&str; 7] = [
    "advantage.group_norm",
    "kl.estimate",
    "mask.mean",
    "mask.sum",
    "mask.variance",
    "sampling.repeat",
    "value.clipped",
];

/// The run of a subject over the first cases of a few formulas, at a time that is always the same.
fn recorded(subject: &mut dyn Subject) -> Record {
    let fixtures: Vec<Fixture> = fixture::built_in().unwrap();
    let tasks: Vec<Task> = JUDGED
        .iter()
        .flat_map(|id| plan(&fixtures, &[(*id).to_owned()], false).into_iter().take(6))
        .collect();
    let about: Vec<Fixture> =
        fixtures.into_iter().filter(|fixture| JUDGED.contains(&fixture.formula.as_str())).collect();
    let header = Header::now(subject.hello(), "an adapter", tasks.len(), &about);
    let mut record = Record::new(Header { started: 1_792_579_388, oracle: "0.1.0".to_owned(), ..header });
    _ = run(subject, "an adapter", tasks, |outcome| {
        record.entries.push(Entry { seconds: 0.0, ..Entry::of(outcome) });
    });
    record.seconds = Some(1.5);
    record
}

fn wrong() -> Record {
    let mut record = recorded(&mut Wrong(Reference::new(Dtype::F32)));
    // Among the first cases of these formulas there may be none that f32 cannot decide.
    let last = record.entries.iter_mut().rfind(|entry| entry.formula == "mask.variance").unwrap();
    set(last, Status::NotApplicable);
    last.message = "f32 does not represent the inputs".to_owned();
    record
}

/// Lets a question have gone another way.
fn set(entry: &mut Entry, status: Status) {
    let nothing = Detail { options: Map::new(), inputs: BTreeMap::new(), error: None, outputs: Vec::new() };
    entry.status = status;
    entry.detail = (status != Status::Pass).then_some(nothing);
}

fn right() -> Record {
    static RIGHT: LazyLock<Record> = LazyLock::new(|| recorded(&mut Reference::new(Dtype::F64)));
    RIGHT.clone()
}

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

/// The record as it is read back from the lines that are written of it.
fn reread(record: &Record, keep: impl FnOnce(String) -> String) -> grpo_oracle::Result<Record> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.jsonl");
    let mut lines = LinesFile::create(&path, &record.header)?;
    record.entries.iter().try_for_each(|entry| lines.add(entry))?;
    lines.finish(record)?;
    fs::write(&path, keep(fs::read_to_string(&path).unwrap())).unwrap();
    read(&path)
}

#[test]
fn the_sample_has_every_status() {
    assert!(wrong().counts().values().all(|&count| count > 0), "{:?}", wrong().counts());
    assert_eq!(right().verdict(), Verdict::Passed);
}

#[test]
fn the_table_says_what_is_wrong_and_how_to_go_on() {
    insta::assert_snapshot!(plain(&table(&wrong())));
}

#[test]
fn the_table_of_a_run_that_passed() {
    insta::assert_snapshot!(plain(&table(&right())));
}

#[test]
fn lines_are_read_back_as_they_were() {
    for record in [wrong(), right()] {
        assert_eq!(reread(&record, |text| text).unwrap(), record);
    }
}

#[test]
fn lines_cut_off_anywhere_are_read_up_to_there_and_never_pass() {
    let record = right();
    let whole = reread(&record, |text| text).unwrap();
    assert_eq!(whole.verdict(), Verdict::Passed);
    let mut length = 0;
    reread(&record, |text| {
        length = text.len();
        text
    })
    .unwrap();
    for cut in (1..length).step_by(97).chain([length - 1]) {
        match reread(&record, |text| text[..text.floor_char_boundary(cut)].to_owned()) {
            Ok(read) => {
                assert!(!read.is_complete(), "cut at {cut}");
                assert_eq!(read.verdict(), Verdict::Incomplete, "cut at {cut}");
                assert_eq!(read.entries, record.entries[..read.entries.len()]);
            }
            Err(error) => assert!(error.to_string().contains("no whole line"), "cut at {cut}: {error}"),
        }
    }
}

#[test]
fn lines_that_are_not_a_report_are_refused() {
    let record = wrong();
    let line = |text: &str, index: usize| text.lines().nth(index).unwrap().to_owned();
    let refused = |keep: &dyn Fn(String) -> String| reread(&record, keep).unwrap_err().to_string();
    let problems = [
        refused(&|_| "\n".to_owned()),
        refused(&|text| text.replacen("\"report\":1", "\"report\":2", 1)),
        refused(&|text| text.replacen("\"planned\"", "\"plan\"", 1)),
        refused(&|text| text.replacen("\"dtype\":\"f32\"", "\"dtype\":\"f31\"", 1)),
        refused(&|text| text.replacen("\"status\":\"pass\"", "\"status\":\"green\"", 1)),
        refused(&|text| text.replacen("\"status\":\"unsupported\"", "\"status\":\"pass\"", 1)),
        refused(&|text| text.replacen("\"shape\":[", "\"shape\":[7,", 1)),
        refused(&|text| format!("{text}{}\n", line(&text, 1))),
        refused(&|text| format!("{}\n{}\n{}\n", line(&text, 0), line(&text, 1), line(&text, 1))),
        refused(&|text| text.replacen("\"complete\":true", "\"complete\":false", 1)),
        refused(&|text| text.replacen("{\"formula\"", "{\"surprise\":1,\"formula\"", 1)),
        refused(&|text| text.replacen(&format!("\"planned\":{}", record.header.planned), "\"planned\":3", 1)),
    ];
    let problems = problems.map(|problem| problem.split_once("jsonl: ").unwrap().1.to_owned());
    insta::assert_snapshot!(problems.join("\n"));
}

/// Every element's name with its attributes.
fn elements(xml: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut reader = Reader::from_str(xml);
    let mut found = Vec::new();
    let element = |start: &BytesStart<'_>| {
        let name = start.name().as_ref().to_owned();
        let attributes = start.attributes().map(|attribute| {
            let attribute = attribute.unwrap();
            let value = quick_xml::escape::unescape(&attribute.value).unwrap().into_owned();
            (attribute.key.as_ref().to_owned(), value)
        });
        (name, attributes.collect())
    };
    loop {
        match reader.read_event().unwrap() {
            Event::Start(start) | Event::Empty(start) => found.push(element(&start)),
            Event::Eof => return found,
            _ => {}
        }
    }
}

/// The sum of an attribute over the suites.
fn sum(elements: &[(String, Vec<(String, String)>)], name: &str) -> usize {
    let suites = elements.iter().filter(|element| element.0 == "testsuite");
    let value = |suite: &(String, Vec<(String, String)>)| {
        suite.1.iter().find(|(key, _)| key == name).unwrap().1.parse::<usize>().unwrap()
    };
    suites.map(value).sum()
}

#[test]
fn junit_counts_what_it_has() {
    for record in [wrong(), right(), cut(right())] {
        let xml = junit(&record).unwrap();
        assert!(!xml.contains('\u{1b}'), "a character that XML has no way to say");
        let elements = elements(&xml);
        let count = |name: &str| elements.iter().filter(|element| element.0 == name).count();
        assert_eq!(sum(&elements, "tests"), count("testcase"));
        assert_eq!(sum(&elements, "failures"), count("failure"));
        assert_eq!(sum(&elements, "errors"), count("error"));
        assert_eq!(sum(&elements, "skipped"), count("skipped"));
        let skipped = record.counts()[&Status::Unsupported] + record.counts()[&Status::NotApplicable];
        assert_eq!(count("skipped"), skipped);
    }
}

#[test]
fn junit_of_a_run_with_every_status() {
    let mut record = wrong();
    for formula in JUDGED {
        let mut seen = 0;
        record.entries.retain(|entry| {
            seen += usize::from(entry.formula == formula);
            entry.formula != formula || seen <= 2 || entry.status == Status::NotApplicable
        });
    }
    record.header.planned = record.entries.len();
    insta::assert_snapshot!(junit(&record).unwrap());
}

/// What the page tells scripts.
fn page_data(page: &str) -> Value {
    let (_, after) = page.split_once("<script type=\"application/json\" id=\"report\">").unwrap();
    serde_json::from_str(after.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn the_page_holds_the_run_and_stands_alone() {
    let record = wrong();
    let page = html(&record).unwrap();
    let data = page_data(&page);
    assert_eq!(data["verdict"], "failed");
    assert_eq!(data["complete"], true);
    assert_eq!(data["hello"]["dtype"], "f32");
    let cases = data["cases"].as_array().unwrap();
    assert_eq!(cases.len(), record.entries.len());
    for (case, entry) in cases.iter().zip(&record.entries) {
        assert_eq!(case[0], json!(entry.formula));
        assert_eq!(case[1], json!(entry.case));
        assert_eq!(case[2], json!(entry.status.word()));
        assert!(page.contains(&entry.case), "{} is not on the page", entry.case);
        if entry.is_bad() {
            assert!(page.contains(&format!("id=\"{}/{}\"", entry.formula, entry.case)), "{}", entry.case);
        }
    }
    assert!(page.contains("means are &lt;b&gt;not&lt;&#x2f;b&gt; done here"), "what adapters say is text");
    for word in ["src=", "href=\"http", "url(", "@import", "fetch("] {
        assert!(!page.contains(word), "the page asks for something: {word}");
    }
    assert!(page.contains("MUST"), "the clauses' text");
}

#[test]
fn links_within_the_page_lead_somewhere() {
    let page = html(&wrong()).unwrap();
    let ids: HashSet<&str> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let links: Vec<&str> = page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(links.len() > 20);
    for link in links {
        assert!(ids.contains(link), "#{link} leads nowhere");
    }
}

#[test]
fn a_text_that_ends_a_script_does_not_end_the_page() {
    let mut record = wrong();
    record.header.hello.name = "</script><script>alert(1)</script>".to_owned();
    record.header.adapter = "<img onerror=alert(1)>".to_owned();
    let page = html(&record).unwrap();
    assert_eq!(page.matches("<script").count(), 2);
    assert!(!page.contains("<img"));
    assert_eq!(page_data(&page)["adapter"], "<img onerror=alert(1)>");
}

#[test]
fn the_page_of_all_golden_cases_is_small() {
    let mut subject = Reference::new(Dtype::F64);
    let fixtures = fixture::built_in().unwrap();
    let tasks = plan(&fixtures, &subject.hello().formulas.clone(), false);
    let mut record = Record::new(Header::now(subject.hello(), "builtin", tasks.len(), &fixtures));
    _ = run(&mut subject, "builtin", tasks, |outcome| record.entries.push(Entry::of(outcome)));
    record.seconds = Some(1.0);
    assert_eq!(record.verdict(), Verdict::Passed);
    assert!(html(&record).unwrap().len() < 3 << 20);
    // However wrong an adapter is, its page can be opened.
    let mut all = record.clone();
    all.entries.iter_mut().for_each(|entry| entry.status = Status::Fail);
    assert!(html(&all).unwrap().len() < 3 << 20);
}

#[test]
fn badges() {
    let line = |record: &Record| badge(record).to_string();
    let unsupported = changed(right(), 0, Status::Unsupported);
    let hung = changed(right(), 0, Status::Hang);
    let runs = [right(), unsupported, wrong(), hung, cut(right()), cut(wrong())];
    insta::assert_snapshot!(runs.iter().map(line).collect::<Vec<_>>().join("\n"));
}

/// The run as it would stand had it been cut off before its end.
fn cut(record: Record) -> Record {
    let entries = record.entries[..record.entries.len() - 3].to_vec();
    Record { entries, seconds: None, ..record }
}

fn changed(mut record: Record, index: usize, status: Status) -> Record {
    set(&mut record.entries[index], status);
    record
}

/// Runs that must not look green, whatever else they look like.
fn not_green() -> Vec<(&'static str, Record)> {
    let with = |change: &dyn Fn(&mut Record)| {
        let mut record = right();
        change(&mut record);
        record
    };
    let last = right().entries.len() - 1;
    vec![
        ("wrong", wrong()),
        ("cut off", cut(right())),
        ("cut off, wrong", cut(wrong())),
        ("nothing put", Record::new(right().header)),
        ("no end", with(&|record| record.seconds = None)),
        ("an outcome missing", with(&|record| _ = record.entries.pop())),
        ("nothing planned", Record { entries: Vec::new(), ..with(&|record| record.header.planned = 0) }),
        ("an error", changed(right(), 3, Status::Error)),
        ("a hang", changed(right(), last, Status::Hang)),
        (
            "nothing judged",
            with(&|record| {
                record.entries.iter_mut().for_each(|entry| set(entry, Status::NotApplicable));
            }),
        ),
        (
            "nothing supported",
            with(&|record| {
                record.entries.iter_mut().for_each(|entry| set(entry, Status::Unsupported));
            }),
        ),
    ]
}

#[test]
fn what_is_not_green_is_green_in_no_report() {
    for (name, record) in not_green() {
        assert_ne!(record.verdict(), Verdict::Passed, "{name}");
        assert_green(name, &record, false);
    }
    assert_green("passed", &right(), true);
    assert_green("some unsupported", &changed(right(), 0, Status::Unsupported), true);
}

fn assert_green(name: &str, record: &Record, is_green: bool) {
    let table = plain(&table(record));
    assert_eq!(table.lines().last().unwrap().starts_with("PASSED"), is_green, "{name}: {table}");
    let elements = elements(&junit(record).unwrap());
    let red = sum(&elements, "failures") + sum(&elements, "errors");
    assert_eq!(red == 0 && sum(&elements, "tests") > 0, is_green, "{name}: JUnit");
    let page = html(record).unwrap();
    assert_eq!(page_data(&page)["verdict"] == "passed", is_green, "{name}: page");
    assert_eq!(page.contains("class=\"verdict passed\""), is_green, "{name}: page");
    assert_eq!(page.contains("<title>passed"), is_green, "{name}: page");
    let badge = badge(record);
    assert_eq!(badge["color"].as_str().unwrap().contains("green"), is_green, "{name}: {badge}");
    assert_eq!(badge["isError"] == false, is_green, "{name}: {badge}");
    // A number of seconds is only written of a run that came to its end.
    let read = reread(record, |text| text).unwrap();
    assert_eq!(read.verdict() == Verdict::Passed, is_green, "{name}: JSON lines");
}

#[test]
fn what_changed_between_two_runs() {
    let mut new = changed(changed(right(), 0, Status::Fail), 1, Status::Unsupported);
    new.entries[0].message = "`advantages` entry 3 is 1 where 0 is expected".to_owned();
    set(&mut new.entries[2], Status::NotApplicable);
    new.entries[5].case = "another".to_owned();
    let gone = new.entries.pop().unwrap();
    new.header.planned -= 1;
    new.header.hello.version = "0.2.0".to_owned();
    new.header.hello.dtype = Dtype::F32;
    let old = changed(right(), 4, Status::Hang);
    let diff = diff(&old, &new);
    assert!(diff.is_worse());
    assert_eq!(gone.case, old.entries.last().unwrap().case);
    insta::assert_snapshot!(format!("{}\n{:#}\n", plain(&diff_table(&diff)), diff.to_json()));
}

#[test]
fn only_what_got_worse_is_worse() {
    let at = |status| changed(right(), 0, status);
    use Status::{Error, Fail, Hang, NotApplicable, Pass, Unsupported};
    for old in Status::ALL {
        for new in Status::ALL {
            let is_bad = |status| [Fail, Error, Hang].contains(&status);
            let is_worse = is_bad(new) && !is_bad(old) || (old, new) == (Pass, Unsupported);
            assert_eq!(diff(&at(old), &at(new)).is_worse(), is_worse, "{old:?} to {new:?}");
        }
    }
    assert!(!diff(&right(), &right()).is_worse());
    assert!(diff(&right(), &cut(right())).is_worse(), "what is not there may be worse");
    let fewer = |status| {
        let mut record = at(status);
        record.entries.remove(0);
        record.header.planned -= 1;
        record
    };
    assert!(diff(&right(), &fewer(Pass)).is_worse(), "what passed is gone");
    assert!(!diff(&at(NotApplicable), &fewer(Pass)).is_worse());
    assert!(diff(&fewer(Pass), &at(Fail)).is_worse(), "what is new is wrong");
    assert!(!diff(&fewer(Pass), &right()).is_worse());
}

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_grpo-oracle")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn one_run_writes_every_report_and_they_can_be_made_again() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let files = |end: &str| ["html", "junit", "badge"].map(|kind| path(&format!("{kind}{end}")));
    let verify = ["verify", "--builtin", "reference", "--formula", "mask.", "--no-relations"];
    let [page, xml, badge] = files("-1");
    let lines = path("run.jsonl");
    let reports = ["--html", &page, "--junit", &xml, "--badge", &badge, "--jsonl", &lines];
    let output = command(&[&verify[..], &reports].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let shown = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(shown.contains("PASSED") && !shown.contains('\u{1b}'), "{shown}");
    assert!(output.stderr.is_empty(), "no progress where there is no terminal: {}", said(&output));

    let [page_2, xml_2, badge_2] = files("-2");
    let output = command(&["report", &lines, "--html", &page_2, "--junit", &xml_2, "--badge", &badge_2]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), shown);
    for (first, second) in files("-1").iter().zip(&files("-2")) {
        assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap(), "{first}");
    }
    assert_eq!(command(&["diff", &lines, &lines]).status.code(), Some(0));
    let names = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 7, "nothing is left beside the reports");

    let quiet = command(&["report", &lines, "--quiet"]);
    assert_eq!(String::from_utf8(quiet.stdout).unwrap().lines().count(), 1);
}

#[test]
fn a_lines_file_without_its_end_is_incomplete_on_the_command_line() {
    let folder = TempDir::new().unwrap();
    let lines = folder.path().join("run.jsonl").display().to_string();
    let verify = ["verify", "--builtin", "reference", "--formula", "mask.sum", "--jsonl", &lines];
    assert_eq!(command(&verify).status.code(), Some(0));
    let whole = fs::read_to_string(&lines).unwrap();
    let cut = folder.path().join("cut.jsonl");
    let end = whole.trim_end().rfind('\n').unwrap();
    fs::write(&cut, &whole[..=end]).unwrap();
    let cut = cut.display().to_string();
    let output = command(&["report", &cut, "--quiet"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("INCOMPLETE"));
    assert_eq!(command(&["diff", &lines, &cut]).status.code(), Some(1));
}

#[test]
fn files_that_cannot_be_written_are_refused_before_anything_is_asked() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let verify = |reports: &[&str]| {
        // An adapter that would leave a trace if it were started.
        let trace = path("started");
        let adapter = format!("touch {trace}");
        let output = command(&[&["verify", "--adapter", &adapter][..], reports].concat());
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        let started = Path::new(&trace).exists();
        (said(&output), started)
    };
    for option in ["--jsonl", "--html", "--junit", "--badge"] {
        let (problem, started) = verify(&[option, &path("nowhere/report")]);
        assert!(problem.contains("nowhere/report: cannot be written"), "{problem}");
        assert_eq!(problem.lines().count(), 1, "{problem}");
        assert!(!started, "{option}");
        let (problem, started) = verify(&[option, &folder.path().display().to_string()]);
        assert!(problem.contains("is a folder") && !started, "{problem}");
    }
    let same = path("same");
    let (problem, started) = verify(&["--html", &same, "--junit", &same]);
    assert!(problem.contains("named twice") && !started, "{problem}");
}

#[test]
fn what_is_read_is_not_written_over() {
    let folder = TempDir::new().unwrap();
    let read = folder.path().join("read").display().to_string();
    for arguments in [&["judge", &read, "--html", &read][..], &["report", &read, "--badge", &read]] {
        fs::write(&read, "the only copy").unwrap();
        let output = command(arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("named twice"), "{}", said(&output));
        assert_eq!(fs::read_to_string(&read).unwrap(), "the only copy");
    }
}

#[test]
fn what_is_not_a_file_is_written_to() {
    let output = command(&[
        "verify",
        "--builtin",
        "reference",
        "--formula",
        "mask.sum",
        "--badge",
        "/dev/stderr",
        "-q",
    ]);
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).contains("brightgreen"), "{}", said(&output));
}

#[test]
fn what_an_earlier_run_left_is_not_taken_for_this_one() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [lines, page, xml, badge] = ["lines", "page", "xml", "badge"].map(path);
    let reports = ["--jsonl", &lines, "--html", &page, "--junit", &xml, "--badge", &badge];
    let passed = ["verify", "--builtin", "reference", "--formula", "mask.sum"];
    assert_eq!(command(&[&passed[..], &reports].concat()).status.code(), Some(0));
    let output = command(&[&["verify", "--adapter", "false"][..], &reports].concat());
    assert_eq!(output.status.code(), Some(2));
    for file in [lines, page, xml, badge] {
        assert!(!Path::new(&file).exists(), "{file} still says what the earlier run found");
    }
}
