//! Checkpoints: whole or not there.

use std::fs;

use grpo_oracle::train::checkpoint::{FOLDER, State, newest, save};
use tch::Tensor;
use tempfile::TempDir;

fn state(value: f64) -> State {
    let mut state = State::default();
    state.tensor("policy.w", &Tensor::from_slice(&[value, -value]));
    state.value("kl_coef", &value).unwrap();
    state
}

#[test]
fn what_was_saved_comes_back_bit_for_bit() {
    let run = TempDir::new().unwrap();
    save(run.path(), 3, &state(0.1), None).unwrap();
    save(run.path(), 12, &state(1.0 / 3.0), None).unwrap();
    let (step, mut state) = newest(run.path()).unwrap();
    let mut w = Tensor::zeros([2], (tch::Kind::Double, tch::Device::Cpu)).set_requires_grad(true);
    state.restore("policy.w", &mut w).unwrap();
    assert_eq!(step, 12);
    assert_eq!(Vec::<f64>::try_from(w.detach()).unwrap(), [1.0 / 3.0, -1.0 / 3.0]);
    assert_eq!(state.take::<f64>("kl_coef").unwrap(), 1.0 / 3.0);
    state.finish().unwrap();
}

#[test]
fn another_runs_checkpoint_is_told() {
    let run = TempDir::new().unwrap();
    save(run.path(), 1, &state(1.0), None).unwrap();
    let (_, mut read) = newest(run.path()).unwrap();
    let mut longer = Tensor::zeros([3], (tch::Kind::Double, tch::Device::Cpu));
    assert!(read.restore("policy.w", &mut longer).unwrap_err().to_string().contains("[2] where [3]"));
    let (_, mut read) = newest(run.path()).unwrap();
    assert!(read.take::<f64>("threshold").unwrap_err().to_string().contains("another configuration"));
    assert!(read.finish().unwrap_err().to_string().contains("policy.w"));
}

#[test]
fn the_oldest_leave_and_what_was_cut_short_is_never_read() {
    let run = TempDir::new().unwrap();
    for step in 1..=4 {
        save(run.path(), step, &state(step as f64), Some(2)).unwrap();
    }
    let kept = || {
        let mut names: Vec<_> = fs::read_dir(run.path().join(FOLDER))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(kept(), ["step-000003", "step-000004"]);
    let cut_short = run.path().join(FOLDER).join("step-000005.new");
    fs::create_dir(&cut_short).unwrap();
    fs::write(cut_short.join("tensors.safetensors"), "half").unwrap();
    assert_eq!(newest(run.path()).unwrap().0, 4);
    save(run.path(), 5, &state(5.0), Some(2)).unwrap();
    assert_eq!(kept(), ["step-000004", "step-000005"]);
}

#[test]
fn a_run_without_checkpoints_is_told() {
    let run = TempDir::new().unwrap();
    assert!(newest(run.path()).unwrap_err().to_string().contains("holds no checkpoint"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("curves.svg");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let message = grpo_oracle::file::replace(&path, "x").unwrap_err().to_string();
    assert!(message.contains("No space left") && message.ends_with("make room and try again"), "{message}");
}
