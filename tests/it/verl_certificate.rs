//! `certify-verl`, and the plug-in, where there is a Python with verl: `tests/python/requirements-verl.txt`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use grpo_oracle::conformance::{Limits, Process, Status, Subject, Verdict, plan, run};
use grpo_oracle::fixture;

use crate::python;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const ACTOR: &str = "actor_rollout_ref.actor";

/// The exit status and the page for the preset `gsm8k` with these settings; none without verl. What stands in the folders
/// of `path` goes before what is installed.
fn certified(settings: &[&str], path: &[&Path]) -> Option<(i32, String)> {
    let python = python::with_verl()?;
    let out = tempfile::tempdir().unwrap().path().with_extension("md");
    let plug_in = Path::new(ROOT).join("examples/verl_plugin");
    let path = std::env::join_paths(path.iter().copied().chain([plug_in.as_path()])).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_grpo-oracle"))
        .args(["certify-verl", "gsm8k", "--hello-timeout", "300", "--python"])
        .arg(python)
        .arg("--out")
        .arg(&out)
        .args(settings)
        .env("PYTHONPATH", path)
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&ran.stderr);
    let page = fs::read_to_string(&out).unwrap_or_else(|_| panic!("no page: {problem}"));
    fs::remove_file(&out).unwrap();
    assert!(page.starts_with(&format!("# {}", String::from_utf8_lossy(&ran.stdout).trim_end())), "{page}");
    Some((ran.status.code().unwrap(), page))
}

/// `setting=VALUE` of the actor.
fn of_actor(setting: &str) -> String {
    format!("{ACTOR}.{setting}")
}

fn passes(settings: &[&str]) {
    let Some((status, page)) = certified(settings, &[]) else { return };
    assert_eq!(status, 0, "{page}");
    assert!(page.starts_with("# PASSED: verl 0.9.1 computes what this configuration computes\n"), "{page}");
}

#[test]
fn our_grpo_is_verls() {
    passes(&[&of_actor("kl_loss_coef=0.04")]);
}

#[test]
fn our_dr_grpo_is_verls() {
    passes(&["algorithm.norm_adv_by_std_in_grpo=false", &of_actor("loss_agg_mode=seq-mean-token-sum-norm")]);
}

#[test]
fn our_dapo_is_verls() {
    let clip_higher = of_actor("clip_ratio_high=0.28");
    passes(&["algorithm.filter_groups.enable=true", &clip_higher, &of_actor("use_kl_loss=false")]);
}

#[test]
fn our_gspo_is_verls() {
    let bounds = [of_actor("clip_ratio_low=3e-4"), of_actor("clip_ratio_high=4e-4")];
    let mode = [of_actor("policy_loss.loss_mode=gspo"), of_actor("loss_agg_mode=seq-mean-token-mean")];
    passes(&[&bounds[0], &bounds[1], &mode[0], &mode[1]]);
}

#[test]
fn group_ppo_is_the_plug_ins_and_the_page_says_where_verls_counts_make_another_loss_of_it() {
    let settings = ["algorithm.adv_estimator=group_ppo", &of_actor("use_kl_loss=false")];
    let by_response = [settings[0], settings[1], &of_actor("loss_agg_mode=seq-mean-token-mean")];
    passes(&by_response);
    let Some((status, page)) = certified(&settings, &[]) else { return };
    assert_eq!(status, 1, "{page}");
    assert!(page.contains("something else: whole loss over endpoints\n"), "{page}");
    assert!(page.contains("what is not trained on is counted"), "{page}");
}

#[test]
fn a_verl_with_a_bug_fails_and_the_page_names_the_bug() {
    let Some(python) = python::with_verl() else { return };
    let folder = tempfile::tempdir().unwrap();
    let copy = "import shutil, sys, importlib.util as u; \
                shutil.copytree(u.find_spec('verl').submodule_search_locations[0], sys.argv[1] + '/verl', \
                                ignore=shutil.ignore_patterns('__pycache__'))";
    let copied = Command::new(python).args(["-c", copy]).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    let file = folder.path().join("verl/trainer/ppo/core_algos.py");
    let code = fs::read_to_string(&file).unwrap();
    let wrong = code.replace(
        "id2std[idx] = torch.std(scores_tensor)",
        "id2std[idx] = torch.std(scores_tensor, correction=0)",
    );
    assert_ne!(code, wrong, "the line to break is not there");
    fs::write(&file, wrong).unwrap();
    let Some((status, page)) = certified(&[], &[folder.path()]) else { return };
    assert_eq!(status, 1, "{page}");
    assert!(page.starts_with("# FAILED: verl 0.9.1 computes something else: advantages\n"), "{page}");
    assert!(page.contains("population std"), "{page}");
}

#[test]
fn the_plug_in_passes_all_fixtures_of_its_formulas() {
    let Some(python) = python::with_verl() else { return };
    let script = Path::new(ROOT).join("examples/adapters/verl_plugin_adapter.py");
    let command = format!("'{}' '{}' --dtype f64", python.display(), script.display());
    let limits = Limits { answer: Duration::from_secs(60), hello: Duration::from_secs(300), restarts: 1 };
    let mut adapter = Process::start(&command, limits).unwrap();
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
