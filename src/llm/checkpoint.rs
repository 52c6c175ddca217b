//! Gradients with less memory: the forward pass keeps each layer's input alone, the backward pass computes the layer
//! again from it.

use tch::Tensor;

use super::model::{Model, Rotation, bias, causal_bias, masked_tokens, positions};
use crate::{Error, Result};

/// A forward pass whose layers are computed once more on the way back.
///
/// The loss is taken of [`Checkpointed::hidden`], its `backward` called, and then [`Checkpointed::backward`]: after that
/// the parameters have the gradients that they would have had without this.
#[derive(Debug)]
pub struct Checkpointed<'a> {
    model: &'a Model,
    tokens: Tensor,
    rotation: Rotation,
    bias: Tensor,
    /// Of each layer, and last of the final norm.
    inputs: Vec<Tensor>,
    hidden: Tensor,
}

impl Model {
    /// As [`Model::hidden`], for a backward pass with less memory.
    pub fn checkpointed(&self, tokens: &Tensor, attention_mask: &Tensor) -> Checkpointed<'_> {
        let tokens = masked_tokens(tokens, attention_mask);
        self.checkpointed_with(&tokens, &positions(attention_mask), causal_bias(attention_mask, self.kind()))
    }

    /// As [`Model::hidden_at`], for a backward pass with less memory.
    pub fn checkpointed_at(&self, tokens: &Tensor, positions: &Tensor, visible: &Tensor) -> Checkpointed<'_> {
        self.checkpointed_with(tokens, positions, bias(&visible.unsqueeze(1), self.kind()))
    }

    fn checkpointed_with(&self, tokens: &Tensor, positions: &Tensor, bias: Tensor) -> Checkpointed<'_> {
        let rotation = Rotation::new(positions, &self.frequencies);
        let (inputs, hidden) = tch::no_grad(|| {
            let mut inputs = vec![self.embed(tokens)];
            for layer in &self.layers {
                let x = &inputs[inputs.len() - 1];
                inputs.push(layer.forward(self.config(), x, &rotation, &bias, |k, v| (k, v)));
            }
            let hidden = self.last_norm(&inputs[inputs.len() - 1]);
            (inputs, hidden)
        });
        let tokens = tokens.shallow_clone();
        Checkpointed { model: self, tokens, rotation, bias, inputs, hidden: hidden.set_requires_grad(true) }
    }
}

impl Checkpointed<'_> {
    /// The hidden states after the final norm, `[B, S, H]`: a leaf that gathers the gradient of the loss.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Carries the gradient that `hidden` has gathered back to the parameters, from the last layer to the first.
    ///
    /// # Errors
    /// `input` if it has none: the loss's own `backward` comes first.
    pub fn backward(mut self) -> Result<()> {
        let gradient = self.hidden.grad();
        if !gradient.defined() {
            let problem = "has no gradient yet; call backward on a loss of it first";
            return Err(Error::input("hidden", problem));
        }
        tch::with_grad(|| {
            let mut gradient = self.through_last(gradient, |run, x| run.model.last_norm(x));
            for layer in self.model.layers.iter().rev() {
                gradient = self.through_last(gradient, |run, x| {
                    layer.forward(run.model.config(), x, &run.rotation, &run.bias, |k, v| (k, v))
                });
            }
            if self.model.embeds_with_grad() {
                inject(&self.model.embed(&self.tokens), &gradient);
            }
        });
        Ok(())
    }

    /// The gradient of the last kept input, which is dropped, from that of what `f` makes of it.
    fn through_last(&mut self, gradient: Tensor, f: impl Fn(&Self, &Tensor) -> Tensor) -> Tensor {
        let Some(input) = self.inputs.pop() else { return gradient };
        let input = input.set_requires_grad(true);
        inject(&f(self, &input), &gradient);
        input.grad()
    }
}

/// A backward pass that starts with this gradient of `output`.
fn inject(output: &Tensor, gradient: &Tensor) {
    (output * gradient).sum(output.kind()).backward();
}
