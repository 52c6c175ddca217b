//! The exponential function in single precision, written so that a loop over it becomes vector instructions: no branch,
//! no table, no call.
//!
//! Within 1 unit in the last place of the exact value for every input (the test measures it), subnormal results
//! included; infinity above the largest finite result, 0 below the smallest, NaN for NaN. A fused multiply-add is one
//! wherever it stands, in software where the processor has none, so that every processor gives the same bits.

/// e to this power.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Beyond these the result is infinite and 0 anyway, and the exponent below stays a whole number that fits.
    let within = if x > 89.0 { 89.0 } else { x };
    let within = if within < -104.0 { -104.0 } else { within };
    let (of_rest, whole) = parts(within);
    // Times 2^n in two steps: neither factor overflows, and only the last product can round, as a subnormal does.
    let half = whole >> 1;
    of_rest * power_of_two(half) * power_of_two(whole.wrapping_sub(half))
}

/// e to each of these powers, to the same bits as [`exp`]. Where no result is near an end of the range, which is nearly
/// always, 2^n is added to the exponents alone.
#[inline(always)]
pub(super) fn exp_all<const N: usize>(
    power: impl Fn(usize) -> f32,
    powers: &mut [f32; N],
    values: &mut [f32; N],
) {
    // As integers, in whose maximum the order is no matter, magnitudes are compared as they are, and NaN is above all.
    let mut furthest = 0;
    for i in 0..N {
        let x = power(i);
        let (of_rest, whole) = parts(x);
        powers[i] = x;
        values[i] = f32::from_bits(of_rest.to_bits().wrapping_add((whole << 23) as u32));
        furthest = furthest.max(x.abs().to_bits());
    }
    if furthest > 87.0_f32.to_bits() {
        for i in 0..N {
            values[i] = exp(powers[i]);
        }
    }
}

/// exp(r) and n of a power x = n ln 2 + r, |r| <= ln 2 / 2.
#[inline(always)]
fn parts(x: f32) -> (f32, i32) {
    // Adding and taking off a number this large rounds n to a whole number, and leaves it in the low bits as an integer.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let whole = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    // ln 2 in two parts, the first of so few bits that nothing is rounded when its product with n is taken off.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);

    // exp(r) = 1 + r (1 + r p): p's coefficients have the smallest largest relative error of exp.
    let r2 = r * r;
    let middle = 8.368_718e-3_f32.mul_add(r, 4.166_839e-2);
    let low = 1.666_652_1e-1_f32.mul_add(r, 0.499_999_94);
    let p = 1.381_459_6e-3_f32.mul_add(r2, middle).mul_add(r2, low);
    (p.mul_add(r, 1.0).mul_add(r, 1.0), whole)
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::{exp, exp_all};

    /// The distance from the exact value in units of the last place of the single nearest to it.
    fn units_off(x: f32) -> f64 {
        let exact = f64::from(x).exp();
        let nearest = exact as f32;
        let unit = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
        (f64::from(exp(x)) - exact).abs() / unit
    }

    #[test]
    fn it_is_right_to_the_last_place() {
        let (mut worst, mut at) = (0.0, 0.0);
        // Every 257th single between the one whose exponential rounds to 0 and the last whose is finite.
        for sign in [0_u32, 1 << 31] {
            for bits in (0..f32::INFINITY.to_bits()).step_by(257) {
                let x = f32::from_bits(bits | sign);
                if (-103.9..88.722_83).contains(&x) && units_off(x) > worst {
                    (worst, at) = (units_off(x), x);
                }
            }
        }
        println!("furthest off at {at}: {worst:.3} units in the last place");
        assert!(worst < 1.0, "at {at} it is off by {worst} units in the last place");
    }

    #[test]
    fn its_ends_are_right() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(1e-30), 1.0);
        // The last input with a finite result, and the next one.
        let last = 88.722_83_f32;
        assert!(f64::from(last).exp() < f64::from(f32::MAX) && exp(last).is_finite());
        assert_eq!(exp(f32::from_bits(last.to_bits() + 1)), f32::INFINITY);
        // The smallest number there is, and below its half.
        assert_eq!(exp(-103.27), f32::from_bits(1));
        assert_eq!(exp(-103.98), 0.0);
    }

    #[test]
    fn many_at_once_have_the_same_bits() {
        let of = |powers: [f32; 8]| {
            let (mut read, mut all) = ([0.0; 8], [0.0; 8]);
            exp_all(|i| powers[i], &mut read, &mut all);
            assert_eq!(read.map(f32::to_bits), powers.map(f32::to_bits));
            assert_eq!(all.map(f32::to_bits), powers.map(|x| exp(x).to_bits()), "{powers:?}");
        };
        for step in 0..100_000 {
            let x = step as f32 * (87.0 / 100_000.0);
            of([x, -x, x / 3.0, -x / 3.0, x * 1e-3, -x * 1e-6, 87.0, -87.0]);
        }
        of([0.0, -0.0, 87.1, -87.4, 88.9, -103.97, f32::INFINITY, f32::NEG_INFINITY]);
        of([1e-40, -1e-40, 0.0, -0.0, 1e-8, -1e-8, 0.5, -0.5]);
        of([0.0, 1.0, 2.0, f32::NAN, 4.0, 5.0, 6.0, 7.0]);
    }
}
