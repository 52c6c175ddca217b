//! Running error analysis: a value, how much rounding an honest implementation may have gathered, and how near the
//! nearest branch was.

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::Real;

/// The coarsest unit roundoff that an implementation may work in: bfloat16's.
const COARSEST: f64 = 1.0 / 256.0;

/// The smallest normal number of single precision, in its units of roundoff.
const UNDERFLOW: f64 = f32::MIN_POSITIVE as f64 / (f32::EPSILON as f64 / 2.0);

/// A value computed in `f64`, with a first-order bound on the error of the same computation at any unit roundoff u:
/// an implementation's result lies within `u * error` of the value, up to terms in u squared that the judge's factor
/// of 4 covers as long as `margin > 4 u`.
///
/// ```
/// use grpo_oracle::reference::{Bounded, Real};
/// let near = Bounded::exact(1.0) - Bounded::exact(0.9); // one rounding, of a number of size 0.1
/// assert!((near.error - 0.1).abs() < 1e-9);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounded {
    /// The value.
    pub value: f64,
    /// The bound, in units of roundoff. 0 means that every implementation gets the value exactly.
    pub error: f64,
    /// The distance to the nearest branch over the error of the comparison. At a unit roundoff u the branch is certain
    /// if this is above 4 u; infinite if no branch could go the other way.
    pub margin: f64,
}

impl Bounded {
    /// An input: exact, because judges are given inputs that their precision represents.
    pub fn exact(value: f64) -> Self {
        Self { value, error: 0.0, margin: f64::INFINITY }
    }

    fn new(value: f64, error: f64, margin: f64) -> Self {
        // A number beyond the range of single precision is certain in double precision only.
        let margin =
            if value.is_finite() && value.abs() > f64::from(f32::MAX) { margin.min(1e-9) } else { margin };
        // Nothing can be said about how an infinity rounds.
        let error = if value.is_finite() { error } else { 0.0 };
        // A number below the range of single precision may lose its digits there, or become 0.
        let is_below = value != 0.0 && value.abs() < f64::from(f32::MIN_POSITIVE);
        Self { value, error: if is_below { error + UNDERFLOW } else { error }, margin }
    }

    /// What came out of an infinity and is none itself: nothing is certain about it at any precision.
    fn unless_lost(self, left: Self, right: Self) -> Self {
        let from_infinity = left.value.is_infinite() || right.value.is_infinite();
        let is_lost = self.value.is_nan() || (from_infinity && self.value.is_finite());
        if is_lost { Self { value: self.value, error: 0.0, margin: 0.0 } } else { self }
    }

    /// A product or quotient of numbers that are not 0, and yet is: it fell below the range.
    fn unless_vanished(self, of_nonzero: bool) -> Self {
        Self {
            error: if of_nonzero && self.value == 0.0 { self.error + UNDERFLOW } else { self.error },
            ..self
        }
    }

    /// Both comparisons must hold: the margin of whatever depends on `self` and on being away from zero.
    fn margin_from_zero(self) -> f64 {
        self.margin.min(separation(self, Self::exact(0.0)))
    }

    /// An exact power of two, by which scaling does not round.
    fn is_power_of_two(self) -> bool {
        self.error == 0.0 && self.value.is_normal() && self.value.to_bits().trailing_zeros() >= 52
    }

    /// The smaller of the two, where `self` is not the larger one.
    fn smaller_first(self, larger: Self) -> Self {
        let gap_in_units = (larger.value - self.value) / COARSEST;
        let error = self.error.max(larger.error - gap_in_units);
        let in_reach = gap_in_units <= self.error + larger.error;
        Self::new(self.value, error, if in_reach { self.margin.min(larger.margin) } else { self.margin })
    }
}

/// How far apart two numbers are, over the error of their comparison.
fn separation(left: Bounded, right: Bounded) -> f64 {
    let error = left.error + right.error;
    // Exact numbers compare exactly, even when they are equal.
    if error == 0.0 {
        return f64::INFINITY;
    }
    let separation = (left.value - right.value).abs() / error;
    if separation.is_nan() { 0.0 } else { separation }
}

impl Add for Bounded {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let value = self.value + other.value;
        let rounding = if self.is_exact_zero() || other.is_exact_zero() { 0.0 } else { value.abs() };
        Self::new(value, self.error + other.error + rounding, self.margin.min(other.margin))
            .unless_lost(self, other)
    }
}

impl Sub for Bounded {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Bounded {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let value = self.value * other.value;
        let rounding = if self.is_power_of_two() || other.is_power_of_two() { 0.0 } else { value.abs() };
        let inherited = self.value.abs() * other.error + other.value.abs() * self.error;
        // Of two zeros that rounding may have moved, the product is moved to second order only, but it is not exact.
        let second_order = if value == 0.0 { self.error * other.error * COARSEST } else { 0.0 };
        Self::new(value, inherited + second_order + rounding, self.margin.min(other.margin))
            .unless_lost(self, other)
            .unless_vanished(self.value != 0.0 && other.value != 0.0)
    }
}

impl Div for Bounded {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let value = self.value / other.value;
        let rounding = if other.is_power_of_two() { 0.0 } else { value.abs() };
        let inherited = (self.error + value.abs() * other.error) / other.value.abs();
        Self::new(value, inherited + rounding, self.margin.min(other.margin_from_zero()))
            .unless_lost(self, other)
            .unless_vanished(self.value != 0.0)
    }
}

impl Neg for Bounded {
    type Output = Self;
    fn neg(self) -> Self {
        Self { value: -self.value, ..self }
    }
}

impl Real for Bounded {
    fn constant(value: f64) -> Self {
        // A number that bfloat16 represents is exact at every precision; any other is rounded once.
        let in_bfloat16 = f64::from(value as f32) == value && (value as f32).to_bits() & 0xffff == 0;
        Self::new(value, if in_bfloat16 { 0.0 } else { value.abs() }, f64::INFINITY)
    }

    fn value(self) -> f64 {
        self.value
    }

    fn is_exact_zero(self) -> bool {
        self.value == 0.0 && self.error == 0.0
    }

    fn exp(self) -> Self {
        let value = self.value.exp();
        if self.is_exact_zero() {
            return Self::new(1.0, 0.0, self.margin);
        }
        // exp of common libraries is good to one unit in the last place: two units of roundoff.
        let margin = if self.error == 0.0 { self.margin } else { self.margin.min(1.0 / self.error) };
        Self::new(value, value * (self.error + 2.0), margin).unless_vanished(self.value.is_finite())
    }

    fn ln(self) -> Self {
        let value = self.value.ln();
        Self::new(value, self.error / self.value.abs() + 2.0 * value.abs(), self.margin_from_zero())
    }

    fn sqrt(self) -> Self {
        let value = self.value.sqrt();
        let inherited = if self.error == 0.0 { 0.0 } else { self.error / (2.0 * value) };
        Self::new(value, inherited + value, self.margin_from_zero())
    }

    fn cos(self) -> Self {
        let value = self.value.cos();
        if self.is_exact_zero() {
            return Self::new(1.0, 0.0, self.margin);
        }
        Self::new(value, self.error * self.value.sin().abs() + 2.0 * value.abs(), self.margin)
    }

    fn abs(self) -> Self {
        Self { value: self.value.abs(), ..self }
    }

    fn min(self, other: Self) -> Self {
        if self.value <= other.value || self.value.is_nan() {
            self.smaller_first(other)
        } else {
            other.smaller_first(self)
        }
    }

    fn max(self, other: Self) -> Self {
        -((-self).min(-other))
    }

    fn chosen_by(self, left: Self, right: Self) -> Self {
        let margin = separation(left, right).min(left.margin).min(right.margin);
        Self { margin: self.margin.min(margin), ..self }
    }

    /// The bound holds for every order of summation: (n - 1) roundings, none of a number above the sum of sizes.
    fn sum(terms: impl IntoIterator<Item = Self>) -> Self {
        let mut sum = Self::exact(0.0);
        let (mut sizes, mut count) = (0.0, 0.0);
        for term in terms {
            sum.value += term.value;
            sum.error += term.error;
            sum.margin = sum.margin.min(term.margin);
            sizes += term.value.abs();
            count += f64::from(u8::from(!term.is_exact_zero()));
        }
        let roundings = f64::max(count - 1.0, 0.0);
        Self::new(sum.value, sum.error + roundings * sizes, sum.margin)
    }
}
