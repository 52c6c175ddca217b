//! Laws of the critic's loss.

use grpo_oracle::options::ValueClip;
use grpo_oracle::reference::{Dual, Real, value};
use ndarray::{Array2, array};

use super::{Unit, hold};

/// One token's loss and whether it was clipped.
fn token<R: Real>(value: R, old: f64, target: f64, options: &ValueClip) -> (R, f64) {
    let of = |entry: R| Array2::from_elem((1, 1), entry);
    let (old, target) = (of(R::constant(old)), of(R::constant(target)));
    let output = value::clipped(&of(value), &old, &target, &array![[true]], options).expect("a loss");
    (output.loss, output.clip_fraction.value())
}

#[test]
fn clipping_only_raises_and_only_far_from_the_old_value() {
    fn law(value: Unit, old: Unit, target: Unit, range: Unit) -> bool {
        let (value, old, target, range) = (2.0 * value.0, old.0, 2.0 * target.0, range.0.abs() + 0.01);
        let options = ValueClip { cliprange_value: Some(range), ..ValueClip::verl() };
        let open = ValueClip { cliprange_value: None, ..options };
        let ((clipped, fraction), (plain, _)) =
            (token(value, old, target, &options), token(value, old, target, &open));
        let raised = clipped > plain;
        (plain - 0.5 * (value - target).powi(2)).abs() < 1e-15
            && clipped >= plain
            && raised == (fraction == 1.0)
            && (!raised || (value - old).abs() > range)
    }
    hold(law as fn(Unit, Unit, Unit, Unit) -> bool);
}

#[test]
fn a_value_that_moves_past_its_range_towards_the_return_stops_learning() {
    let gradient =
        |value: f64, options: &ValueClip| token(Dual::variable(value, 1.0), 0.0, 2.0, options).0.tangent;
    let clip = ValueClip::verl();
    assert_eq!([0.25, 0.5, 0.75, 1.5].map(|value| gradient(value, &clip)), [-1.75, -1.5, 0.0, 0.0]);
    // Away from the return, and past it to where its own error is larger again.
    assert_eq!([-1.0, 4.0].map(|value| gradient(value, &clip)), [-3.0, 2.0]);
    assert_eq!(gradient(0.25, &ValueClip { half: false, ..clip }), -3.5);
}

#[test]
fn on_a_tie_the_unclipped_error_has_the_gradient() {
    // 2.5 and its clipped self 0.5 are both 1 away from the return.
    let (loss, fraction) = token(Dual::variable(2.5, 1.0), 0.0, 1.5, &ValueClip::verl());
    assert_eq!((loss.value, loss.tangent, fraction), (0.5, 1.0, 0.0));
}

#[test]
fn exact_gradients_of_the_value_loss_agree_with_differences() {
    fn law(value: Unit, old: Unit, target: Unit) -> bool {
        let (value, old, target) = (2.0 * value.0, old.0, 2.0 * target.0);
        let at = |value: f64| token(value, old, target, &ValueClip::trl());
        let (up, down) = (at(value + 1e-6), at(value - 1e-6));
        let exact = token(Dual::variable(value, 1.0), old, target, &ValueClip::trl()).0.tangent;
        // Not across the corner.
        up.1 != down.1 || ((up.0 - down.0) / 2e-6 - exact).abs() < 1e-8
    }
    hold(law as fn(Unit, Unit, Unit) -> bool);
}
