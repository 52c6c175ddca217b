//! Scores and gradients of responses by the fused head, which never holds the logits. The loss's gradient enters the
//! model's graph at the hidden states, and is added to that of the head's weight directly.

use std::ops::Range;

use tch::{Kind, Tensor, no_grad, with_grad};

use super::score::{Responses, Scores};
use crate::axes::Axes;
use crate::fused::head::{self, Head, ScoreGradients};
use crate::llm::{Checkpointed, Model};
use crate::options::Softmax;
use crate::{Error, Result};

/// Responses after the model's layers and before its head.
#[derive(Debug)]
pub struct BeforeHead<'a> {
    responses: &'a Responses,
    weight: &'a Tensor,
    options: Softmax,
    /// `[N, H]`, with the layers' graph.
    states: Tensor,
    /// `[N]`.
    targets: Tensor,
    checkpointed: Option<Checkpointed<'a>>,
}

impl Responses {
    /// The responses up to the head, to be scored by the fused one; as [`Responses::scored`] otherwise.
    pub fn before_head<'a>(
        &'a self,
        model: &'a Model,
        temperature: f64,
        checkpointing: bool,
    ) -> BeforeHead<'a> {
        let (states, checkpointed) = self.states_and_way_back(model, checkpointing);
        let (weight, options) = (model.head_weight(), Softmax::at(temperature));
        BeforeHead { responses: self, weight, options, states, targets: self.targets(), checkpointed }
    }
}

impl BeforeHead<'_> {
    /// The scores, constants.
    ///
    /// # Errors
    /// As [`Head::scores`].
    pub fn scores(&self) -> Result<Scores> {
        let scores = self.head()?.scores(&self.states.detach(), &self.targets)?;
        Ok(self.spread(&scores))
    }

    /// The scores; adds the gradient of a loss, in which each token's part depends on its own scores alone, to the
    /// parameters'. `loss` is as in [`Head::with_gradients`]; its tokens are in the order of [`Responses::gather`].
    ///
    /// # Errors
    /// As [`Head::with_gradients`]; `input` if nothing of the model is trained.
    pub fn backward(
        self,
        loss: impl FnMut(Range<i64>, &head::Scores) -> Result<ScoreGradients>,
    ) -> Result<Scores> {
        let (head, states) = (self.head()?, self.states.detach());
        let output = self.with_grad_weight(head.kind(), |grad_weight| {
            head.with_gradients(&states, &self.targets, grad_weight, loss)
        })?;
        let scores = self.spread(&output.scores);
        self.through_layers(&output.grad_hidden)?;
        Ok(scores)
    }

    /// Adds the gradient of any loss of [`BeforeHead::scores`] to the parameters', given that by the log-probabilities
    /// and, where they are in the loss, by the entropies, `[b, T]`. Computes the logits once more.
    ///
    /// # Errors
    /// As [`Head::gradients`]; `shape` if a gradient is not of the scores' shape; `input` if nothing of the model is
    /// trained.
    pub fn backward_from(self, grad_logp: &Tensor, grad_entropy: Option<&Tensor>) -> Result<()> {
        let gradients = ScoreGradients {
            logp: self.gathered("grad_logp", grad_logp)?,
            entropy: grad_entropy.map(|entropy| self.gathered("grad_entropy", entropy)).transpose()?,
        };
        let (head, states) = (self.head()?, self.states.detach());
        let grad_hidden = self.with_grad_weight(head.kind(), |grad_weight| {
            head.gradients(&states, &self.targets, grad_weight, &gradients)
        })?;
        self.through_layers(&grad_hidden)
    }

    fn head(&self) -> Result<Head<'_>> {
        Head::new(self.weight, &self.options)
    }

    fn spread(&self, scores: &head::Scores) -> Scores {
        let spread = |of_tokens: &Tensor| self.responses.spread(of_tokens);
        Scores { logp: spread(&scores.logp), entropy: spread(&scores.entropy) }
    }

    fn gathered(&self, argument: &str, of_places: &Tensor) -> Result<Tensor> {
        Axes::default().bind("response_mask", &["b", "T"], &self.responses.response_mask.size())?.bind(
            argument,
            &["b", "T"],
            &of_places.size(),
        )?;
        Ok(self.responses.gather(&of_places.detach()))
    }

    /// Calls `f` with what is to be added to for the weight's gradient, if it is trained.
    fn with_grad_weight<T>(&self, kind: Kind, f: impl FnOnce(Option<&mut Tensor>) -> Result<T>) -> Result<T> {
        if !self.weight.requires_grad() {
            if !self.states.requires_grad() {
                return Err(Error::input("model", "has nothing to train; call set_trainable first"));
            }
            return f(None);
        }
        let mut gradient = grad(self.weight);
        if gradient.kind() == kind {
            return f(Some(&mut gradient));
        }
        // A half-precision sum would lose what a chunk adds to those before it.
        let mut sum = Tensor::zeros(self.weight.size(), (kind, self.weight.device()));
        let output = f(Some(&mut sum))?;
        let _ = no_grad(|| gradient.g_add_(&sum));
        Ok(output)
    }

    fn through_layers(self, grad_hidden: &Tensor) -> Result<()> {
        if self.states.requires_grad() {
            // The gradient of this sum by the states is `grad_hidden`: tch's `backward` takes none itself.
            with_grad(|| (&self.states * grad_hidden).sum(grad_hidden.kind()).backward());
        }
        self.checkpointed.map_or(Ok(()), Checkpointed::backward)
    }
}

/// A leaf's gradient, which shares its storage with what is returned; zeros are put where there was none.
fn grad(leaf: &Tensor) -> Tensor {
    if !leaf.grad().defined() {
        with_grad(|| leaf.narrow(0, 0, 0).sum(leaf.kind()).backward());
    }
    leaf.grad()
}
