//! `certify-verl`, and the plug-in, where there is a Python with verl: `tests/python/requirements-verl.txt`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use grpo_oracle::config::{self, preset};
use grpo_oracle::conformance::{Limits, Process, Status, Subject, Verdict, plan, run};
use grpo_oracle::fixture;
use grpo_oracle::verl::certificate::{Certificate, certify, parts};
use grpo_oracle::verl::export::export;

use crate::python;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SCRIPT: &str = "examples/adapters/verl_configured.py";

/// The exit status and the page for the preset `gsm8k`, by the command. What stands in the folder goes before what is
/// installed.
fn certified(python: &Path, first: &Path) -> (i32, String) {
    let out = tempfile::tempdir().unwrap();
    let page = out.path().join("certificate.md");
    let ran = Command::new(env!("CARGO_BIN_EXE_grpo-oracle"))
        .args(["certify-verl", "gsm8k", "--hello-timeout", "300", "--python"])
        .arg(python)
        .arg("--out")
        .arg(&page)
        .env("PYTHONPATH", first)
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&ran.stderr);
    let page = fs::read_to_string(&page).unwrap_or_else(|_| panic!("no page: {problem}"));
    assert!(page.starts_with(&format!("# {}", String::from_utf8_lossy(&ran.stdout).trim_end())), "{page}");
    (ran.status.code().unwrap(), page)
}

fn patient() -> Limits {
    Limits { answer: Duration::from_secs(60), hello: Duration::from_secs(300), restarts: 1 }
}

/// What the certificate of the preset `gsm8k` with these settings says.
fn certificate(settings: &[&str], subject: &mut dyn Subject) -> Certificate {
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
    let read = config::as_written(preset::gsm8k(), None, &settings).unwrap();
    let parts = parts(&read.config, &fixture::built_in().unwrap()).unwrap();
    certify(parts, &export(&read).unwrap(), subject, || ())
}

const PASSED: &str = "# PASSED: verl 0.9.1 computes what this configuration computes\n";
const OUR_OWN: [&[&str]; 5] = [
    &["actor_rollout_ref.actor.kl_loss_coef=0.04"],
    &[
        "algorithm.norm_adv_by_std_in_grpo=false",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
    ],
    &[
        "algorithm.filter_groups.enable=true",
        "actor_rollout_ref.actor.clip_ratio_high=0.28",
        "actor_rollout_ref.actor.use_kl_loss=false",
    ],
    &[
        "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "actor_rollout_ref.actor.clip_ratio_low=3e-4",
        "actor_rollout_ref.actor.clip_ratio_high=4e-4",
    ],
    &[
        "algorithm.adv_estimator=group_ppo",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "actor_rollout_ref.actor.use_kl_loss=false",
    ],
];

#[test]
fn our_grpo_dr_grpo_dapo_gspo_and_group_ppo_are_verls() {
    let Some(python) = python::with_verl() else { return };
    let command =
        format!("env PYTHONPATH='{ROOT}/examples/verl_plugin' '{}' '{ROOT}/{SCRIPT}'", python.display());
    let mut verl = Process::start(&command, patient()).unwrap();
    for settings in OUR_OWN {
        let page = certificate(settings, &mut verl).page();
        assert!(page.starts_with(PASSED), "{settings:?}\n{page}");
    }
    for (setting, what) in [
        ("algorithm.adv_estimator=group_ppo", "over endpoints"),
        ("algorithm.keep_pos_ratio=0.5", "of what is kept"),
    ] {
        let certificate = certificate(&[setting, "actor_rollout_ref.actor.use_kl_loss=false"], &mut verl);
        let page = certificate.page();
        assert_eq!(certificate.verdict(), Verdict::Failed, "{page}");
        assert!(page.contains(&format!("something else: whole loss {what}\n")), "{page}");
        assert!(page.contains("what is not trained on is counted"), "{page}");
    }
}

#[test]
fn a_verl_with_a_bug_fails_and_the_page_names_the_bug() {
    let Some(python) = python::with_verl() else { return };
    let folder = tempfile::tempdir().unwrap();
    let copy = "import shutil, sys, importlib.util as u; \
                shutil.copytree(u.find_spec('verl').submodule_search_locations[0], sys.argv[1] + '/verl', \
                                ignore=shutil.ignore_patterns('__pycache__'))";
    let copied = Command::new(&python).args(["-c", copy]).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    let file = folder.path().join("verl/trainer/ppo/core_algos.py");
    let code = fs::read_to_string(&file).unwrap();
    let wrong = code.replace(
        "id2std[idx] = torch.std(scores_tensor)",
        "id2std[idx] = torch.std(scores_tensor, correction=0)",
    );
    assert_ne!(code, wrong, "the line to break is not there");
    fs::write(&file, wrong).unwrap();
    let (status, page) = certified(&python, folder.path());
    assert_eq!(status, 1, "{page}");
    assert!(page.starts_with("# FAILED: verl 0.9.1 computes something else: advantages\n"), "{page}");
    assert!(page.contains("population std"), "{page}");
}

#[test]
fn the_plug_in_passes_all_fixtures_of_its_formulas() {
    let Some(python) = python::with_verl() else { return };
    let script = Path::new(ROOT).join("examples/adapters/verl_plugin_adapter.py");
    let command = format!("'{}' '{}' --dtype f64", python.display(), script.display());
    let mut adapter = Process::start(&command, patient()).unwrap();
    let formulas = adapter.hello().formulas.clone();
    let report = run(&mut adapter, &command, plan(&fixture::built_in().unwrap(), &formulas, true), |_| {});
    let bad = report
        .outcomes
        .iter()
        .find(|one| !matches!(one.status, Status::Pass | Status::NotApplicable | Status::Unsupported));
    assert_eq!(report.verdict(), Verdict::Passed, "{bad:?}");
    for (formula, least) in
        [("advantage.group_ppo", 140), ("advantage.filter", 70), ("objective.actor_loss", 25)]
    {
        let passed = |status| {
            report.outcomes.iter().filter(|one| one.task.formula == formula && one.status == status).count()
        };
        assert!(passed(Status::Pass) >= least, "{formula}: {}", passed(Status::Pass));
        let aside = if formula == "objective.actor_loss" { 200 } else { 0 };
        assert!(passed(Status::Unsupported) <= aside, "{formula} is not answered for as a whole");
    }
}
