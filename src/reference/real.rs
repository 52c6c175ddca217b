//! The scalar that a formula is read with.
//!
//! Every function of the reference is generic over [`Real`]. Read with `f64` it gives the value, with `f32` the value
//! as honest single precision computes it, with [`Dual`](super::Dual) the exact gradient, and with
//! [`Bounded`](super::Bounded) the rounding error that an honest implementation may have.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The arithmetic that the formulas need, and no more.
pub trait Real:
    'static
    + Copy
    + Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// A number of the formula itself: an option, a count, a literal.
    fn constant(value: f64) -> Self;

    /// The value alone, for decisions on exact inputs and for reporting.
    fn value(self) -> f64;

    /// Whether this is 0 and no rounding brought that about.
    fn is_exact_zero(self) -> bool {
        self.value() == 0.0
    }

    /// e to this power.
    #[must_use]
    fn exp(self) -> Self;

    /// The natural logarithm.
    #[must_use]
    fn ln(self) -> Self;

    /// The square root.
    #[must_use]
    fn sqrt(self) -> Self;

    /// The cosine.
    #[must_use]
    fn cos(self) -> Self;

    /// The absolute value; its derivative at 0 is 0.
    #[must_use]
    fn abs(self) -> Self;

    /// The smaller one; on a tie `self`, whose gradient then counts.
    #[must_use]
    fn min(self, other: Self) -> Self;

    /// The larger one; on a tie `self`, whose gradient then counts.
    #[must_use]
    fn max(self, other: Self) -> Self;

    /// Within [low, high]; at an edge the gradient passes, as in PyTorch.
    #[must_use]
    fn clamp(self, low: Self, high: Self) -> Self {
        self.max(low).min(high)
    }

    /// The same value with no gradient.
    #[must_use]
    fn detach(self) -> Self {
        self
    }

    /// This value with the gradient of `other` (a straight-through estimator).
    #[must_use]
    fn with_gradient_of(self, _other: Self) -> Self {
        self
    }

    /// This value, remembering that it was chosen by comparing `left` with `right`.
    #[must_use]
    fn chosen_by(self, _left: Self, _right: Self) -> Self {
        self
    }

    /// `then` where `self < other`, else `otherwise`: a choice that may jump.
    #[must_use]
    fn select_less(self, other: Self, then: Self, otherwise: Self) -> Self {
        let chosen = if self.value() < other.value() { then } else { otherwise };
        chosen.chosen_by(self, other)
    }

    /// The sum, from left to right; 0 for no terms.
    #[must_use]
    fn sum(terms: impl IntoIterator<Item = Self>) -> Self {
        terms.into_iter().fold(Self::constant(0.0), |sum, term| sum + term)
    }
}

macro_rules! real_for_float {
    ($float:ty) => {
        impl Real for $float {
            fn constant(value: f64) -> Self {
                value as Self
            }
            fn value(self) -> f64 {
                f64::from(self)
            }
            fn exp(self) -> Self {
                <$float>::exp(self)
            }
            fn ln(self) -> Self {
                <$float>::ln(self)
            }
            fn sqrt(self) -> Self {
                <$float>::sqrt(self)
            }
            fn cos(self) -> Self {
                <$float>::cos(self)
            }
            fn abs(self) -> Self {
                <$float>::abs(self)
            }
            // Not the standard library's, which hides a NaN.
            fn min(self, other: Self) -> Self {
                if self <= other || self.is_nan() { self } else { other }
            }
            fn max(self, other: Self) -> Self {
                if self >= other || self.is_nan() { self } else { other }
            }
        }
    };
}

real_for_float!(f64);
real_for_float!(f32);
