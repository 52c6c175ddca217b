//! Linear maps for inputs by which no gradient is wanted, laid out once and used many times: maps that read the same
//! input are one product, and on the CPU the weights stand in the order that oneDNN's kernels read them in.
//!
//! libtorch multiplies single precision by MKL, which puts the whole weight into its own order in every call: for the few
//! rows of a decoding step that costs as much as the product. Besides, MKL keeps its best kernels for Intel's
//! processors. oneDNN is in libtorch too; tch has no name for it, but libtorch's C interface does.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::sync::OnceLock;

use libloading::os::unix::Library;
use tch::{Device, Kind, Tensor, no_grad};

use crate::axes::Axes;
use crate::{Error, Result};

/// Linear maps of one input, `x weight^T + bias`.
#[derive(Debug)]
pub struct Joined {
    /// `[out, in]`; in oneDNN's order if it is packed.
    weight: Tensor,
    is_packed: bool,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Joined {
    /// Maps of one input as one: what they give stands side by side. Each is a weight `[out, in]` and, if it has one, a
    /// bias `[out]`; all are of one kind and on one device. No graph knows of what is made here, and changes of the
    /// weights may or may not show in it.
    ///
    /// # Errors
    /// `rank` or `shape` if the shapes do not fit, `input` if there is no map.
    pub fn of(maps: &[(&Tensor, Option<&Tensor>)]) -> Result<Self> {
        let Some((first, _)) = maps.first() else { return Err(Error::input("maps", "are none")) };
        let width = Axes::default().bind("weight", &["out", "in"], &first.size())?.length("in");
        for (weight, bias) in maps {
            let axes = Axes::default().bind("input", &["in"], &[width])?;
            let axes = axes.bind("weight", &["out", "in"], &weight.size())?;
            if let Some(bias) = bias {
                axes.bind("bias", &["out"], &bias.size())?;
            }
        }
        Ok(no_grad(|| {
            let weight = match maps {
                [(weight, _)] => weight.detach(),
                _ => Tensor::cat(&maps.iter().map(|(weight, _)| weight.detach()).collect::<Vec<_>>(), 0),
            };
            let bias = maps.iter().any(|(_, bias)| bias.is_some()).then(|| {
                let own = |(weight, bias): &(&Tensor, Option<&Tensor>)| match bias {
                    Some(bias) => bias.detach(),
                    None => Tensor::zeros([weight.size()[0]], (weight.kind(), weight.device())),
                };
                Tensor::cat(&maps.iter().map(own).collect::<Vec<_>>(), 0)
            });
            match packed(&weight) {
                Some(weight) => Self { weight, is_packed: true, bias },
                None => Self { weight, is_packed: false, bias },
            }
        }))
    }

    /// Of inputs `[.., in]`, of the weights' kind, `[.., out]`. Without a gradient.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        no_grad(|| {
            if !self.is_packed {
                return x.linear(&self.weight, self.bias.as_ref());
            }
            let x = x.contiguous();
            let by_onednn =
                OneDnn::found().and_then(|library| library.product(&x, &self.weight, self.bias.as_ref()));
            // It has worked on these weights before; what may have failed is an allocation.
            by_onednn.unwrap_or_else(|| x.linear(&self.weight.to_dense(None, false), self.bias.as_ref()))
        })
    }
}

/// A weight in oneDNN's order, if it can be multiplied by so.
fn packed(weight: &Tensor) -> Option<Tensor> {
    let is_fit = weight.device() == Device::Cpu && weight.kind() == Kind::Float && weight.numel() > 0;
    let library = OneDnn::found().filter(|_| is_fit)?;
    let packed = library.reorder(&weight.contiguous())?;
    let probe = Tensor::zeros([1, weight.size()[1]], (Kind::Float, Device::Cpu));
    library.product(&probe, &packed, None).map(|_| packed)
}

/// libtorch's C functions that lead to oneDNN.
struct OneDnn {
    call: Call,
    linear: PointwiseLinear,
}

/// A tensor in libtorch's C interface: the same pointer as in tch.
type Handle = *mut c_void;
/// `aoti_torch_call_dispatcher`: an operator's name, its overload's, and the arguments, in whose place the results come.
type Call = unsafe extern "C" fn(*const c_char, *const c_char, *mut u64) -> i32;
/// `aoti_torch_cpu__linear_pointwise`: input, weight, bias, what is done to the result and with which numbers, and the
/// result.
type PointwiseLinear = unsafe extern "C" fn(
    Handle,
    Handle,
    *const Handle,
    *const c_char,
    *const *const f64,
    i64,
    *const *const c_char,
    *mut Handle,
) -> i32;

const REORDER: &CStr = c"mkldnn::_reorder_linear_weight";

impl OneDnn {
    /// They are looked for by name, because a libtorch that was built without oneDNN does not have them.
    fn found() -> Option<&'static Self> {
        static FOUND: OnceLock<Option<OneDnn>> = OnceLock::new();
        let find = || {
            let process = Library::this();
            // SAFETY: libtorch declares the functions so, in `aoti_torch/c/shim.h` and `shim_cpu.h`.
            unsafe {
                let call = *process.get::<Call>(b"aoti_torch_call_dispatcher\0").ok()?;
                let linear = *process.get::<PointwiseLinear>(b"aoti_torch_cpu__linear_pointwise\0").ok()?;
                Some(Self { call, linear })
            }
        };
        FOUND.get_or_init(find).as_ref()
    }

    /// A contiguous f32 weight on the CPU in oneDNN's order.
    fn reorder(&self, weight: &Tensor) -> Option<Tensor> {
        let given = weight.shallow_clone();
        // The weight, and no word of how many rows will be multiplied by it.
        let mut stack = [given.as_ptr() as u64, 0];
        // SAFETY: the operator takes a tensor and an optional number and gives a tensor, whose pointer is ours then; the
        // call makes an end of the tensor that it is given, so nobody else may.
        unsafe {
            std::mem::forget(given);
            let code = (self.call)(REORDER.as_ptr(), c"".as_ptr(), stack.as_mut_ptr());
            (code == 0 && stack[0] != 0).then(|| Tensor::from_ptr(stack[0] as *mut _))
        }
    }

    /// A contiguous input times a reordered weight.
    fn product(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Option<Tensor> {
        let handle = |tensor: &Tensor| tensor.as_ptr().cast_mut().cast::<c_void>();
        let bias = bias.map(handle);
        let bias = bias.as_ref().map_or(ptr::null(), ptr::from_ref);
        let mut product = ptr::null_mut();
        // SAFETY: the tensors outlive the call, which reads them and writes a pointer that is ours then.
        unsafe {
            let (nothing, numbers, algorithm) = (c"none".as_ptr(), ptr::null(), ptr::null());
            let (x, weight) = (handle(x), handle(weight));
            let code = (self.linear)(x, weight, bias, nothing, numbers, 0, algorithm, &raw mut product);
            (code == 0 && !product.is_null()).then(|| Tensor::from_ptr(product.cast()))
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::Joined;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu))
    }

    #[test]
    fn joined_maps_give_what_each_gives() {
        let (a, b, bias) = (random(&[5, 12]), random(&[3, 12]), random(&[3]));
        for (kind, within) in [(Kind::Double, 1e-14), (Kind::Float, 1e-5), (Kind::BFloat16, 0.2)] {
            let [own_a, own_b, own_bias] = [&a, &b, &bias].map(|of| of.to_kind(kind));
            let joined = Joined::of(&[(&own_a, None), (&own_b, Some(&own_bias))]).expect("they fit");
            assert_eq!(joined.is_packed, kind == Kind::Float);
            for rows in [&[0_i64, 12][..], &[1, 12], &[4, 7, 12]] {
                let x = random(rows);
                let plain = Tensor::cat(&[x.matmul(&a.tr()), x.matmul(&b.tr()) + &bias], -1);
                let out = joined.forward(&x.to_kind(kind));
                assert_eq!((out.size(), out.kind()), (plain.size(), kind));
                let off = (out.to_kind(Kind::Double) - &plain).abs();
                assert!(off.numel() == 0 || off.max().double_value(&[]) < within, "{kind:?}: {off}");
            }
        }
    }

    #[test]
    fn what_is_no_tensor_in_one_piece_is_read_as_what_it_is() {
        let weight = Tensor::randn([6, 4], (Kind::Float, Device::Cpu));
        let x = Tensor::randn([4, 9], (Kind::Float, Device::Cpu)).tr();
        let out = Joined::of(&[(&weight, None)]).expect("it fits").forward(&x);
        assert!(out.allclose(&x.matmul(&weight.tr()), 1e-5, 1e-6, false));
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        let of = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        assert!(Joined::of(&[]).is_err());
        assert!(Joined::of(&[(&of(&[2, 3]), None), (&of(&[2, 4]), None)]).is_err());
        assert!(Joined::of(&[(&of(&[2, 3]), Some(&of(&[3])))]).is_err());
        assert!(Joined::of(&[(&of(&[2]), None)]).is_err());
    }
}
