//! Laws of `optim.*`.

use grpo_oracle::options::{AdamW, ClipGradNorm, Lora, Schedule, ScheduleKind};
use grpo_oracle::reference::{Dual, Real, optim};
use ndarray::{Array1, Array2, ArrayD};

use super::{Unit, hold};

fn line(numbers: &[f64]) -> ArrayD<f64> {
    Array1::from(numbers.to_vec()).into_dyn()
}

/// With a constant gradient and no eps, every step of Adam is lr long: the corrections undo the start at 0.
#[test]
fn a_constant_gradient_moves_a_parameter_by_the_learning_rate() {
    fn law(grad: Unit, steps: u8) -> bool {
        let grad = line(&[grad.0 + if grad.0 < 0.0 { -0.1 } else { 0.1 }]);
        let options = AdamW { eps: 0.0, weight_decay: 0.0, ..AdamW::torch() };
        let (mut param, mut m, mut v) = (line(&[0.0]), line(&[0.0]), line(&[0.0]));
        let steps = f64::from(steps % 20) + 1.0;
        for step in 1..=steps as u32 {
            let after = optim::adamw(&param, &grad, &m, &v, f64::from(step), &options).expect("a step");
            (param, m, v) = (after.param, after.m, after.v);
        }
        (param[0] + steps * options.lr * grad[0].signum()).abs() < 1e-12
    }
    hold(law as fn(Unit, u8) -> bool);
}

/// Decoupled: the decay shrinks the parameter and moves nothing else.
#[test]
fn the_decay_does_not_pass_through_the_gradient() {
    fn law(param: Unit, grad: Unit, decay: Unit) -> bool {
        let step = |weight_decay: f64| {
            let options = AdamW { lr: 0.5, weight_decay, ..AdamW::torch() };
            let zero = line(&[0.0]);
            optim::adamw(&line(&[param.0]), &line(&[grad.0]), &zero, &zero, 1.0, &options).expect("a step")
        };
        let (decayed, plain) = (step(decay.0.abs()), step(0.0));
        let difference = plain.param[0] - decayed.param[0] - 0.5 * decay.0.abs() * param.0;
        difference.abs() < 1e-15 && decayed.m == plain.m && decayed.v == plain.v
    }
    hold(law as fn(Unit, Unit, Unit) -> bool);
}

#[test]
fn a_clipped_gradient_keeps_its_direction_and_is_not_too_long() {
    fn law(grad: Vec<Unit>, max_norm: Unit) -> bool {
        let grad: Vec<f64> = grad.iter().map(|g| g.0).collect();
        let max_norm = max_norm.0.abs() + 0.01;
        let clipped =
            optim::clip_grad_norm(&line(&grad), &ClipGradNorm::torch(max_norm)).expect("a gradient");
        let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
        let scale = if norm + 1e-6 > max_norm { max_norm / (norm + 1e-6) } else { 1.0 };
        (clipped.norm - norm).abs() < 1e-12
            && clipped.grad.iter().zip(&grad).all(|(got, g)| (got - scale * g).abs() < 1e-14)
            && clipped.grad.iter().map(|g| g * g).sum::<f64>().sqrt() <= max_norm
    }
    hold(law as fn(Vec<Unit>, Unit) -> bool);
}

/// Merging the update into the weights gives the same layer.
#[test]
fn a_merged_adapter_is_the_same_layer() {
    fn law(x: (Unit, Unit), a: (Unit, Unit), b: (Unit, Unit), alpha: Unit) -> bool {
        let matrix = |rows: usize, numbers: [f64; 2]| {
            Array2::from_shape_fn((rows, 2 / rows), |(row, column)| numbers[row * (2 / rows) + column])
        };
        let (x, a, b) = (matrix(1, [x.0.0, x.1.0]), matrix(1, [a.0.0, a.1.0]), matrix(2, [b.0.0, b.1.0]));
        let w = ndarray::array![[1.0, -2.0], [0.5, 3.0]];
        let alpha = 8.0 * alpha.0;
        let y = optim::lora(&x, &w, &a, &b, &Lora { alpha, rank: Some(1) }).expect("an output");
        let merged = &w + &(alpha * b.dot(&a));
        (y - x.dot(&merged.t())).iter().all(|difference| difference.abs() < 1e-13)
    }
    hold(law as fn((Unit, Unit), (Unit, Unit), (Unit, Unit), Unit) -> bool);
}

#[test]
fn every_schedule_rises_to_one_and_falls_to_its_floor() {
    fn law(warmup_steps: u8, rest: u8, min_ratio: Unit) -> bool {
        let (warmup_steps, min_ratio) = (u32::from(warmup_steps % 9), min_ratio.0.abs());
        let total_steps = warmup_steps + u32::from(rest % 9) + 1;
        [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine].into_iter().all(|kind| {
            let options = Schedule { kind, warmup_steps, total_steps, min_ratio };
            let scale = |step: u32| optim::schedule(f64::from(step), &options).expect("a scale");
            let floor = if kind == ScheduleKind::Constant { 1.0 } else { min_ratio };
            let falls = (warmup_steps..total_steps).all(|step| scale(step) >= scale(step + 1));
            let rises = (0..warmup_steps).all(|step| scale(step) < scale(step + 1) + 1e-15);
            let at_ends = (scale(warmup_steps) - 1.0).abs() < 1e-15
                && (scale(total_steps) - floor).abs() < 1e-15
                && (scale(total_steps + 7) - floor).abs() < 1e-15;
            falls && rises && at_ends
        })
    }
    hold(law as fn(u8, u8, Unit) -> bool);
}

/// As transformers computes them: 10 steps of warm-up, 100 in all.
#[test]
fn schedules_are_those_of_transformers() {
    let of = |options: &Schedule, step: f64| optim::schedule(step, options).expect("a scale");
    let (linear, cosine) = (Schedule::linear(10, 100), Schedule::cosine(10, 100));
    for (step, straight, curved) in [
        (0.0, 0.0, 0.0),
        (5.0, 0.5, 0.5),
        (10.0, 1.0, 1.0),
        (55.0, 0.5, 0.5),
        (40.0, 2.0 / 3.0, 0.75),
        (100.0, 0.0, 0.0),
    ] {
        assert!((of(&linear, step) - straight).abs() < 1e-15, "linear, step {step}");
        assert!((of(&cosine, step) - curved).abs() < 1e-15, "cosine, step {step}");
    }
}

#[test]
fn the_cosine_has_its_derivative() {
    fn law(x: Unit) -> bool {
        let x = 4.0 * x.0;
        (Dual::variable(x, 1.0).cos().tangent + x.sin()).abs() < 1e-15
    }
    hold(law as fn(Unit) -> bool);
}
