//! The judge's own edges: what is missing, misshapen, refused or cut short is never right.

use grpo_oracle::conformance::{
    Dtype, Fault, Hello, Outcome, Reference, Reply, Report, Request, Status, Subject, Task, Verdict, compare,
    find, judge, run,
};
use grpo_oracle::fixture::{self, Expected};
use grpo_oracle::value::{Array, Data};

fn task(formula: &str, case: &str) -> Task {
    find(&fixture::built_in().unwrap(), formula, case).unwrap()
}

fn right(task: &Task) -> Reply {
    let request = Request { formula: &task.formula, question: &task.question, want: &task.want() };
    Reference::new(Dtype::F64).ask(&request).unwrap()
}

fn judged(change: impl Fn(&mut std::collections::BTreeMap<String, Array>)) -> Outcome {
    let task = task("kl.estimate", "near-k1");
    let mut reply = right(&task);
    if let Reply::Answer(arrays) = &mut reply {
        change(arrays);
    }
    judge(task, Dtype::F64, Ok(reply))
}

#[test]
fn what_is_missing_is_said_and_nothing_at_all_is_no_answer() {
    assert_eq!(judged(|_| ()).status, Status::Pass);
    let outcome = judged(|arrays| _ = arrays.remove("grad:logp"));
    assert_eq!((outcome.status, outcome.message.as_str()), (Status::Pass, "not given: `grad:logp`"));
    let outcome = judged(std::collections::BTreeMap::clear);
    assert_eq!(outcome.status, Status::Unsupported);
}

#[test]
fn another_shape_or_kind_is_wrong() {
    let outcome = judged(|arrays| arrays.get_mut("kl").unwrap().shape = vec![4, 1]);
    let message = "`kl` has the shape [4, 1] where [1, 4] is expected";
    assert_eq!((outcome.status, outcome.message.as_str()), (Status::Fail, message));
    let outcome = judged(|arrays| arrays.get_mut("kl").unwrap().data = Data::Integer(vec![0; 4]));
    assert_eq!(outcome.status, Status::Fail);
    let nan = |arrays: &mut std::collections::BTreeMap<String, Array>| {
        arrays.get_mut("kl").unwrap().data = Data::Real(vec![f64::NAN; 4]);
    };
    assert_eq!(judged(nan).status, Status::Fail);
}

#[test]
fn an_error_is_right_where_it_is_expected_only() {
    let fixtures = fixture::built_in().unwrap();
    let fixture = fixtures.iter().find(|fixture| fixture.formula == "advantage.group_norm").unwrap();
    let case = fixture.cases.iter().find(|case| matches!(case.expected, Expected::Error(_))).unwrap();
    let Expected::Error(code) = &case.expected else { panic!("no error") };
    let refused = |task: Task, kind: &str| {
        let reply = Reply::Error { kind: kind.to_owned(), message: String::new() };
        judge(task, Dtype::F64, Ok(reply)).status
    };
    let error = Task::of("advantage.group_norm", case);
    assert_eq!(refused(error.clone(), code), Status::Pass);
    assert_eq!(refused(error.clone(), "another"), Status::Fail);
    assert_eq!(judge(error, Dtype::F64, Ok(Reply::Answer(Default::default()))).status, Status::Fail);
    assert_eq!(refused(task("kl.estimate", "near-k1"), code), Status::Fail);
}

#[test]
fn no_entry_goes_unseen() {
    assert!(compare(&[1.0, 2.0], &[1.0], &[1.0, 3.0], Dtype::F64).is_err());
    assert!(compare(&[1.0, 2.0], &[1.0, 1.0], &[1.0], Dtype::F64).is_err());
    assert!(compare(&[1.0], &[f64::INFINITY], &[f64::NAN], Dtype::F64).is_err());
}

/// Does nothing that it says it does.
struct Idle(Hello);

impl Subject for Idle {
    fn hello(&self) -> &Hello {
        &self.0
    }
    fn ask(&mut self, _: &Request<'_>) -> Result<Reply, Fault> {
        Ok(Reply::Unsupported("later".to_owned()))
    }
}

#[test]
fn a_run_that_judged_nothing_or_was_cut_short_has_not_passed() {
    let mut reference = Reference::new(Dtype::F64);
    let tasks = vec![task("kl.estimate", "near-k1")];
    let report = run(&mut reference, "builtin", tasks.clone(), |_| ());
    assert_eq!(report.verdict(), Verdict::Passed);
    assert_eq!(Report { seconds: None, ..report.clone() }.verdict(), Verdict::Incomplete);
    assert_eq!(Report { planned: 2, ..report.clone() }.verdict(), Verdict::Incomplete);
    let mut idle = Idle(reference.hello().clone());
    assert_eq!(run(&mut idle, "idle", tasks, |_| ()).verdict(), Verdict::Incomplete);
    assert_eq!(run(&mut idle, "idle", Vec::new(), |_| ()).verdict(), Verdict::Incomplete);
}
