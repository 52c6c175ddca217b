//! `identify` tells apart what it can: every named convention, a setting with one option off, and what is none.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use grpo_oracle::conformance::{
    Dtype, Fault, Finding, Hello, Identification, Identified, Reference, Reply, Request, Setting, Subject,
    identify,
};
use grpo_oracle::convention::Convention;
use grpo_oracle::evaluate::Question;
use grpo_oracle::fixture::{self, Fixture};
use grpo_oracle::value::Data;
use serde_json::{Value, json};

/// Answers with settings of its own, whatever it is asked for.
struct Stubborn {
    reference: Reference,
    hello: Hello,
    settings: BTreeMap<String, Setting>,
    /// What it makes of an answer.
    spoil: fn(&mut Reply),
}

impl Stubborn {
    fn new(dtype: Dtype, settings: BTreeMap<String, Setting>) -> Self {
        let reference = Reference::new(dtype);
        let formulas = settings.keys().cloned().collect();
        let hello = Hello { formulas, ..reference.hello().clone() };
        Self { reference, hello, settings, spoil: |_| () }
    }

    fn of(dtype: Dtype, formula: &str, options: Value) -> Self {
        let options = options.as_object().unwrap();
        let row = grpo_oracle::formula::Formula::<f64>::find(formula).unwrap();
        Self::new(dtype, BTreeMap::from([(formula.to_owned(), row.resolve(options).unwrap())]))
    }

    fn identified(&mut self) -> Identification {
        let formulas = self.hello.formulas.clone();
        identify(self, fixtures(), &formulas, |_| ()).unwrap()
    }

    /// What is found for its one formula.
    fn only(&mut self) -> Identified {
        self.identified().formulas.remove(0)
    }
}

impl Subject for Stubborn {
    fn hello(&self) -> &Hello {
        &self.hello
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        assert!(request.question.options.is_empty(), "it is asked for its own defaults");
        let options = self.settings[request.formula].clone();
        let question = Question { options, inputs: request.question.inputs.clone() };
        let mut reply = self.reference.ask(&Request { question: &question, ..*request })?;
        (self.spoil)(&mut reply);
        Ok(reply)
    }
}

/// Read once: it takes longer than to tell a formula's options.
fn fixtures() -> &'static [Fixture] {
    static FIXTURES: OnceLock<Vec<Fixture>> = OnceLock::new();
    FIXTURES.get_or_init(|| fixture::built_in().unwrap())
}

/// The values that are possible for an option.
fn possible<'a>(one: &'a Identified, option: &str) -> &'a [Value] {
    let Finding::Found { options, .. } = &one.finding else { panic!("{}: {:?}", one.formula, one.finding) };
    &options.iter().find(|told| told.name == option).unwrap().values
}

/// Each convention is found among those that go with all formulas, and its options are those that are possible.
fn finds_every_convention(dtype: Dtype) {
    // Conventions have settings in common, and each setting is asked about once.
    let mut found: BTreeMap<(String, String), Identified> = BTreeMap::new();
    let conventions = Convention::all().unwrap();
    assert_eq!(conventions.len(), 22);
    let mut wrong = Vec::new();
    for convention in &conventions {
        for formula in convention.formulas.keys() {
            let setting = convention.options(formula).unwrap();
            let key = (formula.clone(), json!(setting).to_string());
            let one = found.entry(key).or_insert_with(|| {
                Stubborn::new(dtype, BTreeMap::from([(formula.clone(), setting.clone())])).only()
            });
            let Finding::Found { options, settings, .. } = &one.finding else {
                wrong.push(format!("{}, {formula}: {:?}", convention.name, one.finding));
                continue;
            };
            if !settings.contains(&setting) {
                wrong.push(format!("{}, {formula}: {options:?}", convention.name));
            }
            let json = Identification {
                hello: Reference::new(dtype).hello().clone(),
                formulas: vec![one.clone()],
                conventions: Vec::new(),
            };
            let names = json.to_json()["formulas"][0]["conventions"].clone();
            if !names.as_array().unwrap().contains(&json!(convention.name)) {
                wrong.push(format!("{}, {formula}: goes with {names} only", convention.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let open: Vec<String> = found
        .values()
        .flat_map(|one| match &one.finding {
            Finding::Found { options, .. } => {
                let open = options.iter().filter(|told| told.values.len() > 1 && !told.is_idle);
                open.map(|told| format!("{}: {} {:?}", one.formula, told.name, told.values)).collect()
            }
            _ => Vec::new(),
        })
        .collect();
    println!("{} settings, open:\n{}", found.len(), open.join("\n"));
}

#[test]
fn finds_every_convention_in_double_precision() {
    finds_every_convention(Dtype::F64);
}

#[test]
fn finds_every_convention_in_single_precision() {
    finds_every_convention(Dtype::F32);
}

#[test]
fn ranks_the_convention_itself_first() {
    let verl = Convention::find("verl-0.9.1").unwrap();
    let formulas = ["advantage.group_norm", "objective.clip", "aggregate.loss", "kl.estimate"];
    let settings = formulas.map(|formula| (formula.to_owned(), verl.options(formula).unwrap()));
    let fits = Stubborn::new(Dtype::F64, BTreeMap::from(settings)).identified().conventions;
    let all: Vec<&str> = fits
        .iter()
        .filter(|fit| fit.different.is_empty() && fit.total() == 4)
        .map(|fit| fit.convention)
        .collect();
    assert!(all.contains(&"verl-0.9.1"), "{all:?}");
    assert!(!all.contains(&"trl-1.16") && !all.contains(&"openrlhf-0.11"), "{all:?}");
    let trl = fits.iter().find(|fit| fit.convention == "trl-1.16").unwrap();
    assert!(trl.different.iter().any(|(formula, _)| formula == "advantage.group_norm"), "{trl:?}");
}

#[test]
fn tells_one_option_off() {
    let off = json!({ "clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 1.5, "log_ratio_clamp": 20.0 });
    for dtype in [Dtype::F64, Dtype::F32] {
        let one = Stubborn::of(dtype, "objective.clip", off.clone()).only();
        for (option, value) in off.as_object().unwrap() {
            assert_eq!(possible(&one, option), std::slice::from_ref(value), "{option}");
        }
    }
}

#[test]
fn tells_options_of_a_formula_with_too_many_settings_to_try() {
    let off = json!({
        "clip_ratio_c": 3.0, "kl_loss_coef": 0.04, "kl_loss_type": "abs", "entropy_coeff": 0.01,
        "loss_agg_mode": "seq-mean-token-sum", "gradient_accumulation_steps": 3.0,
    });
    let one = Stubborn::of(Dtype::F64, "objective.actor_loss", off.clone()).only();
    assert!(!one.all_tried);
    for (option, value) in off.as_object().unwrap() {
        assert_eq!(possible(&one, option), std::slice::from_ref(value), "{option}");
    }
    assert_eq!(possible(&one, "kl_ratio_weight"), [json!(false)]);
}

#[test]
fn says_what_it_cannot_tell() {
    let of = |dtype| Stubborn::of(dtype, "optim.clip_grad_norm", json!({})).only();
    assert_eq!(possible(&of(Dtype::F64), "eps"), [json!(1e-6)]);
    let in_single = possible(&of(Dtype::F32), "eps").to_vec();
    assert!(in_single.contains(&json!(1e-6)) && in_single.contains(&json!(1e-8)), "{in_single:?}");
    // An option that has no effect is not called open.
    let one = Stubborn::of(Dtype::F64, "advantage.gae", json!({ "gamma": 0.5, "whiten": false })).only();
    let Finding::Found { options, .. } = &one.finding else { panic!("{:?}", one.finding) };
    let idle: Vec<&str> = options.iter().filter(|told| told.is_idle).map(|told| told.name.as_str()).collect();
    assert_eq!(idle, ["whiten_ddof", "whiten_eps", "whiten_eps_mode"]);
}

#[test]
fn a_value_that_nobody_tries_and_a_wrong_sign_match_nothing() {
    let one = Stubborn::of(Dtype::F64, "objective.clip", json!({ "clip_ratio_high": 0.33 })).only();
    let Finding::NoMatch { nearest, agreed, first } = &one.finding else { panic!("{:?}", one.finding) };
    assert_eq!(nearest["clip_ratio_low"], json!(0.2));
    assert!(*agreed > 0 && *agreed < one.answered, "{agreed} of {}", one.answered);
    assert!(first.1.contains("loss"), "{first:?}");

    let mut subject = Stubborn::of(Dtype::F64, "advantage.group_norm", json!({}));
    subject.spoil = |reply| each(reply, "advantages", |entry| *entry = -*entry);
    assert!(matches!(subject.only().finding, Finding::NoMatch { .. }));

    // The value is right and the gradient is not.
    let mut subject = Stubborn::of(Dtype::F64, "kl.estimate", json!({}));
    subject.spoil = |reply| each(reply, "grad:logp", |entry| *entry *= 2.0);
    let Finding::NoMatch { first, .. } = subject.only().finding else { panic!("a wrong gradient is found") };
    assert!(first.1.contains("grad:logp"), "{first:?}");
}

fn each(reply: &mut Reply, name: &str, change: fn(&mut f64)) {
    if let Reply::Answer(arrays) = reply
        && let Some(array) = arrays.get_mut(name)
        && let Data::Real(data) = &mut array.data
    {
        data.iter_mut().for_each(change);
    }
}

#[test]
fn nothing_answered_is_neither_found_nor_wrong() {
    let mut subject = Stubborn::of(Dtype::F64, "kl.estimate", json!({}));
    subject.spoil = |reply| *reply = Reply::Unsupported("not today".to_owned());
    let all = subject.identified();
    assert!(!all.is_found() && !all.has_mismatch() && all.conventions.is_empty());
    assert_eq!(all.formulas[0].unanswered.as_deref(), Some("not today"));
    // One that only ever refuses is not as some setting that would refuse too.
    subject.spoil = |reply| *reply = Reply::Error { kind: "option".to_owned(), message: String::new() };
    assert!(matches!(subject.only().finding, Finding::Unanswered));
}

/// An adapter without gradients is told by its outputs.
#[test]
fn outputs_alone_will_do() {
    struct NoGradients(Stubborn);
    impl Subject for NoGradients {
        fn hello(&self) -> &Hello {
            self.0.hello()
        }
        fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
            if request.want.iter().any(|name| name.starts_with("grad:")) {
                return Ok(Reply::Unsupported("no gradients here".to_owned()));
            }
            self.0.ask(request)
        }
    }
    let inner = Stubborn::of(Dtype::F32, "kl.estimate", json!({ "kl_penalty": "k3" }));
    let formulas = inner.hello.formulas.clone();
    let found = identify(&mut NoGradients(inner), fixtures(), &formulas, |_| ()).unwrap();
    assert_eq!(possible(&found.formulas[0], "kl_penalty"), [json!("k3"), json!("k3+")]);
}

fn command(arguments: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_grpo-oracle"))
        .args(["identify", "--builtin", "reference"])
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn is_a_command() {
    let (code, text) = command(&["--formula", "kl.estimate", "--formula", "kl.controller"]);
    assert_eq!(code, Some(0), "{text}");
    for part in
        ["kl.estimate\n    kl_penalty   = \"k3\"\n", "    no difference seen: target_kl, horizon", "trl-1.16"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let (code, text) = command(&["--formula", "kl.estimate", "--json", "--dtype", "f32"]);
    assert_eq!(code, Some(0), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        json["formulas"][0]["options"]["kl_penalty"],
        json!({ "values": ["k3"], "no_difference": false })
    );
    assert_eq!(json["formulas"][0]["finding"], "found");
    let (code, text) = command(&["--formula", "kl.estimat3"]);
    assert_eq!((code, text.contains("did you mean `kl.estimate`?")), (Some(2), true), "{text}");
}
