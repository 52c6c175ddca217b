//! Which samples of a group are trained on: keep ratios and compute_new_adv.
