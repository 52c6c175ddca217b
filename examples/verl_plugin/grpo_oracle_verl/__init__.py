"""GROUP-PPO and compute_new_adv for verl 0.9.1, registered with verl's own registries as this module is imported:

    algorithm.adv_estimator=group_ppo            GROUP-PPO's endpoints and their advantages
    algorithm.adv_estimator=compute_new_adv      GRPO's advantages of the responses that a filter keeps
    actor_rollout_ref.actor.policy_loss.loss_mode=group_ppo
                                                 verl's clipped loss over the tokens that these two train on

verl imports it, in the driver and in every worker, by `actor_rollout_ref.model.external_lib=grpo_oracle_verl`.
"""

from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

from . import estimators, loss

VERSION = "0.1.0"

register_adv_est("group_ppo")(estimators.group_ppo)
register_adv_est("compute_new_adv")(estimators.compute_new_adv)
register_policy_loss("group_ppo")(loss.marked_tokens)
