//! Laws of `sampling.*`.

use grpo_oracle::options::{Distribution, Dynamic, GroupNorm, Repeat, Resample};
use grpo_oracle::reference::{advantage, sampling};
use ndarray::{Array1, Array2};

use super::{Unit, hold};

fn probs(logits: &[f64], options: &Distribution) -> Vec<f64> {
    let row = Array2::from_shape_fn((1, logits.len()), |(_, v)| logits[v]);
    sampling::distribution(&row, options).expect("a distribution").into_raw_vec_and_offset().0
}

#[test]
fn a_filtered_distribution_is_the_plain_one_on_fewer_tokens() {
    fn law(logits: Vec<i8>, temperature: Unit, top_k: u8, top_p: Unit) -> bool {
        if logits.is_empty() {
            return true;
        }
        let logits: Vec<f64> = logits.iter().map(|&z| f64::from(z) / 16.0).collect();
        let temperature = temperature.0.abs() + 0.1;
        let (top_k, top_p) = (usize::from(top_k % 8) + 1, top_p.0.abs().max(0.01));
        let plain = probs(&logits, &Distribution { temperature, ..Distribution::plain() });
        let filtered = probs(&logits, &Distribution { temperature, top_k: Some(top_k), top_p: Some(top_p) });
        let kept: Vec<usize> = (0..logits.len()).filter(|&v| filtered[v] > 0.0).collect();
        let mass: f64 = kept.iter().map(|&v| plain[v]).sum();
        let least = kept.iter().map(|&v| logits[v]).fold(f64::INFINITY, f64::min);
        let most_dropped = (0..logits.len())
            .filter(|v| !kept.contains(v))
            .map(|v| logits[v])
            .fold(f64::NEG_INFINITY, f64::max);
        (plain.iter().sum::<f64>() - 1.0).abs() < 1e-12
            && (filtered.iter().sum::<f64>() - 1.0).abs() < 1e-12
            && (1..=top_k).contains(&kept.len())
            && most_dropped <= least
            && kept.iter().all(|&v| (filtered[v] - plain[v] / mass).abs() < 1e-12)
    }
    hold(law as fn(Vec<i8>, Unit, u8, Unit) -> bool);
}

#[test]
fn cold_sampling_is_greedy() {
    fn law(logits: Vec<i8>) -> bool {
        let logits: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
        let greedy = probs(&logits, &Distribution::greedy());
        let one = probs(&logits, &Distribution { top_k: Some(1), ..Distribution::plain() });
        greedy == one
    }
    hold(law as fn(Vec<i8>) -> bool);
}

/// What dynamic sampling keeps is what has an advantage, and nothing else.
#[test]
fn a_group_is_kept_if_and_only_if_it_has_an_advantage() {
    fn law(rewards: Vec<(bool, u8)>) -> bool {
        let group = Array1::from_iter(rewards.iter().map(|&(_, group)| i64::from(group % 3)));
        let rewards = Array1::from_iter(rewards.iter().map(|&(right, _)| f64::from(u8::from(right))));
        let options = Dynamic { singleton: grpo_oracle::options::DynamicSingleton::Drop, ..Dynamic::dapo() };
        let kept = sampling::dynamic(&rewards, &group, &options).expect("a filter").keep;
        let centred = GroupNorm { singleton: grpo_oracle::options::Singleton::Zero, ..GroupNorm::dr_grpo() };
        let advantages = advantage::group_norm(&rewards, &group, &centred).expect("advantages");
        kept.iter().zip(&advantages).all(|(&kept, &a)| (kept == 1.0) == (a != 0.0))
    }
    hold(law as fn(Vec<(bool, u8)>) -> bool);
}

/// Drawn one at a time, the samples that are taken are those that are taken when all are there.
#[test]
fn later_samples_do_not_change_earlier_ones() {
    fn law(rewards: Vec<bool>, group_size: u8, more: u8) -> bool {
        let rewards: Vec<f64> = rewards.iter().map(|&right| f64::from(u8::from(right))).collect();
        let group_size = usize::from(group_size % 4) + 1;
        let options =
            Resample { group_size, max_samples: group_size + usize::from(more % 4), tolerance: 1e-6 };
        let of = |count: usize| {
            let group = Array1::zeros(count);
            sampling::resample(&Array1::from(rewards[..count].to_vec()), &group, &options).expect("samples")
        };
        let all = of(rewards.len());
        (1..rewards.len()).all(|count| {
            let some = of(count);
            let next_is_wanted = all.taken[count] == 1.0;
            some.taken.iter().eq(all.taken.iter().take(count)) && (some.unfinished == 1.0) == next_is_wanted
        })
    }
    hold(law as fn(Vec<bool>, u8, u8) -> bool);
}

#[test]
fn repeated_prompts_form_groups_of_n() {
    fn law(prompts: u8, n: u8) -> bool {
        let (prompts, n) = (usize::from(prompts % 6), usize::from(n % 5) + 1);
        let index = Array1::from_shape_fn(prompts, |i| i as f64);
        let each = sampling::repeat(&index, &Repeat::verl(n)).expect("prompts");
        let all = sampling::repeat(&index, &Repeat { n, interleave: false }).expect("prompts");
        let in_order = each.as_slice().is_some_and(|each| each.is_sorted());
        let mut sorted = all.to_vec();
        sorted.sort_by(f64::total_cmp);
        in_order && sorted == each.to_vec() && each.len() == prompts * n
    }
    hold(law as fn(u8, u8) -> bool);
}
