//! Forward-mode differentiation: a value and its derivative along one direction.

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::Real;

/// A value and its tangent. Seed one input entry with tangent 1 and all others with 0; then the tangent of an output
/// is its exact partial derivative, stop-gradients included.
///
/// ```
/// use grpo_oracle::reference::{Dual, Real};
/// let x = Dual::variable(3.0, 1.0);
/// assert_eq!((x * x).tangent, 6.0);
/// assert_eq!((x * x.detach()).tangent, 3.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dual<R> {
    /// The value.
    pub value: R,
    /// The derivative along the seeded direction.
    pub tangent: R,
}

impl<R: Real> Dual<R> {
    /// An input entry with its seed.
    pub fn variable(value: R, tangent: R) -> Self {
        Self { value, tangent }
    }

    /// One of two candidates that are equal where they meet: the first where `first_wins`.
    fn pick(self, other: Self, value: R, first_wins: bool) -> Self {
        let tangent = if first_wins { self.tangent } else { other.tangent };
        // Where both branches have the same slope it does not matter which one rounding takes.
        if self.tangent.value() == other.tangent.value() {
            return Self { value, tangent };
        }
        Self { value, tangent: tangent.chosen_by(self.value, other.value) }
    }
}

impl<R: Real> Add for Dual<R> {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { value: self.value + other.value, tangent: self.tangent + other.tangent }
    }
}

impl<R: Real> Sub for Dual<R> {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { value: self.value - other.value, tangent: self.tangent - other.tangent }
    }
}

impl<R: Real> Mul for Dual<R> {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self {
            value: self.value * other.value,
            tangent: scaled(self.value, other.tangent) + scaled(other.value, self.tangent),
        }
    }
}

impl<R: Real> Div for Dual<R> {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let quotient = self.value / other.value;
        let numerator = self.tangent - scaled(quotient, other.tangent);
        Self { value: quotient, tangent: divided(numerator, other.value) }
    }
}

impl<R: Real> Neg for Dual<R> {
    type Output = Self;
    fn neg(self) -> Self {
        Self { value: -self.value, tangent: -self.tangent }
    }
}

impl<R: Real> Real for Dual<R> {
    fn constant(value: f64) -> Self {
        Self { value: R::constant(value), tangent: R::constant(0.0) }
    }

    fn value(self) -> f64 {
        self.value.value()
    }

    fn is_exact_zero(self) -> bool {
        self.value.is_exact_zero() && self.tangent.is_exact_zero()
    }

    fn exp(self) -> Self {
        let exp = self.value.exp();
        Self { value: exp, tangent: scaled(exp, self.tangent) }
    }

    fn ln(self) -> Self {
        Self { value: self.value.ln(), tangent: divided(self.tangent, self.value) }
    }

    fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        Self { value: root, tangent: divided(self.tangent, R::constant(2.0) * root) }
    }

    fn cos(self) -> Self {
        let sine = (self.value - R::constant(std::f64::consts::FRAC_PI_2)).cos();
        Self { value: self.value.cos(), tangent: scaled(-sine, self.tangent) }
    }

    fn abs(self) -> Self {
        let zero = R::constant(0.0);
        let sign = R::constant(if self.value() > 0.0 {
            1.0
        } else if self.value() < 0.0 {
            -1.0
        } else {
            0.0
        });
        Self { value: self.value.abs(), tangent: scaled(sign, self.tangent).chosen_by(self.value, zero) }
    }

    fn min(self, other: Self) -> Self {
        let first_wins = self.value() <= other.value() || self.value().is_nan();
        self.pick(other, self.value.min(other.value), first_wins)
    }

    fn max(self, other: Self) -> Self {
        let first_wins = self.value() >= other.value() || self.value().is_nan();
        self.pick(other, self.value.max(other.value), first_wins)
    }

    fn detach(self) -> Self {
        Self { tangent: R::constant(0.0), ..self }
    }

    fn with_gradient_of(self, other: Self) -> Self {
        Self { tangent: other.tangent, ..self }
    }

    fn chosen_by(self, left: Self, right: Self) -> Self {
        Self {
            value: self.value.chosen_by(left.value, right.value),
            tangent: self.tangent.chosen_by(left.value, right.value),
        }
    }

    fn sum(terms: impl IntoIterator<Item = Self>) -> Self {
        let (values, tangents): (Vec<R>, Vec<R>) =
            terms.into_iter().map(|term| (term.value, term.tangent)).unzip();
        Self { value: R::sum(values), tangent: R::sum(tangents) }
    }
}

/// `factor * tangent`, where a tangent of 0 stays 0 whatever it is multiplied by: no dependence, no derivative.
fn scaled<R: Real>(factor: R, tangent: R) -> R {
    if tangent.is_exact_zero() { tangent } else { factor * tangent }
}

/// `tangent / divisor`, where a tangent of 0 stays 0 too, also over 0 or what is not a number.
fn divided<R: Real>(tangent: R, divisor: R) -> R {
    if tangent.is_exact_zero() { tangent } else { tangent / divisor }
}
