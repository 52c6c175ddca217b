//! The event file, read back by TensorBoard itself.

use std::process::Command;

use grpo_oracle::train::tensorboard::Events;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::python;

#[test]
fn tensorboard_reads_the_scalars() {
    let folder = TempDir::new().unwrap();
    let mut events = Events::create(folder.path()).unwrap();
    events.scalars(1, [("reward/mean", 0.25), ("actor/kl", -3.5)]).unwrap();
    events.scalars(2, [("reward/mean", 0.5)]).unwrap();
    drop(events);
    let mut resumed = Events::create(folder.path()).unwrap();
    resumed.scalars(3, [("reward/mean", f64::NAN)]).unwrap();

    let Some(python) = python::with("tensorboard") else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/read_events.py");
    let output = Command::new(python).arg(script).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let read: Value = serde_json::from_str(&text.replace("NaN", "null")).unwrap();
    assert_eq!(read, json!({"reward/mean": [[1, 0.25], [2, 0.5], [3, null]], "actor/kl": [[1, -3.5]]}));
}
