//! Drawing tokens from logits.

use tch::{Device, Kind, Tensor};

use super::generate::Sampling;

/// A token for each row, and its log-probability.
pub(super) struct Drawn {
    pub(super) next: Tensor,
    pub(super) logp: Tensor,
}

/// One token for each row of logits `[rows, V]`: the one where the cumulative probability passes the row's
/// uniform number. The order of summation is the vocabulary's, so no row depends on another one's ties.
pub(super) fn sample(logits: &Tensor, uniforms: &Tensor, sampling: &Sampling) -> Drawn {
    if sampling.temperature == 0. {
        let next = logits.argmax(-1, false);
        return Drawn { logp: uniforms.zeros_like(), next };
    }
    let logits = match sampling.temperature {
        1. => logits.shallow_clone(),
        temperature => logits.to_kind(Kind::Float) / temperature,
    };
    let all = logits.softmax(-1, Kind::Float);
    let likeliest = match sampling.top_k {
        Some(k) if (k as i64) < all.size()[1] => likeliest(&all, k as i64),
        _ => all.shallow_clone(),
    };
    let kept = if sampling.top_p < 1. { nucleus(&likeliest, sampling.top_p) } else { likeliest };
    let cumulative = kept.cumsum(-1, Kind::Float);
    let vocabulary = kept.size()[1];
    let target = uniforms.unsqueeze(1) * cumulative.narrow(1, vocabulary - 1, 1);
    let next = target.searchsorted(&cumulative, false, true, "right", None::<Tensor>);
    let next = next.clamp_max(vocabulary - 1); // past the end only if the logits are not finite
    let logp = all.gather(1, &next, false).log().squeeze_dim(1);
    Drawn { next: next.squeeze_dim(1), logp }
}

/// Sets all but the `k` most likely tokens to 0 and scales the rest to the sum 1.
fn likeliest(probabilities: &Tensor, k: i64) -> Tensor {
    let last = probabilities.topk(k, -1, true, true).0.narrow(1, k - 1, 1);
    let kept = probabilities.masked_fill(&probabilities.lt_tensor(&last), 0.);
    &kept / kept.sum_dim_intlist(-1, true, Kind::Float)
}

/// Sets all but the most likely tokens to 0: a token stays while those more likely than it sum to less than
/// `top_p`. Sorting the whole vocabulary costs more than the model's step, so the likeliest thousand are tried first.
fn nucleus(probabilities: &Tensor, top_p: f64) -> Tensor {
    let vocabulary = probabilities.size()[1];
    let tried = vocabulary.min(1024);
    let reaches = |sorted: &Tensor| sorted.sum_dim_intlist(-1, false, Kind::Float).ge(top_p).all();
    let mut sorted = None;
    if probabilities.device() == Device::Cpu {
        let (likeliest, _) = probabilities.topk(tried, -1, true, true);
        let is_enough = tried == vocabulary || reaches(&likeliest).int64_value(&[]) != 0;
        sorted = is_enough.then_some(likeliest);
    }
    // On a device the question would wait for it, and sorting costs little.
    let sorted = sorted.unwrap_or_else(|| probabilities.sort(-1, true).0);
    let before = sorted.cumsum(-1, Kind::Float) - &sorted;
    let last = sorted.masked_fill(&before.ge(top_p), f64::INFINITY).amin(-1, true);
    probabilities.masked_fill(&probabilities.lt_tensor(&last), 0.)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const EVEN: i64 = 10_000;

    /// How often each token comes for `EVEN` uniform numbers spread evenly over [0, 1).
    fn counts(logits: &[f32], temperature: f64, top_p: f64) -> Vec<i64> {
        counts_of(
            logits,
            &Sampling { temperature, top_p, top_k: None, max_new_tokens: 1, seed: 0, fused: false },
        )
    }

    fn counts_of(logits: &[f32], sampling: &Sampling) -> Vec<i64> {
        let uniforms = (Tensor::arange(EVEN, (Kind::Float, Device::Cpu)) + 0.5) / EVEN;
        let rows = Tensor::from_slice(logits).unsqueeze(0).expand([EVEN, -1], false);
        let drawn = sample(&rows, &uniforms, sampling).next;
        Vec::try_from(drawn.bincount(None::<Tensor>, logits.len() as i64)).unwrap()
    }

    fn near(counts: &[i64], probabilities: &[f64]) {
        for (&count, p) in counts.iter().zip(probabilities) {
            assert!((count as f64 - p * EVEN as f64).abs() <= 2., "{counts:?}");
        }
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let p: [f64; 5] = [0.1, 0.4, 0., 0.2, 0.3];
        let logits = p.map(|p| p.ln() as f32 + 3.);
        near(&counts(&logits, 1., 1.), &p);
        let squares = p.map(|p| p * p / 0.3);
        near(&counts(&logits, 0.5, 1.), &squares);
        near(&counts(&logits, 0., 1.), &[0., 1., 0., 0., 0.]);
    }

    #[test]
    fn the_nucleus_is_the_fewest_tokens_that_reach_top_p() {
        let p: [f64; 5] = [0.1, 0.4, 0., 0.2, 0.3];
        let logits = p.map(|p| p.ln() as f32);
        near(&counts(&logits, 1., 0.95), &p);
        near(&counts(&logits, 1., 0.85), &[0., 4. / 9., 0., 2. / 9., 3. / 9.]);
        near(&counts(&logits, 1., 0.65), &[0., 4. / 7., 0., 0., 3. / 7.]);
        near(&counts(&logits, 1., 0.01), &[0., 1., 0., 0., 0.]);
        // Tokens as likely as the last one that is needed are all in.
        near(&counts(&[0.; 4], 1., 0.3), &[0.25; 4]);
    }

    #[test]
    fn top_k_keeps_the_likeliest_and_top_p_looks_at_what_is_left() {
        let p: [f64; 5] = [0.1, 0.4, 0., 0.2, 0.3];
        let logits = p.map(|p| p.ln() as f32);
        let counts = |top_k: usize, top_p: f64| {
            counts_of(
                &logits,
                &Sampling {
                    temperature: 1.,
                    top_p,
                    top_k: Some(top_k),
                    max_new_tokens: 1,
                    seed: 0,
                    fused: false,
                },
            )
        };
        near(&counts(1, 1.), &[0., 1., 0., 0., 0.]);
        near(&counts(3, 1.), &[0., 4. / 9., 0., 2. / 9., 3. / 9.]);
        near(&counts(9, 1.), &p);
        // Of 4/9, 3/9, 2/9 the first two reach 0.7; of the whole distribution they would not reach 0.75.
        near(&counts(3, 0.7), &[0., 4. / 7., 0., 0., 3. / 7.]);
        near(&counts(3, 0.75), &[0., 4. / 7., 0., 0., 3. / 7.]);
    }

    #[test]
    fn a_flat_nucleus_is_wider_than_the_likeliest_thousand() {
        let logits: Vec<f32> = (0..3000).map(|i| if i % 3 == 0 { -1e-3 } else { 0. }).collect();
        let drawn = counts(&logits, 1., 0.66);
        assert!(drawn.iter().enumerate().all(|(i, &count)| (count == 0) == (i % 3 == 0)), "{drawn:?}");
    }
}
