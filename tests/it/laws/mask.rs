//! Laws of masked sums, means and spreads.

use grpo_oracle::options::{Ddof, MaskedMean, MaskedNormalize, MaskedSum, MaskedVariance, Whiten, WhitenEps};
use grpo_oracle::reference::mask;
use ndarray::{Array1, Array2, ArrayD, Axis, array};
use ndarray_stats::SummaryStatisticsExt;

use super::{Unit, hold};

/// Entries with their mask, as arrays with NaN where nothing is kept.
fn arrays(entries: &[(Unit, bool)]) -> (ArrayD<f64>, ArrayD<bool>) {
    let values = entries.iter().map(|&(value, keep)| if keep { value.0 } else { f64::NAN }).collect();
    let mask = entries.iter().map(|&(_, keep)| keep).collect();
    (ndarray::Array1::from_vec(values).into_dyn(), ndarray::Array1::from_vec(mask).into_dyn())
}

fn kept(entries: &[(Unit, bool)]) -> Vec<f64> {
    entries.iter().filter(|&&(_, keep)| keep).map(|&(value, _)| value.0).collect()
}

#[test]
fn whitening_gives_the_published_numbers() {
    let whiten = |options| {
        let values = array![1.0, 2.0, 3.0, 6.0].into_dyn();
        let mask = array![true, true, true, true].into_dyn();
        mask::whiten(&values, &mask, &options).expect("numbers").into_iter().collect::<Vec<f64>>()
    };
    let close = |got: Vec<f64>, wanted: [f64; 4]| {
        assert!(
            got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 5e-4),
            "{got:?} {wanted:?}"
        );
    };
    close(whiten(Whiten::verl()), [-0.926, -0.463, 0.0, 1.389]);
    close(whiten(Whiten { shift_mean: false, ..Whiten::verl() }), [2.074, 2.537, 3.0, 4.389]); // torchtune
    close(whiten(Whiten::openrlhf()), [-1.069, -0.535, 0.0, 1.604]);
}

#[test]
fn the_variance_is_that_of_the_differences() {
    fn law(entries: Vec<(Unit, bool)>, population: bool) -> bool {
        let (values, mask) = arrays(&entries);
        let (options, ddof) =
            if population { (MaskedVariance::openrlhf(), 0.0) } else { (MaskedVariance::verl(), 1.0) };
        let kept = kept(&entries);
        let n = kept.len() as f64;
        let Ok(variance) = mask::variance(&values, &mask, &options) else { return n <= ddof };
        let squares: f64 = kept.iter().flat_map(|a| kept.iter().map(move |b| (a - b) * (a - b))).sum();
        (variance - squares / (2.0 * n * (n - ddof))).abs() < 1e-12
    }
    hold(law as fn(Vec<(Unit, bool)>, bool) -> bool);
}

#[test]
fn the_variance_is_the_second_central_moment() {
    fn law(entries: Vec<(Unit, bool)>) -> bool {
        let (values, mask) = arrays(&entries);
        let Ok(variance) = mask::variance(&values, &mask, &MaskedVariance::openrlhf()) else { return true };
        let moment = Array1::from(kept(&entries)).central_moment(2).expect("numbers");
        (variance - moment).abs() < 1e-12
    }
    hold(law as fn(Vec<(Unit, bool)>) -> bool);
}

#[test]
fn what_is_whitened_has_mean_0_and_variance_1() {
    fn law(entries: Vec<(Unit, bool)>, population: bool, clamp: bool) -> bool {
        let (values, mask) = arrays(&entries);
        let ddof = if population { Ddof::Population } else { Ddof::Sample };
        let eps_mode = if clamp { WhitenEps::Clamp } else { WhitenEps::Add };
        let options = Whiten { ddof, eps: 0.0, eps_mode, shift_mean: true };
        let Ok(whitened) = mask::whiten(&values, &mask, &options) else { return kept(&entries).len() < 2 };
        let spread =
            mask::variance(&values, &mask, &MaskedVariance { ddof }).is_ok_and(|variance| variance > 1e-6);
        let mean = mask::mean(&whitened, &mask, &MaskedMean::over_all()).expect("a mean").sum();
        let variance = mask::variance(&whitened, &mask, &MaskedVariance { ddof }).expect("a variance");
        !spread || mean.abs() < 1e-9 && (variance - 1.0).abs() < 1e-9
    }
    hold(law as fn(Vec<(Unit, bool)>, bool, bool) -> bool);
}

#[test]
fn leaving_out_is_deleting() {
    fn law(entries: Vec<(Unit, bool)>) -> bool {
        let (values, mask) = arrays(&entries);
        let all: Vec<(Unit, bool)> = entries.iter().copied().filter(|&(_, keep)| keep).collect();
        let (shorter, every) = arrays(&all);
        let sum = |values, mask| mask::sum(values, mask, &MaskedSum::over_all()).expect("a sum");
        let variance = |values, mask| mask::variance(values, mask, &MaskedVariance::verl()).ok();
        let whiten = |values, mask| mask::whiten(values, mask, &Whiten::verl()).ok();
        let whitened = whiten(&values, &mask).map(|whitened: ArrayD<f64>| {
            whitened.into_iter().zip(&mask).filter(|&(_, &keep)| keep).map(|(w, _)| w).collect::<Vec<_>>()
        });
        sum(&values, &mask) == sum(&shorter, &every)
            && variance(&values, &mask) == variance(&shorter, &every)
            && whitened == whiten(&shorter, &every).map(|whitened| whitened.into_iter().collect())
    }
    hold(law as fn(Vec<(Unit, bool)>) -> bool);
}

#[test]
fn sums_along_both_axes_add_up_and_means_are_sums_over_counts() {
    fn law(entries: Vec<(Unit, bool)>) -> bool {
        let rows = entries.len() / 3;
        let at = |(row, column): (usize, usize)| entries[3 * row + column];
        let values = Array2::from_shape_fn((rows, 3), |place| at(place).0.0).into_dyn();
        let mask = Array2::from_shape_fn((rows, 3), |place| at(place).1).into_dyn();
        let sum = |axis| mask::sum(&values, &mask, &MaskedSum { axis }).expect("sums");
        let total = sum(None).sum();
        let counts =
            mask.map(|&keep| f64::from(u8::from(keep))).sum_axis(Axis(1)).mapv(|count| count.max(1.0));
        let means = mask::mean(&values, &mask, &MaskedMean::along(1)).expect("means");
        let quarter = mask::normalize(&values, &mask, &MaskedNormalize::cs336(4.0)).expect("a quarter").sum();
        (sum(Some(0)).sum() - total).abs() < 1e-12
            && (sum(Some(1)).sum() - total).abs() < 1e-12
            && ((means * counts).sum() - total).abs() < 1e-12
            && quarter == total / 4.0
    }
    hold(law as fn(Vec<(Unit, bool)>) -> bool);
}
