//! The formulas of [`crate::torch::logprob`] asked of a fused [`Head`]: the logits are the hidden states of a head whose
//! weight is the identity.

use tch::{Kind, Tensor, no_grad};

use super::head::{Head, ScoreGradients};
use crate::axes::Axes;
use crate::options::Softmax;
use crate::torch::logprob::TokenLogprob;
use crate::{Error, Result};

/// As [`crate::torch::logprob::token`].
///
/// No product gives the logit of an entry that is ruled out, -inf, and with the identity it would be NaN for its
/// neighbours. The head gets a finite number in its place, so low that its probability is 0; what the head cannot say
/// then, that the token itself or every entry is ruled out, is said here.
///
/// # Errors
/// As there.
pub fn token(logits: &Tensor, tokens: &Tensor, options: &Softmax) -> Result<TokenLogprob> {
    options.check()?;
    let axes = Axes::default().bind("logits", &["B", "T", "V"], &logits.size())?;
    axes.bind("tokens", &["B", "T"], &tokens.size())?;
    let rows = Rows::of(logits, options);
    let [weight, targets] = [rows.identity(), tokens.flatten(0, -1)];
    let head = Head::new(&weight, options)?;
    let of_tokens = |error| match error {
        Error::Index { index, got, limit, .. } => {
            Error::Index { argument: "tokens".to_owned(), index, got, limit }
        }
        Error::Input { problem, .. } => Error::input("tokens", problem),
        other => other,
    };
    let scores = head.scores(&rows.finite, &targets).map_err(of_tokens)?;

    let logp = rows.differentiable(&head, &targets, scores.logp, |ones, zeros| ScoreGradients {
        logp: ones,
        entropy: Some(zeros),
    })?;
    let ruled_out = rows.ruled_out.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    // Added, not filled in: the gradient by the other logits is the same.
    let below = logp.zeros_like().masked_fill(&ruled_out, f64::NEG_INFINITY);
    let entropy = rows.entropy(&head, &targets, scores.entropy)?;
    let in_place = |of_rows: Tensor| of_rows.view_as(tokens);
    Ok(TokenLogprob { logp: in_place(logp + below), entropy: in_place(entropy) })
}

/// As [`crate::torch::logprob::entropy`], with the limits of [`token`].
///
/// # Errors
/// As there; `input` for a vocabulary of no entries.
pub fn entropy(logits: &Tensor, options: &Softmax) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("logits", &["B", "T", "V"], &logits.size())?;
    let size = logits.size();
    if size[2] == 0 && size[0] * size[1] > 0 {
        return Err(Error::input("logits", "has no entries to draw a token from"));
    }
    let rows = Rows::of(logits, options);
    let weight = rows.identity();
    let head = Head::new(&weight, options)?;
    let targets = Tensor::zeros([size[0] * size[1]], (Kind::Int64, logits.device()));
    let entropy = head.scores(&rows.finite, &targets)?.entropy;
    Ok(rows.entropy(&head, &targets, entropy)?.view(&size[..2]))
}

/// Logits as rows, `[N, V]`.
struct Rows {
    /// In single precision at least; the gradient's way.
    logits: Tensor,
    /// The same with a finite number for -inf, a constant.
    finite: Tensor,
    /// Where -inf stood.
    ruled_out: Tensor,
}

impl Rows {
    fn of(logits: &Tensor, options: &Softmax) -> Self {
        let size = logits.size();
        let kind = if logits.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let logits = logits.to_kind(kind).reshape([size[0] * size[1], size[2]]);
        let ruled_out = logits.eq(f64::NEG_INFINITY);
        // Half of the lowest number, also after the division by the temperature.
        let lowest = if kind == Kind::Double { f64::MIN } else { f64::from(f32::MIN) };
        let finite = logits.detach().masked_fill(&ruled_out, 0.5 * lowest * options.temperature.min(1.0));
        Self { logits, finite, ruled_out }
    }

    fn identity(&self) -> Tensor {
        Tensor::eye(self.finite.size()[1], (self.finite.kind(), self.finite.device()))
    }

    /// Of rows with at least one entry that is not ruled out; NaN elsewhere.
    fn entropy(&self, head: &Head, targets: &Tensor, entropy: Tensor) -> Result<Tensor> {
        let entropy = self.differentiable(head, targets, entropy, |ones, zeros| ScoreGradients {
            logp: zeros,
            entropy: Some(ones),
        })?;
        Ok(entropy.masked_fill(&self.ruled_out.all_dim(1, false), f64::NAN))
    }

    /// The same numbers with the head's gradient by the logits: a token's scores depend on its own row alone.
    fn differentiable(
        &self,
        head: &Head,
        targets: &Tensor,
        scores: Tensor,
        which: impl Fn(Tensor, Tensor) -> ScoreGradients,
    ) -> Result<Tensor> {
        if !self.logits.requires_grad() {
            return Ok(scores);
        }
        let gradients = which(scores.ones_like(), scores.zeros_like());
        let by_logits = head.gradients(&self.finite, targets, None, &gradients)?;
        // 0 with the gradient 1 by each logit, -inf too; a difference of the logits would be NaN there.
        let mut nothing = &self.logits + 0.0;
        let _ = no_grad(|| nothing.zero_());
        Ok(scores + (nothing * by_logits).sum_dim_intlist(1i64, false, None))
    }
}
